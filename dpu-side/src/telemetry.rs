//! Counters for the broker.

use std::time::Duration;

use outboard_protocol::{
    card::{FromCard, PortCounters, VolumeCounters},
    id::Name,
};

use outboard_vswitch::PortCounters as Counted;
use tokio::sync::oneshot;

use crate::{broker_channel::Outbox, datapath::Counters, volume_totals::VolumeTotals, workers::Workers};

/// How often counters are looked at. They are sent only if they changed.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// Offers the counters to the broker's channel, until the datapath ends.
pub async fn run(workers: Workers, outbox: Outbox) {
    let mut interval = tokio::time::interval(INTERVAL);
    let mut counters: Vec<Counters> = workers.handles().iter().map(|_| Counters::default()).collect();
    let mut sum = Counters::default();
    loop {
        interval.tick().await;
        for (worker, counters) in workers.handles().iter().zip(&mut counters) {
            let mut filled = std::mem::take(counters);
            let (reply, counted) = oneshot::channel();
            // The worker fills what it filled the last time, so that it need not allocate.
            let posted = worker.post(move |datapath, _| {
                datapath.count(&mut filled);
                // Nobody waits for it only if the daemon ends.
                let _ = reply.send(filled);
            });
            match (posted, counted.await) {
                (Ok(()), Ok(counted)) => *counters = counted,
                _ => return,
            }
        }
        add_up(&counters, &mut sum);
        outbox.telemetry(message(&sum));
    }
}

/// The counters of all workers together. Each port is in all of them, and each volume in one.
fn add_up(workers: &[Counters], sum: &mut Counters) {
    sum.ports.clear();
    sum.volumes.clear();
    for counters in workers {
        for port in &counters.ports {
            match sum.ports.iter_mut().find(|known| known.name == port.name) {
                Some(known) => known.add(port),
                None => sum.ports.push(port.clone()),
            }
        }
        sum.volumes.extend(counters.volumes.iter().cloned());
    }
    sum.volumes.sort_by(|(one, _), (other, _)| one.cmp(other));
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
