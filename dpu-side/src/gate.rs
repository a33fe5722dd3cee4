//! Silence within milliseconds: shutting what a new desired state no longer grants.
//!
//! A desired state is decided on by the enforcement, in turn with everything else that happens, and some of that waits
//! for a disk. So the channel's reader looks at it first, here: what it does not grant any more is shut before the
//! state is even queued. This is no second decision: the enforcement decides the same when it gets there, and
//! meanwhile nothing that the newest state does not grant can be opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use outboard_controls::{Check, on};
use outboard_engine::WorkerGone;
use outboard_protocol::{
    binding::Fence,
    desired::{DesiredState, Grant},
    id::{BrokerEpoch, Name, ObjectRef, Revision},
};

use crate::workers::Workers;

/// What may be open: what the newest desired state grants, as far as the enforcement has opened it.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Mutex<Inner>>,
    workers: Workers,
}

struct Inner {
    version: (BrokerEpoch, Revision),
    granted: BTreeMap<ObjectRef, (Fence, Name)>,
    open: BTreeSet<ObjectRef>,
}

fn granted(state: &DesiredState) -> BTreeMap<ObjectRef, (Fence, Name)> {
    let fence = |g: &Grant| Fence {
        generation: g.generation,
        incarnation: g.incarnation,
    };
    state
        .grants
        .iter()
        .map(|g| (g.object.clone(), (fence(g), g.host.clone())))
        .collect()
}

impl Gate {
    /// Everything is shut; `state` is what was in force when the last process ended.
    pub fn new(state: &DesiredState, workers: Workers) -> Self {
        let inner = Inner {
            version: state.version(),
            granted: granted(state),
            open: BTreeSet::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            workers,
        }
    }

    /// A desired state arrived. When this returns, nothing goes in or out of what it does not grant any more. One that
    /// the enforcement is going to refuse changes nothing.
    pub fn arrived(&self, state: &DesiredState) -> Result<(), WorkerGone> {
        if !on(Check::SilenceFirst) {
            return Ok(());
        }
        let mut inner = self.lock();
        if state.version() <= inner.version || state.check().is_err() {
            return Ok(());
        }
        let newest = granted(state);
        let Inner { granted, open, .. } = &*inner;
        let revoked: Vec<_> = open
            .iter()
            .filter(|o| granted.get(*o) != newest.get(*o))
            .cloned()
            .collect();
        inner.version = state.version();
        inner.granted = newest;
        inner.open.retain(|object| !revoked.contains(object));
        if revoked.is_empty() {
            Ok(())
        } else {
            self.shut_all(revoked)
        }
    }

    /// The enforcement opens the binding `fence` of an object, for `host`; unless a newer desired state is waiting that
    /// does not grant it. True if it is open now.
    pub fn open(&self, object: &ObjectRef, fence: Fence, host: &Name) -> Result<bool, WorkerGone> {
        let mut inner = self.lock();
        let still_granted = inner.granted.get(object).is_some_and(|(f, h)| *f == fence && h == host);
        if !still_granted && on(Check::SilenceFirst) {
            return Ok(false);
        }
        inner.open.insert(object.clone());
        // With the lock held: a shut that comes now must come after this.
        let opened = object.clone();
        self.workers
            .all(move |datapath, _| datapath.open(&opened))
            .map(|_| true)
    }

    /// The enforcement shuts an object.
    pub fn shut(&self, object: &ObjectRef) -> Result<(), WorkerGone> {
        let mut inner = self.lock();
        inner.open.remove(object);
        self.shut_all(vec![object.clone()])
    }

    fn shut_all(&self, objects: Vec<ObjectRef>) -> Result<(), WorkerGone> {
        // On all workers at the same time; each is shut when it has said so.
        self.workers
            .all(move |datapath, _| objects.iter().for_each(|object| datapath.shut(object)))
            .map(|_| ())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
