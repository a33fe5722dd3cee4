//! Which flow a frame belongs to, as a number: it spreads flows over a port's receive queues.
//!
//! Both directions of a flow have the same number, and so has every fragment of a datagram: ports count only where the
//! packet is whole, as later fragments have none. The numbers differ from one switch to the next, so that no sender can
//! know beforehand which flows meet in one queue.

use vhost_net_dpu::{
    packet::{Fragment, IP_PROTOCOL_TCP, IP_PROTOCOL_UDP, IpAddresses},
    record::Record,
};

use crate::seed::Seed;

/// Numbers flows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FlowHash {
    seed: Seed,
}

impl FlowHash {
    /// Which of `count` queues the frame goes to: the same one for all frames of a flow. `head` are its inspected bytes.
    pub(crate) fn queue(&self, record: &Record, head: &[u8], count: usize) -> usize {
        let spread = u128::from(self.flow(record, head)) * count as u128;
        // Less than `count`.
        usize::try_from(spread >> 64).unwrap_or(0)
    }

    fn flow(&self, record: &Record, head: &[u8]) -> u64 {
        let (source_port, destination_port) = ports(record);
        let (source, destination, protocol) = match record.addresses(head) {
            Some(IpAddresses::V4(source, destination)) => (
                self.seed
                    .mix(u64::from(source.to_bits()) << 16 | u64::from(source_port)),
                self.seed
                    .mix(u64::from(destination.to_bits()) << 16 | u64::from(destination_port)),
                record.protocol,
            ),
            Some(IpAddresses::V6(source, destination)) => (
                self.v6(source.to_bits(), source_port),
                self.v6(destination.to_bits(), destination_port),
                record.protocol,
            ),
            None => (self.seed.mix(record.source), self.seed.mix(record.destination), 0),
        };
        self.pair(source, destination, protocol)
    }

    fn v6(&self, address: u128, port: u16) -> u64 {
        let [a, b, c, d, e, f, g, h, low @ ..] = address.to_be_bytes();
        let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        self.seed
            .mix(self.seed.mix(high) ^ u64::from_be_bytes(low) ^ u64::from(port).rotate_right(16))
    }

    /// The same whichever end comes first.
    fn pair(&self, one: u64, other: u64, protocol: u8) -> u64 {
        self.seed.mix(one.wrapping_add(other) ^ u64::from(protocol))
    }
}

/// Source and destination port, or zeros where there are none, or not in every packet of the flow.
fn ports(record: &Record) -> (u16, u16) {
    if record.fragment != Fragment::No || !matches!(record.protocol, IP_PROTOCOL_TCP | IP_PROTOCOL_UDP) {
        return (0, 0);
    }
    (record.source_port, record.destination_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UDP over IPv4: the flags-and-offset word, source and destination (address and port).
    fn v4(word: u16, (source, from): ([u8; 4], u16), (destination, to): ([u8; 4], u16)) -> Vec<u8> {
        let [w0, w1] = word.to_be_bytes();
        let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let ip = [0x45, 0, 0, 36, 0, 0, w0, w1, 64, 17, 0, 0];
        let udp = [from.to_be_bytes(), to.to_be_bytes(), [0, 16], [0; 2]].concat();
        [&ethernet[..], &ip, &source, &destination, &udp, &[0; 8]].concat()
    }

    fn v6(from: u16, to: u16, swap: bool) -> Vec<u8> {
        let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
        let ip = [0x60, 0, 0, 0, 0, 8, 17, 64];
        let udp = [from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0; 2]].concat();
        let (a, b) = if swap { ([9; 16], [1; 16]) } else { ([1; 16], [9; 16]) };
        [&ethernet[..], &ip, &a, &b, &udp].concat()
    }

    fn number(hash: &FlowHash, frame: &[u8]) -> u64 {
        hash.flow(&Record::parse(frame, frame.len()).expect("in order"), frame)
    }

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];

    #[test]
    fn both_directions_have_one_number_and_other_flows_another() {
        let hash = FlowHash::default();
        let there = number(&hash, &v4(0, (A, 5), (B, 6)));
        assert_eq!(there, number(&hash, &v4(0, (B, 6), (A, 5))));
        assert_ne!(there, number(&hash, &v4(0, (A, 6), (B, 5))));
        assert_eq!(number(&hash, &v6(5, 6, false)), number(&hash, &v6(6, 5, true)));
        assert_ne!(number(&hash, &v6(5, 6, false)), number(&hash, &v6(5, 6, true)));
        assert_ne!(
            there,
            number(&FlowHash::default(), &v4(0, (A, 5), (B, 6))),
            "another switch"
        );
    }

    #[test]
    fn fragments_of_one_datagram_have_one_number() {
        let hash = FlowHash::default();
        let first = number(&hash, &v4(0x2000, (A, 5), (B, 6)));
        // A later fragment has data where the ports were.
        assert_eq!(first, number(&hash, &v4(0x0002, (A, 77), (B, 88))));
        let arp = |last: u8| [&[0xff; 6][..], &[2, 0, 0, 0, 0, last], &[8, 6], &[0; 28]].concat();
        assert_ne!(number(&hash, &arp(1)), number(&hash, &arp(2)));
    }

    #[test]
    fn flows_spread_over_all_queues() {
        let hash = FlowHash::default();
        for count in [1usize, 2, 3, 16] {
            let mut hits = vec![0; count];
            for port in 0..1600 {
                let frame = v4(0, (A, port), (B, 53));
                let record = Record::parse(&frame, frame.len()).expect("in order");
                hits[hash.queue(&record, &frame, count)] += 1;
            }
            let fair = 1600 / count;
            assert!(hits.iter().all(|n| (fair / 2..=fair * 2).contains(n)), "{hits:?}");
        }
    }
}
