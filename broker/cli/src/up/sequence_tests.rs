use serde_json::json;

use super::*;

fn device(kind: &str, state: &str) -> DeviceView {
    let view = json!({"kind": kind, "name": "x", "socket": "/s", "role": "listen", "state": state, "sessions": 0});
    serde_json::from_value(view).expect("a view")
}

fn grant(revocation: Option<&str>) -> Vec<GrantView> {
    let view = json!({"kind": "port", "name": "x", "host": "local", "card": "local", "revocation": revocation});
    vec![serde_json::from_value(view).expect("a view")]
}

#[test]
fn a_device_is_settled_when_it_awaits_its_vmm_or_is_revoked() {
    for (state, ready) in [
        ("waiting-for-vmm", true),
        ("connected", true),
        ("waiting-for-grant", false),
        ("revoked", false),
        ("failed", false),
    ] {
        assert_eq!(settled(&device("port", state), &grant(None)), ready, "{state}");
        assert!(
            settled(&device("port", state), &grant(Some("done"))),
            "an operator revoked it"
        );
        assert_eq!(
            settled(&device("volume", state), &grant(Some("done"))),
            ready,
            "another object's revocation"
        );
    }
}

#[test]
fn a_card_whose_certificate_is_over_or_nearly_so_is_enrolled_anew() {
    let card = |state: &str, expires: Option<&str>| -> Vec<CardView> {
        let view = json!({"name": "local", "serial": "s", "state": state, "attestation": "none", "revision_wanted": 1,
            "certificate_expires": expires});
        vec![serde_json::from_value(view).expect("a view")]
    };
    let now = "2030-05-01T12:00:00Z".parse().expect("a time");
    for (state, expires, good) in [
        ("disconnected", Some("2030-06-01T12:00:00Z"), true),
        ("disconnected", Some("2030-05-31T11:00:00Z"), false),
        ("disconnected", Some("2030-04-30T12:00:00Z"), false),
        ("disconnected", None, false),
        ("pending", None, false),
    ] {
        assert_eq!(
            certified(&card(state, expires), "local", now),
            good,
            "{state} {expires:?}"
        );
    }
    assert!(!certified(
        &card("disconnected", Some("2030-06-01T12:00:00Z")),
        "other",
        now
    ));
    assert!(!certified(&[], "local", now));
}

#[test]
fn progress_counts_by_state() {
    let (a, b, c) = (
        device("port", "failed"),
        device("port", "waiting-for-grant"),
        device("volume", "failed"),
    );
    assert_eq!(
        describe(&[&a, &b, &c], 5),
        "attaching: 2 of 5 ready (2 failed, 1 waiting-for-grant)"
    );
}

#[test]
fn the_cards_reason_comes_before_the_shims() {
    let link = shim::LinkView {
        connected: true,
        card: None,
        problem: None,
    };
    let mut waiting = device("port", "failed");
    waiting.problem = Some(shim::Problem {
        error: "socket in use".to_owned(),
        remedy: "stop the other".to_owned(),
    });
    let error = why_not(&waiting, &link, &[]);
    assert!(
        error.to_string().contains("socket in use") && error.to_string().contains("fix: stop the other"),
        "{error}"
    );
    let binding = json!({
        "kind": "port", "name": "x", "host": "local", "generation": 1, "state": "reserved",
        "function": {"card": "local", "controller": 0, "pf": 0, "function": 0, "kind": "vhost-user", "incarnation": 1},
        "error": {"code": "unavailable", "message": "the card cannot"},
    });
    let error = why_not(&waiting, &link, &[serde_json::from_value(binding).expect("a view")]);
    assert!(
        error.to_string().contains("the card cannot") && !error.to_string().contains("socket in use"),
        "{error}"
    );
}
