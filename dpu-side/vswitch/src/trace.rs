//! What would become of a frame: the decision that traffic gets, made dry.
//!
//! A frame is given as a guest would send it, and asked about at the parser, the layers and the receivers, by the very
//! functions that traffic is decided by. Nothing is sent or counted.

use vhost_net_dpu::{
    FRAME_LEN_MAX, HEAD_LEN_MAX, MTU_DEFAULT,
    error::TxRefusal,
    frame_len_max,
    packet::{Fragment, IpAddresses},
    record::{Class, Record},
    vlan,
};

use crate::{
    firewall::{self, Question, explain::Said, tracked},
    layers::{self, Destination, Ingress, Output, Verdict},
    port::{Gate, Port},
    reason::DropReason,
    switch::Switch,
    trunk,
};

/// What would become of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// Who was asked, in order.
    pub steps: Vec<TraceStep>,
    /// Where it would end: one for each receiver, or one drop.
    pub ends: Vec<TraceEnd>,
}

/// One station of a frame's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceStep {
    /// Who decided.
    pub layer: &'static str,
    /// What it said.
    pub verdict: TraceVerdict,
    /// Why, in words.
    pub detail: String,
    /// The rule that decided, if one did.
    pub rule: Option<String>,
}

/// What a station said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceVerdict {
    /// The next one is asked.
    Pass,
    /// Nothing moves there now: the frame would wait. The next ones are asked as if it went on.
    Hold,
    /// The frame goes out.
    Output,
    /// The frame is dropped.
    Drop,
}

/// Where a frame ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceEnd {
    /// The port whose guest gets it, or that counts the drop.
    pub port: String,
    /// Why it is dropped, if it is.
    pub dropped: Option<DropReason>,
}

impl Trace {
    fn step(&mut self, layer: &'static str, verdict: TraceVerdict, detail: impl Into<String>) {
        self.steps.push(TraceStep {
            layer,
            verdict,
            detail: detail.into(),
            rule: None,
        });
    }

    fn end(&mut self, port: &str, dropped: Option<DropReason>) {
        self.ends.push(TraceEnd {
            port: port.to_owned(),
            dropped,
        });
    }

    /// The firewall said something. Why it drops the frame, if it does.
    fn said(&mut self, said: Said) -> Option<DropReason> {
        let reason = said.denial.map(|denial| denial.reason);
        let verdict = reason.map_or(TraceVerdict::Pass, |_| TraceVerdict::Drop);
        self.steps.push(TraceStep {
            layer: said.layer,
            verdict,
            detail: said.detail,
            rule: said.rule,
        });
        reason
    }

    fn dropped(mut self, layer: &'static str, port: &str, reason: DropReason, detail: impl Into<String>) -> Self {
        self.step(layer, TraceVerdict::Drop, detail);
        self.ends.push(TraceEnd {
            port: port.to_owned(),
            dropped: Some(reason),
        });
        self
    }
}

impl Switch {
    /// What would become of `frame` (from its Ethernet header on, with complete checksums) if the guest of a port sent it
    /// now; none if there is no such port.
    pub fn trace(&self, name: &str, frame: &[u8]) -> Option<Trace> {
        let (index, port) = self.declared(name)?;
        let mut trace = Trace::default();
        let Some((device, carrier)) = self.device_of(index) else {
            let detail = "its parent is not there: nothing comes from it";
            trace.step("port", TraceVerdict::Hold, detail);
            return Some(trace);
        };
        let (verdict, detail) = sending(port, carrier);
        trace.step("port", verdict, detail);
        // A frame that comes without a tag is the port's own, a subport's too: so its guest's kernel has it.
        let (untagged, vlan);
        let (index, frame) = match vlan::split(frame).filter(|_| index == device) {
            None => (index, frame),
            Some((id, inner)) => {
                (vlan, untagged) = (id, inner);
                match self.classify(&mut trace, device, vlan) {
                    Ok(port) => (port, &untagged[..]),
                    Err((reason, at)) => {
                        trace.end(at, Some(reason));
                        return Some(trace);
                    }
                }
            }
        };
        let (port, rules) = (self.port_at(index)?, self.policy().rules(index)?);
        let name = port.name.as_str();
        let head = frame.get(..HEAD_LEN_MAX).unwrap_or(frame);
        let record = match parse(carrier, head, frame.len()) {
            Ok(record) => record,
            Err(refusal) => {
                let detail = refusal.to_string();
                return Some(trace.dropped("parser", name, refusal.into(), detail));
            }
        };
        trace.step("parser", TraceVerdict::Pass, describe(&record, head));
        let ingress = Ingress {
            port: index,
            rules,
            policy: self.policy(),
            record: &record,
            head,
        };
        let decided = layers::walk(&ingress, &mut Destination::default(), |layer, verdict| match verdict {
            Verdict::Continue => trace.step(layer, TraceVerdict::Pass, "nothing against it"),
            Verdict::Deny(reason) => trace.step(layer, TraceVerdict::Drop, reason.name()),
            Verdict::Output(Output::Port(to)) => {
                let to = self.port_at(to).map_or("a port", |port| port.name.as_str());
                trace.step(layer, TraceVerdict::Output, format!("to port {to}"));
            }
            Verdict::Output(Output::Flood) => {
                trace.step(
                    layer,
                    TraceVerdict::Output,
                    "to every other port of the network: its destination is a group",
                );
            }
        });
        let one;
        let receivers = match decided {
            Err(DropReason::UnknownDestination) => {
                let detail = "no layer sends it anywhere";
                return Some(trace.dropped("output", name, DropReason::UnknownDestination, detail));
            }
            Err(reason) => {
                trace.ends.push(TraceEnd {
                    port: name.to_owned(),
                    dropped: Some(reason),
                });
                return Some(trace);
            }
            Ok(Output::Port(port)) => {
                one = [port];
                &one[..]
            }
            Ok(Output::Flood) => self.policy().members(rules),
        };
        let tuple = tracked::tuple(&record, head, rules.zone);
        let question = |to| Question {
            record: &record,
            head,
            tuple: &tuple,
            from: rules,
            to,
            now: self.now_or_before(),
        };
        let judged = firewall::is_judged(&record) && self.policy().filters(rules);
        let group = decided == Ok(Output::Flood);
        if judged && group {
            let said = self.firewall.explain_group(&question(rules));
            if let Some(reason) = trace.said(said) {
                trace.end(name, Some(reason));
                return Some(trace);
            }
        }
        for &receiver_index in receivers.iter().filter(|receiver| **receiver != index) {
            let (Some(receiver), Some(to)) = (self.port_at(receiver_index), self.policy().rules(receiver_index)) else {
                continue;
            };
            let mut dropped = None;
            if judged && group {
                dropped = trace.said(self.firewall.explain_member(&question(to)));
            } else if judged && (rules.filter.filtered || to.filter.filtered) {
                for said in self.firewall.explain(&question(to), &port.commons.datagrams) {
                    dropped = dropped.or(trace.said(said));
                }
            }
            match dropped {
                Some(reason) if !reason.at_receiver() => trace.end(name, Some(reason)),
                Some(_) => trace.end(&receiver.name, dropped),
                None => trace.end(&receiver.name, self.would_refuse(receiver_index, frame.len())),
            }
        }
        Some(trace)
    }

    /// Which subport of a port a frame with this VLAN id is of; or why it is dropped, and which port counts that.
    fn classify(&self, trace: &mut Trace, device: usize, vlan: u16) -> Result<usize, (DropReason, &str)> {
        let name = |port| self.port_at(port).map(|port| (port.name.as_str(), port.gate));
        let found = match trunk::sender(self.policy(), device, vlan) {
            Ok(port) => match name(port) {
                Some((name, Gate::Open)) => Ok((port, name)),
                other => Err((DropReason::SubportShut, other)),
            },
            Err(reason) => Err((reason, name(device))),
        };
        match found {
            Ok((port, name)) => {
                let detail = format!("VLAN {vlan} is subport {name}; its tag is off from here on");
                trace.step("trunk", TraceVerdict::Pass, detail);
                Ok(port)
            }
            Err((reason, at)) => {
                trace.step("trunk", TraceVerdict::Drop, format!("VLAN {vlan}: {}", reason.name()));
                Err((reason, at.map_or("", |(name, _)| name)))
            }
        }
    }

    /// Why a port would not get a frame of this length now.
    fn would_refuse(&self, index: usize, frame_len: usize) -> Option<DropReason> {
        if self.port_at(index).is_some_and(|port| port.gate != Gate::Open) {
            return Some(DropReason::PortShut);
        }
        match self.device_of(index) {
            Some((_, device)) => device.would_refuse(frame_len),
            None => Some(DropReason::RxNotRunning),
        }
    }
}

/// Whether frames are taken from the port's guest at all; `carrier` has its device.
fn sending(port: &Port, carrier: &Port) -> (TraceVerdict, &'static str) {
    if port.gate == Gate::Open && carrier.gate != Gate::Open {
        return (
            TraceVerdict::Hold,
            "its parent is shut, not granted or not attached: nothing is taken from the guest",
        );
    }
    match port.gate {
        Gate::Open if !carrier.serves() => (
            TraceVerdict::Hold,
            "the port's queues are of a former port of this name: nothing is taken from them",
        ),
        Gate::Open if carrier.tx.is_empty() => (
            TraceVerdict::Hold,
            "the port is open, but its guest has started no transmit queue: it can send nothing now",
        ),
        Gate::Open => (
            TraceVerdict::Pass,
            "the port is open and its guest's transmit queue runs",
        ),
        Gate::Shut | Gate::Gone => (
            TraceVerdict::Hold,
            "the port is shut, not granted or not attached: nothing is taken from its guest",
        ),
    }
}

/// The checks that a frame passes before any layer sees it.
fn parse(port: &Port, head: &[u8], len: usize) -> Result<Record, TxRefusal> {
    if len > FRAME_LEN_MAX {
        return Err(TxRefusal::Oversize);
    }
    let record = Record::parse(head, len)?;
    let len_max = frame_len_max(port.mtu_in_force().unwrap_or(MTU_DEFAULT));
    if len > len_max {
        return Err(TxRefusal::OverMtu { len_max });
    }
    Ok(record)
}

/// The frame as the parser understood it.
fn describe(record: &Record, head: &[u8]) -> String {
    let what = match (record.class, record.addresses(head)) {
        (Class::Arp, _) => "ARP".to_owned(),
        (_, Some(addresses)) => {
            let (version, source, destination) = match addresses {
                IpAddresses::V4(source, destination) => (4, source.to_string(), destination.to_string()),
                IpAddresses::V6(source, destination) => (6, source.to_string(), destination.to_string()),
            };
            let fragment = match record.fragment {
                Fragment::No => "",
                Fragment::First => ", first fragment",
                Fragment::Later => ", later fragment",
            };
            format!(
                "IPv{version} {source} > {destination}, protocol {}{fragment}",
                record.protocol
            )
        }
        _ => format!("EtherType 0x{:04x}", record.ethertype),
    };
    format!(
        "{what}; {} > {}, {} bytes",
        mac(record.source_mac()),
        mac(record.destination_mac()),
        record.len
    )
}

fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
