//! Security groups and address sets, from the API to what a card is told.

use outboard_protocol::{
    card::FromCard,
    desired::{DesiredState, Egress, Matched, Members, Peer, PortRange},
    id::{Name, ObjectKind},
};
use serde_json::{Value, json};

use crate::support::{Client, Running, card::enrol, port_spec};

const WEB: &str =
    r#"{"name":"web","rule":[{"direction":"ingress","protocol":"tcp","ports":"80-81","from":"0.0.0.0/0"}]}"#;
const DB: &str = r#"{"name":"db","egress":"deny","rule":[{"direction":"ingress","protocol":"tcp","ports":"5432","group":"web"},
    {"direction":"ingress","address_set":"partners","name":"partners"}]}"#;
const PARTNERS: &str = r#"{"name":"partners","addresses":["192.0.2.0/24","2001:db8::7"]}"#;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn with(spec: &str, key: &str, value: Value) -> String {
    let mut spec: Value = serde_json::from_str(spec).unwrap();
    spec[key] = value;
    spec.to_string()
}

/// A port on a card, with these groups.
async fn port(api: &Client, port: &str, number: u8, card: &str, groups: Value) {
    let spec = with(&with(&port_spec(port, number), "groups", groups), "card", json!(card));
    api.change("PUT", &format!("/v1/ports/{port}"), &spec).await;
}

async fn declare(api: &Client) {
    api.network().await;
    api.change("PUT", "/v1/address-sets/partners", PARTNERS).await;
    api.change("PUT", "/v1/groups/web", WEB).await;
    api.change("PUT", "/v1/groups/db", DB).await;
}

fn groups_of(state: &DesiredState) -> Vec<&str> {
    state.groups.iter().map(|g| g.name.as_str()).collect()
}

fn members(addresses: &[&str]) -> Vec<Members> {
    vec![Members {
        group: name("web"),
        network: name("blue"),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_is_told_the_groups_of_its_ports_and_where_members_on_other_cards_are() {
    let running = Running::start().await;
    let api = running.client();
    let (here, there) = (api.token("here", "SN1").await, api.token("there", "SN2").await);
    let here = enrol(&here, "SN1").await.unwrap();
    let there = enrol(&there, "SN2").await.unwrap();
    declare(&api).await;
    port(&api, "db1", 1, "here", json!(["db"])).await;
    port(&api, "free", 2, "here", Value::Null).await;
    port(&api, "web1", 3, "there", json!(["web"])).await;
    let (mut here, mut there) = (here.join(1).await, there.join(1).await);

    let state = here.desired_until(|s| s.grants.len() == 2).await;
    assert_eq!(state.check(), Ok(()));
    assert_eq!(
        groups_of(&state),
        ["db"],
        "web's rules are none of this card's business"
    );
    assert_eq!(state.groups[0].egress, Egress::Deny);
    let rules = &state.groups[0].rules;
    assert_eq!(rules[0].peer, Peer::Group { name: name("web") });
    let ports = Some(PortRange {
        first: 5432,
        last: 5432,
    });
    assert_eq!(rules[0].matched, Matched::Tcp { ports });
    assert_eq!(rules[1].peer, Peer::AddressSet { name: name("partners") });
    assert_eq!(state.address_sets[0].entries.len(), 2);
    assert_eq!(state.members, members(&["10.0.0.3"]));
    let groups: Vec<_> = state.ports.iter().map(|p| p.groups.clone()).collect();
    assert_eq!(groups, [Some(vec![name("db")]), None]);
    let state = there.desired_until(|s| s.grants.len() == 1).await;
    assert_eq!(groups_of(&state), ["web"]);
    assert_eq!((state.address_sets.len(), state.members.len()), (0, 0));

    // A member more, on the other card, and one that is on another network and so none here.
    api.change("PUT", "/v1/networks/red", r#"{"name":"red","subnets":["10.0.0.0/24"]}"#)
        .await;
    let red = with(&port_spec("web3", 5), "network", json!("red"));
    let red = with(&with(&red, "groups", json!(["web"])), "card", json!("there"));
    api.change("PUT", "/v1/ports/web3", &red).await;
    port(&api, "web2", 4, "there", json!(["web"])).await;
    here.desired_until(|s| s.members == members(&["10.0.0.3", "10.0.0.4"]))
        .await;
    // What does not concern a card's policy raises no revision of it.
    let revision = |view: Value| view["revision_wanted"].as_u64().unwrap();
    let before = revision(api.get("/v1/cards/here").await);
    api.change("PUT", "/v1/groups/web", r#"{"name":"web","rule":[]}"#).await;
    api.change("PUT", "/v1/groups/other", r#"{"name":"other"}"#).await;
    assert_eq!(revision(api.get("/v1/cards/here").await), before);
    there
        .desired_until(|s| s.groups.first().is_some_and(|g| g.rules.is_empty()))
        .await;
    // A set, and members that leave.
    api.change(
        "PUT",
        "/v1/address-sets/partners",
        r#"{"name":"partners","addresses":["192.0.2.9"]}"#,
    )
    .await;
    here.desired_until(|s| s.address_sets[0].entries.len() == 1).await;
    port(&api, "web1", 3, "there", json!([])).await;
    here.desired_until(|s| s.members == members(&["10.0.0.4"])).await;
    api.change("DELETE", "/v1/ports/web2", "").await;
    here.desired_until(|s| s.members.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_cannot_filter_never_gets_a_filtered_port() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    let hello = |newest, dpu_epoch| match identity.hello(dpu_epoch) {
        FromCard::Hello {
            serial,
            dpu_epoch,
            broker_epoch,
            revision,
            isolation,
            ..
        } => FromCard::Hello {
            version_min: 1,
            version_max: newest,
            serial,
            dpu_epoch,
            broker_epoch,
            revision,
            isolation,
        },
        other => panic!("{other:?}"),
    };
    declare(&api).await;
    // Placed before the card was ever heard of: it might have been able to.
    port(&api, "vm1", 1, "local", json!([])).await;
    port(&api, "vm2", 2, "local", Value::Null).await;
    let mut link = identity.join_with(hello(1, 1)).await;
    let state = link.desired_until(|s| !s.ports.is_empty()).await;
    let told = |state: &DesiredState| {
        let ports: Vec<String> = state.ports.iter().map(|p| p.name.to_string()).collect();
        let granted = state.grants.iter().filter(|g| g.object.kind == ObjectKind::Port);
        (ports, granted.map(|g| g.object.name.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(told(&state), (vec!["vm2".to_owned()], vec!["vm2".to_owned()]));
    assert!(state.groups.is_empty() && state.members.is_empty() && state.address_sets.is_empty());
    let view = api.get("/v1/ports/vm1").await;
    assert_eq!(view["binding"]["error"]["code"], "unavailable", "{view}");
    let message = view["binding"]["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("port vm1") && message.contains("version 1"),
        "{message}"
    );
    // Now it is known what the card cannot do.
    for spec in [port_spec("vm2", 2), port_spec("vm3", 3)] {
        let spec = with(&spec, "groups", json!(["web"]));
        let path = format!(
            "/v1/ports/{}",
            serde_json::from_str::<Value>(&spec).unwrap()["name"].as_str().unwrap()
        );
        let (status, error) = api.refused("PUT", &path, &spec).await;
        assert_eq!((status, error["code"].as_str()), (409, Some("card_too_old")), "{error}");
    }
    assert!(
        api.get("/v1/ports/vm2").await["binding"]["error"].is_null(),
        "control: an unfiltered port is served"
    );
    drop(link);

    let mut link = identity.join_with(hello(2, 2)).await;
    let state = link.desired_until(|s| s.ports.len() == 2).await;
    assert_eq!(
        (state.ports[0].groups.as_deref(), state.grants.len()),
        (Some(&[][..]), 2)
    );
    assert!(api.get("/v1/ports/vm1").await["binding"]["error"].is_null());
    // The card goes back to a version that cannot filter: the port is taken from it.
    drop(link);
    let mut link = identity.join_with(hello(1, 3)).await;
    let state = link.desired_until(|s| s.ports.len() == 1).await;
    assert_eq!(told(&state).1, ["vm2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_in_use_stay_and_what_makes_no_sense_is_refused() {
    let running = Running::start().await;
    let api = running.client();
    api.token("local", "SN1").await;
    declare(&api).await;
    port(&api, "vm1", 1, "local", json!(["db"])).await;
    let rule = |rule: Value| json!({"name": "new", "rule": [rule]}).to_string();
    let cases = [
        ("DELETE", "/v1/groups/db", String::new(), 409, "in_use"),
        ("DELETE", "/v1/groups/web", String::new(), 409, "in_use"),
        ("DELETE", "/v1/address-sets/partners", String::new(), 409, "in_use"),
        ("PUT", "/v1/groups/other", WEB.to_owned(), 422, "name_mismatch"),
        (
            "PUT",
            "/v1/groups/new",
            rule(json!({"direction": "ingress", "group": "nobody"})),
            422,
            "unknown_group",
        ),
        (
            "PUT",
            "/v1/groups/new",
            rule(json!({"direction": "ingress", "address_set": "nobody"})),
            422,
            "unknown_address_set",
        ),
        (
            "PUT",
            "/v1/groups/new",
            rule(json!({"direction": "ingress", "ports": "80"})),
            422,
            "contradictory_rule",
        ),
        (
            "PUT",
            "/v1/groups/new",
            rule(json!({"direction": "ingress", "from": "10.0.0.1/8"})),
            422,
            "bad_body",
        ),
        (
            "PUT",
            "/v1/groups/new",
            rule(json!({"direction": "ingress", "port": "80"})),
            422,
            "bad_body",
        ),
        (
            "PUT",
            "/v1/ports/vm1",
            with(&port_spec("vm1", 1), "groups", json!(["nobody"])),
            422,
            "unknown_group",
        ),
        (
            "POST",
            "/v1/groups/nobody/rules",
            json!({"direction": "ingress"}).to_string(),
            404,
            "not_found",
        ),
        (
            "DELETE",
            "/v1/groups/web/rules/ingress%2F2",
            String::new(),
            404,
            "not_found",
        ),
        ("DELETE", "/v1/groups/web/rules/http", String::new(), 404, "not_found"),
    ];
    for (method, path, body, status, code) in cases {
        let (told, error) = api.refused(method, path, &body).await;
        assert_eq!(
            (told, error["code"].as_str()),
            (status, Some(code)),
            "{method} {path} {body}: {error}"
        );
    }
    let (_, error) = api.refused("DELETE", "/v1/groups/web", "").await;
    assert!(error["message"].as_str().unwrap().contains("group db"), "{error}");
    // Controls: the same goes once nobody uses them.
    api.change("PUT", "/v1/ports/vm1", &port_spec("vm1", 1)).await;
    for path in [
        "/v1/groups/db",
        "/v1/groups/web",
        "/v1/address-sets/partners",
        "/v1/groups/web",
    ] {
        api.change("DELETE", path, "").await;
    }
    assert_eq!(api.get("/v1/groups").await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_come_and_go_one_by_one() {
    let running = Running::start().await;
    let api = running.client();
    declare(&api).await;
    let ping = json!({"direction": "ingress", "protocol": "icmp", "name": "ping"}).to_string();
    for _ in 0..2 {
        let group = api.change("POST", "/v1/groups/web/rules", &ping).await;
        assert_eq!(
            group["rule_ids"],
            json!(["web/ingress/1", "web/ping"]),
            "adding it again changes nothing"
        );
    }
    assert_eq!(api.get("/v1/groups/web").await["named_by"], json!(["db"]));
    let group = api.change("DELETE", "/v1/groups/web/rules/ingress%2F1", "").await;
    assert_eq!(group["rule_ids"], json!(["web/ping"]));
    let group = api.change("DELETE", "/v1/groups/web/rules/web%2Fping", "").await;
    assert_eq!(group["rule_ids"], json!([]), "a rule is also called as explain does");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_survive_a_restart_and_applying_the_same_again_changes_nothing() {
    let topology = json!({
        "network": [{"name": "blue", "subnets": ["10.0.0.0/24"]}],
        "address_set": [{"name": "partners", "addresses": ["192.0.2.0/24"]}],
        "group": [{"name": "web", "rule": [{"direction": "ingress", "address_set": "partners", "group": null}]}],
        "port": [{"name": "vm1", "network": "blue", "mac": "52:54:00:00:00:01", "groups": ["web"]}],
    });
    let running = Running::start().await;
    let api = running.client();
    api.token("local", "SN1").await;
    let changes = api.change("PUT", "/v1/topology", &topology.to_string()).await;
    let made: Vec<&str> = changes
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["object"]["kind"].as_str().unwrap())
        .collect();
    assert_eq!(made, ["network", "address_set", "group", "port"]);
    let before = api.get("/v1/cards/local").await;
    let (directory, stopping) = running.stop().await;
    tokio::task::spawn_blocking(|| stopping.finish()).await.unwrap();
    let running = Running::start_in(directory).await;
    let api = running.client();
    assert_eq!(
        api.change("PUT", "/v1/topology", &topology.to_string()).await,
        json!([])
    );
    assert_eq!(
        api.get("/v1/cards/local").await["revision_wanted"],
        before["revision_wanted"]
    );
    // What the file no longer has goes, in one step with the port's last use of it.
    let mut less = topology.clone();
    less["group"] = json!([]);
    less["address_set"] = json!([]);
    let (_, error) = api.refused("PUT", "/v1/topology", &less.to_string()).await;
    assert_eq!(
        (error["code"].as_str(), error["object"].as_str()),
        (Some("unknown_group"), Some("port vm1"))
    );
    less["port"][0].as_object_mut().unwrap().remove("groups");
    let changes = api.change("PUT", "/v1/topology", &less.to_string()).await;
    let done: Vec<String> = changes
        .as_array()
        .unwrap()
        .iter()
        .map(|c| {
            format!(
                "{} {}",
                c["action"].as_str().unwrap(),
                c["object"]["name"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(done, ["update vm1", "delete web", "delete partners"]);
}
