//! What ports may send, compiled from the records the broker declared.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use outboard_controls::{Check, on};
use outboard_firewall::{Policy, PortId};
use vhost_net_dpu::record::mac_number;

use crate::{
    firewall::tracked::End,
    seed::Seed,
    trunk::{Carried, Trunk},
};

/// A port as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPolicy {
    /// The port's name, unique in the switch.
    pub name: String,
    /// Its network. Ports of different networks never exchange a frame.
    pub network: String,
    /// The only source MAC it may use, and the destination it is reached at.
    pub mac: [u8; 6],
    /// The only source addresses it may use, beside the IPv6 link-local address made from its MAC.
    pub addresses: Vec<IpAddr>,
    /// Whose device carries its frames, if it has none of its own.
    pub trunk: Option<TrunkPolicy>,
}

/// How a subport reaches its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrunkPolicy {
    /// The port with the device, by name.
    pub parent: String,
    /// The VLAN id of the subport's frames there.
    pub vlan: u16,
}

/// One port's policy, as the layers ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    network: usize,
    /// Its network's number, by which connections of different networks are told apart.
    pub zone: u32,
    /// What the firewall knows of it.
    pub filter: Filter,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The same as a number.
    pub mac_number: u64,
    /// Of a subport: which device carries it.
    pub carried: Option<Carried>,
    /// Its subports, if it has any.
    pub trunk: Option<Arc<Trunk>>,
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

/// A port, as the firewall has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// It has security groups: what none of them allows is dropped.
    pub filtered: bool,
    /// Its number in the firewall's policy; none if that does not know it, and then nothing passes.
    pub id: Option<PortId>,
    /// Its number and epoch, for connections.
    pub end: End,
}

impl Filter {
    fn of(policy: &Policy, name: &str) -> Self {
        let id = policy.port(name);
        // Before there is any policy, nothing is filtered.
        let filtered = policy.version() != 0 && id.is_none_or(|id| policy.filtered(id));
        let end = End {
            port: id.map_or(u32::MAX, |id| u32::try_from(id.index()).unwrap_or(u32::MAX)),
            epoch: id.map_or(0, |id| policy.epoch(id)),
        };
        Self { filtered, id, end }
    }
}

/// Gives networks numbers, none of them twice: what is known of a network that is gone is never another one's.
#[derive(Debug, Default)]
pub struct Zones {
    by_name: HashMap<String, u32>,
    next: u32,
}

impl Zones {
    /// Keeps the numbers of these networks, gives new ones theirs, and forgets all others.
    fn follow<'a>(&mut self, networks: impl Iterator<Item = &'a str>) {
        let mut former = std::mem::take(&mut self.by_name);
        for name in networks {
            if !self.by_name.contains_key(name) {
                let number = former.remove(name).unwrap_or_else(|| {
                    self.next = if on(Check::ZoneOnce) { self.next + 1 } else { 1 };
                    self.next
                });
                self.by_name.insert(name.to_owned(), number);
            }
        }
    }

    /// The networks' names by their numbers.
    pub fn names(&self) -> HashMap<u32, String> {
        self.by_name
            .iter()
            .map(|(name, number)| (*number, name.clone()))
            .collect()
    }

    fn of(&self, name: &str) -> u32 {
        self.by_name.get(name).copied().unwrap_or(0)
    }
}

impl Rules {
    /// May it use this IPv4 address?
    #[inline]
    pub fn owns_v4(&self, address: Ipv4Addr) -> bool {
        self.v4.contains(&address)
    }

    /// May it use this IPv6 address?
    pub fn owns_v6(&self, address: Ipv6Addr) -> bool {
        self.v6.contains(&address)
    }
}

/// All ports' policy: one value, replaced as a whole, so that a frame sees the old policy or the new one.
#[derive(Debug, Default)]
pub struct PolicySet {
    rules: Vec<Rules>,
    networks: Vec<Network>,
}

/// The ports of one network.
#[derive(Debug, Default)]
struct Network {
    members: Vec<usize>,
    /// One of them is filtered.
    filters: bool,
    /// MAC, as a number → port. The keys are records', none is a guest's.
    stations: HashMap<u64, usize, Seed>,
}

impl PolicySet {
    /// Compiles `policies`; a port's index is its place in them. Of two ports with one MAC in one network, which the
    /// broker does not make, the first is reached.
    pub fn compile(policies: &[PortPolicy], firewall: &Policy, zones: &mut Zones) -> Self {
        zones.follow(policies.iter().map(|policy| policy.network.as_str()));
        let mut networks: HashMap<&str, usize> = HashMap::new();
        let mut set = Self::default();
        for (port, policy) in policies.iter().enumerate() {
            let fresh = networks.len();
            let network = *networks.entry(&policy.network).or_insert(fresh);
            if network == set.networks.len() {
                set.networks.push(Network::default());
            }
            let filter = Filter::of(firewall, &policy.name);
            if let Some(network) = set.networks.get_mut(network) {
                network.members.push(port);
                network.filters |= filter.filtered;
                network.stations.entry(mac_number(policy.mac)).or_insert(port);
            }
            set.rules
                .push(rules(policy, network, zones.of(&policy.network), filter));
        }
        set.set_trunks(policies);
        set
    }

    /// Finds out which port carries which. A subport whose parent is not there is carried by nobody.
    fn set_trunks(&mut self, policies: &[PortPolicy]) {
        if policies.iter().all(|policy| policy.trunk.is_none()) {
            return;
        }
        let devices: HashMap<&str, usize> = policies
            .iter()
            .enumerate()
            .filter(|(_, policy)| policy.trunk.is_none())
            .map(|(port, policy)| (policy.name.as_str(), port))
            .collect();
        let mut trunks: HashMap<usize, Trunk> = HashMap::new();
        for (port, policy) in policies.iter().enumerate() {
            let Some(TrunkPolicy { parent, vlan }) = &policy.trunk else {
                continue;
            };
            let parent = devices.get(parent.as_str()).copied();
            if let Some(parent) = parent {
                trunks.entry(parent).or_default().set(*vlan, port);
            }
            if let Some(rules) = self.rules.get_mut(port) {
                rules.carried = Some(Carried { parent, vlan: *vlan });
            }
        }
        for (port, trunk) in trunks {
            if let Some(rules) = self.rules.get_mut(port) {
                rules.trunk = Some(Arc::new(trunk));
            }
        }
    }

    /// A port's policy.
    pub fn rules(&self, port: usize) -> Option<&Rules> {
        self.rules.get(port)
    }

    /// The port that has `mac`, as a number, in the network of `rules`.
    #[inline]
    pub fn station(&self, rules: &Rules, mac: u64) -> Option<usize> {
        self.networks.get(rules.network)?.stations.get(&mac).copied()
    }

    /// Takes over another policy of the firewall. `names` are the ports', in order.
    pub fn follow<'a>(&mut self, firewall: &Policy, names: impl Iterator<Item = &'a str>) {
        self.networks.iter_mut().for_each(|network| network.filters = false);
        for (rules, name) in self.rules.iter_mut().zip(names) {
            rules.filter = Filter::of(firewall, name);
            if let Some(network) = self.networks.get_mut(rules.network) {
                network.filters |= rules.filter.filtered;
            }
        }
    }

    /// Is any port in the network of `rules` filtered?
    pub fn filters(&self, rules: &Rules) -> bool {
        self.networks.get(rules.network).is_some_and(|network| network.filters)
    }

    /// Whose device carries a port, if it is a subport.
    #[inline]
    pub fn carried(&self, port: usize) -> Option<Carried> {
        self.rules.get(port)?.carried
    }

    /// All ports'.
    pub fn all(&self) -> &[Rules] {
        &self.rules
    }

    /// The ports in the network of `rules`.
    pub fn members(&self, rules: &Rules) -> &[usize] {
        self.networks
            .get(rules.network)
            .map_or(&[], |network| network.members.as_slice())
    }
}

fn rules(policy: &PortPolicy, network: usize, zone: u32, filter: Filter) -> Rules {
    let mut v4 = Vec::new();
    let mut v6 = vec![link_local(policy.mac)];
    for address in &policy.addresses {
        match address {
            IpAddr::V4(address) => v4.push(*address),
            IpAddr::V6(address) => v6.push(*address),
        }
    }
    Rules {
        network,
        zone,
        filter,
        mac: policy.mac,
        mac_number: mac_number(policy.mac),
        carried: None,
        trunk: None,
        v4,
        v6,
    }
}

/// The link-local address made from a MAC by modified EUI-64 (RFC 4291 §2.5.1 and appendix A).
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, network: &str, last: u8) -> PortPolicy {
        let addresses = vec![IpAddr::from([10, 0, 0, last])];
        PortPolicy {
            name: name.into(),
            network: network.into(),
            mac: [0x52, 0x54, 0, 0, 0, last],
            addresses,
            trunk: None,
        }
    }

    #[test]
    fn the_link_local_address_is_modified_eui_64() {
        let want: Ipv6Addr = "fe80::5054:ff:fe12:3456".parse().expect("a literal");
        assert_eq!(link_local([0x52, 0x54, 0, 0x12, 0x34, 0x56]), want);
    }

    #[test]
    fn a_network_knows_only_its_own_stations() {
        let policies = [policy("a", "blue", 1), policy("b", "red", 2), policy("c", "blue", 3)];
        let set = PolicySet::compile(&policies, &Policy::default(), &mut Zones::default());
        let a = set.rules(0).expect("port a");
        assert_eq!(set.members(a), [0, 2]);
        assert_eq!(set.station(a, mac_number([0x52, 0x54, 0, 0, 0, 3])), Some(2));
        assert_eq!(set.station(a, mac_number([0x52, 0x54, 0, 0, 0, 2])), None);
        assert!(a.owns_v4(Ipv4Addr::new(10, 0, 0, 1)) && !a.owns_v4(Ipv4Addr::new(10, 0, 0, 3)));
        assert!(a.owns_v6(link_local(a.mac)));
    }

    #[test]
    fn a_network_that_comes_back_has_another_number() {
        let mut zones = Zones::default();
        let mut numbers = |names: &[&str]| {
            zones.follow(names.iter().copied());
            names.iter().map(|name| zones.of(name)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&["blue", "red", "blue"]), [1, 2, 1]);
        assert_eq!(numbers(&["red"]), [2]);
        assert_eq!(numbers(&["blue", "red"]), [3, 2]);
    }
}
