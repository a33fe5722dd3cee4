//! Our side: the classifier alone, and the whole datapath.

mod guest;
mod spec;
mod switch;

use outboard_firewall::{Action, Direction, Flow, Policy};

pub use self::{
    spec::spec,
    switch::{Datapath, mac},
};
use crate::{
    Failure, Side, Verdict,
    packet::{Body, Packet},
    rules::{Family, Rules, address, port_name},
};

/// The compiled policy without anything around it: what it says about a connection's first packet.
#[derive(Default)]
pub struct Classifier {
    policy: Option<Policy>,
    why: Option<String>,
}

impl Side for Classifier {
    fn begin(&mut self, rules: &Rules) -> Result<(), Failure> {
        self.policy = None;
        self.change(rules)
    }

    fn change(&mut self, rules: &Rules) -> Result<(), Failure> {
        let spec = spec(rules).map_err(|error| broken(error.to_string()))?;
        let policy = match &self.policy {
            None => Policy::compile(&spec),
            Some(policy) => policy.follow(&spec),
        };
        self.policy = Some(policy.map_err(|error| broken(error.to_string()))?);
        Ok(())
    }

    fn send(&mut self, packet: &Packet, _: u16) -> Result<Verdict, Failure> {
        let policy = self.policy.as_ref().ok_or_else(|| broken("it has no policy".into()))?;
        let flow = flow(packet).ok_or_else(|| broken(format!("{packet} is of two families")))?;
        let ends = [(packet.from, Direction::Egress), (packet.to, Direction::Ingress)];
        for (port, direction) in ends {
            let name = port_name(port);
            let id = policy
                .port(name)
                .ok_or_else(|| broken(format!("it has no port {name}")))?;
            let judgement = policy.judge(id, direction, &flow);
            self.why = Some(format!("port {name}, {direction}: {}", policy.reason(&judgement)));
            match judgement.action {
                Action::Allow => {}
                Action::Deny => return Ok(Verdict::Drop),
                Action::Reject => return Ok(Verdict::Reject),
            }
        }
        Ok(Verdict::Pass)
    }

    fn why(&self) -> Option<String> {
        self.why.clone()
    }
}

/// What rules look at of a first packet.
fn flow(packet: &Packet) -> Option<Flow> {
    let icmp = if packet.family == Family::V4 { 1 } else { 58 };
    let (protocol, selector) = match &packet.body {
        Body::Tcp(tcp) => (6, tcp.destination_port),
        Body::Udp { destination_port, .. } => (17, *destination_port),
        Body::Icmp { kind, code, .. } | Body::Error { kind, code, .. } => (icmp, u16::from_be_bytes([*kind, *code])),
        Body::Other { protocol, .. } => (*protocol, 0),
    };
    let (source, destination) = (address(packet.from, packet.family), address(packet.to, packet.family));
    Flow::between(source, destination, protocol, selector)
}

fn broken(what: String) -> Failure {
    Failure::Broken { side: "outboard", what }
}
