//! Findings in order, and the first of them that explains the rest.

use outboard_api::explain::{Finding, Health};

/// A reason and what to do about it.
type Cause = (String, String);

/// What was found, from the record to the ring.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) findings: Vec<Finding>,
    /// The first that is wrong.
    pub(super) wrong: Option<Cause>,
    /// The first that nobody knows.
    pub(super) unknown: Option<Cause>,
}

impl Chain {
    fn add(&mut self, topic: impl Into<String>, health: Health, text: impl Into<String>) {
        self.findings.push(Finding {
            topic: topic.into(),
            health,
            text: text.into(),
        });
    }

    /// As it should be.
    pub(super) fn well(&mut self, topic: impl Into<String>, text: impl Into<String>) {
        self.add(topic, Health::Well, text);
    }

    /// Neither good nor bad.
    pub(super) fn note(&mut self, topic: impl Into<String>, text: impl Into<String>) {
        self.add(topic, Health::Note, text);
    }

    /// In the way.
    pub(super) fn wrong(&mut self, topic: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) {
        let text = text.into();
        self.wrong.get_or_insert_with(|| (text.clone(), remedy.into()));
        self.add(topic, Health::Wrong, text);
    }

    /// Not known.
    pub(super) fn unknown(&mut self, topic: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) {
        let text = text.into();
        self.unknown.get_or_insert_with(|| (text.clone(), remedy.into()));
        self.add(topic, Health::Unknown, text);
    }
}
