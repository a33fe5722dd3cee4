//! Random questions and answers.

use std::net::IpAddr;

use outboard_protocol::{
    binding::State,
    desired::Cidr,
    id::{Generation, Incarnation, MacAddr},
    inquiry::{
        Answer, BindingState, CapturedFrame, Dropped, End, Filter, Flow, Incident, ObjectReport, Question, QueueReport,
        Reason, Side, Step, Term, TraceReport, Verdict, Way,
    },
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{name, object, refusal};

pub fn question() -> impl Strategy<Value = Question> {
    let trace = (name(), vec(any::<u8>(), 0..300)).prop_map(|(port, frame)| Question::Trace {
        port,
        frame: frame.into(),
    });
    prop_oneof![
        Just(Question::Reasons),
        object().prop_map(|object| Question::Object { object }),
        trace,
        (name(), filter(), any::<(u32, u32)>(), option::of(any::<u64>())).prop_map(|(port, filter, n, frames_max)| {
            Question::OpenCapture {
                port,
                filter,
                snaplen: n.0,
                frames_max,
                seconds_max: n.1,
            }
        }),
        any::<(u64, u64)>().prop_map(|(capture, after)| Question::ReadCapture { capture, after }),
        any::<u64>().prop_map(|capture| Question::CloseCapture { capture }),
        (option::of(name()), filter(), any::<u32>()).prop_map(|(port, filter, limit)| Question::Flows {
            port,
            filter,
            limit
        }),
        (option::of(name()), filter()).prop_map(|(port, filter)| Question::FlushFlows { port, filter }),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    let side = select(vec![Side::Either, Side::Source, Side::Destination]);
    let cidr = (any::<IpAddr>(), 0..=128u8).prop_map(|(address, prefix_len)| Cidr { address, prefix_len });
    let term = prop_oneof![
        select(vec![Term::And, Term::Or, Term::Not]),
        any::<u16>().prop_map(|ethertype| Term::Ethertype { ethertype }),
        any::<u8>().prop_map(|number| Term::Protocol { number }),
        (side.clone(), cidr).prop_map(|(side, cidr)| Term::Address { side, cidr }),
        (side.clone(), any::<(u16, u16)>()).prop_map(|(side, (first, last))| Term::Port { side, first, last }),
        (side, any::<[u8; 6]>()).prop_map(|(side, mac)| Term::Mac {
            side,
            mac: MacAddr(mac)
        }),
        option::of("[a-z_]{1,20}").prop_map(|reason| Term::Dropped { reason }),
        way().prop_map(|way| Term::Way { way }),
    ];
    vec(term, 0..6).prop_map(|terms| Filter { terms })
}

fn way() -> impl Strategy<Value = Way> {
    select(vec![Way::FromGuest, Way::ToGuest])
}

fn captured() -> impl Strategy<Value = CapturedFrame> {
    let bytes = vec(any::<u8>(), 0..40);
    (any::<(u64, u64, u32)>(), way(), bytes, option::of(reason())).prop_map(|(n, way, bytes, dropped)| CapturedFrame {
        number: n.0,
        unix_ns: n.1,
        way,
        len: n.2,
        bytes: bytes.into(),
        dropped,
    })
}

fn flow() -> impl Strategy<Value = Flow> {
    let ports = (option::of(name()), option::of(name()));
    (
        name(),
        any::<(u8, IpAddr, u16, IpAddr, u16)>(),
        ".{0,12}",
        any::<(bool, u64, u64)>(),
        ports,
    )
        .prop_map(|(network, tuple, state, rest, (from, to))| Flow {
            network,
            protocol: tuple.0,
            source: tuple.1,
            source_port: tuple.2,
            destination: tuple.3,
            destination_port: tuple.4,
            state,
            replied: rest.0,
            age_s: rest.1,
            left_s: rest.2,
            from,
            to,
        })
}

fn reason() -> impl Strategy<Value = Reason> {
    ("[a-z_]{1,20}", ".{0,40}", any::<bool>()).prop_map(|(name, sentence, at_receiver)| Reason {
        name,
        sentence,
        at_receiver,
    })
}

fn state() -> impl Strategy<Value = State> {
    select(State::ALL.to_vec())
}

fn binding() -> impl Strategy<Value = BindingState> {
    (any::<[u64; 2]>(), state(), name(), option::of(refusal())).prop_map(|(n, state, host, error)| BindingState {
        generation: Generation(n[0]),
        incarnation: Incarnation(n[1]),
        state,
        host,
        error,
    })
}

fn incident() -> impl Strategy<Value = Incident> {
    (any::<[u64; 2]>(), state(), option::of(refusal())).prop_map(|(n, state, error)| Incident {
        unix_s: n[0],
        generation: Generation(n[1]),
        state,
        error,
    })
}

fn queue() -> impl Strategy<Value = QueueReport> {
    let counted = option::of(any::<u64>());
    (
        any::<u16>(),
        ".{0,9}",
        any::<u64>(),
        option::of(".{0,40}"),
        counted.clone(),
        counted,
    )
        .prop_map(|(index, role, features, failed, frames, bytes)| QueueReport {
            index,
            role,
            features,
            failed,
            frames,
            bytes,
        })
}

fn report() -> impl Strategy<Value = ObjectReport> {
    let dropped = (reason(), any::<u64>()).prop_map(|(reason, frames)| Dropped { reason, frames });
    (
        any::<[bool; 5]>(),
        option::of(binding()),
        vec(incident(), 0..4),
        vec(queue(), 0..3),
        vec(dropped, 0..3),
        vec(".{0,40}", 0..3),
    )
        .prop_map(|(is, binding, incidents, queues, drops, notes)| ObjectReport {
            described: is[0],
            granted: is[1],
            binding,
            incidents,
            session: is[2],
            set_up: is[3],
            open: is[4],
            queues,
            drops,
            notes,
        })
}

fn trace() -> impl Strategy<Value = TraceReport> {
    let verdicts = vec![Verdict::Pass, Verdict::Output, Verdict::Drop, Verdict::Hold];
    let step =
        (".{0,20}", select(verdicts), ".{0,40}", option::of(".{0,20}")).prop_map(|(layer, verdict, detail, rule)| {
            Step {
                layer,
                verdict,
                detail,
                rule,
            }
        });
    let end = (name(), option::of(reason())).prop_map(|(port, dropped)| End { port, dropped });
    (vec(step, 0..4), vec(end, 0..3)).prop_map(|(steps, ends)| TraceReport { steps, ends })
}

pub fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        refusal().prop_map(|refusal| Answer::Refused { refusal }),
        vec(reason(), 0..3).prop_map(|reasons| Answer::Reasons { reasons }),
        report().prop_map(|report| Answer::Object { report }),
        trace().prop_map(|trace| Answer::Traced { trace }),
        any::<u64>().prop_map(|capture| Answer::CaptureOpened { capture }),
        (vec(captured(), 0..3), any::<u64>(), option::of(".{0,20}"))
            .prop_map(|(frames, lost, ended)| Answer::Captured { frames, lost, ended }),
        (vec(flow(), 0..3), any::<bool>()).prop_map(|(flows, more)| Answer::Flows { flows, more }),
        any::<u64>().prop_map(|count| Answer::Flushed { count }),
    ]
}
