//! The cards' side over real TLS: enrolment, hello, desired states, inventories, revocation.

use std::time::Duration;

use crate::support::{
    Running,
    card::{connect_anonymous, csr, enrol, report_of},
    port_spec,
};
use outboard_broker::{
    clock::unix_now_s,
    identity::{Authority, CARD_CERT_TTL_S},
};
use outboard_protocol::{
    binding::State,
    card::{FromBroker, FromCard, PortCounters},
    id::Revision,
    refusal::{Code, Refusal},
    token::EnrolToken,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_port_goes_from_grant_to_active_and_is_silent_only_when_the_card_says_so() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    api.network().await;
    let port = api.port("vm1", 1).await;
    assert_eq!(port["binding"]["state"], "reserved");
    assert_eq!(port["grant"]["host"], "local");

    let mut link = identity.join(1).await;
    let state = link.desired().await;
    assert_eq!((state.ports.len(), state.grants.len()), (1, 1));
    let grant = state.grants[0].clone();
    assert_eq!((grant.host.as_str(), grant.generation.0), ("local", 1));
    assert_eq!(api.get("/v1/cards/local").await["state"], "connected");
    assert_eq!(api.get("/v1/health").await["cards_connected"], 1);

    for (seq, (state, shown)) in [
        (State::Prepared, "prepared"),
        (State::Attached, "attached"),
        (State::Active, "active"),
    ]
    .into_iter()
    .enumerate()
    {
        link.report(seq as u64 + 1, vec![report_of(&grant, state)]).await;
        // Acknowledged means durable, so the API shows it at once.
        assert_eq!(api.get("/v1/ports/vm1").await["binding"]["state"], shown);
    }
    link.send(&FromCard::Applied {
        revision: state.revision,
    })
    .await;
    api.until("/v1/cards/local", |c| c["revision_applied"] == state.revision.0)
        .await;

    let revoked = api.change("DELETE", "/v1/grants/port/vm1", "").await;
    assert_eq!(revoked["revocation"], "pending");
    let state = link.desired_until(|s| s.grants.is_empty()).await;
    assert_eq!(state.ports.len(), 1, "the port's policy stays, its grant goes");
    link.report(4, vec![report_of(&grant, State::Active)]).await;
    let port = api.get("/v1/ports/vm1").await;
    assert_eq!(
        (&port["grant"]["revocation"], &port["binding"]["state"]),
        (&"pending".into(), &"draining".into())
    );
    link.report(5, vec![report_of(&grant, State::Released)]).await;
    assert_eq!(api.get("/v1/ports/vm1").await["grant"]["revocation"], "done");

    // Revoking sticks until it is granted again, and then everything is one higher.
    api.change("PUT", "/v1/ports/vm1", &port_spec("vm1", 1)).await;
    assert_eq!(api.get("/v1/ports/vm1").await["grant"]["revocation"], "done");
    api.change("PUT", "/v1/grants/port/vm1", "").await;
    let state = link.desired_until(|s| !s.grants.is_empty()).await;
    assert_eq!(state.grants[0].generation.0, 2);
    assert!(state.grants[0].incarnation > grant.incarnation);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_object_can_be_had_again_while_its_grant_stands() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    api.network().await;
    api.port("vm1", 1).await;
    let mut link = identity.join(1).await;
    let first = link.desired().await.grants[0].clone();
    link.report(1, vec![report_of(&first, State::Attached)]).await;
    link.report(2, vec![report_of(&first, State::Released)]).await;
    let port = api.get("/v1/ports/vm1").await;
    assert_eq!(
        (&port["binding"]["generation"], &port["binding"]["state"]),
        (&2.into(), &"reserved".into())
    );
    // A late report about the former binding changes nothing.
    link.report(3, vec![report_of(&first, State::Active)]).await;
    assert_eq!(api.get("/v1/ports/vm1").await["binding"]["state"], "reserved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_done_without_a_report_only_after_the_card_applied_it() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    api.network().await;
    api.port("vm1", 1).await;
    let mut link = identity.join(1).await;
    let granted = link.desired().await;
    api.change("DELETE", "/v1/grants/port/vm1", "").await;
    // The card has not heard of either yet: that it has nothing proves nothing.
    link.report(1, vec![]).await;
    link.send(&FromCard::Applied {
        revision: granted.revision,
    })
    .await;
    api.until("/v1/cards/local", |c| c["revision_applied"] == granted.revision.0)
        .await;
    assert_eq!(api.get("/v1/ports/vm1").await["grant"]["revocation"], "pending");
    link.send(&FromCard::Applied {
        revision: granted.revision.next(),
    })
    .await;
    api.until("/v1/ports/vm1", |p| p["grant"]["revocation"] == "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_object_stays_pending_until_its_card_lets_go_and_its_generations_never_return() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    api.network().await;
    api.port("vm1", 1).await;
    let mut link = identity.join(1).await;
    let grant = link.desired().await.grants[0].clone();
    link.report(1, vec![report_of(&grant, State::Active)]).await;
    api.change("DELETE", "/v1/ports/vm1", "").await;
    assert_eq!(api.get("/v1/grants").await[0]["revocation"], "pending");
    // Made anew at once, it waits for the former binding to end.
    api.port("vm1", 1).await;
    assert_eq!(api.get("/v1/ports/vm1").await["binding"]["generation"], 1);
    link.report(2, vec![report_of(&grant, State::Released)]).await;
    assert_eq!(api.get("/v1/ports/vm1").await["binding"]["generation"], 2);
    // Gone and forgotten, the name begins above what it had.
    let second = link
        .desired_until(|s| s.grants.iter().any(|g| g.generation.0 == 2))
        .await
        .grants[0]
        .clone();
    api.change("DELETE", "/v1/ports/vm1", "").await;
    link.report(3, vec![report_of(&second, State::Released)]).await;
    assert_eq!(api.get("/v1/bindings").await, serde_json::json!([]));
    assert_eq!(api.port("vm1", 1).await["binding"]["generation"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once_and_only_in_its_card_s_name() {
    let running = Running::start().await;
    let api = running.client();
    let token = api.token("local", "SN1").await;
    let mut forged: EnrolToken = token.parse().unwrap();
    forged.secret[0] ^= 1;
    let refused = enrol(&forged.print(), "SN1").await.err().unwrap();
    assert!(
        refused.contains("wrong, used or expired") && refused.contains("outboard card enrol local"),
        "{refused}"
    );
    // A wrong secret does not use the token up.
    assert!(enrol(&token, "SN1").await.is_ok());
    let second = enrol(&token, "SN1").await.err().unwrap();
    assert_eq!(second, refused, "used and wrong tokens are not told apart");

    let other = api.token("other", "SN2").await;
    let mut stolen: EnrolToken = other.parse().unwrap();
    stolen.card = "local".parse().unwrap();
    assert!(enrol(&stolen.print(), "SN1").await.is_err());
    assert!(enrol(&other, "SN2").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_refused() {
    let running = Running::start().await;
    let api = running.client();
    let answer = api
        .change("POST", "/v1/cards/local/enrol", r#"{"serial":"SN1","ttl_s":1}"#)
        .await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(enrol(answer["token"].as_str().unwrap(), "SN1").await.is_err());
    assert!(enrol(&api.token("local", "SN1").await, "SN1").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_does_not_enrol_with_a_broker_whose_ca_its_token_does_not_name() {
    let running = Running::start().await;
    let api = running.client();
    let token = api.token("local", "SN1").await;
    let mut wrong: EnrolToken = token.parse().unwrap();
    wrong.ca_sha256[31] ^= 1;
    let refused = enrol(&wrong.print(), "SN1").await.err().unwrap();
    assert!(refused.contains("not the token's"), "{refused}");
    assert!(enrol(&token, "SN1").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_a_peer_can_only_enrol() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    let token: EnrolToken = api.token("other", "SN2").await.parse().unwrap();
    for message in [
        identity.hello(1),
        FromCard::Inventory {
            seq: 1,
            bindings: vec![],
        },
    ] {
        let mut link = connect_anonymous(&token).await.unwrap();
        link.send(&message).await;
        match link.receive().await {
            Some(FromBroker::Refused { refusal }) => assert_eq!(refusal.code, Code::Malformed, "{refusal}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(link.receive().await, None);
    }
    identity.join(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused() {
    let running = Running::start().await;
    let api = running.client();
    let mut identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    drop(identity.join(1).await);
    let authority = Authority::load_or_create(&running.config.state_dir, unix_now_s()).unwrap();
    let long_ago = unix_now_s() - CARD_CERT_TTL_S - 60;
    let current = identity.certificate.clone();
    identity.certificate = authority
        .issue_card(&identity.card, &csr(&identity.key), long_ago)
        .unwrap()
        .certificate;
    // In TLS 1.3 the client has finished its part before the server has looked at its certificate.
    let mut link = identity.connect().await.unwrap();
    let error = link.try_receive().await.unwrap_err();
    assert!(error.to_string().contains("CertificateExpired"), "{error}");
    identity.certificate = current;
    identity.join(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_certificate_of_the_last_enrolment_lets_a_card_in() {
    let running = Running::start().await;
    let api = running.client();
    let former = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    let mut link = former.join(1).await;
    link.desired().await;
    let current = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    assert!(
        !matches!(link.try_receive().await, Ok(Some(_))),
        "the former connection ends"
    );
    let text = former.join_refused(former.hello(1)).await;
    assert!(
        text.contains("replaced") && text.contains("outboard card enrol local"),
        "{text}"
    );
    current.join(1).await;
    api.change("DELETE", "/v1/cards/local", "").await;
    let text = current.join_refused(current.hello(1)).await;
    assert!(text.contains("not enrolled"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serial_belongs_to_one_card() {
    let running = Running::start().await;
    let api = running.client();
    let mut identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    api.token("other", "SN2").await;
    let (status, error) = api
        .refused("POST", "/v1/cards/third/enrol", r#"{"serial":"SN2"}"#)
        .await;
    assert_eq!((status, &error["code"]), (409, &"duplicate_serial".into()));
    identity.serial = "SN2".to_owned();
    let text = identity.join_refused(identity.hello(1)).await;
    assert!(text.contains("SN2") && text.contains("card other"), "{text}");
    identity.serial = "SN1".to_owned();
    identity.join(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_of_a_card_supersedes_the_former() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    let mut first = identity.join(1).await;
    first.desired().await;
    let mut second = identity.join(2).await;
    assert!(!matches!(first.try_receive().await, Ok(Some(_))));
    second.desired().await;
    second.report(1, vec![]).await;
    assert_eq!(api.get("/v1/cards/local").await["state"], "connected");
    drop(second);
    api.until("/v1/cards/local", |c| c["state"] == "disconnected").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_from_the_past_is_refused() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    identity.join(7).await;
    let text = identity.join_refused(identity.hello(6)).await;
    assert!(text.contains("boot epoch 6"), "{text}");
    identity.join(7).await;

    let FromCard::Hello {
        version_min,
        version_max,
        serial,
        dpu_epoch,
        broker_epoch,
        isolation,
        ..
    } = identity.hello(8)
    else {
        unreachable!()
    };
    let hello = |version_min, version_max, revision| FromCard::Hello {
        version_min,
        version_max,
        serial: serial.clone(),
        dpu_epoch,
        broker_epoch: broker_epoch.next(),
        revision,
        isolation,
    };
    let text = identity
        .join_refused(hello(version_max + 1, version_max + 2, Revision(0)))
        .await;
    assert!(text.contains("versions"), "{text}");
    // A card that knows more than the store: the store is an old copy, and must not take things away from the card.
    let text = identity
        .join_refused(hello(version_min, version_max, Revision(99)))
        .await;
    assert!(text.contains("old copy"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_ends_only_its_own_connection() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    let mut served = identity.join(1).await;
    served.desired().await;
    let token: EnrolToken = api.token("other", "SN2").await.parse().unwrap();
    for bytes in [&[0xff; 4][..], &[0, 0, 0, 1, 0xff], &[0, 0, 0, 2, 0x82, 0x82]] {
        let mut link = connect_anonymous(&token).await.unwrap();
        link.send_bytes(bytes).await;
        assert!(!matches!(link.try_receive().await, Ok(Some(_))));
    }
    served.report(1, vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_taken_only_for_what_the_card_serves() {
    let running = Running::start().await;
    let api = running.client();
    let here = enrol(&api.token("here", "SN1").await, "SN1").await.unwrap();
    let there = enrol(&api.token("there", "SN2").await, "SN2").await.unwrap();
    api.network().await;
    let spec = port_spec("vm1", 1).replace('}', r#","card":"here"}"#);
    api.change("PUT", "/v1/ports/vm1", &spec).await;
    let counters = |tx_frames| FromCard::Telemetry {
        ports: vec![PortCounters {
            name: "vm1".parse().unwrap(),
            tx_frames,
            tx_bytes: 2,
            rx_frames: 3,
            rx_bytes: 4,
            drops: vec![("source_mac".to_owned(), 5), ("bad\"label\n".to_owned(), 6)],
        }],
        volumes: vec![],
    };
    let mut other = there.join(1).await;
    other.send(&counters(1000)).await;
    other.report(1, vec![]).await;
    assert_eq!(api.get("/v1/ports/vm1").await["counters"], serde_json::Value::Null);
    let mut own = here.join(1).await;
    own.send(&counters(1)).await;
    let port = api.until("/v1/ports/vm1", |p| !p["counters"].is_null()).await;
    assert_eq!(port["counters"]["drops"], serde_json::json!({"source_mac": 5}));
    let (_, metrics) = api.send("GET", "/metrics", "", None).await;
    let metrics = metrics.as_str().unwrap();
    for line in [
        "outboard_port_frames_total{port=\"vm1\",direction=\"tx\"} 1",
        "outboard_port_dropped_frames_total{port=\"vm1\",reason=\"source_mac\"} 5",
        "outboard_card_connected{card=\"here\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_s_error_shows_with_its_object() {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    let spec = r#"{"name":"disk1","size":"1MiB","backend":{"file":"disk1.raw"}}"#;
    api.change("PUT", "/v1/volumes/disk1", spec).await;
    let mut link = identity.join(1).await;
    let grant = link.desired().await.grants[0].clone();
    let mut report = report_of(&grant, State::Reserved);
    report.error = Some(Refusal::new(
        Code::Unavailable,
        "volume disk1: disk1.raw is not there: make it",
    ));
    link.report(1, vec![report]).await;
    let volume = api.get("/v1/volumes/disk1").await;
    assert_eq!(volume["binding"]["error"]["code"], "unavailable");
    assert!(
        volume["binding"]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("disk1.raw")
    );

    // In use it may grow, under the same grant, and change in no other way.
    link.report(2, vec![report_of(&grant, State::Active)]).await;
    let bigger = spec.replace("1MiB", "2MiB");
    let refused = async |changed: String, said: &str| {
        let (status, error) = api.refused("PUT", "/v1/volumes/disk1", &changed).await;
        assert_eq!((status, &error["code"]), (409, &"in_use".into()));
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
    };
    refused(spec.replace("1MiB", "512KiB"), "cannot shrink from 1MiB to 512KiB").await;
    refused(bigger.replace("disk1.raw", "other.raw"), "cannot change").await;
    api.change("PUT", "/v1/volumes/disk1", &bigger).await;
    let state = link.desired_until(|s| s.volumes[0].size_bytes == 2 << 20).await;
    assert_eq!(state.grants, std::slice::from_ref(&grant));
    refused(spec.to_owned(), "cannot shrink").await;

    // Otherwise it is bound anew.
    link.report(3, vec![report_of(&grant, State::Prepared)]).await;
    api.change("PUT", "/v1/volumes/disk1", spec).await;
    let state = link.desired_until(|s| s.volumes[0].size_bytes == 1 << 20).await;
    assert!(
        state.grants.is_empty(),
        "a grant for the former blocks must not serve the new ones"
    );
    link.report(4, vec![report_of(&grant, State::Released)]).await;
    assert_eq!(api.get("/v1/volumes/disk1").await["binding"]["generation"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let running = Running::start().await;
    let api = running.client();
    let mut identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    api.network().await;
    api.port("vm1", 1).await;
    let mut link = identity.join(1).await;
    let before = link.desired().await;
    link.report(1, vec![report_of(&before.grants[0], State::Active)]).await;
    drop(link);
    api.until("/v1/cards/local", |c| c["state"] == "disconnected").await;
    let (directory, stopping) = running.stop().await;
    tokio::task::spawn_blocking(|| stopping.finish()).await.unwrap();

    let running = Running::start_in(directory).await;
    let api = running.client();
    assert_eq!(api.get("/v1/ports/vm1").await["binding"]["state"], "active");
    identity.address = running.broker.card_address.to_string();
    let mut link = identity.join(2).await;
    assert_eq!(link.desired().await, before);
    // The card has nothing any more: it is to prepare the same binding again.
    link.report(1, vec![]).await;
    assert_eq!(api.get("/v1/ports/vm1").await["binding"]["state"], "reserved");
}
