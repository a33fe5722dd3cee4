//! `tso`: TCP segments as large as they get, with everything left to do on them.

use std::time::{Duration, Instant};

use crate::{
    args::NetArgs,
    error::Error,
    meter::{Meter, Phase, percent, real},
    net::{
        frames::{FCS_LEN, Frames, L4_AT, TCP_ACK, TCP_PSH, ipv4_header, pseudo_sum, tcp_header},
        link::Link,
        outcome::Outcome,
        port::{RX_QUEUE, TX_QUEUE},
        prime::find_path,
        queue::{HEADER_LEN, Sink},
    },
    report::Report,
};

/// Ethernet, IPv4 and TCP headers.
const HEADERS_LEN: usize = 54;
/// The largest IPv4 packet.
const IP_LEN_MAX: usize = 65_535;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV4.
const GSO_TCPV4: u8 = 1;
/// Payload smaller than that is no large segment.
const MSS_MIN: u16 = 512;
/// One of so many received frames is compared as a whole; of the others, the first and the last word.
const WHOLE_EVERY: u64 = 16;
const ROUNDS_PER_LOOK: u32 = 16;
const DRAIN_LIMIT: Duration = Duration::from_millis(300);
const SLEEP: Duration = Duration::from_millis(1);

/// A large segment, and the virtio header that says how to cut it (virtio 1.3 §5.1.6.2).
fn segment(frames: &Frames, mss: u16) -> ([u8; HEADER_LEN], Vec<u8>) {
    let mss_len = usize::from(mss);
    let payload = (IP_LEN_MAX - 40) / mss_len * mss_len;
    let mut frame = vec![0; HEADERS_LEN + payload];
    let (source, destination) = frames.ports(0);
    let ip_len = u16::try_from(40 + payload).unwrap_or(u16::MAX);
    frame[..6].copy_from_slice(&frames.to.mac);
    frame[6..12].copy_from_slice(&frames.from.mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..L4_AT].copy_from_slice(&ipv4_header(ip_len, 6, frames.from.ip, frames.to.ip));
    frame[34..36].copy_from_slice(&source.to_be_bytes());
    frame[36..38].copy_from_slice(&destination.to_be_bytes());
    tcp_header(&mut frame, 0, 1, TCP_ACK | TCP_PSH);
    // The device adds the rest to the pseudo header's sum, which is not complemented.
    let sum = pseudo_sum(&frame);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0);
    frame[50..52].copy_from_slice(&folded.to_be_bytes());
    for (n, word) in (0u32..).zip(frame[HEADERS_LEN..].chunks_exact_mut(4)) {
        word.copy_from_slice(&n.to_be_bytes());
    }
    let mut header = [0; HEADER_LEN];
    (header[0], header[1]) = (NEEDS_CSUM, GSO_TCPV4);
    header[2..4].copy_from_slice(&54u16.to_le_bytes());
    header[4..6].copy_from_slice(&mss.to_le_bytes());
    header[6..8].copy_from_slice(&34u16.to_le_bytes());
    header[8..10].copy_from_slice(&16u16.to_le_bytes());
    (header, frame)
}

/// Takes the stream together, cut or whole.
#[derive(Debug)]
struct Receiver {
    from_mac: [u8; 6],
    /// The segment as it was sent, of which the payload repeats.
    sent: Vec<u8>,
    want: u32,
    frames: u64,
    payload_bytes: u64,
    wire_bytes: u64,
    reordered: u64,
    corrupt: u64,
    foreign: u64,
    compared: u64,
}

impl Receiver {
    fn period(&self) -> u32 {
        u32::try_from(self.sent.len() - HEADERS_LEN).unwrap_or(u32::MAX)
    }

    /// Is `payload` what is at `sequence` of the stream?
    fn is_right(&mut self, sequence: u32, payload: &[u8]) -> bool {
        let at = usize::try_from(sequence % self.period()).unwrap_or(0);
        let pattern = &self.sent[HEADERS_LEN..];
        let Some(expected) = pattern.get(at..at + payload.len()) else {
            return false;
        };
        if self.frames.is_multiple_of(WHOLE_EVERY) {
            self.compared += 1;
            return expected == payload;
        }
        expected.first_chunk::<4>() == payload.first_chunk() && expected.last_chunk::<4>() == payload.last_chunk()
    }
}

impl Sink for Receiver {
    fn glance(&mut self, _word: u64, _len: u32) -> bool {
        false
    }

    fn inspect(&mut self, _header: &[u8; HEADER_LEN], frame: &[u8]) {
        let is_ours = frame.len() > HEADERS_LEN
            && frame[6..12] == self.from_mac
            && frame[12..14] == [0x08, 0x00]
            && frame[23] == 6
            && frame[47] & TCP_PSH != 0
            && frame[42..46] == [0, 0, 0, 1]
            && frame[36..38] == self.sent[36..38];
        if !is_ours {
            self.foreign += 1;
            return;
        }
        // A packet on Ethernet may be padded beyond its own length.
        let ip_len = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let sequence = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
        self.frames += 1;
        self.wire_bytes += (frame.len() + FCS_LEN) as u64;
        let Some(payload) = frame.get(HEADERS_LEN..14 + ip_len) else {
            self.corrupt += 1;
            return;
        };
        let len = u32::try_from(payload.len()).unwrap_or(0);
        self.payload_bytes += u64::from(len);
        // The stream's numbers wrap at a multiple of the period.
        if !self.is_right(sequence, payload) {
            self.corrupt += 1;
        }
        if sequence.wrapping_sub(self.want) <= u32::MAX / 2 {
            self.want = wrap(sequence, len, self.period());
        } else {
            self.reordered += 1;
        }
    }
}

/// The number after `len` more bytes: it begins anew before it would overflow amid a segment.
fn wrap(sequence: u32, len: u32, period: u32) -> u32 {
    let last = u32::MAX / period * period;
    match sequence.checked_add(len) {
        Some(next) if next < last => next,
        _ => 0,
    }
}

/// Sends large segments from A to B for the time given.
///
/// # Errors
/// A back-end failed, or nothing comes through.
pub fn run(args: &NetArgs, mut link: Link) -> Result<Outcome, Error> {
    if args.mss < MSS_MIN || !args.mss.is_multiple_of(4) || args.mss > 32_000 {
        return Err(Error::Usage(format!(
            "--mss must be a multiple of 4, {MSS_MIN} to 32000"
        )));
    }
    find_path(&mut link, Duration::from_secs(args.common.patience))?;
    let (header, frame) = segment(&link.plans[0].frames, args.mss);
    link.settle()?;
    link.ports[0].tx.prepare(&header, &frame);
    let mut receiver = Receiver {
        from_mac: link.plans[0].frames.from.mac,
        sent: frame,
        want: 0,
        frames: 0,
        payload_bytes: 0,
        wire_bytes: 0,
        reordered: 0,
        corrupt: 0,
        foreign: 0,
        compared: 0,
    };
    let period = receiver.period();
    let mut meter = Meter::start(args.warmup, args.seconds)?;
    let (mut sent, mut sequence) = (0u64, 0u32);
    let (mut start, mut end) = ((0, 0), (0, 0));
    let (mut polls, mut empty, mut attempts, mut full) = (0u64, 0u64, 0u64, 0u64);
    let mut round = 0u32;
    let mut over = None;
    loop {
        let mut worked = false;
        if over.is_none() {
            let port = &mut link.ports[0];
            let room = port.tx.room();
            let room = room.map_err(|fault| port.fault(TX_QUEUE, fault))?.min(args.burst);
            attempts += 1;
            full += u64::from(room == 0);
            for n in 0..room {
                port.tx.put_prepared(n, sequence);
                sequence = wrap(sequence, period, period);
            }
            port.tx.flush(room);
            sent += u64::from(room);
            worked |= room > 0;
        }
        let port = &mut link.ports[1];
        let got = port.rx.receive(args.burst, &mut receiver);
        let got = got.map_err(|fault| port.fault(RX_QUEUE, fault))?;
        polls += 1;
        empty += u64::from(got == 0);
        worked |= got > 0;
        round = round.wrapping_add(1);
        if !worked {
            link.idle(SLEEP)?;
        }
        if round.is_multiple_of(ROUNDS_PER_LOOK) || !worked && link.sleeps {
            let now = Instant::now();
            match meter.at(now) {
                (Phase::Measure, true) => {
                    start = (receiver.frames, receiver.wire_bytes);
                    (polls, empty, attempts, full) = (0, 0, 0, 0);
                }
                (Phase::Over, true) => {
                    end = (receiver.frames, receiver.wire_bytes);
                    over = Some((now, polls, empty));
                }
                _ => {}
            }
            let all = receiver.payload_bytes >= sent * u64::from(period);
            if over.is_some_and(|(at, ..)| all || now - at > DRAIN_LIMIT) {
                break;
            }
        }
    }
    let (_, polls, empty) = over.unwrap_or((Instant::now(), polls, empty));
    let seconds = meter.seconds();
    let (frames, bytes) = (end.0 - start.0, end.1 - start.1);
    let sent_bytes = sent * u64::from(period);
    let report = Report {
        frames: Some(frames),
        bytes: Some(bytes),
        seconds,
        pps: Some(real(frames) / seconds),
        gbit_s: Some(real(bytes) * 8e-9 / seconds),
        lost: Some(
            sent_bytes
                .saturating_sub(receiver.payload_bytes)
                .div_ceil(period.into()),
        ),
        reordered: Some(receiver.reordered),
        corrupt: Some(receiver.corrupt),
        foreign: Some(receiver.foreign),
        sampled: Some(receiver.compared),
        empty_polls_pct: Some(percent(real(empty), real(polls))),
        ring_full_pct: Some(percent(real(full), real(attempts))),
        cpu_pct: meter.cpu_pct(),
        ..Report::default()
    };
    Ok(Outcome::new(args, report, sent_bytes, receiver.payload_bytes, link))
}
