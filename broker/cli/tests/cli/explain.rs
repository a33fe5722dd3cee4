//! `trace`, `explain`, `reasons`, `capture` and `flow`, against a scripted broker.

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

/// A broker whose capture has three frames in two readings, and then ends.
fn capturing() -> Server {
    let frame = |number: u64, dropped: bool| {
        let mut frame = json!({
            "number": number, "unix_ns": 1_700_000_000_000_000_000_u64 + number, "way": "from_guest", "len": 60, "bytes": "AQIDBA==",
        });
        if dropped {
            frame["dropped"] = reason();
        }
        frame
    };
    Server::start(move |request, _| match request.line.as_str() {
        "POST /v1/ports/vm1/captures" => Answer::Json(200, json!({"card": "local", "id": 7})),
        "GET /v1/cards/local/captures/7/after/0" => {
            Answer::Json(200, json!({"frames": [frame(1, false), frame(2, true)], "lost": 0}))
        }
        "GET /v1/cards/local/captures/7/after/2" => Answer::Json(
            200,
            json!({"frames": [frame(3, false)], "lost": 4, "ended": "its time is up"}),
        ),
        other => panic!("{other}"),
    })
}

#[test]
fn a_capture_is_read_until_it_ends_and_written_as_pcapng() {
    let server = capturing();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("vm1.pcapng");
    let name = file.to_str().expect("UTF-8");
    let words = ["capture", "--port", "vm1", "-w", name, "udp or dropped", "--count", "9"];
    let output = outboard(&server.socket(), &words);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.contains("3 frames, 1 of them dropped by the switch, 4 lost to this capture; its time is up"),
        "{text}"
    );
    assert_eq!(
        server.seen()[0].body,
        json!({"filter": "udp or dropped", "snaplen": 256, "count": 9, "seconds": 60})
    );
    let bytes = std::fs::read(&file).expect("it is there");
    assert_eq!(bytes[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
    let comment = b"dropped: spoofed_ipv4. The IPv4 source";
    assert_eq!(bytes.windows(comment.len()).filter(|part| part == comment).count(), 1);
    // The same on standard output, and nothing else there.
    let server = capturing();
    let output = outboard(&server.socket(), &["capture", "--port", "vm1", "-w", "-"]);
    assert_eq!(output.stdout, bytes);
    assert!(stderr(&output).contains("3 frames"));
}

#[test]
fn a_filter_that_is_none_is_pointed_at_and_nothing_is_captured_or_ended() {
    let server = Server::always(json!({}));
    for words in [
        &["capture", "--port", "vm1", "-w", "/dev/null", "tcp or tpc"][..],
        &["flow", "list", "tcp or tpc"],
        &["flow", "flush", "tcp or tpc"],
    ] {
        let output = outboard(&server.socket(), words);
        assert!(
            code(&output) == 1 && stderr(&output).contains("|        ^^^\n"),
            "{}",
            stderr(&output)
        );
    }
    // Everything is ended only if that is said.
    assert_eq!(code(&outboard(&server.socket(), &["flow", "flush"])), 64);
    assert!(server.seen().is_empty());
}

#[test]
fn flows_are_a_table_and_what_was_not_asked_is_told() {
    let flow = |protocol: u8, ports: (u16, u16), state: &str| {
        json!({
            "card": "local", "network": "blue", "protocol": protocol, "source": "10.0.0.1", "source_port": ports.0,
            "destination": "10.0.0.2", "destination_port": ports.1, "state": state, "replied": true, "age_s": 5, "left_s": 60,
            "from": "vm1",
        })
    };
    let view = json!({
        "flows": [flow(6, (1234, 80), "established"), flow(1, (7, 8 << 8), "replied")], "more": true,
        "unknown": ["card c2 is not connected to the broker"],
    });
    let server = Server::always(view);
    let text = stdout(&outboard(&server.socket(), &["flow", "list", "--port", "vm1"]));
    for part in [
        "blue     tcp       10.0.0.1:1234  10.0.0.2:80",
        "10.0.0.1 id 7  10.0.0.2 type 8 code 0",
        "There are more",
        "not asked: card c2",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    let server = Server::always(json!({"count": 3}));
    let text = stdout(&outboard(&server.socket(), &["flow", "flush", "--all"]));
    assert_eq!(text, "3 connections were ended\n");
    assert_eq!(server.seen()[0].body, json!({"filter": ""}));
}
