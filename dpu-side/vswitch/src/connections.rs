//! The connections that are followed, for people: listed and ended from any thread, beside the traffic.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use outboard_conntrack::{Connection, Cursor, Filter, Table};

use crate::switch::Switch;

/// Which connections; what is `None` doesn't matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionFilter {
    /// Those of this port, whichever end opened them.
    pub port: Option<String>,
    /// Of this IP protocol.
    pub protocol: Option<u8>,
    /// With this address at one end.
    pub address: Option<IpAddr>,
    /// With this other address at the other end.
    pub other_address: Option<IpAddr>,
    /// With this TCP or UDP port at one end, or this ICMP identifier.
    pub transport_port: Option<u16>,
}

/// A connection, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedConnection {
    /// The network; none if it is gone.
    pub network: Option<String>,
    /// The port whose guest opened it; none if it is gone.
    pub from: Option<String>,
    /// The port that it was opened to; none if it is gone.
    pub to: Option<String>,
    /// The rest.
    pub connection: Connection,
}

/// A switch's connections as they are, with the names that its ports and networks had when this was made.
#[derive(Clone)]
pub struct Connections {
    table: Option<Arc<Table>>,
    ports: HashMap<u32, String>,
    networks: HashMap<u32, String>,
    now: u64,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections")
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

impl Switch {
    /// What is needed to list and end connections, which takes its time in proportion to the table and so belongs on
    /// another thread than the switch's.
    pub fn connections(&self) -> Connections {
        let (ports, networks) = self.numbers();
        Connections {
            table: self.firewall.shared_table(),
            ports,
            networks,
            now: self.now_or_before(),
        }
    }
}

impl Connections {
    /// Those that the filter takes in, at most `limit`, in no order.
    pub fn list(&self, filter: &ConnectionFilter, limit: usize) -> Vec<ListedConnection> {
        self.list_if(filter, limit, |_| true)
    }

    /// Those of them that `wanted` says yes to as well.
    pub fn list_if(
        &self,
        filter: &ConnectionFilter,
        limit: usize,
        wanted: impl Fn(&Connection) -> bool,
    ) -> Vec<ListedConnection> {
        let (Some(table), Some(filter)) = (&self.table, self.compile(filter)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut cursor = Some(Cursor::default());
        while let Some(from) = cursor.filter(|_| found.len() < limit) {
            let room = limit - found.len();
            cursor = table.list(
                from,
                room,
                self.now,
                |connection| filter.matches(connection) && wanted(connection),
                &mut found,
            );
        }
        found.into_iter().map(|connection| self.named(connection)).collect()
    }

    /// Ends those that the filter takes in. How many there were.
    pub fn flush(&self, filter: &ConnectionFilter) -> usize {
        self.flush_if(filter, |_| true)
    }

    /// Ends those of them that `unwanted` says yes to as well.
    pub fn flush_if(&self, filter: &ConnectionFilter, unwanted: impl Fn(&Connection) -> bool) -> usize {
        match (&self.table, self.compile(filter)) {
            (Some(table), Some(filter)) => table.flush_all(self.now, |connection| {
                filter.matches(connection) && unwanted(connection)
            }),
            _ => 0,
        }
    }

    /// In the table's terms; none if there is no such port, and so no connection.
    fn compile(&self, filter: &ConnectionFilter) -> Option<Filter> {
        let switch_port = match &filter.port {
            None => None,
            Some(name) => Some(*self.ports.iter().find(|(_, known)| *known == name)?.0),
        };
        Some(Filter {
            switch_port,
            protocol: filter.protocol,
            address: filter.address.map(Into::into),
            other_address: filter.other_address.map(Into::into),
            port: filter.transport_port,
            ..Filter::default()
        })
    }

    fn named(&self, connection: Connection) -> ListedConnection {
        ListedConnection {
            network: self.networks.get(&connection.tuple.zone).cloned(),
            from: self.ports.get(&connection.from).cloned(),
            to: self.ports.get(&connection.to).cloned(),
            connection,
        }
    }
}
