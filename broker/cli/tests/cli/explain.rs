//! `trace`, `explain` and `reasons`, against a scripted broker.

use serde_json::{Value, json};

use crate::{
    code, outboard,
    server::{Answer, Server},
    stderr, stdout,
};

fn reason() -> Value {
    json!({"name": "spoofed_ipv4", "sentence": "The IPv4 source is not one of the port's addresses.", "at_receiver": false})
}

#[test]
fn a_trace_shows_the_way_and_the_end() {
    let view = json!({
        "port": "vm1", "card": "local", "packet": "tcp 10.0.0.9:1 > 10.0.0.2:80",
        "macs": ["52:54:00:00:00:01", "52:54:00:00:00:02"], "frame_len": 60,
        "steps": [
            {"layer": "parser", "verdict": "pass", "detail": "IPv4"},
            {"layer": "security group", "verdict": "drop", "detail": "denied", "rule": "web/ingress/3"},
        ],
        "ends": [{"port": "vm1", "dropped": reason()}, {"port": "vm2"}],
    });
    let server = Server::always(view);
    let output = outboard(
        &server.socket(),
        &["trace", "--port", "vm1", "tcp 10.0.0.9:1 > 10.0.0.2:80"],
    );
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "from port vm1 on card local: 60 bytes",
        "security group  drop     denied (rule web/ingress/3)",
        "It is dropped at port vm1: spoofed_ipv4. The IPv4 source",
        "It is given to port vm2.",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    let request = &server.seen()[0];
    assert_eq!(request.line, "POST /v1/ports/vm1/trace");
    assert_eq!(request.body, json!({"packet": "tcp 10.0.0.9:1 > 10.0.0.2:80"}));
    assert_eq!(request.header("outboard-operation-id"), None, "nothing is changed");
}

#[test]
fn a_packet_that_is_none_is_pointed_at_and_not_sent() {
    let server = Server::always(json!({}));
    let output = outboard(
        &server.socket(),
        &["trace", "--port", "vm1", "tcp 10.0.0.1:99999 > 10.0.0.2:80"],
    );
    assert_eq!(code(&output), 1);
    let text = stderr(&output);
    assert!(
        text.contains("| tcp 10.0.0.1:99999 > 10.0.0.2:80\n  |              ^^^^^\n"),
        "{text}"
    );
    assert!(text.contains("65535") && server.seen().is_empty(), "{text}");
}

#[test]
fn an_explanation_begins_with_its_conclusion() {
    let view = json!({
        "kind": "port", "name": "vm1", "well": false,
        "conclusion": "vm1 is not reachable because no VMM is connected to its device", "remedy": "start the VM",
        "findings": [
            {"topic": "grant", "health": "well", "text": "granted to host local"},
            {"topic": "session", "health": "wrong", "text": "no VMM is connected to its device"},
        ],
        "history": [{"at": "2026-01-01T00:00:00Z", "generation": 1, "state": "prepared"}],
        "drops": [{"reason": reason(), "frames": 7}],
    });
    let server = Server::always(view);
    for object in ["port/vm1", "binding/port/vm1"] {
        let text = stdout(&outboard(&server.socket(), &["explain", object]));
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("vm1 is not reachable because no VMM is connected to its device.")
        );
        assert_eq!(lines.next(), Some("  fix: start the VM"));
        for part in [
            "grant    ok     granted to",
            "session  wrong  no VMM",
            "spoofed_ipv4",
            "prepared",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
    assert_eq!(server.seen()[1].line, "GET /v1/explain/port/vm1");
    assert_eq!(code(&outboard(&server.socket(), &["explain", "vm1"])), 64);
}

#[test]
fn reasons_come_from_a_card_that_is_connected() {
    let card = |name: &str, state: &str| json!({"name": name, "serial": name, "state": state, "attestation": "none", "revision_wanted": 1});
    let server = Server::start(move |request, _| match request.line.as_str() {
        "GET /v1/cards" => Answer::Json(200, json!([card("c1", "disconnected"), card("c2", "connected")])),
        "GET /v1/cards/c2/reasons" => Answer::Json(200, json!([reason()])),
        other => panic!("{other}"),
    });
    let text = stdout(&outboard(&server.socket(), &["reasons"]));
    assert!(text.contains("spoofed_ipv4  sender      The IPv4 source"), "{text}");
    let server = Server::always(json!([]));
    let output = outboard(&server.socket(), &["reasons"]);
    assert!(code(&output) == 1 && stderr(&output).contains("no card is connected"));
}
