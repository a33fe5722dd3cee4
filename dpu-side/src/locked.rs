//! Volumes whose file somebody else has locked, and when to try them again.
//!
//! A daemon that was killed leaves its locks behind until its last write has landed, and the next one is there before.
//! So a locked file is tried again for a while, at first after a few milliseconds: nothing waits for it. After that
//! whoever has it means to keep it, and the core's own, slower retries are enough.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use outboard_protocol::id::{Generation, ObjectRef};

/// How long the last writes of a daemon that was killed may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long until the second attempt; from one to the next it doubles.
pub const INTERVAL_FIRST: Duration = Duration::from_millis(2);
/// How long between two attempts at most.
pub const INTERVAL_MAX: Duration = Duration::from_millis(50);

/// The volumes that wait. One for each binding at most.
#[derive(Debug, Default)]
pub struct Locked {
    waiting: BTreeMap<ObjectRef, Wait>,
}

#[derive(Debug)]
struct Wait {
    generation: Generation,
    interval: Duration,
    /// When the next attempt is due; none while one is being made.
    next: Option<Instant>,
    /// No attempts from then on. The entry stays, so that a later failure does not begin anew.
    end: Instant,
}

/// What to make of a file that is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was not before. It may be free in a moment.
    First,
    /// It still is, and is tried again soon.
    Again,
    /// It has been for too long.
    Kept,
}

impl Locked {
    /// The file was locked when it was opened for this binding.
    pub fn found(&mut self, object: &ObjectRef, generation: Generation, now: Instant) -> Found {
        if let Some(wait) = self.waiting.get_mut(object)
            && wait.generation == generation
        {
            wait.interval = (wait.interval * 2).min(INTERVAL_MAX);
            wait.next = Some(now + wait.interval).filter(|next| *next < wait.end);
            return if wait.next.is_some() { Found::Again } else { Found::Kept };
        }
        let wait = Wait {
            generation,
            interval: INTERVAL_FIRST,
            next: Some(now + INTERVAL_FIRST),
            end: now + PATIENCE,
        };
        self.waiting.insert(object.clone(), wait);
        Found::First
    }

    /// The volume is set up, has another error by now, or is not wanted any more.
    pub fn forget(&mut self, object: &ObjectRef) {
        self.waiting.remove(object);
    }

    /// When the next attempt is due.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|wait| wait.next).min()
    }

    /// What to try now. Each is given once, and again only after it was [`Locked::found`] locked again.
    pub fn due(&mut self, now: Instant) -> Vec<(ObjectRef, Generation)> {
        let due = |wait: &&mut Wait| wait.next.is_some_and(|next| next <= now);
        let waiting = self.waiting.iter_mut().filter(|(_, wait)| due(wait));
        waiting
            .map(|(object, wait)| {
                wait.next = None;
                (object.clone(), wait.generation)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outboard_protocol::id::ObjectKind;

    #[test]
    fn attempts_are_bounded_for_each_binding() {
        let object = ObjectRef {
            kind: ObjectKind::Volume,
            name: "disk".parse().unwrap(),
        };
        let (mut locked, start) = (Locked::default(), Instant::now());
        let mut now = start;
        assert_eq!(locked.found(&object, Generation(1), now), Found::First);
        assert_eq!(locked.due(now), []);
        let mut attempts = vec![];
        while let Some(next) = locked.next() {
            assert!(next > now);
            now = next;
            assert_eq!(locked.due(now), [(object.clone(), Generation(1))]);
            assert_eq!(locked.due(now), [], "one attempt at a time");
            attempts.push((now - start).as_millis());
            let kept = now + INTERVAL_MAX >= start + PATIENCE;
            let found = if kept { Found::Kept } else { Found::Again };
            assert_eq!(locked.found(&object, Generation(1), now), found);
        }
        assert_eq!(attempts[..7], [2, 6, 14, 30, 62, 112, 162]);
        assert!(attempts.last().is_some_and(|last| *last < PATIENCE.as_millis()));
        assert_eq!(locked.found(&object, Generation(1), now), Found::Kept);
        assert_eq!(locked.next(), None);
        assert_eq!(
            locked.found(&object, Generation(2), now),
            Found::First,
            "another binding"
        );
        assert!(locked.next().is_some());
        locked.forget(&object);
        assert_eq!(locked.next(), None);
    }
}
