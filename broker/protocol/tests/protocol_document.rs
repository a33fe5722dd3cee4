//! `PROTOCOL.md` says what the code does: its tables are made from the code and compared.

use std::{fmt::Write as _, fs, path::Path};

use outboard_protocol::{
    binding::{Binding, DRAIN_TIMEOUT_MS, Effect, Event, Fence, Initiator, Now, State, step},
    card::{CARD_MESSAGE_LEN_MAX, CARD_VERSIONS},
    card_side::{HIGH_WATER_MAX, OPERATIONS_MAX, PREPARE_RETRY_MS},
    codec::{ARRAY_ITEMS_MAX, BYTES_LEN_MAX, NESTING_DEPTH_MAX, TEXT_LEN_MAX},
    desired::{
        ENTRIES_PER_SET_MAX, GROUPS_PER_PORT_MAX, MEMBER_ADDRESSES_MAX, PEERS_PER_GROUP_MAX, PEERS_PER_PORT_MAX,
        RULES_PER_GROUP_MAX,
    },
    id::{Generation, Incarnation, NAME_LEN_MAX, ObjectKind, ObjectRef},
    inquiry::{
        ANSWER_LEN_MAX, CAPTURE_LEN_MAX, CAPTURE_MAX_S, CAPTURE_UNREAD_S, DEADLINE_MAX_MS, FILTER_TERMS_MAX, FLOWS_MAX,
        INCIDENTS_MAX, QUESTIONS_OPEN_MAX, SNAPLEN_MAX,
    },
    link::{LINK_MESSAGE_LEN_MAX, LINK_VERSIONS},
    operation::{ID_KEPT_S, RESULT_KEPT_S},
    refusal::{Code, REFUSAL_TEXT_LEN_MAX, Refusal},
    token::TOKEN_LEN_MAX,
};

const T0: Now = Now {
    monotonic_ms: 1_000,
    unix_s: 1_000_000,
};
/// A time when every timeout is due.
const LATE: Now = Now {
    monotonic_ms: 1_000 + DRAIN_TIMEOUT_MS,
    unix_s: 2_000_000,
};

fn document() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../PROTOCOL.md")).unwrap()
}

/// The document has this text, between markers.
fn check_section(name: &str, wanted: &str) {
    let (begin, end) = (
        format!("<!-- {name}: made from the code -->\n\n"),
        format!("\n<!-- end of {name} -->"),
    );
    let document = document();
    let section = document
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end))
        .map(|(section, _)| section);
    assert!(
        section == Some(wanted),
        "PROTOCOL.md: the section '{name}' should read:\n\n{wanted}\n"
    );
}

fn fence(generation: u64) -> Fence {
    Fence {
        generation: Generation(generation),
        incarnation: Incarnation(1),
    }
}

fn binding(state: State) -> Binding {
    let object = ObjectRef {
        kind: ObjectKind::Port,
        name: "p".parse().unwrap(),
    };
    let mut binding = Binding::reserve(object, "h".parse().unwrap(), fence(5), Some(1_500_000), T0);
    binding.state = state;
    binding
}

fn letter(effect: Effect) -> char {
    match effect {
        Effect::Shut => 'S',
        Effect::CloseSession => 'C',
        Effect::Persist => 'P',
        Effect::Open => 'O',
        Effect::OpenSession => 'N',
        Effect::Teardown => 'T',
        Effect::NotifyHost => 'H',
        Effect::Report => 'R',
    }
}

/// What a cell says: the next state, or `·` for the same one, and the effects in order; or the refusal.
fn cell(state: State, event: &Event, now: Now) -> String {
    match step(&binding(state), event, now) {
        Ok((next, effects)) => {
            let to = if next.state == state {
                "·".to_owned()
            } else {
                format!("{:?}", next.state)
            };
            let effects: String = effects.into_iter().map(letter).collect();
            if effects.is_empty() {
                to
            } else {
                format!("{to} {effects}")
            }
        }
        Err(refusal) => format!("*{:?}*", refusal.code),
    }
}

fn table(first: &str, rows: &[(String, Event, Now)]) -> String {
    let mut text = format!("| {first} |");
    State::ALL
        .iter()
        .for_each(|state| write!(text, " {state:?} |").unwrap());
    text.push_str("\n|---|");
    State::ALL.iter().for_each(|_| text.push_str("---|"));
    text.push('\n');
    for (name, event, now) in rows {
        write!(text, "| {name} |").unwrap();
        State::ALL
            .iter()
            .for_each(|state| write!(text, " {} |", cell(*state, event, *now)).unwrap());
        text.push('\n');
    }
    text
}

fn initiator(event: &Event) -> &'static str {
    match event.initiator() {
        Initiator::Broker => "broker",
        Initiator::Card => "card",
        Initiator::Host => "host",
        Initiator::Operator => "operator",
        Initiator::Timer => "timer",
    }
}

#[test]
fn the_state_event_table_is_what_step_does() {
    let host = || "h".parse().unwrap();
    let other = || "h2".parse().unwrap();
    let release = |n| Event::Release {
        host: host(),
        generation: Generation(n),
    };
    let fault = Event::Fault(fence(5), Refusal::new(Code::Unavailable, "x"));
    let events = [
        ("device set up", Event::Prepared(fence(5)), T0),
        ("device fault", fault, T0),
        ("redeem", Event::Redeem { host: host() }, T0),
        ("redeem, grant expired", Event::Redeem { host: host() }, LATE),
        ("redeem by another host", Event::Redeem { host: other() }, T0),
        (
            "connect",
            Event::Connect {
                host: host(),
                fence: fence(5),
            },
            T0,
        ),
        (
            "connect, other generation",
            Event::Connect {
                host: host(),
                fence: fence(4),
            },
            T0,
        ),
        ("rings live", Event::RingsLive(fence(5)), T0),
        ("rings stopped", Event::RingsStopped(fence(5)), T0),
        ("release", release(5), T0),
        ("release of an older generation", release(4), T0),
        ("release of a later generation", release(6), T0),
        ("grant withdrawn", Event::Revoke, T0),
        ("nothing in flight", Event::Drained(fence(5)), T0),
        ("grant expired", Event::GrantExpired, LATE),
        ("drain timeout", Event::DrainTimeout, LATE),
        ("absent from the card's inventory", Event::Missing, T0),
        ("card removed", Event::CardRemoved, T0),
    ];
    let rows = events.map(|(name, event, now)| (format!("{name} ({})", initiator(&event)), event, now));
    check_section("states and events", &table("event (initiator)", &rows));
}

#[test]
fn the_table_of_reports_is_what_step_does() {
    let reported = |state| Event::Reported {
        fence: fence(5),
        state,
        error: None,
    };
    let rows = State::ALL.map(|state| (format!("{state:?}"), reported(state), T0));
    check_section("reports", &table("the card reports \\ the broker has", &rows));
}

#[test]
fn the_list_of_limits_is_the_codes() {
    let limits: [(&str, u64, &str); 33] = [
        ("link protocol, lowest version", LINK_VERSIONS.0.into(), ""),
        ("link protocol, highest version", LINK_VERSIONS.1.into(), ""),
        ("card protocol, lowest version", CARD_VERSIONS.0.into(), ""),
        ("card protocol, highest version", CARD_VERSIONS.1.into(), ""),
        ("packet on the link", LINK_MESSAGE_LEN_MAX as u64, "bytes"),
        (
            "message on the card channel, without its length",
            CARD_MESSAGE_LEN_MAX as u64,
            "bytes",
        ),
        ("enrolment token", TOKEN_LEN_MAX as u64, "bytes of text"),
        ("nesting of arrays", NESTING_DEPTH_MAX as u64, ""),
        ("items of one array", ARRAY_ITEMS_MAX, ""),
        ("rules of one group", RULES_PER_GROUP_MAX as u64, ""),
        ("groups of one port", GROUPS_PER_PORT_MAX as u64, ""),
        (
            "different groups and address sets named by the rules of one group",
            PEERS_PER_GROUP_MAX as u64,
            "",
        ),
        (
            "the same, added up over the groups of one port",
            PEERS_PER_PORT_MAX as u64,
            "",
        ),
        ("entries of one address set", ENTRIES_PER_SET_MAX as u64, ""),
        (
            "addresses of one group's members on one network",
            MEMBER_ADDRESSES_MAX as u64,
            "",
        ),
        ("text string", TEXT_LEN_MAX, "bytes"),
        ("byte string", BYTES_LEN_MAX, "bytes"),
        ("name", NAME_LEN_MAX as u64, "bytes"),
        ("open questions of one connection", QUESTIONS_OPEN_MAX as u64, ""),
        ("time for a question", (DEADLINE_MAX_MS / 1000).into(), "s"),
        ("answer to a question", ANSWER_LEN_MAX as u64, "bytes"),
        ("terms of a filter", FILTER_TERMS_MAX as u64, ""),
        ("captured bytes of one frame", SNAPLEN_MAX.into(), "bytes"),
        ("captured bytes that wait to be read", CAPTURE_LEN_MAX as u64, "bytes"),
        ("a capture that is not read ends after", CAPTURE_UNREAD_S.into(), "s"),
        ("a capture ends after", CAPTURE_MAX_S.into(), "s"),
        ("flows in one answer", FLOWS_MAX.into(), ""),
        ("changes of an object that a card remembers", INCIDENTS_MAX as u64, ""),
        ("text of a refusal", REFUSAL_TEXT_LEN_MAX as u64, "bytes"),
        ("drain timeout", DRAIN_TIMEOUT_MS / 1000, "s"),
        (
            "wait before a device that could not be set up is tried again",
            PREPARE_RETRY_MS / 1000,
            "s",
        ),
        ("result of an operation is kept", RESULT_KEPT_S / 86_400, "days"),
        ("id of an operation is remembered", ID_KEPT_S / 86_400, "days"),
    ];
    let mut wanted = "| what | limit |\n|---|---|\n".to_owned();
    for (what, limit, unit) in limits {
        writeln!(wanted, "| {what} | {} |", format!("{limit} {unit}").trim_end()).unwrap();
    }
    writeln!(wanted, "| operations remembered by a card | {OPERATIONS_MAX} |").unwrap();
    writeln!(
        wanted,
        "| objects whose highest generation a card keeps one by one | {HIGH_WATER_MAX} |"
    )
    .unwrap();
    check_section("limits", &wanted);
}

#[test]
fn the_codes_are_listed_with_their_numbers() {
    let document = document();
    for number in 0..=20_u8 {
        let code: Option<Code> = minicbor::decode(&[number]).ok();
        let row = format!(
            "\n| {number} | `{}` |",
            code.map(|c| format!("{c:?}")).unwrap_or_default()
        );
        assert_eq!(document.contains(&row), code.is_some(), "row {row}");
    }
    assert!(minicbor::decode::<Code>(&[10]).is_ok() && minicbor::decode::<Code>(&[11]).is_err());
}

#[test]
fn the_tests_that_the_document_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    let mut folders = vec![root.join("src"), root.join("tests"), root.join("../src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sources.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let document = document();
    let (_, section) = document.split_once("## 12. Tests").expect("a section on tests");
    let names = section
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains('_') && !name.contains(['/', '.', ':']));
    let mut count = 0;
    for name in names {
        assert!(
            sources.contains(&format!("fn {name}(")),
            "PROTOCOL.md names the test {name}, which does not exist"
        );
        count += 1;
    }
    assert!(count >= 15, "the document names {count} tests");
}
