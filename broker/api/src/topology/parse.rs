//! From text to a checked topology, with the line of whatever is wrong.

use std::ops::Range;

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Problem, TOPOLOGY_LEN_MAX, Topology, TopologyError, TopologyKind};

const TOP_KEYS: &[&str] = &["network", "address_set", "group", "volume", "port"];

const TRUNK_KEYS: &[&str] = &["parent", "vlan"];

const RULE_KEYS: &[&str] = &[
    "direction",
    "protocol",
    "ports",
    "icmp",
    "from",
    "to",
    "group",
    "address_set",
    "ethertype",
    "action",
    "priority",
    "log",
    "name",
];

/// Keys of the format that come with later versions: refused by name, so that nobody takes them to be in force.
const LATER_KEYS: [(Option<TopologyKind>, &str, &str); 2] = [
    (Some(TopologyKind::Network), "encryption", "encryption of networks"),
    (Some(TopologyKind::Volume), "encryption", "encryption of volumes"),
];

/// Likewise, in a volume's `backend`.
const LATER_BACKEND: (&str, &str) = ("nvme_tcp", "an NVMe/TCP backend");

fn keys_of(kind: TopologyKind) -> &'static [&'static str] {
    match kind {
        TopologyKind::Network => &["name", "subnets", "vlan"],
        TopologyKind::Volume => &["name", "size", "backend", "read_only", "card"],
        TopologyKind::AddressSet => &["name", "addresses"],
        TopologyKind::Group => &["name", "egress", "rule"],
        TopologyKind::Port => &["name", "network", "mac", "addresses", "groups", "trunk", "card"],
    }
}

/// Reads and checks a topology file. Cards are not looked at: see [`Topology::place`].
///
/// # Errors
/// The first problem found, with its object, line and remedy.
pub fn parse(text: &str) -> Result<Topology, TopologyError> {
    if text.len() > TOPOLOGY_LEN_MAX {
        return Err(TopologyError {
            object: None,
            line: None,
            problem: Problem::TooLong(text.len()),
        });
    }
    let document = DeTable::parse(text).map_err(|e| at(text, None, e.span(), Problem::Syntax(clean(e.message()))))?;
    let sections = sections(text, document.get_ref())?;
    let topology =
        Topology::deserialize(toml::Deserializer::from(document)).map_err(|e| value_error(text, &sections, &e))?;
    topology.check().map_err(|e| locate(text, &sections, e))?;
    Ok(topology)
}

/// One `[[…]]` of the file.
struct Section {
    label: String,
    span: Range<usize>,
    /// Where each rule of a group is.
    rules: Vec<Range<usize>>,
}

/// Finds the sections, and refuses keys that they cannot have.
fn sections(text: &str, document: &DeTable<'_>) -> Result<Vec<Section>, TopologyError> {
    check_keys(text, document, None, None, TOP_KEYS)?;
    let mut sections = Vec::new();
    for kind in [
        TopologyKind::Network,
        TopologyKind::AddressSet,
        TopologyKind::Group,
        TopologyKind::Volume,
        TopologyKind::Port,
    ] {
        let Some(list) = document.get(kind.name()) else {
            continue;
        };
        let wrong = || {
            let problem = Problem::Value(format!("'{0}' is a list of tables: write [[{0}]]", kind.name()));
            at(text, None, Some(list.span()), problem)
        };
        for (i, item) in list.get_ref().as_array().ok_or_else(wrong)?.iter().enumerate() {
            let table = item.get_ref().as_table().ok_or_else(wrong)?;
            let label = match table.get("name").and_then(|name| name.get_ref().as_str()) {
                Some(name) => format!("{} {name}", kind.name()),
                None => format!("{} number {}", kind.name(), i + 1),
            };
            check_keys(text, table, Some(kind), Some(&label), keys_of(kind))?;
            match kind {
                TopologyKind::Volume => check_backend(text, table, &label)?,
                TopologyKind::Port => {
                    if let Some(trunk) = table.get("trunk").and_then(|trunk| trunk.get_ref().as_table()) {
                        check_keys(text, trunk, None, Some(&label), TRUNK_KEYS)?;
                    }
                }
                TopologyKind::Group => {
                    let rules = rules(text, table, &label)?;
                    sections.push(Section {
                        label,
                        span: item.span(),
                        rules,
                    });
                    continue;
                }
                _ => {}
            }
            sections.push(Section {
                label,
                span: item.span(),
                rules: Vec::new(),
            });
        }
    }
    Ok(sections)
}

/// Finds a group's rules, and refuses keys that they cannot have.
fn rules(text: &str, group: &DeTable<'_>, label: &str) -> Result<Vec<Range<usize>>, TopologyError> {
    let Some(list) = group.get("rule") else {
        return Ok(Vec::new());
    };
    let wrong = || {
        let problem = Problem::Value("'rule' is a list of tables: write [[group.rule]]".to_owned());
        at(text, Some(label), Some(list.span()), problem)
    };
    let mut spans = Vec::new();
    for item in list.get_ref().as_array().ok_or_else(wrong)? {
        let rule = item.get_ref().as_table().ok_or_else(wrong)?;
        check_keys(text, rule, None, Some(label), RULE_KEYS)?;
        spans.push(item.span());
    }
    Ok(spans)
}

fn check_keys(
    text: &str,
    table: &DeTable<'_>,
    kind: Option<TopologyKind>,
    label: Option<&str>,
    known: &'static [&'static str],
) -> Result<(), TopologyError> {
    let unknown = table
        .iter()
        .map(|(key, _)| key)
        .filter(|key| !known.contains(&key.get_ref().as_ref()));
    let Some(key) = unknown.min_by_key(|key| key.span().start) else {
        return Ok(());
    };
    let later = LATER_KEYS
        .iter()
        .find(|(of, later, _)| *of == kind && *later == key.get_ref());
    let problem = match later {
        Some((_, key, feature)) => Problem::Later { key, feature },
        None => Problem::UnknownKey {
            key: key.get_ref().to_string(),
            known,
        },
    };
    Err(at(text, label, Some(key.span()), problem))
}

fn check_backend(text: &str, table: &DeTable<'_>, label: &str) -> Result<(), TopologyError> {
    let backend = table.get("backend").map(Spanned::get_ref).and_then(DeValue::as_table);
    let (key, feature) = LATER_BACKEND;
    match backend.and_then(|keys| keys.get_key_value(key)) {
        None => Ok(()),
        Some((found, _)) => Err(at(
            text,
            Some(label),
            Some(found.span()),
            Problem::Later { key, feature },
        )),
    }
}

/// A value that the types refuse.
fn value_error(text: &str, sections: &[Section], error: &toml::de::Error) -> TopologyError {
    let span = error.span();
    let inside = |s: &&Section, at: usize| s.span.start <= at;
    let label = span.as_ref().and_then(|span| {
        sections
            .iter()
            .filter(|s| inside(s, span.start))
            .max_by_key(|s| s.span.start)
            .map(|s| s.label.as_str())
    });
    at(text, label, span, Problem::Value(clean(error.message())))
}

/// Gives an error of [`Topology::check`] the line of its object; of two of one name, the second; of a rule, its own.
fn locate(text: &str, sections: &[Section], error: TopologyError) -> TopologyError {
    let mut own = sections.iter().filter(|s| Some(&s.label) == error.object.as_ref());
    let section = match error.problem {
        Problem::DuplicateName => own.next_back(),
        _ => own.next(),
    };
    let span = section.map(|s| match &error.problem {
        Problem::Rule { index, .. } => s.rules.get(*index).unwrap_or(&s.span),
        _ => &s.span,
    });
    TopologyError {
        line: span.map(|span| line_of(text, span.start)),
        ..error
    }
}

fn at(text: &str, object: Option<&str>, span: Option<Range<usize>>, problem: Problem) -> TopologyError {
    let line = span.map(|span| line_of(text, span.start));
    TopologyError {
        object: object.map(str::to_owned),
        line,
        problem,
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

/// One line, as an error line has room for.
fn clean(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
