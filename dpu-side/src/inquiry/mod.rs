//! Answers to what the broker asks on an operator's behalf.
//!
//! A question is answered beside everything else: what the deciding thread knows comes by one message to it, what the
//! datapath knows by one bounded command to the worker, and neither is waited for longer than the question's deadline.
//! How many are open at a time is bounded; one more is refused at once. Nothing here changes what the card holds, and
//! only the broker's channel leads here.

mod desk;

use std::sync::mpsc::{SyncSender, TrySendError};

use outboard_engine::WorkerHandle;
use outboard_protocol::{
    codec::encode,
    id::{Name, ObjectRef},
    inquiry::{ANSWER_LEN_MAX, Answer, End, ObjectReport, Question, Reason, Step, TraceReport, Verdict},
    refusal::{Code, Refusal},
};
use outboard_vswitch::{DropReason, Trace, TraceVerdict};
use tokio::sync::oneshot;

pub use desk::Desk;

use crate::{
    datapath::{Datapath, DeviceReport},
    message::Message,
};

/// A question about an object, to the thread that decides.
pub struct ObjectInquiry {
    /// The object.
    pub object: ObjectRef,
    /// Gets what is known of it there; what its device knows is left out.
    pub reply: oneshot::Sender<ObjectReport>,
}

/// Answers questions.
#[derive(Clone)]
pub struct Inquiry {
    worker: WorkerHandle<Datapath>,
    enforcement: SyncSender<Message>,
}

impl Inquiry {
    /// Asks that worker and that thread.
    pub fn new(worker: WorkerHandle<Datapath>, enforcement: SyncSender<Message>) -> Self {
        Self { worker, enforcement }
    }

    /// The answer to a question. Takes as long as worker and enforcement take.
    pub async fn answer(&self, question: Question) -> Answer {
        let answered = match question {
            Question::Reasons => Ok(Answer::Reasons {
                reasons: DropReason::ALL.into_iter().map(reason).collect(),
            }),
            Question::Object { object } => self.object(object).await.map(|report| Answer::Object { report }),
            Question::Trace { port, frame } => self
                .trace(&port, frame.into())
                .await
                .map(|trace| Answer::Traced { trace }),
        };
        let answer = answered.unwrap_or_else(|refusal| Answer::Refused { refusal });
        if encode(&answer).len() > ANSWER_LEN_MAX {
            let text = format!("the answer is longer than the {ANSWER_LEN_MAX} bytes that one may have: ask for less");
            return refused(Code::Quota, text);
        }
        answer
    }

    async fn object(&self, object: ObjectRef) -> Result<ObjectReport, Refusal> {
        let (reply, told) = oneshot::channel();
        let asked = ObjectInquiry {
            object: object.clone(),
            reply,
        };
        // Not waited for: what hosts and broker want done comes first.
        self.enforcement
            .try_send(Message::Inquiry(Box::new(asked)))
            .map_err(|e| match e {
                TrySendError::Full(_) => Refusal::new(Code::Busy, "the card has too much else to do: ask again"),
                TrySendError::Disconnected(_) => stopping(),
            })?;
        let report = told.await.map_err(|_| stopping())?;
        let DeviceReport {
            set_up,
            open,
            queues,
            drops,
            notes,
        } = self.on_worker(move |datapath| datapath.report(&object)).await?;
        Ok(ObjectReport {
            set_up,
            open,
            queues,
            drops,
            notes,
            ..report
        })
    }

    async fn trace(&self, port: &Name, frame: Vec<u8>) -> Result<TraceReport, Refusal> {
        let name = port.clone();
        let traced = self
            .on_worker(move |datapath| datapath.trace(name.as_str(), &frame))
            .await?;
        traced.map(report).ok_or_else(|| {
            let text = format!("this card has no port {port} yet: ask again when it has applied its latest revision");
            Refusal::new(Code::Unavailable, text)
        })
    }

    /// Runs one bounded command on the worker.
    async fn on_worker<R: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Datapath) -> R + Send + 'static,
    ) -> Result<R, Refusal> {
        let (reply, told) = oneshot::channel();
        let posted = self.worker.post(move |datapath, _| {
            // Whoever asked may not wait any more.
            let _ = reply.send(look(datapath));
        });
        posted.map_err(|_| stopping())?;
        told.await.map_err(|_| stopping())
    }
}

fn stopping() -> Refusal {
    Refusal::new(Code::Unavailable, "the card is stopping: ask again when it runs")
}

/// An answer that is none.
pub(crate) fn refused(code: Code, text: impl Into<String>) -> Answer {
    Answer::Refused {
        refusal: Refusal::new(code, text),
    }
}

/// A reason with its documentation.
pub(crate) fn reason(reason: DropReason) -> Reason {
    Reason {
        name: reason.name().to_owned(),
        sentence: reason.describe().to_owned(),
        at_receiver: reason.at_receiver(),
    }
}

fn report(trace: Trace) -> TraceReport {
    let steps = trace.steps.into_iter().map(|step| Step {
        layer: step.layer.to_owned(),
        verdict: match step.verdict {
            TraceVerdict::Pass => Verdict::Pass,
            TraceVerdict::Hold => Verdict::Hold,
            TraceVerdict::Output => Verdict::Output,
            TraceVerdict::Drop => Verdict::Drop,
        },
        detail: step.detail,
        rule: step.rule,
    });
    // Names came from the broker as names, so none is lost here.
    let ends = trace.ends.into_iter().filter_map(|end| {
        Some(End {
            port: end.port.parse().ok()?,
            dropped: end.dropped.map(reason),
        })
    });
    TraceReport {
        steps: steps.collect(),
        ends: ends.collect(),
    }
}
