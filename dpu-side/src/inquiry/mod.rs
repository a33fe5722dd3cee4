//! Answers to what the broker asks on an operator's behalf.
//!
//! A question is answered beside everything else: what the deciding thread knows comes by one message to it, what the
//! datapath knows by one bounded command to the worker, and neither is waited for longer than the question's deadline.
//! How many are open at a time is bounded; one more is refused at once. Nothing here changes what the card holds durably,
//! and only the broker's channel leads here.

mod capture;
mod desk;
mod flows;

use std::{
    sync::mpsc::{SyncSender, TrySendError},
    time::Duration,
};

use outboard_engine::{WorkerGone, WorkerHandle};
use outboard_protocol::{
    codec::encode,
    id::{Name, ObjectRef},
    inquiry::{
        ANSWER_LEN_MAX, Answer, End, FLOWS_MAX, Filter, ObjectReport, Question, Reason, Step, TraceReport, Verdict,
    },
    refusal::{Code, Refusal},
};
use outboard_vswitch::{CaptureSpec, Connections, DropReason, Trace, TraceVerdict};
use tokio::{sync::oneshot, time::sleep};

pub use desk::Desk;

use crate::{
    datapath::{Datapath, DeviceReport},
    message::Message,
    workers::Workers,
};

/// How often captures are looked at that nobody reads.
const SWEEP: Duration = Duration::from_secs(5);

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
    workers: Workers,
    enforcement: SyncSender<Message>,
}

impl Inquiry {
    /// Asks those workers and that thread.
    pub fn new(workers: Workers, enforcement: SyncSender<Message>) -> Self {
        Self { workers, enforcement }
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
            Question::OpenCapture {
                port,
                filter,
                snaplen,
                frames_max,
                seconds_max,
            } => match capture::spec(port.to_string(), filter, snaplen, frames_max, seconds_max) {
                Ok(spec) => self.open_capture(spec).await,
                Err(refusal) => Err(refusal),
            },
            Question::ReadCapture { capture, after } => self.read_capture(capture, after).await,
            Question::CloseCapture { capture } => self.close_capture(capture).await,
            Question::Flows { port, filter, limit } => self.flows(port, filter, limit).await,
            Question::FlushFlows { port, filter } => self.flush_flows(port, filter).await,
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
        } = self.device(&object).await?;
        Ok(ObjectReport {
            set_up,
            open,
            queues,
            drops,
            notes,
            ..report
        })
    }

    /// What all workers have of an object's device.
    async fn device(&self, object: &ObjectRef) -> Result<DeviceReport, Refusal> {
        let mut sum = DeviceReport::default();
        for (number, worker) in self.workers.handles().iter().enumerate() {
            let of = object.clone();
            let report = on(worker, move |datapath| datapath.report(&of)).await?;
            if self.workers.count() > 1 && !report.queues.is_empty() {
                let indices: Vec<_> = report.queues.iter().map(|queue| queue.index.to_string()).collect();
                sum.notes
                    .push(format!("worker {number} serves queues {}", indices.join(", ")));
            }
            sum.add(report);
        }
        Ok(sum)
    }

    async fn trace(&self, port: &Name, frame: Vec<u8>) -> Result<TraceReport, Refusal> {
        let name = port.clone();
        // Where its guest's frames are taken.
        let worker = self.workers.of_port(port).map_err(ended)?;
        let traced = on(worker, move |datapath| datapath.trace(name.as_str(), &frame)).await?;
        traced.map(report).ok_or_else(|| no_port(port.as_str()))
    }

    async fn open_capture(&self, spec: CaptureSpec) -> Result<Answer, Refusal> {
        let port = spec.port.clone();
        let opened = self
            .on_any(move |datapath| datapath.switch().open_capture(spec))
            .await?;
        let capture = opened.map_err(|why| capture::refused(&port, why))?;
        let shared = self
            .on_any(move |datapath| datapath.switch().shared_capture(capture))
            .await?;
        if let Some(shared) = shared {
            for worker in self.workers.handles().iter().skip(1) {
                let shared = shared.clone();
                on(worker, move |datapath| datapath.switch().join_capture(shared)).await?;
            }
        }
        tracing::info!("an operator captures frames at port {port}");
        let this = self.clone();
        // One that nobody reads any more gives its memory back.
        tokio::spawn(async move {
            loop {
                sleep(SWEEP).await;
                let mut left = false;
                for worker in this.workers.handles() {
                    match on(worker, |datapath| datapath.switch().sweep_captures()).await {
                        Ok(some) => left |= some,
                        Err(_) => return,
                    }
                }
                if !left {
                    return;
                }
            }
        });
        Ok(Answer::CaptureOpened { capture })
    }

    async fn read_capture(&self, capture: u64, after: u64) -> Result<Answer, Refusal> {
        let len_max = capture::READ_LEN_MAX;
        let read = self
            .on_any(move |datapath| datapath.switch().read_capture(capture, after, len_max))
            .await?;
        let (frames, lost, ended) = capture::told(read.ok_or_else(no_capture)?);
        Ok(Answer::Captured { frames, lost, ended })
    }

    async fn close_capture(&self, capture: u64) -> Result<Answer, Refusal> {
        let mut closed = false;
        for worker in self.workers.handles() {
            closed |= on(worker, move |datapath| datapath.switch().close_capture(capture)).await?;
        }
        if !closed {
            return Err(no_capture());
        }
        Ok(Answer::Captured {
            frames: vec![],
            lost: 0,
            ended: Some("it was closed".to_owned()),
        })
    }

    async fn flows(&self, port: Option<Name>, filter: Filter, limit: u32) -> Result<Answer, Refusal> {
        filter
            .check()
            .map_err(|e| Refusal::new(Code::Malformed, e.to_string()))?;
        let limit = usize::try_from(limit.min(FLOWS_MAX)).unwrap_or(0);
        let (flows, more) = self
            .beside(port, move |connections, port| {
                flows::list(connections, port, &filter, limit)
            })
            .await?;
        Ok(Answer::Flows { flows, more })
    }

    async fn flush_flows(&self, port: Option<Name>, filter: Filter) -> Result<Answer, Refusal> {
        filter
            .check()
            .map_err(|e| Refusal::new(Code::Malformed, e.to_string()))?;
        let count = self
            .beside(port, move |connections, port| flows::flush(connections, port, &filter))
            .await?;
        Ok(Answer::Flushed { count: count as u64 })
    }

    /// Walks the connections on a thread of its own, which takes its time, beside the worker.
    async fn beside<R: Send + 'static>(
        &self,
        port: Option<Name>,
        walk: impl FnOnce(&Connections, Option<String>) -> R + Send + 'static,
    ) -> Result<R, Refusal> {
        let connections = self.on_any(|datapath| datapath.switch().connections()).await?;
        let walking = tokio::task::spawn_blocking(move || walk(&connections, port.map(String::from)));
        walking.await.map_err(|_| stopping())
    }

    /// Asks one worker what all of them know.
    async fn on_any<R: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Datapath) -> R + Send + 'static,
    ) -> Result<R, Refusal> {
        on(self.workers.any().map_err(ended)?, look).await
    }
}

/// Runs one bounded command on a worker.
async fn on<R: Send + 'static>(
    worker: &WorkerHandle<Datapath>,
    look: impl FnOnce(&mut Datapath) -> R + Send + 'static,
) -> Result<R, Refusal> {
    let (reply, told) = oneshot::channel();
    let posted = worker.post(move |datapath, _| {
        // Whoever asked may not wait any more.
        let _ = reply.send(look(datapath));
    });
    posted.map_err(ended)?;
    told.await.map_err(|_| stopping())
}

fn ended(_: WorkerGone) -> Refusal {
    stopping()
}

fn no_port(port: &str) -> Refusal {
    let text = format!("this card has no port {port} yet: ask again when it has applied its latest revision");
    Refusal::new(Code::Unavailable, text)
}

fn no_capture() -> Refusal {
    let text = "there is no such capture at this card: it has ended, or nobody read it for too long";
    Refusal::new(Code::Stale, text)
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
