//! Connections, in the broker's terms.

use outboard_conntrack::Connection;
use outboard_protocol::inquiry::{Facts, Filter, Flow};
use outboard_vswitch::{ConnectionFilter, Connections, ListedConnection};
use vhost_net_dpu::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IP_PROTOCOL_TCP, IP_PROTOCOL_UDP};

const NS_PER_S: u64 = 1_000_000_000;

fn of(port: Option<String>) -> ConnectionFilter {
    ConnectionFilter {
        port,
        ..ConnectionFilter::default()
    }
}

/// The connections of a port, or of all, that the filter takes in: `limit` at most, and whether there are more.
pub fn list(connections: &Connections, port: Option<String>, filter: &Filter, limit: usize) -> (Vec<Flow>, bool) {
    // One more is looked for, to know whether there is.
    let mut found = connections.list_if(&of(port), limit.saturating_add(1), |connection| {
        connection.left_ns > 0 && filter.matches(&facts(connection))
    });
    let more = found.len() > limit;
    found.truncate(limit);
    (found.into_iter().filter_map(flow).collect(), more)
}

/// Ends them. How many.
pub fn flush(connections: &Connections, port: Option<String>, filter: &Filter) -> usize {
    connections.flush_if(&of(port), |connection| filter.matches(&facts(connection)))
}

fn facts(connection: &Connection) -> Facts<'static> {
    let tuple = &connection.tuple;
    let (source, destination) = (tuple.source.ip(), tuple.destination.ip());
    let with_ports = matches!(tuple.protocol, IP_PROTOCOL_TCP | IP_PROTOCOL_UDP);
    Facts {
        ethertype: if source.is_ipv4() {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        },
        protocol: Some(tuple.protocol),
        addresses: Some((source, destination)),
        ports: with_ports.then_some((tuple.source_port, tuple.destination_port)),
        ..Facts::default()
    }
}

/// None if its network is gone: then nothing of it passes any more.
fn flow(listed: ListedConnection) -> Option<Flow> {
    let ListedConnection {
        network,
        from,
        to,
        connection,
    } = listed;
    let tuple = &connection.tuple;
    // Names came from the broker as names, so none is lost here.
    let name = |text: Option<String>| text.and_then(|text| text.parse().ok());
    Some(Flow {
        network: name(network)?,
        protocol: tuple.protocol,
        source: tuple.source.ip(),
        source_port: tuple.source_port,
        destination: tuple.destination.ip(),
        destination_port: tuple.destination_port,
        state: connection.state.name().to_owned(),
        replied: connection.replied,
        age_s: connection.age_ns / NS_PER_S,
        left_s: connection.left_ns / NS_PER_S,
        from: name(from),
        to: name(to),
    })
}
