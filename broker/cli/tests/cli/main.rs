//! The command line as a program, against a scripted server.

mod explain;
mod server;
mod tls;

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use server::{Answer, Server};

const TOPOLOGY: &str = "\
[[network]]
name = \"blue\"
subnets = [\"10.0.0.0/24\"]

[[port]]
name = \"vm1\"
network = \"blue\"
mac = \"52:54:00:00:00:01\"
addresses = [\"10.0.0.1\"]
";

/// `outboard --socket SOCKET WORDS…`, with nothing of the environment.
fn outboard(socket: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboard"));
    command
        .env_clear()
        .arg("--socket")
        .arg(socket)
        .args(words)
        .output()
        .expect("it runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit status")
}

fn port() -> Value {
    json!({
        "spec": {"name": "vm1", "network": "blue", "mac": "52:54:00:00:00:01", "addresses": ["10.0.0.1"], "card": "local"},
        "grant": {"kind": "port", "name": "vm1", "host": "local", "card": "local", "generation": 3},
        "binding": {
            "kind": "port", "name": "vm1", "host": "local", "generation": 3, "state": "active",
            "function": {"card": "local", "controller": 0, "pf": 0, "function": 2, "kind": "vhost-user", "incarnation": 5},
        },
        "counters": {"tx_frames": 10, "tx_bytes": 640, "rx_frames": 7, "rx_bytes": 448, "drops": {"spoofed_mac": 2, "rx_full": 1}},
    })
}

#[test]
fn a_subport_is_made_and_shown_with_its_parent() {
    let mut sub = port();
    sub["spec"]["trunk"] = json!({"parent": "vm0", "vlan": 7});
    sub["vlan"] = json!(7);
    let mut parent = port();
    parent["subports"] = json!(["vm1", "vm2"]);
    for (view, shown) in [(sub.clone(), "VLAN 7 of vm0"), (parent, "carries vm1 vm2")] {
        let server = Server::always(json!([view]));
        let text = stdout(&outboard(&server.socket(), &["port", "list"]));
        assert!(text.contains("TRUNK") && text.contains(shown), "{text}");
        let server = Server::always(view);
        let text = stdout(&outboard(&server.socket(), &["port", "show", "vm1"]));
        assert!(text.contains(shown), "{text}");
    }
    let server = Server::always(sub);
    let words = "port create vm1 --network red --mac 52:54:00:00:00:01 --parent vm0";
    let words: Vec<&str> = words.split(' ').collect();
    assert_eq!(code(&outboard(&server.socket(), &words)), 0);
    let with_id = [words.as_slice(), &["--vlan", "7"]].concat();
    assert_eq!(code(&outboard(&server.socket(), &with_id)), 0);
    let seen = server.seen();
    assert_eq!(seen[0].body["trunk"], json!({"parent": "vm0"}));
    assert_eq!(seen[1].body["trunk"], json!({"parent": "vm0", "vlan": 7}));
    // Without a parent an id means nothing, and is refused before anybody is asked.
    let alone: Vec<&str> = words[..7].iter().copied().chain(["--vlan", "7"]).collect();
    assert_eq!(code(&outboard(&server.socket(), &alone)), 64);
    assert_eq!(server.seen().len(), 2);
    let words = ["network", "create", "red", "--vlan", "100"];
    assert_eq!(code(&outboard(&server.socket(), &words)), 0);
    assert_eq!(server.seen()[2].body["vlan"], json!(100));
}

#[test]
fn a_table_has_what_matters_and_an_empty_one_says_so() {
    let server = Server::always(json!([port()]));
    let output = outboard(&server.socket(), &["port", "list"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    let row: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(
        row,
        [
            "vm1",
            "blue",
            "52:54:00:00:00:01",
            "10.0.0.1",
            "unfiltered",
            "-",
            "local",
            "active",
            "10",
            "7",
            "3"
        ]
    );
    assert_eq!(server.seen()[0].line, "GET /v1/ports");

    let server = Server::always(json!([]));
    for (noun, nothing) in [
        ("card", "There are no cards."),
        ("network", "There are no networks."),
        ("group", "There are no security groups."),
        ("address-set", "There are no address sets."),
        ("port", "There are no ports."),
        ("volume", "There are no volumes."),
        ("grant", "There are no grants."),
        ("binding", "There are no bindings."),
    ] {
        let text = stdout(&outboard(&server.socket(), &[noun, "list"]));
        assert!(text.starts_with(nothing), "{noun}: {text}");
    }
}

#[test]
fn a_group_is_shown_rule_by_rule() {
    let server = Server::always(json!({
        "spec": {"name": "web", "egress": "deny", "rule": [
            {"direction": "ingress", "protocol": "tcp", "ports": "80-81", "from": "0.0.0.0/0", "name": "http"},
            {"direction": "ingress", "protocol": "icmp", "icmp": "8/0", "group": "db", "action": "reject", "priority": 10, "log": true},
        ]},
        "rule_ids": ["web/http", "web/ingress/2"],
        "ports": ["vm1"],
        "named_by": [],
    }));
    let output = outboard(&server.socket(), &["group", "show", "web"]);
    let text = stdout(&output);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(text.contains("deny: nothing but replies"), "{text}");
    assert!(
        rows.contains(&vec![
            "web/http",
            "ingress",
            "ipv4",
            "tcp",
            "80-81",
            "0.0.0.0/0",
            "allow",
            "1000",
            "-"
        ]),
        "{text}"
    );
    assert!(
        rows.contains(&vec![
            "web/ingress/2",
            "ingress",
            "both",
            "icmp",
            "8/0",
            "group",
            "db",
            "reject",
            "10",
            "yes"
        ]),
        "{text}"
    );
    assert_eq!(server.seen()[0].line, "GET /v1/groups/web");
}

#[test]
fn rules_groups_and_sets_are_sent_as_typed() {
    let sent = |words: &[&str]| {
        let server = Server::always(json!({}));
        let output = outboard(&server.socket(), words);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let seen = server.seen();
        let last = seen.last().expect("a request");
        (last.line.clone(), last.body.clone())
    };
    let rule = [
        "group",
        "rule",
        "add",
        "web",
        "--direction",
        "egress",
        "--protocol",
        "udp",
        "--ports",
        "53",
    ];
    assert_eq!(
        sent(&[&rule[..], &["--to", "10.0.0.53", "--action", "deny", "--name", "dns"]].concat()),
        (
            "POST /v1/groups/web/rules".to_owned(),
            json!({"direction": "egress", "protocol": "udp", "ports": "53", "to": "10.0.0.53", "action": "deny", "name": "dns"})
        )
    );
    assert_eq!(
        sent(&["group", "rule", "remove", "web", "ingress/2"]),
        ("DELETE /v1/groups/web/rules/ingress%2F2".to_owned(), Value::Null)
    );
    assert_eq!(
        sent(&["address-set", "add", "partners", "192.0.2.0/24", "2001:db8::7"]),
        (
            "PUT /v1/address-sets/partners".to_owned(),
            json!({"name": "partners", "addresses": ["192.0.2.0/24", "2001:db8::7"]})
        )
    );
}

#[test]
fn setting_the_groups_of_a_port_changes_nothing_else_of_it() {
    let sent = |words: &[&str]| {
        let server = Server::always(port());
        let output = outboard(&server.socket(), &[&["port", "set", "vm1"], words].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let seen = server.seen();
        assert_eq!(seen[1].line, "PUT /v1/ports/vm1");
        (seen[1].body.clone(), stdout(&output))
    };
    let with = |groups: Value| {
        let mut spec = port()["spec"].clone();
        spec["groups"] = groups;
        spec
    };
    assert_eq!(sent(&["--groups", "web,ssh"]).0, with(json!(["web", "ssh"])));
    let (body, said) = sent(&["--groups", ""]);
    assert!(
        body == with(json!([])) && said.contains("nothing passes"),
        "{body} {said}"
    );
    assert_eq!(sent(&["--unfiltered"]).0, port()["spec"]);
    let server = Server::always(port());
    for words in [&[][..], &["--groups", "web", "--unfiltered"], &["--groups", "a b"]] {
        let output = outboard(&server.socket(), &[&["port", "set", "vm1"], words].concat());
        assert_eq!(code(&output), 64, "{words:?}: {}", stderr(&output));
    }
}

#[test]
fn one_port_is_shown_with_binding_and_drops_by_reason() {
    let server = Server::always(port());
    let text = stdout(&outboard(&server.socket(), &["port", "show", "vm1"]));
    for part in [
        "local/0.0.2#5 vhost-user",
        "generation:",
        "10 frames, 640 bytes",
        "spoofed_mac",
        "rx_full",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
}

#[test]
fn json_is_what_the_broker_said() {
    let server = Server::always(json!([port()]));
    let output = outboard(&server.socket(), &["port", "list", "--json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&stdout(&output)).expect("JSON"),
        json!([port()])
    );
}

#[test]
fn the_brokers_error_is_shown_with_its_remedy() {
    let error = json!({"error": {
        "code": "not_found", "object": "port vm9", "message": "there is no port vm9", "remedy": "see 'outboard port list'",
    }});
    let answer = error.clone();
    let server = Server::start(move |_, _| Answer::Json(404, answer.clone()));
    let output = outboard(&server.socket(), &["port", "show", "vm9"]);
    assert_eq!(code(&output), 1);
    assert_eq!(
        stderr(&output),
        "error: there is no port vm9\n  fix: see 'outboard port list'\n"
    );
    assert_eq!(stdout(&output), "");

    let output = outboard(&server.socket(), &["--json", "port", "show", "vm9"]);
    assert_eq!(
        serde_json::from_str::<Value>(&stderr(&output)).expect("one line of JSON"),
        error
    );
}

#[test]
fn an_answer_that_makes_no_sense_is_an_error() {
    for answer in [(502, "<html>"), (200, "<html>"), (200, "{\"surprise\":1}")] {
        let server = Server::start(move |_, _| Answer::Text(answer.0, answer.1));
        let output = outboard(&server.socket(), &["--json", "port", "list"]);
        let error: Value = serde_json::from_str(&stderr(&output)).expect("JSON");
        assert_eq!(
            (code(&output), &error["error"]["code"]),
            (1, &json!("unexpected_answer")),
            "{answer:?}"
        );
    }
}

#[test]
fn a_broker_that_is_away_is_named_with_how_to_start_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("broker.sock");
    let output = outboard(&socket, &["status"]);
    assert_eq!(code(&output), 1);
    let text = stderr(&output);
    assert!(
        text.contains(&format!(
            "no broker is running: there is no socket {}",
            socket.display()
        )),
        "{text}"
    );
    assert!(text.contains("  fix: start it with 'outboard up FILE.toml'"), "{text}");

    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
    let text = stderr(&outboard(&socket, &["status"]));
    assert!(
        text.contains(&format!("nothing listens on {} any more", socket.display())),
        "{text}"
    );

    let long = dir.path().join("x".repeat(108));
    assert!(stderr(&outboard(&long, &["status"])).contains("unix socket at most 107"));
}

#[test]
fn a_mutation_is_repeated_with_the_same_operation_id() {
    let server = Server::start(|_, before| match before {
        0 => Answer::Hangup,
        1 => Answer::Half,
        _ => Answer::Json(200, json!({})),
    });
    let words = ["network", "create", "blue", "--subnet", "10.0.0.0/24"];
    let output = outboard(&server.socket(), &words);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "network blue is declared\n"),
        "{}",
        stderr(&output)
    );
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    let ids: Vec<_> = seen
        .iter()
        .map(|r| r.header("outboard-operation-id").expect("an id").to_owned())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]) && ids[0].len() == 36, "{ids:?}");
    for request in &seen {
        assert_eq!(request.line, "PUT /v1/networks/blue");
        assert_eq!(request.body, json!({"name": "blue", "subnets": ["10.0.0.0/24"]}));
    }
    outboard(&server.socket(), &words);
    assert_ne!(
        server.seen()[3].header("outboard-operation-id"),
        Some(ids[0].as_str()),
        "another command, another id"
    );
}

#[test]
fn after_the_last_attempt_the_id_is_told_and_can_be_given() {
    let server = Server::start(|_, _| Answer::Hangup);
    let output = outboard(&server.socket(), &["port", "delete", "vm1"]);
    let seen = server.seen();
    let id = seen[0].header("outboard-operation-id").expect("an id");
    assert_eq!((code(&output), seen.len()), (1, 3));
    assert!(
        stderr(&output).contains(&format!("--operation-id {id}")),
        "{}",
        stderr(&output)
    );

    outboard(&server.socket(), &["port", "delete", "vm1", "--operation-id", id]);
    assert_eq!(server.seen()[3].header("outboard-operation-id"), Some(id));
}

#[test]
fn reading_carries_no_operation_id() {
    let server = Server::always(json!([]));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("t.toml");
    std::fs::write(&file, TOPOLOGY).expect("written");
    outboard(&server.socket(), &["port", "list"]);
    outboard(&server.socket(), &["diff", "-f", file.to_str().expect("UTF-8")]);
    assert!(
        server
            .seen()
            .iter()
            .all(|r| r.header("outboard-operation-id").is_none())
    );
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn diff_tells_by_its_exit_status_and_apply_sends_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("t.toml");
    std::fs::write(&file, TOPOLOGY).expect("written");
    let file = file.to_str().expect("UTF-8");
    let change = json!({"action": "create", "object": {"kind": "port", "name": "vm1"}, "detail": "mac x"});
    let changes = json!([change]);
    let server = Server::always(changes.clone());
    let output = outboard(&server.socket(), &["diff", "-f", file]);
    assert_eq!((code(&output), stdout(&output).lines().count()), (2, 2));
    assert!(
        stdout(&output).ends_with("create  port vm1  mac x\n"),
        "{}",
        stdout(&output)
    );
    let output = outboard(&server.socket(), &["apply", "-f", file, "--json"]);
    assert_eq!(
        (code(&output), serde_json::from_str(&stdout(&output)).ok()),
        (0, Some(changes))
    );
    let seen = server.seen();
    assert_eq!(
        (seen[0].line.as_str(), seen[1].line.as_str()),
        ("POST /v1/topology/diff", "PUT /v1/topology")
    );
    assert_eq!(seen[0].body, seen[1].body);
    assert_eq!(seen[0].body["port"][0]["mac"], "52:54:00:00:00:01");

    let server = Server::always(json!([]));
    let output = outboard(&server.socket(), &["diff", "-f", file]);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "Nothing would change.\n")
    );
}

#[test]
fn a_bad_file_is_refused_before_the_broker_is_asked() {
    let server = Server::always(json!([]));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("t.toml");
    std::fs::write(&file, TOPOLOGY.replace("10.0.0.1\"]", "10.0.9.1\"]")).expect("written");
    for words in [["apply", "-f"], ["diff", "-f"]] {
        let output = outboard(
            &server.socket(),
            &[&words[..], &[file.to_str().expect("UTF-8")]].concat(),
        );
        assert_eq!(code(&output), 1);
        let head = format!(
            "error: {}: port vm1 (line 5): address 10.0.9.1 is no host address",
            file.display()
        );
        assert!(stderr(&output).starts_with(&head), "{}", stderr(&output));
    }
    let missing = dir.path().join("none.toml");
    let output = outboard(&server.socket(), &["apply", "-f", missing.to_str().expect("UTF-8")]);
    assert!(stderr(&output).contains("none.toml"), "{}", stderr(&output));
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn grants_name_kind_and_object_and_tell_how_far_a_revocation_is() {
    let view = json!({"kind": "port", "name": "vm1", "host": "local", "card": "local", "revocation": "pending"});
    let server = Server::always(view);
    let output = outboard(&server.socket(), &["grant", "revoke", "port", "vm1"]);
    assert_eq!(stdout(&output), "port vm1: revocation pending\n");
    outboard(
        &server.socket(),
        &["grant", "create", "volume", "disk1", "--host", "h2"],
    );
    let seen = server.seen();
    assert_eq!(seen[0].line, "DELETE /v1/grants/port/vm1");
    assert_eq!(
        (seen[1].line.as_str(), &seen[1].body),
        ("PUT /v1/grants/volume/disk1", &json!({"host": "h2"}))
    );
}

#[test]
fn operators_files_are_private_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::always(json!({"certificate": "CERT", "key": "KEY", "ca": "CA"}));
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("alice");
    let words = ["operator", "issue", "alice", "--out", out.to_str().expect("UTF-8")];
    assert_eq!(code(&outboard(&server.socket(), &words)), 0);
    assert_eq!(std::fs::read_to_string(out.join("key.pem")).expect("there"), "KEY");
    let mode = std::fs::metadata(out.join("key.pem"))
        .expect("there")
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o600);
    let output = outboard(&server.socket(), &words);
    assert!(
        code(&output) == 1 && stderr(&output).contains("is there already"),
        "{}",
        stderr(&output)
    );
    assert_eq!(server.seen().len(), 1, "no key is made that cannot be kept");
}

#[test]
fn status_asks_for_everything() {
    let server = Server::start(|request, _| match request.line.as_str() {
        "GET /v1/health" => Answer::Json(
            200,
            json!({"version": "0.1.0", "broker_epoch": 1, "cards_connected": 1}),
        ),
        "GET /v1/ports" => Answer::Json(200, json!([port()])),
        _ => Answer::Json(200, json!([])),
    });
    let text = stdout(&outboard(&server.socket(), &["status"]));
    for part in [
        "version 0.1.0, 1 card(s) connected",
        "There are no cards.",
        "vm1",
        "There are no volumes.",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    let json: Value = serde_json::from_str(&stdout(&outboard(&server.socket(), &["status", "--json"]))).expect("JSON");
    assert_eq!(
        (&json["broker"]["cards_connected"], &json["ports"][0]),
        (&json!(1), &port())
    );
}

#[test]
fn a_command_line_that_is_not_understood_has_an_exit_status_of_its_own() {
    let server = Server::always(json!([]));
    for words in [&["port", "lst"][..], &["diff"], &["grant", "create", "gpu", "x"]] {
        assert_eq!(code(&outboard(&server.socket(), words)), 64, "{words:?}");
    }
    assert_eq!(code(&outboard(&server.socket(), &["port", "--help"])), 0);
}
