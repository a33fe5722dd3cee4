//! Questions to a card on an operator's behalf: trace, explain, reasons.

use outboard_protocol::{
    binding::State,
    card::{FromBroker, FromCard},
    id::{Generation, Incarnation},
    inquiry::{
        Answer, BindingState, CapturedFrame, End, Flow, ObjectReport, QUESTIONS_OPEN_MAX, Question, QueueReport,
        Reason, Step, TraceReport, Verdict, Way,
    },
    refusal::{Code, Refusal},
};
use serde_json::Value;

use crate::support::{
    Client, Running,
    card::{Identity, Link, enrol, report_of},
};

const TRACE: &str = "/v1/ports/vm1/trace";

async fn started() -> (Running, Client, Identity) {
    let running = Running::start().await;
    let api = running.client();
    let identity = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    api.network().await;
    api.port("vm1", 1).await;
    api.port("vm2", 2).await;
    (running, api, identity)
}

/// The next question that the card is asked.
async fn asked(link: &mut Link) -> (u64, Question) {
    loop {
        match link.receive().await {
            Some(FromBroker::Ask { id, question, .. }) => return (id, question),
            Some(FromBroker::Desired { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Asks the API while the card answers with `answer` what it is asked; the question and the API's answer.
async fn exchange(
    api: &Client,
    link: &mut Link,
    request: (&str, &str, &str),
    answer: Answer,
) -> (Question, u16, Value) {
    let (method, path, body) = request;
    let answering = async {
        let (id, question) = asked(link).await;
        link.send(&FromCard::Answer { id, answer }).await;
        question
    };
    let (question, (status, body)) = tokio::join!(answering, api.send(method, path, body, None));
    (question, status, body)
}

fn reason() -> Reason {
    Reason {
        name: "spoofed_ipv4".into(),
        sentence: "The IPv4 source is not one of the port's addresses.".into(),
        at_receiver: false,
    }
}

fn packet(text: &str) -> String {
    format!(r#"{{"packet":"{text}"}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_is_made_a_frame_and_the_card_says_what_becomes_of_it() {
    let (_running, api, identity) = started().await;
    let mut link = identity.join(1).await;
    let trace = TraceReport {
        steps: vec![Step {
            layer: "source guard".into(),
            verdict: Verdict::Drop,
            detail: "spoofed_ipv4".into(),
            rule: None,
        }],
        ends: vec![End {
            port: "vm1".parse().unwrap(),
            dropped: Some(reason()),
        }],
    };
    let body = packet("tcp 10.0.0.9:1234 > 10.0.0.2:80");
    let (question, status, view) = exchange(&api, &mut link, ("POST", TRACE, &body), Answer::Traced { trace }).await;
    let Question::Trace { port, frame } = question else {
        panic!("{question:?}")
    };
    assert_eq!(port.as_str(), "vm1");
    // To the MAC of the port that has the address, from the port's own.
    assert_eq!(frame[..14], [0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 8, 0]);
    assert_eq!((frame[26..30].to_vec(), frame.len()), (vec![10, 0, 0, 9], 60));
    assert_eq!(status, 200, "{view}");
    assert_eq!(
        view["macs"],
        serde_json::json!(["52:54:00:00:00:01", "52:54:00:00:00:02"])
    );
    assert_eq!(view["steps"][0]["verdict"], "drop");
    assert_eq!(view["ends"][0]["dropped"]["name"], "spoofed_ipv4");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_is_not_asked_about() {
    let (_running, api, identity) = started().await;
    let mut link = identity.join(1).await;
    let (status, error) = api
        .refused("POST", TRACE, &packet("tcp 10.0.0.1:99999 > 10.0.0.2:80"))
        .await;
    assert_eq!((status, &error["code"]), (422, &"bad_packet".into()));
    assert!(error["message"].as_str().unwrap().contains("character 14"), "{error}");
    let (status, error) = api.refused("POST", TRACE, &packet("tcp 10.0.0.1 > 10.0.0.7")).await;
    assert_eq!((status, &error["code"]), (422, &"no_neighbour".into()));
    let (status, _) = api
        .refused("POST", "/v1/ports/vm9/trace", &packet("arp 10.0.0.1 > 10.0.0.2"))
        .await;
    assert_eq!(status, 404);
    // Control: the first question that comes is one that can be asked.
    let body = packet("tcp 10.0.0.1 > 10.0.0.7 to 02:00:00:00:00:01");
    let refusal = Refusal::new(Code::Busy, "ask again");
    let (question, status, error) =
        exchange(&api, &mut link, ("POST", TRACE, &body), Answer::Refused { refusal }).await;
    assert!(matches!(question, Question::Trace { .. }));
    assert_eq!((status, &error["error"]["code"]), (503, &"busy".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_is_away_or_of_an_older_version_is_answered_for() {
    let (_running, api, identity) = started().await;
    let body = packet("arp 10.0.0.1 > 10.0.0.2");
    let (status, error) = api.refused("POST", TRACE, &body).await;
    assert_eq!((status, &error["code"]), (503, &"card_away".into()));
    let FromCard::Hello {
        serial,
        broker_epoch,
        revision,
        isolation,
        dpu_epoch,
        ..
    } = identity.hello(1)
    else {
        panic!()
    };
    let mut link = identity.connect().await.unwrap();
    link.send(&FromCard::Hello {
        version_min: 1,
        version_max: 1,
        serial,
        dpu_epoch,
        broker_epoch,
        revision,
        isolation,
    })
    .await;
    let Some(FromBroker::Welcome { version: 1, .. }) = link.receive().await else {
        panic!("a card of version 1 is served as before");
    };
    let (status, error) = api.refused("POST", TRACE, &body).await;
    assert_eq!((status, &error["code"]), (501, &"card_too_old".into()));
    assert!(
        error["message"].as_str().unwrap().contains("does not support this"),
        "{error}"
    );
    let explained = api.get("/v1/explain/port/vm1").await;
    assert!(explained["conclusion"].as_str().unwrap().contains("vm1"), "{explained}");
    // It may not answer what nobody may ask it.
    let answer = Answer::Reasons { reasons: vec![] };
    link.send(&FromCard::Answer { id: 1, answer }).await;
    loop {
        match link.receive().await {
            Some(FromBroker::Desired { .. }) => {}
            Some(FromBroker::Refused { refusal }) => {
                assert_eq!(refusal.code, Code::Malformed);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_explained_from_its_record_to_its_rings() {
    let (_running, api, identity) = started().await;
    let mut link = identity.join(1).await;
    let state = link.desired().await;
    let grant = state
        .grants
        .iter()
        .find(|g| g.object.name.as_str() == "vm1")
        .unwrap()
        .clone();
    link.report(1, vec![report_of(&grant, State::Prepared)]).await;
    link.send(&FromCard::Applied {
        revision: state.revision,
    })
    .await;
    api.until("/v1/cards/local", |c| c["revision_applied"] == state.revision.0)
        .await;
    let binding = |state| BindingState {
        generation: Generation(1),
        incarnation: Incarnation(1),
        state,
        host: "local".parse().unwrap(),
        error: None,
    };
    let request = ("GET", "/v1/explain/port/vm1", "");
    let report = ObjectReport {
        described: true,
        granted: true,
        binding: Some(binding(State::Prepared)),
        set_up: true,
        ..ObjectReport::default()
    };
    let answer = Answer::Object { report: report.clone() };
    let (question, status, explained) = exchange(&api, &mut link, request, answer).await;
    assert_eq!(
        question,
        Question::Object {
            object: grant.object.clone()
        }
    );
    assert_eq!((status, &explained["well"]), (200, &false.into()), "{explained}");
    let conclusion = explained["conclusion"].as_str().unwrap();
    assert!(conclusion.contains("host local has not asked for it"), "{explained}");
    // Control: the same port, in order.
    let queue = |index, role: &str| QueueReport {
        index,
        role: role.into(),
        features: 1 << 32,
        failed: None,
        frames: Some(0),
        bytes: Some(0),
    };
    let report = ObjectReport {
        binding: Some(binding(State::Active)),
        session: true,
        open: true,
        queues: vec![queue(0, "receive"), queue(1, "transmit")],
        ..report
    };
    let (_, _, explained) = exchange(&api, &mut link, request, Answer::Object { report }).await;
    assert_eq!(explained["well"], true, "{explained}");
    let (status, _) = api.refused("GET", "/v1/explain/port/vm9", "").await;
    assert_eq!(status, 404);
    let (status, _) = api.refused("GET", "/v1/explain/card/local", "").await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_are_the_cards_own_and_answers_find_who_asked_in_any_order() {
    let (_running, api, identity) = started().await;
    let mut link = identity.join(1).await;
    let reasons = vec![reason()];
    let (question, status, listed) = exchange(
        &api,
        &mut link,
        ("GET", "/v1/cards/local/reasons", ""),
        Answer::Reasons { reasons },
    )
    .await;
    assert_eq!((question, status), (Question::Reasons, 200));
    assert_eq!(listed[0]["name"], "spoofed_ipv4");
    // As many as may be open, answered backwards, each by a reason of its own.
    let asking = (0..QUESTIONS_OPEN_MAX).map(|_| {
        let api = api.clone();
        tokio::spawn(async move { api.get("/v1/cards/local/reasons").await })
    });
    let asking: Vec<_> = asking.collect();
    let mut ids = Vec::new();
    while ids.len() < QUESTIONS_OPEN_MAX {
        ids.push(asked(&mut link).await.0);
    }
    // One more is not asked.
    let (status, error) = api.refused("GET", "/v1/cards/local/reasons", "").await;
    assert_eq!((status, &error["code"]), (503, &"busy".into()));
    for id in ids.into_iter().rev() {
        let reasons = vec![reason()];
        link.send(&FromCard::Answer {
            id,
            answer: Answer::Reasons { reasons },
        })
        .await;
    }
    for task in asking {
        assert_eq!(task.await.unwrap()[0]["name"], "spoofed_ipv4");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_is_begun_read_and_closed_at_the_ports_card() {
    let (_running, api, identity) = started().await;
    let mut link = identity.join(1).await;
    let captures = "/v1/ports/vm1/captures";
    let (status, error) = api.refused("POST", captures, r#"{"filter":"tcp or tpc"}"#).await;
    assert_eq!((status, &error["code"]), (422, &"bad_filter".into()));
    assert!(error["message"].as_str().unwrap().contains("character 8"), "{error}");
    let (status, error) = api.refused("POST", captures, r#"{"snaplen":70000}"#).await;
    assert_eq!((status, &error["code"]), (422, &"bad_capture".into()));
    let body = r#"{"filter":"udp and dropped","count":5}"#;
    let opened = Answer::CaptureOpened { capture: 7 };
    let (question, status, view) = exchange(&api, &mut link, ("POST", captures, body), opened).await;
    let Question::OpenCapture {
        port,
        filter,
        snaplen: 256,
        frames_max: Some(5),
        seconds_max: 60,
    } = question
    else {
        panic!("{question:?}")
    };
    assert_eq!((port.as_str(), filter.terms.len(), status), ("vm1", 3, 200));
    assert_eq!(view, serde_json::json!({"card": "local", "id": 7}));
    let answer = Answer::Captured {
        frames: vec![CapturedFrame {
            number: 3,
            unix_ns: 1,
            way: Way::ToGuest,
            len: 60,
            bytes: vec![1, 2, 3].into(),
            dropped: Some(reason()),
        }],
        lost: 2,
        ended: Some("its time is up".into()),
    };
    let path = "/v1/cards/local/captures/7/after/2";
    let (question, status, read) = exchange(&api, &mut link, ("GET", path, ""), answer).await;
    assert_eq!(
        (question, status),
        (Question::ReadCapture { capture: 7, after: 2 }, 200)
    );
    assert_eq!(
        (&read["frames"][0]["bytes"], &read["frames"][0]["way"], &read["lost"]),
        (&"AQID".into(), &"to_guest".into(), &2.into())
    );
    let refusal = Refusal::new(Code::Stale, "there is no such capture");
    let path = "/v1/cards/local/captures/7";
    let (question, status, _) = exchange(&api, &mut link, ("DELETE", path, ""), Answer::Refused { refusal }).await;
    assert_eq!((question, status), (Question::CloseCapture { capture: 7 }, 404));
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_listed_of_one_port_or_of_all_cards_and_flushed() {
    let (_running, api, identity) = started().await;
    let (status, error) = api.refused("POST", "/v1/flows/list", r#"{"port":"vm1"}"#).await;
    assert_eq!((status, &error["code"]), (503, &"card_away".into()));
    let view = api.change("POST", "/v1/flows/list", "{}").await;
    assert!(
        view["unknown"][0]
            .as_str()
            .unwrap()
            .contains("card local is not connected"),
        "{view}"
    );
    let mut link = identity.join(1).await;
    let flow = Flow {
        network: "blue".parse().unwrap(),
        protocol: 6,
        source: [10, 0, 0, 1].into(),
        source_port: 1234,
        destination: [10, 0, 0, 2].into(),
        destination_port: 80,
        state: "established".into(),
        replied: true,
        age_s: 1,
        left_s: 2,
        from: Some("vm1".parse().unwrap()),
        to: None,
    };
    let answer = Answer::Flows {
        flows: vec![flow],
        more: true,
    };
    let request = ("POST", "/v1/flows/list", r#"{"filter":"tcp","limit":1}"#);
    let (question, status, view) = exchange(&api, &mut link, request, answer).await;
    assert!(
        matches!(
            question,
            Question::Flows {
                port: None,
                limit: 1,
                ..
            }
        ),
        "{question:?}"
    );
    assert_eq!(
        (status, &view["more"], &view["flows"][0]["card"]),
        (200, &true.into(), &"local".into())
    );
    let request = ("POST", "/v1/flows/flush", r#"{"port":"vm1"}"#);
    let (question, status, view) = exchange(&api, &mut link, request, Answer::Flushed { count: 3 }).await;
    assert!(
        matches!(question, Question::FlushFlows { port: Some(_), .. }),
        "{question:?}"
    );
    assert_eq!((status, &view["count"]), (200, &3.into()));
}
