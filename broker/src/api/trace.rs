//! `/v1/ports/{name}/trace`: what would become of a packet.

use std::{net::IpAddr, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
};
use outboard_api::{
    error::ErrorBody,
    trace::{TraceRequest, TraceView},
};
use outboard_packet::{ExpressionError, Packet};
use outboard_protocol::{
    id::{MacAddr, Name},
    inquiry::{Answer, Question},
};

use super::{
    Api,
    request::{Answered, Mutation, name},
};
use crate::{
    cards::AskError,
    core::Failure,
    inventory::{Inventory, PortRecord},
};

/// How long the card may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What would become of a packet if this port's guest sent it now. Nothing is sent; the card decides by the code that
/// decides about traffic.
#[utoipa::path(post, path = "/v1/ports/{name}/trace", tag = "explain", params(("name" = String, Path)),
    request_body = TraceRequest, responses((status = 200, body = TraceView), (status = "default", body = ErrorBody)))]
pub async fn trace(State(api): State<Api>, path: Path<String>, request: Mutation) -> Answered<Json<TraceView>> {
    let name = name("port", path)?;
    let TraceRequest { packet: text } = request.json()?;
    let packet: Packet = text.parse().map_err(|error| bad_packet(&text, &error))?;
    let (port, wanted) = (name.clone(), packet.clone());
    let (card, macs) = api
        .core
        .call(move |core| {
            let inventory = core.inventory();
            let record = inventory
                .ports
                .get(&port)
                .ok_or_else(|| Failure::not_found("port", &port))?;
            let destination = destination(inventory, record, &wanted)?;
            let source = wanted.link.source.unwrap_or(record.spec.mac);
            Ok::<_, Failure>((record.placement.card.clone(), [source, destination]))
        })
        .await??;
    let frame = packet.frame(macs[0], macs[1]);
    let frame_len = frame.len() as u64;
    let question = Question::Trace {
        port: name.clone(),
        frame: frame.into(),
    };
    let trace = match api.inquiries.ask(&card, question, DEADLINE).await {
        Ok(Answer::Traced { trace }) => trace,
        Ok(_) => return Err(Failure::from(AskError::other_answer(&card)).into()),
        Err(error) => return Err(Failure::from(error).into()),
    };
    Ok(Json(TraceView {
        port: name,
        card,
        packet: text,
        macs,
        frame_len,
        steps: trace.steps.into_iter().map(Into::into).collect(),
        ends: trace.ends.into_iter().map(Into::into).collect(),
    }))
}

fn bad_packet(text: &str, error: &ExpressionError) -> Failure {
    bad_expression("bad_packet", "packet", text, error)
}

/// An expression that cannot be understood, and where.
pub(super) fn bad_expression(code: &str, what: &str, text: &str, error: &ExpressionError) -> Failure {
    let place = error.place.start;
    let character = text.get(..place).map_or(place, |before| before.chars().count()) + 1;
    let message = format!("the {what} cannot be understood at character {character}: {error}");
    let remedy = match what {
        "packet" => "write it as in: tcp 10.0.0.1:1234 > 10.0.0.2:80",
        _ => "write it as in: tcp and host 10.0.0.1 and port 80",
    };
    Failure::general(422, code, message, remedy)
}

/// The MAC that a guest would send the packet to: what its neighbours told it.
fn destination(inventory: &Inventory, sender: &PortRecord, packet: &Packet) -> Result<MacAddr, Failure> {
    if let Some(mac) = packet.destination_mac() {
        return Ok(mac);
    }
    let address = packet.destination();
    let network = &sender.spec.network;
    if let Some(neighbour) = neighbour(inventory, network, address) {
        return Ok(neighbour);
    }
    let message = format!(
        "no port of network {network} has the address {address}: nobody answers the guest's {}, so it would not send this \
         packet at all",
        if address.is_ipv4() {
            "ARP request"
        } else {
            "neighbour solicitation"
        }
    );
    let remedy = format!(
        "declare {address} in the record of the port that should have it, or name a destination MAC: `to 52:54:00:00:00:02`"
    );
    let object = format!("network {network}");
    Err(Failure::about(422, "no_neighbour", object, message, remedy))
}

/// The MAC of the port that has an address: by its record, or the link-local one made from its MAC.
fn neighbour(inventory: &Inventory, network: &Name, address: IpAddr) -> Option<MacAddr> {
    let has = |port: &&PortRecord| {
        let spec = &port.spec;
        spec.network == *network && (spec.addresses.contains(&address) || link_local(spec.mac) == address)
    };
    inventory.ports.values().find(has).map(|port| port.spec.mac)
}

/// RFC 4291 §2.5.1 and appendix A.
fn link_local(mac: MacAddr) -> IpAddr {
    let [a, b, c, d, e, f] = mac.0;
    IpAddr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_the_one_that_the_card_lets_a_port_use() {
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(link_local(mac).to_string(), "fe80::5054:ff:fe00:1");
    }

    #[test]
    fn a_bad_packet_is_told_where() {
        let text = "tcp 10.0.0.1:99999 > 10.0.0.2:80";
        let failure = bad_packet(text, &text.parse::<Packet>().unwrap_err());
        assert!(failure.body.error.message.contains("at character 14"), "{failure:?}");
    }
}
