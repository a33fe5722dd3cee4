//! What happened to bindings since the process started, for whoever asks why one is as it is.

use std::collections::{BTreeMap, VecDeque};

use outboard_protocol::{
    card::BindingReport,
    id::ObjectRef,
    inquiry::{INCIDENTS_MAX, Incident},
};

/// Changes of bindings, by object; of each the newest [`INCIDENTS_MAX`].
#[derive(Debug, Default)]
pub struct History {
    incidents: BTreeMap<ObjectRef, VecDeque<Incident>>,
}

impl History {
    /// Takes up what the broker is told of all bindings: what differs from what it was told last is an incident.
    pub fn note(&mut self, bindings: &[BindingReport], unix_s: u64) {
        for binding in bindings {
            let incident = Incident {
                unix_s,
                generation: binding.generation,
                state: binding.state,
                error: binding.error.clone(),
            };
            let incidents = self.incidents.entry(binding.object.clone()).or_default();
            let same = |last: &Incident| Incident { unix_s, ..last.clone() } == incident;
            if incidents.back().is_some_and(same) {
                continue;
            }
            if incidents.len() == INCIDENTS_MAX {
                incidents.pop_front();
            }
            incidents.push_back(incident);
        }
    }

    /// Forgets objects that the desired state does not describe any more: nobody asks about them.
    pub fn keep(&mut self, described: impl Fn(&ObjectRef) -> bool) {
        self.incidents.retain(|object, _| described(object));
    }

    /// What happened to an object, oldest first.
    pub fn of(&self, object: &ObjectRef) -> Vec<Incident> {
        self.incidents
            .get(object)
            .map_or_else(Vec::new, |incidents| incidents.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use outboard_protocol::{
        binding::State,
        id::{Generation, Incarnation, ObjectKind},
        refusal::{Code, Refusal},
    };

    use super::*;

    fn object() -> ObjectRef {
        ObjectRef {
            kind: ObjectKind::Volume,
            name: "disk1".parse().unwrap(),
        }
    }

    fn report(generation: u64, state: State, error: Option<&str>) -> BindingReport {
        BindingReport {
            object: object(),
            generation: Generation(generation),
            incarnation: Incarnation(1),
            state,
            error: error.map(|text| Refusal::new(Code::Unavailable, text)),
        }
    }

    #[test]
    fn what_did_not_change_is_no_incident() {
        let mut history = History::default();
        history.note(&[report(1, State::Reserved, Some("no file"))], 10);
        history.note(&[report(1, State::Reserved, Some("no file"))], 20);
        history.note(&[report(1, State::Prepared, None)], 30);
        let told: Vec<_> = history.of(&object()).iter().map(|i| (i.unix_s, i.state)).collect();
        assert_eq!(told, [(10, State::Reserved), (30, State::Prepared)]);
    }

    #[test]
    fn the_oldest_are_forgotten_and_so_are_objects_that_are_gone() {
        let mut history = History::default();
        for n in 0..40 {
            history.note(&[report(n, State::Prepared, None)], n);
        }
        let told = history.of(&object());
        assert_eq!((told.len(), told[0].unix_s), (INCIDENTS_MAX, 40 - INCIDENTS_MAX as u64));
        history.keep(|_| true);
        assert_eq!(history.of(&object()).len(), INCIDENTS_MAX, "control");
        history.keep(|_| false);
        assert!(history.of(&object()).is_empty());
    }
}
