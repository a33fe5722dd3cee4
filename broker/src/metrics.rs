//! Metrics in the Prometheus text format (version 0.0.4).

use std::{collections::BTreeMap, fmt::Write as _, time::Instant};

use crate::{core::Live, inventory::Inventory};

/// Media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// One family: its head, then samples.
struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn new(text: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self { text, name }
    }

    /// Labels are names and `snake_case` reasons: nothing in them needs escaping.
    fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let _ = match labels.as_slice() {
            [] => writeln!(self.text, "{} {value}", self.name),
            labels => writeln!(self.text, "{}{{{}}} {value}", self.name, labels.join(",")),
        };
    }
}

/// All metrics.
pub fn text(inventory: &Inventory, live: &Live, now: Instant) -> String {
    let mut text = String::new();
    broker(&mut text, inventory, live, now);
    ports(&mut text, live);
    volumes(&mut text, live);
    text
}

fn broker(text: &mut String, inventory: &Inventory, live: &Live, now: Instant) {
    let mut family = Family::new(text, "outboard_broker_epoch", "gauge", "The broker's epoch.");
    family.sample(&[], inventory.broker.epoch.0);
    let mut family = Family::new(
        text,
        "outboard_card_connected",
        "gauge",
        "1 while the card is connected.",
    );
    for card in inventory.cards.keys() {
        family.sample(
            &[("card", card.as_str())],
            u64::from(live.connections.contains_key(card)),
        );
    }
    let help = "Age of the card's counters below.";
    let mut family = Family::new(text, "outboard_card_telemetry_age_seconds", "gauge", help);
    for (card, told) in &live.telemetry {
        family.sample(
            &[("card", card.as_str())],
            now.saturating_duration_since(told.received).as_secs(),
        );
    }
    let mut family = Family::new(text, "outboard_bindings", "gauge", "Bindings by state.");
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for binding in inventory.bindings.values() {
        *states.entry(format!("{:?}", binding.state).to_lowercase()).or_default() += 1;
    }
    for (state, count) in states {
        family.sample(&[("state", &state)], count);
    }
}

fn ports(text: &mut String, live: &Live) {
    let ports = || live.telemetry.values().flat_map(|t| t.ports.iter());
    let help = "Frames taken from (tx) and given to (rx) the guest since the card started.";
    let mut family = Family::new(text, "outboard_port_frames_total", "counter", help);
    for (name, port) in ports() {
        family.sample(&[("port", name.as_str()), ("direction", "tx")], port.tx_frames);
        family.sample(&[("port", name.as_str()), ("direction", "rx")], port.rx_frames);
    }
    let help = "Bytes of those frames, without the virtio header.";
    let mut family = Family::new(text, "outboard_port_bytes_total", "counter", help);
    for (name, port) in ports() {
        family.sample(&[("port", name.as_str()), ("direction", "tx")], port.tx_bytes);
        family.sample(&[("port", name.as_str()), ("direction", "rx")], port.rx_bytes);
    }
    let help = "Frames dropped since the card started, by reason.";
    let mut family = Family::new(text, "outboard_port_dropped_frames_total", "counter", help);
    for (name, port) in ports() {
        for (reason, count) in &port.drops {
            family.sample(&[("port", name.as_str()), ("reason", reason)], *count);
        }
    }
}

fn volumes(text: &mut String, live: &Live) {
    let volumes = || live.telemetry.values().flat_map(|t| t.volumes.iter());
    let help = "Requests completed well since the card started.";
    let mut family = Family::new(text, "outboard_volume_requests_total", "counter", help);
    for (name, volume) in volumes() {
        let counts = [
            ("read", volume.read_requests),
            ("write", volume.write_requests),
            ("flush", volume.flush_requests),
        ];
        for (op, count) in counts {
            family.sample(&[("volume", name.as_str()), ("op", op)], count);
        }
    }
    let mut family = Family::new(
        text,
        "outboard_volume_bytes_total",
        "counter",
        "Bytes of those requests.",
    );
    for (name, volume) in volumes() {
        family.sample(&[("volume", name.as_str()), ("op", "read")], volume.read_bytes);
        family.sample(&[("volume", name.as_str()), ("op", "write")], volume.write_bytes);
    }
    let help = "Requests that ended in an error status since the card started.";
    let mut family = Family::new(text, "outboard_volume_failed_requests_total", "counter", help);
    for (name, volume) in volumes() {
        family.sample(&[("volume", name.as_str())], volume.failed_requests);
    }
}
