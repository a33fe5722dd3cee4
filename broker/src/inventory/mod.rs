//! Everything the broker knows that survives a restart: records by kind, and the one way to change them.
//!
//! An [`Action`] puts or removes one record and yields the action that undoes it. The store keeps the same records
//! under the same keys, so what is in memory is always what loading the store would give.

mod limits;
mod record;

use std::collections::BTreeMap;

use outboard_protocol::id::{Name, ObjectKind, ObjectRef};
use uuid::Uuid;

pub use limits::*;
pub use record::*;

use crate::store::{RecordError, Stored, Table, Write, decode_record, encode_record};

/// All records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    /// The broker's own counters.
    pub broker: BrokerRecord,
    /// Cards.
    pub cards: BTreeMap<Name, CardRecord>,
    /// Networks.
    pub networks: BTreeMap<Name, NetworkRecord>,
    /// Security groups.
    pub groups: BTreeMap<Name, GroupRecord>,
    /// Address sets.
    pub address_sets: BTreeMap<Name, AddressSetRecord>,
    /// Ports.
    pub ports: BTreeMap<Name, PortRecord>,
    /// Volumes.
    pub volumes: BTreeMap<Name, VolumeRecord>,
    /// The latest binding of each object; it outlives its object until the card has let go of it.
    pub bindings: BTreeMap<ObjectRef, BindingRecord>,
    /// Results of operations.
    pub operations: BTreeMap<Uuid, OperationRecord>,
    /// Operators.
    pub operators: BTreeMap<Name, OperatorRecord>,
}

/// A record of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// The broker's counters.
    Broker(BrokerRecord),
    /// A card.
    Card(CardRecord),
    /// A network.
    Network(NetworkRecord),
    /// A security group.
    Group(GroupRecord),
    /// An address set.
    AddressSet(AddressSetRecord),
    /// A port.
    Port(PortRecord),
    /// A volume.
    Volume(VolumeRecord),
    /// A binding.
    Binding(BindingRecord),
    /// An operation's result.
    Operation(OperationRecord),
    /// An operator.
    Operator(OperatorRecord),
}

/// Names a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// The broker's counters.
    Broker,
    /// A card.
    Card(Name),
    /// A network.
    Network(Name),
    /// A security group.
    Group(Name),
    /// An address set.
    AddressSet(Name),
    /// A port.
    Port(Name),
    /// A volume.
    Volume(Name),
    /// A binding.
    Binding(ObjectRef),
    /// An operation's result.
    Operation(Uuid),
    /// An operator.
    Operator(Name),
}

/// One change of the inventory.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The record is there, with this content.
    Put(Record),
    /// The record is not there.
    Remove(RecordKey),
}

/// A stored record that this version cannot take up.
#[derive(Debug, thiserror::Error)]
#[error("record {key} of table {table}: {error}")]
pub struct LoadError {
    table: &'static str,
    key: String,
    error: RecordError,
}

impl Record {
    /// What names it.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Broker(_) => RecordKey::Broker,
            Self::Card(r) => RecordKey::Card(r.name.clone()),
            Self::Network(r) => RecordKey::Network(r.spec.name.clone()),
            Self::Group(r) => RecordKey::Group(r.spec.name.clone()),
            Self::AddressSet(r) => RecordKey::AddressSet(r.spec.name.clone()),
            Self::Port(r) => RecordKey::Port(r.spec.name.clone()),
            Self::Volume(r) => RecordKey::Volume(r.spec.name.clone()),
            Self::Binding(r) => RecordKey::Binding(r.object.clone()),
            Self::Operation(r) => RecordKey::Operation(r.id),
            Self::Operator(r) => RecordKey::Operator(r.name.clone()),
        }
    }

    fn encode(&self) -> Result<Vec<u8>, RecordError> {
        match self {
            Self::Broker(r) => encode_record(r),
            Self::Card(r) => encode_record(r),
            Self::Network(r) => encode_record(r),
            Self::Group(r) => encode_record(r),
            Self::AddressSet(r) => encode_record(r),
            Self::Port(r) => encode_record(r),
            Self::Volume(r) => encode_record(r),
            Self::Binding(r) => encode_record(r),
            Self::Operation(r) => encode_record(r),
            Self::Operator(r) => encode_record(r),
        }
    }

    fn decode(table: Table, bytes: &[u8]) -> Result<Self, RecordError> {
        Ok(match table {
            Table::Meta => Self::Broker(decode_record(bytes)?),
            Table::Cards => Self::Card(decode_record(bytes)?),
            Table::Networks => Self::Network(decode_record(bytes)?),
            Table::Groups => Self::Group(decode_record(bytes)?),
            Table::AddressSets => Self::AddressSet(decode_record(bytes)?),
            Table::Ports => Self::Port(decode_record(bytes)?),
            Table::Volumes => Self::Volume(decode_record(bytes)?),
            Table::Bindings => Self::Binding(decode_record(bytes)?),
            Table::Operations => Self::Operation(decode_record(bytes)?),
            Table::Operators => Self::Operator(decode_record(bytes)?),
        })
    }
}

impl RecordKey {
    /// Where the store keeps it.
    pub fn place(&self) -> (Table, String) {
        match self {
            Self::Broker => (Table::Meta, "broker".to_owned()),
            Self::Card(name) => (Table::Cards, name.to_string()),
            Self::Network(name) => (Table::Networks, name.to_string()),
            Self::Group(name) => (Table::Groups, name.to_string()),
            Self::AddressSet(name) => (Table::AddressSets, name.to_string()),
            Self::Port(name) => (Table::Ports, name.to_string()),
            Self::Volume(name) => (Table::Volumes, name.to_string()),
            Self::Binding(object) => (Table::Bindings, format!("{}/{}", object.kind, object.name)),
            Self::Operation(id) => (Table::Operations, id.to_string()),
            Self::Operator(name) => (Table::Operators, name.to_string()),
        }
    }
}

impl Action {
    /// What the store has to write for it.
    ///
    /// # Errors
    /// Only if a record cannot be JSON, which is an error of this program.
    pub fn write(&self) -> Result<Write, RecordError> {
        let (key, value) = match self {
            Self::Put(record) => (record.key(), Some(record.encode()?)),
            Self::Remove(key) => (key.clone(), None),
        };
        let (table, key) = key.place();
        Ok(Write { table, key, value })
    }
}

/// Puts or removes a value and says how to undo that.
fn swap<K: Ord, R>(
    map: &mut BTreeMap<K, R>,
    key: K,
    value: Option<R>,
    record: impl Fn(R) -> Record,
    undo_key: RecordKey,
) -> Action {
    let before = match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
    match before {
        Some(before) => Action::Put(record(before)),
        None => Action::Remove(undo_key),
    }
}

impl Inventory {
    /// The inventory that a store's records spell.
    ///
    /// # Errors
    /// A record that does not parse.
    pub fn load(stored: &[Stored]) -> Result<Self, LoadError> {
        let mut inventory = Self::default();
        for Stored { table, key, value } in stored {
            let error = |error| LoadError {
                table: table.name(),
                key: key.clone(),
                error,
            };
            inventory.apply(Action::Put(Record::decode(*table, value).map_err(error)?));
        }
        Ok(inventory)
    }

    /// Changes one record; the answer undoes it.
    pub fn apply(&mut self, action: Action) -> Action {
        let key = match &action {
            Action::Put(record) => record.key(),
            Action::Remove(key) => key.clone(),
        };
        let put = match action {
            Action::Put(record) => Some(record),
            Action::Remove(_) => None,
        };
        macro_rules! swap_in {
            ($map:ident, $name:expr, $kind:ident) => {{
                let value = match put {
                    Some(Record::$kind(value)) => Some(value),
                    _ => None,
                };
                swap(&mut self.$map, $name, value, Record::$kind, key)
            }};
        }
        match key.clone() {
            RecordKey::Broker => {
                let value = match put {
                    Some(Record::Broker(value)) => value,
                    _ => BrokerRecord::default(),
                };
                Action::Put(Record::Broker(std::mem::replace(&mut self.broker, value)))
            }
            RecordKey::Card(name) => swap_in!(cards, name, Card),
            RecordKey::Network(name) => swap_in!(networks, name, Network),
            RecordKey::Group(name) => swap_in!(groups, name, Group),
            RecordKey::AddressSet(name) => swap_in!(address_sets, name, AddressSet),
            RecordKey::Port(name) => swap_in!(ports, name, Port),
            RecordKey::Volume(name) => swap_in!(volumes, name, Volume),
            RecordKey::Binding(object) => swap_in!(bindings, object, Binding),
            RecordKey::Operation(id) => swap_in!(operations, id, Operation),
            RecordKey::Operator(name) => swap_in!(operators, name, Operator),
        }
    }

    /// What placement and grant an object has; none if there is no such object.
    pub fn placement(&self, object: &ObjectRef) -> Option<&Placement> {
        match object.kind {
            ObjectKind::Port => self.ports.get(&object.name).map(|p| &p.placement),
            ObjectKind::Volume => self.volumes.get(&object.name).map(|v| &v.placement),
        }
    }

    /// Every port and volume with its placement.
    pub fn placements(&self) -> impl Iterator<Item = (ObjectRef, &Placement)> {
        let ports = self
            .ports
            .iter()
            .map(|(name, p)| (ObjectKind::Port, name, &p.placement));
        let volumes = self
            .volumes
            .iter()
            .map(|(name, v)| (ObjectKind::Volume, name, &v.placement));
        ports.chain(volumes).map(|(kind, name, placement)| {
            (
                ObjectRef {
                    kind,
                    name: name.clone(),
                },
                placement,
            )
        })
    }

    /// The records again with another placement for one object.
    pub fn with_placement(&self, object: &ObjectRef, placement: Placement) -> Option<Action> {
        Some(Action::Put(match object.kind {
            ObjectKind::Port => Record::Port(PortRecord {
                placement,
                ..self.ports.get(&object.name)?.clone()
            }),
            ObjectKind::Volume => Record::Volume(VolumeRecord {
                placement,
                ..self.volumes.get(&object.name)?.clone()
            }),
        }))
    }
}
