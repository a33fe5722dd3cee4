//! Counters for the broker.

use std::time::Duration;

use outboard_engine::WorkerHandle;
use outboard_protocol::{
    card::{FromCard, PortCounters, VolumeCounters},
    id::Name,
};

use outboard_vswitch::PortCounters as Counted;
use tokio::sync::oneshot;

use crate::{
    broker_channel::Outbox,
    datapath::{Counters, Datapath},
    volume_totals::VolumeTotals,
};

/// How often counters are looked at. They are sent only if they changed.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// Offers the counters to the broker's channel, until the datapath ends.
pub async fn run(worker: WorkerHandle<Datapath>, outbox: Outbox) {
    let mut interval = tokio::time::interval(INTERVAL);
    let mut counters = Counters::default();
    loop {
        interval.tick().await;
        let (reply, counted) = oneshot::channel();
        // The worker fills what it filled the last time, so that it need not allocate.
        let posted = worker.post(move |datapath, _| {
            datapath.count(&mut counters);
            // Nobody waits for it only if the daemon ends.
            let _ = reply.send(counters);
        });
        match (posted, counted.await) {
            (Ok(()), Ok(counted)) => counters = counted,
            _ => return,
        }
        outbox.telemetry(message(&counters));
    }
}

fn message(counters: &Counters) -> FromCard {
    // Names came from the broker as names, so none is lost here.
    let ports = counters.ports.iter().filter_map(|p| Some((p.name.parse().ok()?, p)));
    FromCard::Telemetry {
        ports: ports.map(|(name, counted)| port(name, counted)).collect(),
        volumes: counters
            .volumes
            .iter()
            .map(|(name, counted)| volume(name.clone(), counted))
            .collect(),
    }
}

fn port(name: Name, counted: &Counted) -> PortCounters {
    PortCounters {
        name,
        tx_frames: counted.tx_frames,
        tx_bytes: counted.tx_bytes,
        rx_frames: counted.rx_frames,
        rx_bytes: counted.rx_bytes,
        drops: counted
            .dropped()
            .map(|(reason, count)| (reason.name().to_owned(), count))
            .collect(),
    }
}

fn volume(name: Name, totals: &VolumeTotals) -> VolumeCounters {
    VolumeCounters {
        name,
        read_requests: totals.read_requests,
        read_bytes: totals.read_bytes,
        write_requests: totals.write_requests,
        write_bytes: totals.write_bytes,
        flush_requests: totals.flush_requests,
        failed_requests: totals.failed_requests,
    }
}
