//! Why a port or volume is as it is: what the broker knows and what its card told, put in one order, from the record to
//! the ring, with a conclusion.
//!
//! The first thing on the way that is not as it should be is the reason; what comes after it usually follows from it. All
//! of it is a function of the facts and of the card's answer.

mod chain;
mod device;
mod features;

use outboard_api::{
    binding::BindingView,
    card::{CardState, CardView},
    explain::{DropView, Explanation, IncidentView},
    grant::{GrantView, Revocation},
    port::{PortCounters, PortSpec},
    volume::{VolumeCounters, VolumeSpec},
};
use outboard_protocol::{
    binding::State,
    id::{Name, ObjectKind, ObjectRef},
    inquiry::{Dropped, Incident, ObjectReport},
};

use self::chain::Chain;
use crate::{cards::AskError, core::Live, inventory::Inventory, views};

/// What the card told of the object, or why it could not be asked.
pub type Told = Result<ObjectReport, AskError>;

/// What the broker knows of an object.
#[derive(Debug, Clone)]
pub struct Facts {
    object: ObjectRef,
    spec: Spec,
    /// Of a port, the rules of its groups: each with its id, in the order of the groups.
    rules: Vec<(String, String)>,
    card: CardView,
    grant: Option<GrantView>,
    binding: Option<BindingView>,
    trunk: Trunk,
}

/// What a port has to do with trunks.
#[derive(Debug, Clone, Default)]
struct Trunk {
    /// Of a subport: its parent, the VLAN id there, and the state of the parent's binding.
    parent: Option<(Name, Option<u16>, Option<State>)>,
    /// Its subports.
    subports: Vec<Name>,
}

/// Rules that are told one by one; what is beyond them is counted.
const RULES_TOLD_MAX: usize = 64;

/// What was declared, and what the card counted last.
#[derive(Debug, Clone)]
enum Spec {
    Port(PortSpec, Option<PortCounters>),
    Volume(VolumeSpec, Option<VolumeCounters>),
}

/// What the broker knows of an object; none if there is no such object.
pub fn facts(inventory: &Inventory, live: &Live, object: &ObjectRef) -> Option<Facts> {
    let placement = inventory.placement(object)?;
    let card = views::card(live, inventory.cards.get(&placement.card)?);
    let mut rules = Vec::new();
    let mut trunk = Trunk::default();
    let (spec, grant, binding) = match object.kind {
        ObjectKind::Port => {
            let view = views::port(inventory, live, inventory.ports.get(&object.name)?);
            let groups = view.spec.groups.iter().flatten();
            for group in groups.filter_map(|name| inventory.groups.get(name)) {
                let view = views::group(inventory, group);
                let told = view.spec.rules.iter().map(ToString::to_string);
                rules.extend(view.rule_ids.into_iter().zip(told));
            }
            let parent = view.spec.trunk.as_ref().map(|trunk| &trunk.parent);
            trunk.parent = parent.map(|parent| {
                let object = ObjectRef {
                    kind: ObjectKind::Port,
                    name: parent.clone(),
                };
                let binding = inventory.bindings.get(&object);
                (parent.clone(), view.vlan, binding.map(|binding| binding.state))
            });
            trunk.subports = view.subports;
            (Spec::Port(view.spec, view.counters), view.grant, view.binding)
        }
        ObjectKind::Volume => {
            let view = views::volume(inventory, live, inventory.volumes.get(&object.name)?);
            (Spec::Volume(view.spec, view.counters), view.grant, view.binding)
        }
    };
    Some(Facts {
        object: object.clone(),
        spec,
        rules,
        card,
        grant,
        binding,
        trunk,
    })
}

impl Facts {
    /// The card that serves the object.
    pub fn card(&self) -> &Name {
        &self.card.name
    }

    /// Puts it all together.
    pub fn explain(self, told: Told) -> Explanation {
        let mut chain = Chain::default();
        self.record(&mut chain);
        self.trunk(&mut chain);
        self.filtered(&mut chain);
        self.granted(&mut chain);
        self.card_state(&told, &mut chain);
        self.binding_state(&told, &mut chain);
        let (mut history, mut drops) = (Vec::new(), Vec::new());
        if let Ok(report) = &told {
            match &self.trunk.parent {
                Some((parent, ..)) => device::look_at_subport(parent, report, &mut chain),
                None => device::look(&self.object, report, &mut chain),
            }
            history = report.incidents.iter().map(incident).collect();
            drops = report.drops.iter().cloned().map(dropped).collect();
            drops.sort_by_key(|drop| std::cmp::Reverse(drop.frames));
        }
        self.traffic(&mut chain);
        self.concluded(chain, history, drops)
    }

    fn record(&self, chain: &mut Chain) {
        match &self.spec {
            Spec::Port(spec, _) => {
                let addresses: Vec<_> = spec.addresses.iter().map(ToString::to_string).collect();
                let addresses = match addresses.as_slice() {
                    [] => "no address".to_owned(),
                    addresses => addresses.join(", "),
                };
                chain.note(
                    "record",
                    format!("network {}, MAC {}, {addresses}", spec.network, spec.mac),
                );
            }
            Spec::Volume(spec, _) => {
                let access = if spec.read_only { "read-only" } else { "writable" };
                let backend = match &spec.backend {
                    outboard_api::volume::Backend::File(path) => format!("file {path} on the card"),
                    outboard_api::volume::Backend::Memory => "the card's memory".to_owned(),
                    outboard_api::volume::Backend::Null => "nothing: reads zeros, forgets writes".to_owned(),
                };
                chain.note("record", format!("{} {access}, in {backend}", spec.size));
            }
        }
    }

    /// Whose device carries the port, or which ports its own carries.
    fn trunk(&self, chain: &mut Chain) {
        if let Some((parent, vlan, _)) = &self.trunk.parent {
            let vlan = vlan.map(|vlan| format!(" with VLAN id {vlan}")).unwrap_or_default();
            chain.note(
                "trunk",
                format!("a subport: port {parent}'s device carries its frames, tagged{vlan}"),
            );
        }
        if !self.trunk.subports.is_empty() {
            let names: Vec<_> = self.trunk.subports.iter().map(ToString::to_string).collect();
            chain.note(
                "trunk",
                format!("its device carries {} too, in tagged frames", names.join(", ")),
            );
        }
    }

    /// What the port's groups let through.
    fn filtered(&self, chain: &mut Chain) {
        let Spec::Port(spec, _) = &self.spec else { return };
        let Some(groups) = &spec.groups else {
            return chain.note(
                "groups",
                "unfiltered: it has no security groups, and only its source addresses are checked",
            );
        };
        let names: Vec<_> = groups.iter().map(ToString::to_string).collect();
        match names.as_slice() {
            [] => chain.note(
                "groups",
                "none of them: filtered, and nothing may pass but ARP and neighbour discovery",
            ),
            names => chain.note(
                "groups",
                format!("{}: what none of their rules allows is dropped", names.join(", ")),
            ),
        }
        for (id, rule) in self.rules.iter().take(RULES_TOLD_MAX) {
            chain.note(format!("rule {id}"), rule.clone());
        }
        if let Some(more) = self.rules.len().checked_sub(RULES_TOLD_MAX).filter(|more| *more > 0) {
            chain.note("rules", format!("{more} more: `outboard group show` lists them"));
        }
    }

    fn granted(&self, chain: &mut Chain) {
        let ObjectRef { kind, name } = &self.object;
        match &self.grant {
            Some(grant) if grant.revocation.is_none() => chain.well("grant", format!("granted to host {}", grant.host)),
            grant => {
                let text = match grant.as_ref().and_then(|g| g.revocation) {
                    Some(Revocation::Pending) => "its grant was revoked, and its card has not confirmed that yet",
                    Some(Revocation::Done) => "its grant was revoked",
                    None => "it is granted to nobody",
                };
                chain.wrong("grant", text, format!("outboard grant create {kind} {name}"));
            }
        }
    }

    fn card_state(&self, told: &Told, chain: &mut Chain) {
        let card = &self.card;
        let name = &card.name;
        match card.state {
            CardState::Pending => {
                let text = format!("card {name} has never enrolled");
                chain.wrong(
                    "card",
                    text,
                    format!("outboard card enrol {name}, and start outboard-dpu on it"),
                );
            }
            CardState::Disconnected => {
                let since = card.last_seen.map(|at| format!(" since {at:.0}")).unwrap_or_default();
                let text = format!(
                    "card {name} is not connected to the broker{since}: what it held it may serve as before, but nothing new \
                     reaches it"
                );
                chain.unknown(
                    "card",
                    text,
                    format!("start outboard-dpu on card {name}, or look at its log"),
                );
            }
            CardState::Connected if card.revision_applied != Some(card.revision_wanted) => {
                let text = format!(
                    "card {name} has not said yet that revision {} of what it is to hold is in force",
                    card.revision_wanted
                );
                chain.unknown(
                    "card",
                    text,
                    "ask again in a moment; if it stays so, look at the card's log",
                );
            }
            CardState::Connected => {
                chain.well(
                    "card",
                    format!("{name} is connected and has revision {} in force", card.revision_wanted),
                );
            }
        }
        if let (CardState::Connected, Err(error)) = (card.state, told) {
            chain.unknown("card's answer", error.to_string(), error.remedy());
        }
    }

    fn binding_state(&self, told: &Told, chain: &mut Chain) {
        let Some(binding) = &self.binding else {
            return chain.wrong(
                "binding",
                "it is bound to no function of its card",
                "look at the broker's log; it is bound as soon as it is granted",
            );
        };
        if let Some(error) = &binding.error {
            return chain.wrong(
                "binding",
                error.message.clone(),
                "do as this says; it is tried again by itself",
            );
        }
        let host = &binding.host;
        let generation = binding.generation;
        // What the card says itself is newer.
        let state = match told {
            Ok(ObjectReport { binding: Some(own), .. }) if own.generation == generation => own.state,
            _ => binding.state,
        };
        match state {
            State::Active => chain.well("binding", format!("active for host {host}, generation {generation}")),
            State::Attached if self.trunk.parent.is_some() => self.waits_for_parent(chain),
            State::Attached => chain.well("binding", format!("attached by host {host}, generation {generation}")),
            State::Reserved => chain.wrong(
                "binding",
                "its card has not set it up yet",
                "ask again in a moment; if it stays so, look at the card's log",
            ),
            State::Prepared if self.trunk.parent.is_some() => self.waits_for_parent(chain),
            State::Prepared => {
                let text = format!("it is ready at its card, but host {host} has not asked for it");
                let kind = self.object.kind;
                let name = &self.object.name;
                let remedy =
                    format!("start outboard-shim on host {host} with a device for {kind} {name}, or look at its log");
                chain.wrong("binding", text, remedy);
            }
            State::Draining => chain.wrong(
                "binding",
                "it is silent: its last binding ends as soon as nothing of it is in flight",
                "wait for that; it is bound again by itself if it is granted",
            ),
            State::Released => chain.wrong("binding", "its last binding has ended", "grant it again"),
            State::Quarantined => chain.wrong(
                "binding",
                "it is silent, and what was in flight did not end in time",
                "look at what is below it (disk, network storage); restarting outboard-dpu frees it",
            ),
        }
    }

    /// A subport is attached when its parent is, and active while its parent is.
    fn waits_for_parent(&self, chain: &mut Chain) {
        let Some((parent, _, state)) = &self.trunk.parent else {
            return;
        };
        if *state == Some(State::Active) {
            let text = "it is ready at its card, and follows its parent in a moment";
            return chain.wrong("binding", text, "ask again in a moment");
        }
        let state = state.map_or("not bound".to_owned(), |state| format!("{state:?}").to_lowercase());
        chain.wrong(
            "binding",
            format!("its parent, port {parent}, is {state}"),
            format!("outboard explain port {parent}"),
        );
    }

    fn traffic(&self, chain: &mut Chain) {
        match &self.spec {
            Spec::Port(_, Some(counters)) => chain.note(
                "traffic",
                format!(
                    "{} frames from the guest, {} to it, {} dropped since the card started",
                    counters.tx_frames,
                    counters.rx_frames,
                    counters.dropped_frames()
                ),
            ),
            Spec::Volume(_, Some(counters)) => chain.note(
                "traffic",
                format!(
                    "{} reads, {} writes, {} flushes, {} failed since the card started",
                    counters.read_requests, counters.write_requests, counters.flush_requests, counters.failed_requests
                ),
            ),
            _ => {}
        }
    }

    fn concluded(self, chain: Chain, history: Vec<IncidentView>, drops: Vec<DropView>) -> Explanation {
        let Self { object, .. } = self;
        let ObjectRef { kind, name } = object;
        let usable = match kind {
            ObjectKind::Port => "reachable",
            ObjectKind::Volume => "usable",
        };
        let dropped = drops.first().map(|drop| {
            let plural = if drop.frames == 1 { "frame was" } else { "frames were" };
            format!("{} {plural} dropped: {}", drop.frames, drop.reason.sentence)
        });
        let Chain {
            findings,
            wrong,
            unknown,
        } = chain;
        let (conclusion, remedy) = match (&wrong, &unknown) {
            (Some((why, remedy)), _) => (format!("{name} is not {usable} because {why}"), Some(remedy.clone())),
            (None, Some((why, remedy))) => (
                format!("nobody can say whether {name} is {usable}: {why}"),
                Some(remedy.clone()),
            ),
            (None, None) => match dropped {
                Some(dropped) => (format!("{name} is up, but {dropped}"), None),
                None => (format!("{name} is up, and nothing stands in its way"), None),
            },
        };
        Explanation {
            kind,
            name,
            well: wrong.is_none() && unknown.is_none(),
            conclusion,
            remedy,
            findings,
            history,
            drops,
        }
    }
}

fn incident(incident: &Incident) -> IncidentView {
    IncidentView {
        at: views::time(incident.unix_s),
        generation: incident.generation,
        state: incident.state,
        error: incident.error.as_ref().map(Into::into),
    }
}

fn dropped(dropped: Dropped) -> DropView {
    DropView {
        reason: dropped.reason.into(),
        frames: dropped.frames,
    }
}

#[cfg(test)]
mod tests;
