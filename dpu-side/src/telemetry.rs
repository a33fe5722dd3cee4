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

/// What a volume counted since the process started, over all its units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeTotals {
    read_requests: u64,
    read_bytes: u64,
    write_requests: u64,
    write_bytes: u64,
    flush_requests: u64,
    failed_requests: u64,
}

impl VolumeTotals {
    /// Adds what one unit counted.
    pub fn add(&mut self, counted: &VolumeCounted) {
        let sum = |total: &mut u64, counts: &[u64]| {
            *total = counts.iter().fold(*total, |sum, count| sum.saturating_add(*count));
        };
        sum(&mut self.read_requests, &[counted.reads]);
        sum(&mut self.read_bytes, &[counted.read_bytes]);
        sum(&mut self.write_requests, &[counted.writes]);
        sum(&mut self.write_bytes, &[counted.written_bytes]);
        sum(&mut self.flush_requests, &[counted.flushes]);
        sum(
            &mut self.failed_requests,
            &[counted.unsupported, counted.refused, counted.failed],
        );
    }
}

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

fn message(ports: Vec<Counted>, volumes: Vec<(Name, VolumeTotals)>) -> FromCard {
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
