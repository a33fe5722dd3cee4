//! `explain` and `reasons`: why things are as they are.

use std::str::FromStr;

use clap::Args;
use outboard_api::{
    card::{CardState, CardView},
    explain::{DropView, Explanation, Finding, IncidentView},
    trace::ReasonView,
};
use outboard_protocol::id::{Name, ObjectKind};

use super::{show, spelt};
use crate::{error::CliError, options::Global, output};

/// `outboard explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
The conclusion comes first, then what it rests on, from the broker's record down to the rings.
A binding is explained with its port or volume.

Examples:
  outboard explain port/vm1
  outboard explain volume/disk1
  outboard explain binding/port/vm1
  outboard explain port/vm1 --json | jq -r .conclusion")]
pub struct ExplainArgs {
    /// port/NAME, volume/NAME, binding/port/NAME or binding/volume/NAME
    object: Object,
}

/// `outboard reasons`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard reasons
  outboard reasons --card local --json | jq -r '.[].name'")]
pub struct ReasonsArgs {
    /// The card to ask [default: the first that is connected]
    #[arg(long)]
    card: Option<Name>,
}

/// A port or volume, as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    kind: ObjectKind,
    name: Name,
}

impl FromStr for Object {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("binding/").unwrap_or(text);
        let kinds = [("port/", ObjectKind::Port), ("volume/", ObjectKind::Volume)];
        let found = kinds
            .iter()
            .find_map(|(prefix, kind)| Some((*kind, path.strip_prefix(prefix)?)));
        let (kind, name) = found.ok_or_else(|| "write port/NAME or volume/NAME, such as port/vm1".to_owned())?;
        Ok(Self {
            kind,
            name: name.parse().map_err(|e| format!("{e}"))?,
        })
    }
}

/// Explains an object.
///
/// # Errors
/// There is no such object, or the broker is away.
pub async fn explain(global: &Global, args: &ExplainArgs) -> Result<(), CliError> {
    let Object { kind, name } = &args.object;
    let explained: Explanation = global.client()?.get(&format!("/v1/explain/{kind}/{name}")).await?;
    show(global, &explained, text)
}

/// Lists the reasons for which frames are dropped.
///
/// # Errors
/// The broker is away, or the card cannot be asked.
pub async fn reasons(global: &Global, args: &ReasonsArgs) -> Result<(), CliError> {
    let client = global.client()?;
    let card = match &args.card {
        Some(card) => card.clone(),
        None => connected(client.get("/v1/cards").await?)?,
    };
    let reasons: Vec<ReasonView> = client.get(&format!("/v1/cards/{card}/reasons")).await?;
    show(global, &reasons, |reasons| {
        let row = |r: &ReasonView| {
            let counted = if r.at_receiver { "receiver" } else { "sender" };
            [r.name.clone(), counted.to_owned(), r.sentence.clone()]
        };
        let rows = reasons.iter().map(row).collect();
        output::table(["REASON", "COUNTED AT", "WHAT IT MEANS"], rows, "There are no reasons.")
    })
}

/// The first card that can be asked.
fn connected(cards: Vec<CardView>) -> Result<Name, CliError> {
    let found = cards.into_iter().find(|card| card.state == CardState::Connected);
    found.map(|card| card.name).ok_or_else(|| {
        let remedy = "start outboard-dpu on one of those that 'outboard card list' shows";
        CliError::coded(
            "card_away",
            "no card is connected, and only cards know their reasons",
            remedy,
        )
    })
}

fn text(explained: &Explanation) -> String {
    let mut parts = vec![match &explained.remedy {
        Some(remedy) => format!("{}.\n  fix: {remedy}", explained.conclusion),
        None => explained.conclusion.clone(),
    }];
    let finding = |f: &Finding| {
        let mark = match f.health.name() {
            "well" => "ok",
            "note" => "",
            other => other,
        };
        [f.topic.clone(), mark.to_owned(), f.text.clone()]
    };
    parts.push(output::table(
        ["WHAT", "", "FOUND"],
        explained.findings.iter().map(finding).collect(),
        "",
    ));
    if !explained.drops.is_empty() {
        let drop = |d: &DropView| [d.reason.name.clone(), d.frames.to_string(), d.reason.sentence.clone()];
        let rows = explained.drops.iter().map(drop).collect();
        parts.push(output::table(["DROPPED BECAUSE", "FRAMES", "WHAT IT MEANS"], rows, ""));
    }
    if !explained.history.is_empty() {
        let incident = |i: &IncidentView| {
            [
                output::or_dash(i.at),
                i.generation.to_string(),
                spelt(&i.state),
                output::or_dash(i.error.as_ref().map(|e| &e.message)),
            ]
        };
        let rows = explained.history.iter().map(incident).collect();
        parts.push(output::table(["AT", "GENERATION", "STATE", "IN ITS WAY"], rows, ""));
    }
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_written_as_paths() {
        let object = |text: &str| text.parse::<Object>().map(|o| (o.kind, o.name.to_string()));
        assert_eq!(object("port/vm1"), Ok((ObjectKind::Port, "vm1".into())));
        assert_eq!(object("binding/volume/disk1"), Ok((ObjectKind::Volume, "disk1".into())));
        for wrong in ["vm1", "port/", "port/../x", "card/local", "binding/vm1"] {
            assert!(object(wrong).is_err(), "{wrong}");
        }
    }
}
