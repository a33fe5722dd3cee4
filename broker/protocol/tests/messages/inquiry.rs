//! Random questions and answers.

use outboard_protocol::{
    binding::State,
    id::{Generation, Incarnation},
    inquiry::{
        Answer, BindingState, Dropped, End, Incident, ObjectReport, Question, QueueReport, Reason, Step, TraceReport,
        Verdict,
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
    ]
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
    ]
}
