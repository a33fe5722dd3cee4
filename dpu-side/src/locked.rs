//! Volumes whose file somebody else has locked, and when to try them again.
//!
//! A daemon that was killed leaves its locks behind until its last write has landed, and the next one is there before.
//! So a locked file is tried again at short intervals for a while, between other messages: nothing waits for it. After
//! that whoever has it means to keep it, and the core's own, slower retries are enough.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use outboard_protocol::id::{Generation, ObjectRef};

/// How long the last writes of a daemon that was killed may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long between two attempts.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// The volumes that wait. One for each binding at most.
#[derive(Debug, Default)]
pub struct Locked {
    waiting: BTreeMap<ObjectRef, Wait>,
}

#[derive(Debug)]
struct Wait {
    generation: Generation,
    next: Instant,
    /// No attempts from then on. The entry stays, so that a later failure does not begin anew.
    end: Instant,
}

impl Locked {
    /// The file was locked when it was opened for this binding. True if this is the first time.
    pub fn found(&mut self, object: &ObjectRef, generation: Generation, now: Instant) -> bool {
        if let Some(wait) = self.waiting.get_mut(object)
            && wait.generation == generation
        {
            wait.next = now + INTERVAL;
            return false;
        }
        let wait = Wait {
            generation,
            next: now + INTERVAL,
            end: now + PATIENCE,
        };
        self.waiting.insert(object.clone(), wait);
        true
    }

    /// The volume is set up, has another error by now, or is not wanted any more.
    pub fn forget(&mut self, object: &ObjectRef) {
        self.waiting.remove(object);
    }

    /// When the next attempt is due.
    pub fn next(&self) -> Option<Instant> {
        let open = self.waiting.values().filter(|wait| wait.next < wait.end);
        open.map(|wait| wait.next).min()
    }

    /// What to try now.
    pub fn due(&self, now: Instant) -> Vec<(ObjectRef, Generation)> {
        let due = |wait: &Wait| wait.next <= now && wait.next < wait.end;
        let waiting = self.waiting.iter().filter(|(_, wait)| due(wait));
        waiting
            .map(|(object, wait)| (object.clone(), wait.generation))
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
        let (mut locked, mut now) = (Locked::default(), Instant::now());
        assert!(locked.found(&object, Generation(1), now));
        assert_eq!(locked.due(now), []);
        let mut attempts = 0;
        while let Some(next) = locked.next() {
            assert!(next > now);
            now = next;
            for (object, generation) in locked.due(now) {
                attempts += 1;
                assert!(!locked.found(&object, generation, now));
            }
        }
        assert_eq!(attempts, PATIENCE.as_millis() / INTERVAL.as_millis() - 1);
        assert!(!locked.found(&object, Generation(1), now), "its time is over");
        assert_eq!(locked.next(), None);
        assert!(locked.found(&object, Generation(2), now), "another binding");
        assert!(locked.next().is_some());
        locked.forget(&object);
        assert_eq!(locked.next(), None);
    }
}
