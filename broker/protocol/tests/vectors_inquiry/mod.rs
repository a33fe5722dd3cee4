//! The messages of the vectors about questions.

use outboard_protocol::{
    binding::State,
    card::{FromBroker, FromCard},
    desired::Cidr,
    id::{Generation, Incarnation, MacAddr, ObjectKind, ObjectRef},
    inquiry::{
        Answer, BindingState, CapturedFrame, Dropped, End, Filter, Flow, Incident, ObjectReport, Question, QueueReport,
        Reason, Side, Step, Term, TraceReport, Verdict, Way,
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
    let flows = Question::Flows {
        port: None,
        filter: Filter::default(),
        limit: 1000,
    };
    let flush = Question::FlushFlows {
        port: Some("vm1".parse().unwrap()),
        filter: Filter {
            terms: vec![Term::Protocol { number: 17 }],
        },
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
        ("ask_open_capture", ask(4, 5000, open_capture())),
        (
            "ask_read_capture",
            ask(5, 5000, Question::ReadCapture { capture: 1, after: 17 }),
        ),
        ("ask_close_capture", ask(6, 5000, Question::CloseCapture { capture: 1 })),
        ("ask_flows", ask(7, 10_000, flows)),
        ("ask_flush_flows", ask(8, 10_000, flush)),
    ]
}

fn open_capture() -> Question {
    let cidr = Cidr {
        address: [10, 0, 0, 0].into(),
        prefix_len: 24,
    };
    let terms = vec![
        Term::Ethertype { ethertype: 0x0800 },
        Term::Protocol { number: 6 },
        Term::And,
        Term::Address {
            side: Side::Source,
            cidr,
        },
        Term::Or,
        Term::Port {
            side: Side::Destination,
            first: 80,
            last: 81,
        },
        Term::And,
        Term::Mac {
            side: Side::Either,
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
        },
        Term::Not,
        Term::And,
        Term::Dropped { reason: None },
        Term::Dropped {
            reason: Some("runt".into()),
        },
        Term::Or,
        Term::And,
        Term::Way { way: Way::ToGuest },
        Term::And,
    ];
    let filter = Filter { terms };
    assert_eq!(filter.check(), Ok(()));
    Question::OpenCapture {
        port: "vm1".parse().unwrap(),
        filter,
        snaplen: 256,
        frames_max: Some(100),
        seconds_max: 60,
    }
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
        ("answer_capture_opened", answer(4, Answer::CaptureOpened { capture: 1 })),
        ("answer_captured", answer(5, captured())),
        ("answer_flows", answer(7, flows())),
        ("answer_flushed", answer(8, Answer::Flushed { count: 2 })),
    ]
}

fn captured() -> Answer {
    let frame = CapturedFrame {
        number: 18,
        unix_ns: 1_700_000_000_123_456_789,
        way: Way::FromGuest,
        len: 60,
        bytes: vec![0xff; 6].into(),
        dropped: Some(reason()),
    };
    Answer::Captured {
        frames: vec![frame],
        lost: 3,
        ended: Some("its time is up".into()),
    }
}

fn flows() -> Answer {
    let flow = Flow {
        network: "blue".parse().unwrap(),
        protocol: 6,
        source: [10, 0, 0, 1].into(),
        source_port: 1234,
        destination: [10, 0, 0, 2].into(),
        destination_port: 80,
        state: "established".into(),
        replied: true,
        age_s: 5,
        left_s: 432_000,
        from: Some("vm1".parse().unwrap()),
        to: None,
    };
    Answer::Flows {
        flows: vec![flow],
        more: true,
    }
}
