//! Questions to cards that are connected, and who waits for the answers.
//!
//! Whoever serves a card's connection joins with it; whoever asks finds it by the card's name. How many questions are open
//! at a card is bounded, and nobody waits longer than a deadline and a little more.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outboard_protocol::{
    card::FromBroker,
    id::Name,
    inquiry::{Answer, DEADLINE_MAX_MS, INQUIRY_VERSION, QUESTIONS_OPEN_MAX, Question},
    refusal::{Code, Refusal},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::core::{ConnectionId, Failure};

/// How much longer than the card may take is waited for its answer: the way there and back.
const WAY: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The card is away.
    #[error("card {card} is not connected to the broker")]
    Away {
        /// The card.
        card: Name,
    },
    /// The card is older than questions are.
    #[error(
        "card {card} speaks version {version} of the card protocol, which has no questions: that card's version does not \
         support this"
    )]
    TooOld {
        /// The card.
        card: Name,
        /// The version that was negotiated with it.
        version: u16,
    },
    /// The card did not answer in time.
    #[error("card {card} gave no answer in time")]
    Slow {
        /// The card.
        card: Name,
    },
    /// The card refused, or answered something else.
    #[error("card {card}: {refusal}")]
    Refused {
        /// The card.
        card: Name,
        /// In its words.
        refusal: Refusal,
    },
}

impl AskError {
    /// The card answered something that is no answer to the question.
    pub fn other_answer(card: &Name) -> Self {
        let refusal = Refusal::new(Code::Malformed, "it answered another question: report this");
        Self::Refused {
            card: card.clone(),
            refusal,
        }
    }

    /// What the operator can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Away { .. } => "start outboard-dpu on it, and look at its log if it runs already",
            Self::TooOld { .. } => "upgrade outboard-dpu on that card",
            Self::Slow { .. } => "ask again; if it stays so, look at the card's load and log",
            Self::Refused { refusal, .. } => match refusal.code {
                Code::Busy | Code::Unavailable => "ask again in a moment",
                Code::Malformed => "use broker and card of the same version",
                _ => "do as it says",
            },
        }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let (status, code, card) = match &error {
            AskError::Away { card } => (503, "card_away", card),
            AskError::TooOld { card, .. } => (501, "card_too_old", card),
            AskError::Slow { card } => (504, "card_slow", card),
            AskError::Refused { card, refusal } => match refusal.code {
                Code::Busy => (503, "busy", card),
                Code::Unavailable => (503, "unavailable", card),
                Code::Quota => (409, "quota", card),
                Code::Stale => (404, "not_found", card),
                _ => (502, "card_refused", card),
            },
        };
        Self::about(status, code, format!("card {card}"), error.to_string(), error.remedy())
    }
}

/// A question on its way to a card.
pub(super) struct Asked {
    deadline_ms: u32,
    question: Question,
    reply: oneshot::Sender<Answer>,
}

struct Asker {
    connection: ConnectionId,
    version: u16,
    questions: mpsc::Sender<Asked>,
}

/// The cards that can be asked.
#[derive(Clone, Default)]
pub struct Inquiries {
    cards: Arc<Mutex<BTreeMap<Name, Asker>>>,
}

/// A connection's place among the cards that can be asked; dropping it gives the place up.
pub(super) struct Joined {
    inquiries: Inquiries,
    card: Name,
    connection: ConnectionId,
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut cards = self.inquiries.lock();
        // A later connection of the card may have taken the place.
        if cards.get(&self.card).is_some_and(|a| a.connection == self.connection) {
            cards.remove(&self.card);
        }
    }
}

impl Inquiries {
    /// A connection can be asked from now on; what is asked comes out of the receiver.
    pub(super) fn join(&self, card: &Name, connection: ConnectionId, version: u16) -> (Joined, mpsc::Receiver<Asked>) {
        let (questions, asked) = mpsc::channel(QUESTIONS_OPEN_MAX);
        let asker = Asker {
            connection,
            version,
            questions,
        };
        self.lock().insert(card.clone(), asker);
        let joined = Joined {
            inquiries: self.clone(),
            card: card.clone(),
            connection,
        };
        (joined, asked)
    }

    /// Asks a card. It has `deadline` to answer, or [`DEADLINE_MAX_MS`] if that is less.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal.
    pub async fn ask(&self, card: &Name, question: Question, deadline: Duration) -> Result<Answer, AskError> {
        let away = || AskError::Away { card: card.clone() };
        let questions = {
            let cards = self.lock();
            let asker = cards.get(card).ok_or_else(away)?;
            if asker.version < INQUIRY_VERSION {
                let version = asker.version;
                return Err(AskError::TooOld {
                    card: card.clone(),
                    version,
                });
            }
            asker.questions.clone()
        };
        let deadline_ms = u32::try_from(deadline.as_millis())
            .unwrap_or(DEADLINE_MAX_MS)
            .min(DEADLINE_MAX_MS);
        let (reply, answered) = oneshot::channel();
        let asking = async {
            let asked = Asked {
                deadline_ms,
                question,
                reply,
            };
            questions.send(asked).await.map_err(|_| away())?;
            answered.await.map_err(|_| away())
        };
        let patience = Duration::from_millis(deadline_ms.into()) + WAY;
        let slow = |_| AskError::Slow { card: card.clone() };
        match timeout(patience, asking).await.map_err(slow)?? {
            Answer::Refused { refusal } => Err(AskError::Refused {
                card: card.clone(),
                refusal,
            }),
            answer => Ok(answer),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Asker>> {
        self.cards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's questions that were not answered yet.
#[derive(Default)]
pub(super) struct Open {
    last_id: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
}

impl Open {
    /// The message that asks. None if the card has as many open questions as it takes; who asked is told so.
    pub(super) fn ask(&mut self, asked: Asked) -> Option<FromBroker> {
        let Asked {
            deadline_ms,
            question,
            reply,
        } = asked;
        // Of those that nobody waits for any more the card has passed the deadline too.
        self.waiting.retain(|_, reply| !reply.is_closed());
        if self.waiting.len() >= QUESTIONS_OPEN_MAX {
            let text = format!("{QUESTIONS_OPEN_MAX} questions are open at it already: ask again in a moment");
            let refusal = Refusal::new(Code::Busy, text);
            let _ = reply.send(Answer::Refused { refusal });
            return None;
        }
        self.last_id += 1;
        self.waiting.insert(self.last_id, reply);
        Some(FromBroker::Ask {
            id: self.last_id,
            deadline_ms,
            question,
        })
    }

    /// An answer came. One that nobody waits for any more is dropped.
    pub(super) fn answered(&mut self, id: u64, answer: Answer) {
        if let Some(reply) = self.waiting.remove(&id) {
            let _ = reply.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Name {
        "local".parse().unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_card_that_is_away_or_too_old_is_not_asked() {
        let inquiries = Inquiries::default();
        let asked = inquiries.ask(&card(), Question::Reasons, SECOND).await;
        assert_eq!(asked, Err(AskError::Away { card: card() }));
        let (_joined, mut questions) = inquiries.join(&card(), 1, INQUIRY_VERSION - 1);
        let asked = inquiries.ask(&card(), Question::Reasons, SECOND).await;
        assert_eq!(
            asked,
            Err(AskError::TooOld {
                card: card(),
                version: 1
            })
        );
        assert!(questions.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_later_connection_takes_the_place_and_keeps_it() {
        let inquiries = Inquiries::default();
        let (first, _) = inquiries.join(&card(), 1, INQUIRY_VERSION);
        let (second, mut questions) = inquiries.join(&card(), 2, INQUIRY_VERSION);
        drop(first);
        let card = card();
        let asking = inquiries.ask(&card, Question::Reasons, SECOND);
        let answering = async {
            let mut open = Open::default();
            let Some(FromBroker::Ask { id, deadline_ms, .. }) = open.ask(questions.recv().await.unwrap()) else {
                panic!("it is asked");
            };
            assert_eq!(deadline_ms, 1000);
            open.answered(id + 1, Answer::Reasons { reasons: vec![] });
            open.answered(id, Answer::Reasons { reasons: vec![] });
        };
        let (answer, ()) = tokio::join!(asking, answering);
        assert_eq!(answer, Ok(Answer::Reasons { reasons: vec![] }));
        drop((second, questions));
        let asked = inquiries.ask(&card, Question::Reasons, SECOND).await;
        assert_eq!(asked, Err(AskError::Away { card }));
    }

    #[tokio::test]
    async fn a_connection_that_ends_answers_nobody_late() {
        let inquiries = Inquiries::default();
        let (joined, questions) = inquiries.join(&card(), 1, INQUIRY_VERSION);
        let card = card();
        let asking = inquiries.ask(&card, Question::Reasons, SECOND);
        let (answer, ()) = tokio::join!(asking, async { drop((joined, questions)) });
        assert_eq!(answer, Err(AskError::Away { card: card.clone() }));
    }

    #[test]
    fn more_questions_than_a_card_takes_are_refused_here() {
        let mut open = Open::default();
        let mut waiting = Vec::new();
        let mut ask = |open: &mut Open| {
            let (reply, answered) = oneshot::channel();
            waiting.push(answered);
            let asked = Asked {
                deadline_ms: 1,
                question: Question::Reasons,
                reply,
            };
            open.ask(asked).is_some()
        };
        assert!((0..QUESTIONS_OPEN_MAX).all(|_| ask(&mut open)));
        assert!(!ask(&mut open));
        let Ok(Answer::Refused { refusal }) = waiting.pop().unwrap().try_recv() else {
            panic!("refused");
        };
        assert_eq!(refusal.code, Code::Busy);
        // Those that were given up make room.
        waiting.pop();
        let (reply, _answered) = oneshot::channel();
        let asked = Asked {
            deadline_ms: 1,
            question: Question::Reasons,
            reply,
        };
        assert!(open.ask(asked).is_some());
    }
}
