//! The Linux side: nftables and conntrack, routing between three interface pairs, and a fourth for markers.

mod flush;
mod ruleset;
mod wire;

use std::{
    fs,
    io::Write as _,
    os::fd::AsFd as _,
    process::{Command, Stdio},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use self::{flush::Connections, wire::Wire};
use crate::{
    Failure, PORT_COUNT, Side, Verdict, frame,
    packet::Packet,
    rules::{Family, Rules, address},
};

const MARKER_INTERFACE: &str = "pm";
const MARKER_ADDRESS: &str = "10.0.0.254";
/// Mark of connections that are not allowed any more.
const ENDED: u32 = 1;
const MARKER_WAIT_MS: u16 = 30_000;

/// Kernel settings, in the order in which they are made; those of interfaces hold for interfaces made later.
const SETTINGS: [(&str, &str); 12] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    // of the far ends, too
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv6/icmp/ratemask", "\n"),
    ("net/netfilter/nf_conntrack_tcp_loose", "0"),
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "0"),
    ("net/netfilter/nf_conntrack_checksum", "1"),
];

/// Name of a port's interface.
fn interface(port: usize) -> String {
    format!("p{port}")
}

/// Linux as a firewall. One to a network namespace, which has to be the thread's own (see [`crate::namespace`]).
pub struct Linux {
    wires: Vec<Wire>,
    markers: Wire,
    connections: Connections,
    marker: u32,
}

impl Linux {
    /// Makes interfaces, routes and neighbours. The thread stays on the CPU on which it runs: what is sent on one CPU
    /// is received in the order in which it was sent, so that a marker comes after what it marks.
    pub fn new() -> Result<Self, Failure> {
        let mut here = CpuSet::new();
        sched_getcpu()
            .and_then(|cpu| here.set(cpu))
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &here))
            .map_err(Failure::kernel("stay on one CPU"))?;
        for (name, value) in SETTINGS {
            set(name, value)?;
        }
        make_interfaces()?;
        let wires = (0..PORT_COUNT)
            .map(|port| Wire::on(&format!("g{port}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            wires,
            markers: Wire::on("gm")?,
            connections: Connections::new()?,
            marker: 0,
        })
    }

    /// Forgets all connections.
    pub fn forget(&mut self) -> Result<(), Failure> {
        self.connections.forget(None)
    }

    /// Waits until all that was sent before has arrived.
    fn settle(&mut self) -> Result<(), Failure> {
        self.marker = self.marker.wrapping_add(1);
        let mut frame = [&router_mac(0)[..], &guest_mac(0), &[0x08, 0x00]].concat();
        // an IPv4 header, protocol 253 (RFC 3692), with the number as its payload
        let mut header = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 254];
        let sum = frame::checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        frame.extend(self.marker.to_be_bytes());
        self.wires[0].send(&frame)?;
        loop {
            let wait = self.markers.descriptor();
            let mut waiting = [PollFd::new(wait.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut waiting, PollTimeout::from(MARKER_WAIT_MS)).map_err(Failure::kernel("wait"))?;
            while let Some(frame) = self.markers.receive()? {
                if frame.get(34..38) == Some(&self.marker.to_be_bytes()) {
                    return Ok(());
                }
            }
            if ready == 0 {
                return Err(broken("a marker was not routed".into()));
            }
        }
    }

    /// Frames between ports that arrived.
    fn arrived(&self) -> Result<[usize; PORT_COUNT], Failure> {
        let mut counts = [0; PORT_COUNT];
        for (wire, count) in self.wires.iter().zip(&mut counts) {
            while wire.receive()?.is_some() {
                *count += 1;
            }
        }
        Ok(counts)
    }
}

impl Side for Linux {
    fn begin(&mut self, rules: &Rules) -> Result<(), Failure> {
        self.change(rules)?;
        self.forget()
    }

    fn change(&mut self, rules: &Rules) -> Result<(), Failure> {
        run("nft", &["-f", "-"], &ruleset::text(rules))
    }

    fn send(&mut self, packet: &Packet, number: u16) -> Result<Verdict, Failure> {
        for frame in frame::frames(packet, number, guest_mac(packet.from), router_mac(packet.from)) {
            self.wires[packet.from].send(&frame)?;
        }
        self.settle()?;
        let arrived = self.arrived()?;
        if arrived[packet.to] == 0 {
            self.connections.forget(Some(ENDED))?;
        }
        for (port, count) in arrived.iter().enumerate() {
            if *count != 0 && port != packet.from && port != packet.to {
                return Err(broken(format!("a packet {packet} came out at port {port}")));
            }
        }
        Ok(match (arrived[packet.to], arrived[packet.from]) {
            (0, 0) => Verdict::Drop,
            (0, _) => Verdict::Reject,
            (_, 0) => Verdict::Pass,
            (_, _) => return Err(broken(format!("{packet} was both delivered and answered"))),
        })
    }
}

fn broken(what: String) -> Failure {
    Failure::Broken { side: "Linux", what }
}

fn guest_mac(port: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, u8::try_from(port + 1).unwrap_or(u8::MAX)]
}

fn router_mac(port: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 1, u8::try_from(port + 1).unwrap_or(u8::MAX)]
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Makes the interfaces. Far ends have addresses of nobody: what is for a guest is there for packet sockets only.
fn make_interfaces() -> Result<(), Failure> {
    let names = || (0..PORT_COUNT).map(|port| port.to_string()).chain(["m".to_owned()]);
    let links = (0..).zip(names()).map(|(port, name)| {
        format!(
            "link add p{name} address {} type veth peer name g{name}",
            mac(router_mac(port))
        )
    });
    run("ip", &["-batch", "-"], &lines(links))?;
    for name in names() {
        set(&format!("net/ipv6/conf/p{name}/disable_ipv6"), "0")?;
    }
    let mut words = Vec::new();
    for (number, name) in (1..).zip(names()) {
        words.push(format!("link set g{name} arp off up"));
        words.push(format!("link set p{name} arp off up"));
        // what answers are sent from
        words.push(format!("address add 192.0.2.{number}/32 dev p{name}"));
        words.push(format!("address add 2001:db8::{number}/128 dev p{name} nodad"));
    }
    let guests = (0..PORT_COUNT).flat_map(|port| {
        [Family::V4, Family::V6].map(|family| (interface(port), guest_mac(port), address(port, family).to_string()))
    });
    let marker = (
        MARKER_INTERFACE.to_owned(),
        guest_mac(PORT_COUNT),
        MARKER_ADDRESS.to_owned(),
    );
    for (interface, guest, address) in guests.chain([marker]) {
        words.push(format!("route add {address} dev {interface}"));
        words.push(format!(
            "neighbour add {address} lladdr {} dev {interface} nud permanent",
            mac(guest)
        ));
    }
    run("ip", &["-batch", "-"], &lines(words.into_iter()))
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| line + "\n").collect()
}

fn set(name: &str, value: &str) -> Result<(), Failure> {
    fs::write(format!("/proc/sys/{name}"), value).map_err(|source| Failure::Setting {
        name: name.to_owned(),
        source,
    })
}

/// Runs a program that reads `input`.
fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<(), Failure> {
    let failed = |said: String| Failure::Program { program, said };
    // where an ordinary user's PATH does not lead
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() || written.is_err() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {said} given:\n{input}", output.status)));
    }
    Ok(())
}
