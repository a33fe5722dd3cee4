//! Where a connection's questions come in: each with its deadline, a bounded number at a time.

use std::{sync::Arc, time::Duration};

use outboard_protocol::{
    card::FromCard,
    inquiry::{DEADLINE_MAX_MS, QUESTIONS_OPEN_MAX, Question},
    refusal::Code,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{Inquiry, refused};

/// The questions of one connection. What is answered after its end is dropped.
pub struct Desk {
    inquiry: Inquiry,
    places: Arc<Semaphore>,
    answers: mpsc::Sender<FromCard>,
}

impl Desk {
    /// A desk, and what comes from it for the broker.
    pub fn new(inquiry: Inquiry) -> (Self, mpsc::Receiver<FromCard>) {
        // Room for each that is being worked on, and for as many refusals.
        let (answers, outgoing) = mpsc::channel(2 * QUESTIONS_OPEN_MAX);
        let desk = Self {
            inquiry,
            places: Arc::new(Semaphore::new(QUESTIONS_OPEN_MAX)),
            answers,
        };
        (desk, outgoing)
    }

    /// Takes a question; never waits.
    pub fn take(&self, id: u64, deadline_ms: u32, question: Question) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let text = format!("{QUESTIONS_OPEN_MAX} questions are open at this card already: ask again in a moment");
            let answer = refused(Code::Busy, text);
            // A broker that asks on and does not listen gets no answer.
            let _ = self.answers.try_send(FromCard::Answer { id, answer });
            return;
        };
        let (inquiry, answers) = (self.inquiry.clone(), self.answers.clone());
        let deadline = Duration::from_millis(deadline_ms.min(DEADLINE_MAX_MS).into());
        tokio::spawn(async move {
            let answer = timeout(deadline, inquiry.answer(question)).await.unwrap_or_else(|_| {
                let text = format!("the card had no answer within {} ms: ask again", deadline.as_millis());
                refused(Code::Busy, text)
            });
            // The connection may have ended meanwhile.
            let _ = answers.send(FromCard::Answer { id, answer }).await;
            drop(place);
        });
    }
}
