//! Which card serves what, where the file does not say.

use std::collections::BTreeSet;

use outboard_protocol::id::Name;

use super::{Problem, Topology, TopologyError, TopologyKind, TopologyObject};
use crate::port::PortSpec;

impl Topology {
    /// Fills in the card of every port and volume that names none, and checks that every card named is known: a
    /// subport's is its parent's, which `others` knows where this topology does not; else the card is the only one that
    /// this topology names, or else the only one there is.
    ///
    /// # Errors
    /// The first object without a card, or with one that `cards` does not have.
    pub fn place(&mut self, cards: &[Name], others: &[PortSpec]) -> Result<(), TopologyError> {
        self.place_subports(others);
        let named: BTreeSet<&Name> = self.cards().collect();
        let only = match (named.len(), cards) {
            (1, _) => named.first().copied().cloned(),
            (_, [only]) => Some(only.clone()),
            _ => None,
        };
        let objects = self
            .volumes
            .iter_mut()
            .map(|v| (TopologyKind::Volume, &v.name, &mut v.card))
            .chain(
                self.ports
                    .iter_mut()
                    .map(|p| (TopologyKind::Port, &p.name, &mut p.card)),
            );
        for (kind, name, card) in objects {
            let about = |problem| TopologyError::about(TopologyObject::new(kind, name), problem);
            let placed = card.clone().or_else(|| only.clone());
            let placed = placed.ok_or_else(|| about(Problem::NoCard { cards: cards.len() }))?;
            if !cards.contains(&placed) {
                return Err(about(Problem::UnknownCard(placed)));
            }
            *card = Some(placed);
        }
        Ok(())
    }

    /// Gives subports that name no card that of their parent, if it names one or is placed already.
    fn place_subports(&mut self, others: &[PortSpec]) {
        let card_of = |ports: &[PortSpec], name: &Name| ports.iter().find(|p| p.name == *name).map(|p| p.card.clone());
        let placed: Vec<_> = self
            .ports
            .iter()
            .map(|port| match (&port.card, &port.trunk) {
                (None, Some(trunk)) => {
                    card_of(&self.ports, &trunk.parent).or_else(|| card_of(others, &trunk.parent))?
                }
                (card, _) => card.clone(),
            })
            .collect();
        for (port, card) in self.ports.iter_mut().zip(placed) {
            port.card = card;
        }
    }

    /// The cards that it names, with repetitions.
    pub fn cards(&self) -> impl Iterator<Item = &Name> {
        let volumes = self.volumes.iter().filter_map(|v| v.card.as_ref());
        volumes.chain(self.ports.iter().filter_map(|p| p.card.as_ref()))
    }
}
