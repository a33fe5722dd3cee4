//! The messages of the vectors about questions.

use outboard_protocol::{
    binding::State,
    card::{FromBroker, FromCard},
    id::{Generation, Incarnation, ObjectKind, ObjectRef},
    inquiry::{
        Answer, BindingState, Dropped, End, Incident, ObjectReport, Question, QueueReport, Reason, Step, TraceReport,
        Verdict,
    },
    refusal::{Code, Refusal},
};

/// What the broker asks.
pub fn questions() -> Vec<(&'static str, FromBroker)> {
    let object = ObjectRef {
        kind: ObjectKind::Port,
        name: "vm1".parse().unwrap(),
    };
    let frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 8, 6];
    let trace = Question::Trace {
        port: "vm1".parse().unwrap(),
        frame: frame.into(),
    };
    let ask = |id, deadline_ms, question| FromBroker::Ask {
        id,
        deadline_ms,
        question,
    };
    vec![
        ("ask_reasons", ask(1, 5000, Question::Reasons)),
        ("ask_object", ask(2, 5000, Question::Object { object })),
        ("ask_trace", ask(300, 100, trace)),
    ]
}

fn reason() -> Reason {
    Reason {
        name: "spoofed_mac".into(),
        sentence: "The source MAC is not the port's.".into(),
        at_receiver: false,
    }
}

fn report() -> ObjectReport {
    let incident = |unix_s, state, error: Option<&str>| Incident {
        unix_s,
        generation: Generation(3),
        state,
        error: error.map(|text| Refusal::new(Code::Unavailable, text)),
    };
    ObjectReport {
        described: true,
        granted: true,
        binding: Some(BindingState {
            generation: Generation(3),
            incarnation: Incarnation(12),
            state: State::Active,
            host: "local".parse().unwrap(),
            error: None,
        }),
        incidents: vec![
            incident(1_700_000_000, State::Reserved, Some("no file")),
            incident(1_700_000_005, State::Active, None),
        ],
        session: true,
        set_up: true,
        open: true,
        queues: vec![QueueReport {
            index: 0,
            role: "receive".into(),
            features: 1 << 32,
            failed: None,
            frames: Some(7),
            bytes: Some(448),
        }],
        drops: vec![Dropped {
            reason: reason(),
            frames: 2,
        }],
        notes: vec!["unfiltered".into()],
    }
}

fn trace() -> TraceReport {
    let step = |layer: &str, verdict, detail: &str, rule: Option<&str>| Step {
        layer: layer.into(),
        verdict,
        detail: detail.into(),
        rule: rule.map(Into::into),
    };
    let end = |port: &str, dropped| End {
        port: port.parse().unwrap(),
        dropped,
    };
    TraceReport {
        steps: vec![
            step("parser", Verdict::Pass, "ARP", None),
            step(
                "security group",
                Verdict::Drop,
                "no rule allows it",
                Some("web/ingress/3"),
            ),
        ],
        ends: vec![end("vm1", Some(reason())), end("vm2", None)],
    }
}

/// What the card answers.
pub fn answers() -> Vec<(&'static str, FromCard)> {
    let refusal = Refusal::new(Code::Busy, "ask again");
    let answer = |id, answer| FromCard::Answer { id, answer };
    let reasons = vec![reason()];
    vec![
        ("answer_refused", answer(1, Answer::Refused { refusal })),
        ("answer_reasons", answer(1, Answer::Reasons { reasons })),
        ("answer_object", answer(2, Answer::Object { report: report() })),
        ("answer_traced", answer(300, Answer::Traced { trace: trace() })),
    ]
}
