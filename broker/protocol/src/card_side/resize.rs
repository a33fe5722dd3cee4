//! Volumes that grow while they are in use.
//!
//! The broker lets a volume grow at any time; its device does once its file has. Until then the device serves what it
//! has, the binding's error says what is missing, and it is tried again. A card that starts again gives the guest at
//! least the size that it had.

use std::sync::Arc;

use super::{CardCore, Effect, Held, Outbox, PREPARE_RETRY_MS};
use crate::{
    binding::Now,
    desired::DesiredState,
    id::{Generation, ObjectKind, ObjectRef},
    refusal::{Code, Refusal},
};

impl CardCore {
    /// Looks at volumes that have a device and are other ones in the new state. Those that grew are to be resized; of
    /// any other change the operator is told that it does not reach a device that is set up.
    pub(super) fn note_changed_volumes(&mut self, state: &DesiredState, out: &mut Outbox, now: Now) {
        let mut grown = Vec::new();
        let former = Arc::clone(&self.desired);
        for Held { binding, runtime } in Arc::make_mut(&mut self.held).values_mut() {
            let ObjectRef { kind, name } = &binding.object;
            let (old, new) = (former.volume(name), state.volume(name));
            if *kind != ObjectKind::Volume || old == new || !runtime.ready || !binding.state.is_live() {
                continue;
            }
            if let (Some(old), Some(new)) = (old, new)
                && new.grows_from(old)
            {
                grown.push(binding.object.clone());
                continue;
            }
            let text = format!(
                "{}: changed while it was bound: revoke it and grant it again",
                binding.object
            );
            binding.error = Some(Refusal::new(Code::Unavailable, text));
        }
        for object in grown {
            self.ask_to_resize(&object, out, now);
        }
    }

    fn ask_to_resize(&mut self, object: &ObjectRef, out: &mut Outbox, now: Now) {
        if let Some(held) = self.held_mut(object) {
            held.runtime.prepare_asked_ms = now.monotonic_ms;
            out.prepare.push(Effect::Resize {
                object: object.clone(),
                generation: held.binding.generation,
            });
        }
    }

    pub(super) fn resized(
        &mut self,
        object: &ObjectRef,
        generation: Generation,
        size_bytes: u64,
        error: Option<Refusal>,
        out: &mut Outbox,
        now: Now,
    ) {
        let wanted = self.desired.volume(&object.name).map(|v| v.size_bytes);
        let Some(held) = self.held_mut(object).filter(|h| h.binding.generation == generation) else {
            return;
        };
        let Held { binding, runtime } = held;
        if !binding.state.is_live() {
            return;
        }
        if binding.served_bytes != Some(size_bytes) {
            binding.served_bytes = Some(size_bytes);
            out.persist = true;
            out.report = true;
        }
        let outdated = runtime.ready && error.is_none() && wanted != Some(size_bytes);
        if runtime.ready && (error.is_some() || binding.error == runtime.unmet) && binding.error != error {
            binding.error.clone_from(&error);
            out.report = true;
        }
        runtime.unmet = error;
        if outdated {
            // It grew once more meanwhile.
            self.ask_to_resize(object, out, now);
        }
    }

    /// A device was set up: it has the size that its volume is to have, unless [`CardCore::resized`] said otherwise.
    pub(super) fn note_size(&mut self, object: &ObjectRef, out: &mut Outbox) {
        let Some(size_bytes) = self.desired.volume(&object.name).map(|v| v.size_bytes) else {
            return;
        };
        if object.kind != ObjectKind::Volume {
            return;
        }
        let Some(Held { binding, runtime }) = self.held_mut(object) else {
            return;
        };
        if let Some(error) = &runtime.unmet {
            binding.error = Some(error.clone());
        } else if binding.served_bytes != Some(size_bytes) {
            binding.served_bytes = Some(size_bytes);
            out.persist = true;
        }
    }

    /// Tries again to resize a volume whose file was too short the last time.
    pub(super) fn retry_resize(&mut self, object: &ObjectRef, out: &mut Outbox, now: Now) {
        let waits = |Held { binding, runtime }: &Held| {
            let due = now.monotonic_ms.saturating_sub(runtime.prepare_asked_ms) >= PREPARE_RETRY_MS;
            binding.state.is_live() && runtime.ready && runtime.unmet.is_some() && due
        };
        if self.held.get(object).is_some_and(waits) {
            self.ask_to_resize(object, out, now);
        }
    }
}
