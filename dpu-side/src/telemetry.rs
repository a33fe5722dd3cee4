//! Counters for the broker.

use std::time::Duration;

use outboard_engine::WorkerHandle;
use outboard_protocol::{
    card::{FromCard, PortCounters, VolumeCounters},
    id::Name,
};

use outboard_vswitch::PortCounters as Counted;
use vhost_blk_dpu::VolumeCounters as VolumeCounted;

use crate::{broker_channel::Outbox, datapath::Datapath};

/// How often counters are looked at. They are sent only if they changed.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// Offers the counters to the broker's channel, until the datapath ends.
pub async fn run(worker: WorkerHandle<Datapath>, outbox: Outbox) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        let worker = worker.clone();
        let counted = tokio::task::spawn_blocking(move || worker.call(|datapath, _| datapath.counters())).await;
        match counted {
            Ok(Ok((ports, volumes))) => outbox.telemetry(message(ports, volumes)),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

fn message(ports: Vec<Counted>, volumes: Vec<(Name, VolumeCounted)>) -> FromCard {
    // Names came from the broker as names, so none is lost here.
    let ports = ports.into_iter().filter_map(|p| Some((p.name.parse().ok()?, p)));
    FromCard::Telemetry {
        ports: ports.map(|(name, counted)| port(name, &counted)).collect(),
        volumes: volumes
            .into_iter()
            .map(|(name, counted)| volume(name, &counted))
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

fn volume(name: Name, counted: &VolumeCounted) -> VolumeCounters {
    VolumeCounters {
        name,
        read_requests: counted.reads,
        read_bytes: counted.read_bytes,
        write_requests: counted.writes,
        write_bytes: counted.written_bytes,
        flush_requests: counted.flushes,
        failed_requests: counted
            .unsupported
            .saturating_add(counted.refused)
            .saturating_add(counted.failed),
    }
}
