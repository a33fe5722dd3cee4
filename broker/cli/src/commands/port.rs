//! `port`: a guest's virtio-net devices.

use std::{net::IpAddr, str::FromStr};

use clap::{Args, Subcommand};
use outboard_api::port::{PortSpec, PortView, TrunkSpec};
use outboard_protocol::id::{MacAddr, Name, NameError};
use serde_json::Value;

use super::{allocation_details, binding_state, done, show};
use crate::{error::CliError, options::Global, output};

/// `outboard port`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard port list
  outboard port show vm1
  outboard port create vm1 --network blue --mac 52:54:00:00:00:01 --address 10.0.0.1
  outboard port set vm1 --groups web,ssh")]
pub struct PortArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All ports: state and counters
    #[command(after_help = "\
Examples:
  outboard port list
  outboard port list --json | jq '.[].counters'")]
    List,
    /// One port: binding, counters, and drops by reason
    #[command(after_help = "Examples:\n  outboard port show vm1")]
    Show {
        /// The port's name
        name: Name,
    },
    /// Make a port, or change it to what is said here
    #[command(after_help = "\
The port is granted to the host of its card; 'outboard grant revoke port NAME' takes it back.

With --parent it is a subport: it has no device of its own, but reaches the guest through the
parent's, in frames that carry a VLAN tag. It is attached and released with its parent, and can be
revoked alone.

Examples:
  outboard port create vm1 --network blue --mac 52:54:00:00:00:01 --address 10.0.0.1 --card rack7
  outboard port create vm1-red --network red --mac 52:54:00:00:00:01 --parent vm1 --vlan 100")]
    Create {
        /// The port's name
        name: Name,
        /// The network it is on
        #[arg(long)]
        network: Name,
        /// The only source MAC that its guest may use
        #[arg(long)]
        mac: MacAddr,
        /// A source address that its guest may use; may be given several times
        #[arg(long = "address", value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// Its security groups, with commas between; "" for none, so that nothing passes [default: not filtered]
        #[arg(long, value_name = "GROUP,…")]
        groups: Option<GroupList>,
        /// Make it a subport of this port
        #[arg(long, value_name = "PORT")]
        parent: Option<Name>,
        /// VLAN id of a subport's frames at its parent, 1 to 4094 [default: that of its network]
        #[arg(long, value_name = "ID", requires = "parent")]
        vlan: Option<u16>,
        /// The card that serves it [default: its parent's, or the only one there is]
        #[arg(long)]
        card: Option<Name>,
    },
    /// Change what is said here of a port, and nothing else
    #[command(after_help = "\
Established connections live on only where the new groups still allow them.

Examples:
  outboard port set vm1 --groups web,ssh
  outboard port set vm1 --groups ''          filtered, and nothing allowed
  outboard port set vm1 --unfiltered")]
    Set(SetArgs),
    /// Delete a port; its guest's device goes silent
    #[command(after_help = "Examples:\n  outboard port delete vm1")]
    Delete {
        /// The port's name
        name: Name,
    },
}

#[derive(Debug, Args)]
struct SetArgs {
    /// The port's name
    name: Name,
    /// Its security groups from now on, with commas between; '' for none, so that nothing passes
    #[arg(long, value_name = "GROUP,…", required_unless_present = "unfiltered")]
    groups: Option<GroupList>,
    /// No filter any more: whatever its addresses allow passes
    #[arg(long, conflicts_with = "groups")]
    unfiltered: bool,
}

/// Names with commas between.
#[derive(Debug, Clone, PartialEq, Eq)]
struct GroupList(Vec<Name>);

impl FromStr for GroupList {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Does it.
///
/// # Errors
/// The broker is away or refuses.
pub async fn run(global: &Global, args: &PortArgs) -> Result<(), CliError> {
    let client = global.client()?;
    match &args.verb {
        Verb::List => show(global, &client.get::<Vec<PortView>>("/v1/ports").await?, |ports| {
            table(ports)
        }),
        Verb::Show { name } => show(global, &client.get(&format!("/v1/ports/{name}")).await?, details),
        Verb::Create {
            name,
            network,
            mac,
            addresses,
            groups,
            parent,
            vlan,
            card,
        } => {
            let spec = PortSpec {
                groups: groups.clone().map(|GroupList(names)| names),
                name: name.clone(),
                network: network.clone(),
                mac: *mac,
                addresses: addresses.clone(),
                trunk: parent.clone().map(|parent| TrunkSpec { parent, vlan: *vlan }),
                card: card.clone(),
            };
            let answer: Value = client.put(&format!("/v1/ports/{name}"), &spec).await?;
            done(global, &answer, &format!("port {name} is declared"))
        }
        Verb::Set(SetArgs { name, groups, .. }) => {
            let path = format!("/v1/ports/{name}");
            let now: PortView = client.get(&path).await?;
            let spec = PortSpec {
                groups: groups.clone().map(|GroupList(names)| names),
                ..now.spec
            };
            let answer: Value = client.put(&path, &spec).await?;
            let groups = filter(spec.groups.as_deref());
            done(global, &answer, &format!("port {name} now has groups: {groups}"))
        }
        Verb::Delete { name } => {
            let answer: Value = client.delete(&format!("/v1/ports/{name}")).await?;
            done(global, &answer, &format!("port {name} deleted"))
        }
    }
}

/// A port's groups, or that it has no filter. A port with a filter and no groups is silent.
fn filter(groups: Option<&[Name]>) -> String {
    match groups {
        None => "unfiltered".to_owned(),
        Some([]) => "none (nothing passes)".to_owned(),
        Some(groups) => output::list(groups),
    }
}

/// Whose device carries a port, or which subports its own carries.
fn trunk(port: &PortView) -> String {
    match (&port.spec.trunk, port.vlan, port.subports.as_slice()) {
        (Some(trunk), Some(vlan), _) => format!("VLAN {vlan} of {}", trunk.parent),
        (Some(trunk), None, _) => trunk.to_string(),
        (None, _, []) => "-".to_owned(),
        (None, _, subports) => format!("carries {}", output::list(subports)),
    }
}

/// The table of all ports.
pub fn table(ports: &[PortView]) -> String {
    let row = |p: &PortView| {
        let counters = p.counters.as_ref();
        [
            p.spec.name.to_string(),
            p.spec.network.to_string(),
            p.spec.mac.to_string(),
            output::list(&p.spec.addresses),
            filter(p.spec.groups.as_deref()),
            trunk(p),
            output::or_dash(p.spec.card.as_ref()),
            binding_state(p.binding.as_ref(), p.grant.as_ref()),
            output::or_dash(counters.map(|c| c.tx_frames)),
            output::or_dash(counters.map(|c| c.rx_frames)),
            output::or_dash(counters.map(|c| c.dropped_frames())),
        ]
    };
    let header = [
        "PORT",
        "NETWORK",
        "MAC",
        "ADDRESSES",
        "GROUPS",
        "TRUNK",
        "CARD",
        "STATE",
        "TX FRAMES",
        "RX FRAMES",
        "DROPPED",
    ];
    output::table(header, ports.iter().map(row).collect(), "There are no ports.")
}

fn details(port: &PortView) -> String {
    let mut rows = vec![
        ("port", port.spec.name.to_string()),
        ("network", port.spec.network.to_string()),
        ("mac", port.spec.mac.to_string()),
        ("addresses", output::list(&port.spec.addresses)),
        ("groups", filter(port.spec.groups.as_deref())),
        ("trunk", trunk(port)),
        ("card", output::or_dash(port.spec.card.as_ref())),
    ];
    rows.extend(allocation_details(port.grant.as_ref(), port.binding.as_ref()));
    let Some(counters) = &port.counters else {
        return output::details(rows);
    };
    rows.push((
        "tx",
        format!("{} frames, {} bytes", counters.tx_frames, counters.tx_bytes),
    ));
    rows.push((
        "rx",
        format!("{} frames, {} bytes", counters.rx_frames, counters.rx_bytes),
    ));
    let drops = counters
        .drops
        .iter()
        .map(|(reason, frames)| [reason.clone(), frames.to_string()])
        .collect();
    let drops = output::table(["DROPPED BECAUSE", "FRAMES"], drops, "No frame was dropped.");
    format!("{}\n\n{drops}", output::details(rows))
}
