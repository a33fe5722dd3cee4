//! A change in the making: applied to memory at once, and taken back unless it is kept.

use std::ops::Deref;

use crate::{
    inventory::{Action, Inventory},
    store::Write,
};

use super::Failure;

/// Reads as the inventory with the change; dropping it without [`Draft::keep`] undoes the change.
pub struct Draft<'a> {
    inventory: &'a mut Inventory,
    done: Vec<Action>,
    undo: Vec<Action>,
}

impl<'a> Draft<'a> {
    /// A change of nothing so far.
    pub fn new(inventory: &'a mut Inventory) -> Self {
        Self {
            inventory,
            done: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// Adds an action.
    pub fn apply(&mut self, action: Action) {
        self.undo.push(self.inventory.apply(action.clone()));
        self.done.push(action);
    }

    /// The actions so far and, in the same order, what undoes each.
    pub fn steps(&self) -> impl Iterator<Item = (&Action, &Action)> {
        self.done.iter().zip(&self.undo)
    }

    /// Whether the inventory would be the same without it.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// What the store has to write; a record that was changed twice is written once, as it is in the end.
    ///
    /// # Errors
    /// If a record cannot be encoded.
    pub fn writes(&self) -> Result<Vec<Write>, Failure> {
        let mut writes: Vec<Write> = Vec::with_capacity(self.done.len());
        let mut seen = std::collections::BTreeSet::new();
        for action in self.done.iter().rev() {
            let write = action.write().map_err(|e| {
                Failure::general(
                    500,
                    "internal",
                    format!("a record cannot be written: {e}"),
                    "report this",
                )
            })?;
            if seen.insert((write.table, write.key.clone())) {
                writes.push(write);
            }
        }
        Ok(writes)
    }

    /// Makes the change stay.
    pub fn keep(mut self) {
        self.undo.clear();
    }
}

impl Deref for Draft<'_> {
    type Target = Inventory;
    fn deref(&self) -> &Inventory {
        self.inventory
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        for action in self.undo.drain(..).rev() {
            self.inventory.apply(action);
        }
    }
}
