//! Which packets belong together: the connection table of the switch.
//!
//! One bounded table for all workers. Both directions of a connection are one entry, found by a keyed hash that is the
//! same for both; the entry also keeps what the caller decided about it (three words), so that one lookup a packet is
//! all. Lookups take no lock and write nothing; a packet that changes nothing (an acknowledged segment sent again, a
//! datagram shortly after another) doesn't write either. Insertion and removal take one of up to 32 locks. All memory is
//! taken at the start.
//!
//! A burst on the datapath:
//!
//! ```
//! use outboard_conntrack::{Budget, Config, Key, Opened, Packet, Ports, Table, Tuple, Verdict};
//!
//! let table = Table::new(&Config { entries: 1000, ports: 2, ..Config::default() });
//! table.set_budget(0, Budget::of(100));
//! let now_ns = 1_000_000_000;
//! let tuple = Tuple { protocol: 17, source_port: 1, destination_port: 53, ..Tuple::default() };
//!
//! let mut keys: Vec<Key> = [tuple].iter().map(|t| table.key(t)).collect();
//! table.prepare(&mut keys);
//! for key in &keys {
//!     if let Some(found) = table.lookup(key, now_ns) {
//!         // Does what `found.words` say still hold? Then:
//!         assert_eq!(table.observe(found.entry, found.direction, &Packet::Other, now_ns), Verdict::Ok);
//!     } else {
//!         // The policy decides; what it says goes into the words.
//!         let opened = table.open(key, Ports { from: 0, to: 1 }, &Packet::Other, [7, 8, 9], now_ns);
//!         assert!(matches!(opened, Ok(Opened::New(_))));
//!     }
//! }
//! table.expire(now_ns, 64);
//! ```
//!
//! # Zones
//!
//! Connections of different zones never meet. Whoever gives the number of a network that is gone to another one flushes
//! that zone in between.
//!
//! # What it doesn't implement
//!
//! - NAT, helpers that read payloads (FTP and such), expectations.
//! - State machines of SCTP, DCCP and GRE: they are *other* protocols, known by addresses and what ports the caller gives.
//! - Linux' count of retransmissions that shortens a timeout: that data stays unacknowledged does so here.
//! - Packet and byte counts of a connection.
#![forbid(unsafe_code)]

mod account;
mod entry;
mod hash;
pub mod icmp;
mod index;
mod list;
mod related;
mod shard;
mod state;
mod table;
mod tcp;
mod time;
mod tuple;

pub use account::{Budget, PortCounters};
pub use entry::EntryRef;
pub use list::{Connection, Cursor, Filter};
pub use related::{Embedded, Related};
pub use state::State;
pub use table::{Config, Found, Key, Opened, Packet, Ports, Refused, Statistics, TCP, Table, UDP, Verdict};
pub use tcp::{ACK, FIN, Laxness, Malformed, Outside, PSH, RST, Reason, SYN, Segment, URG};
pub use time::Timeouts;
pub use tuple::{Address, Direction, Tuple};
