//! `[firewall]`: how exact the card is about connections, and how long it remembers them.

use std::{ops::RangeInclusive, time::Duration};

use outboard_conntrack::{Laxness, Timeouts};
use serde::Deserialize;

use crate::error::Failure;

/// How long a connection may be told to live without a packet, in seconds: up to 30 days.
const TIMEOUT_S: RangeInclusive<u32> = 1..=30 * 24 * 3600;

/// How connections of ports with groups are followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Firewall {
    /// Takes up TCP connections whose handshake it did not see (Linux' `nf_conntrack_tcp_loose`). Off: such segments are
    /// dropped as `ct_invalid`. With it on, who may open a connection may also send segments of one that nobody opened.
    pub tcp_loose: bool,
    /// Lets TCP segments outside the window through, but for resets (Linux' `nf_conntrack_tcp_be_liberal`). Off: they are
    /// dropped as `ct_invalid`.
    pub tcp_liberal: bool,
    /// How long connections live without a packet.
    pub timeouts: TimeoutsS,
}

macro_rules! timeouts {
    ($($(#[$doc:meta])* $key:ident => $field:ident;)*) => {
        /// How long a connection lives in each state without a packet, in seconds.
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct TimeoutsS {
            $($(#[$doc])* pub $key: u32,)*
        }

        impl Default for TimeoutsS {
            /// Linux' (`nf_conntrack_*_timeout*`).
            fn default() -> Self {
                let timeouts = Timeouts::default();
                Self { $($key: u32::try_from(timeouts.$field.as_secs()).unwrap_or(u32::MAX),)* }
            }
        }

        impl TimeoutsS {
            /// All of them, by their keys.
            fn all(&self) -> impl Iterator<Item = (&'static str, u32)> {
                [$((stringify!($key), self.$key),)*].into_iter()
            }

            fn durations(&self) -> Timeouts {
                Timeouts { $($field: Duration::from_secs(u64::from(self.$key)),)* }
            }
        }
    };
}

timeouts! {
    /// TCP: a SYN was sent.
    tcp_syn_sent_s => syn_sent;
    /// TCP: it was answered.
    tcp_syn_recv_s => syn_recv;
    /// TCP: the handshake is done.
    tcp_established_s => established;
    /// TCP: one end sent a FIN.
    tcp_fin_wait_s => fin_wait;
    /// TCP: the FIN was acknowledged.
    tcp_close_wait_s => close_wait;
    /// TCP: the other end sent its FIN.
    tcp_last_ack_s => last_ack;
    /// TCP: that was acknowledged too.
    tcp_time_wait_s => time_wait;
    /// TCP: reset.
    tcp_close_s => close;
    /// TCP: the upper bound while data stays unacknowledged, or after a connection was taken up in its midst.
    tcp_unacknowledged_s => unacknowledged;
    /// TCP: the upper bound while an end's window is shut.
    tcp_zero_window_s => zero_window;
    /// UDP: nothing came back, or the exchange is younger than two seconds.
    udp_s => udp;
    /// UDP: both ends have been talking for more than two seconds.
    udp_stream_s => udp_stream;
    /// ICMP and ICMPv6 questions.
    icmp_s => icmp;
    /// Every other protocol.
    other_s => other;
}

impl Firewall {
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.timeouts.all().find(|(_, seconds)| !TIMEOUT_S.contains(seconds)) {
            None => Ok(()),
            Some((key, seconds)) => Err(Failure::new(
                format!("firewall.timeouts.{key} = {seconds} is out of range"),
                format!(
                    "use {} to {} seconds, or leave the key out for the default",
                    TIMEOUT_S.start(),
                    TIMEOUT_S.end()
                ),
            )),
        }
    }

    /// How exact the table of connections is about TCP.
    pub fn laxness(&self) -> Laxness {
        Laxness {
            pick_up: self.tcp_loose,
            liberal: self.tcp_liberal,
        }
    }

    /// How long it keeps them.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts.durations()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Firewall, String> {
        let firewall: Firewall = toml::from_str(text).map_err(|e| e.to_string())?;
        firewall.check().map_err(|e| e.to_string())?;
        Ok(firewall)
    }

    #[test]
    fn left_out_it_is_exact_and_as_patient_as_linux() {
        let firewall = parse("").expect("nothing is required");
        assert_eq!(firewall.laxness(), Laxness::default());
        assert!(!firewall.tcp_loose && !firewall.tcp_liberal);
        assert_eq!(firewall.timeouts(), Timeouts::default());
    }

    #[test]
    fn every_key_is_what_the_table_of_connections_gets() {
        let keys: Vec<&str> = TimeoutsS::default().all().map(|(key, _)| key).collect();
        let lines = (1..).zip(&keys).map(|(seconds, key)| format!("{key} = {seconds}\n"));
        let text = format!(
            "tcp_loose = true\ntcp_liberal = true\n[timeouts]\n{}",
            lines.collect::<String>()
        );
        let firewall = parse(&text).expect("all keys are known");
        assert_eq!(
            firewall.laxness(),
            Laxness {
                pick_up: true,
                liberal: true
            }
        );
        let s = Duration::from_secs;
        let timeouts = Timeouts {
            syn_sent: s(1),
            syn_recv: s(2),
            established: s(3),
            fin_wait: s(4),
            close_wait: s(5),
            last_ack: s(6),
            time_wait: s(7),
            close: s(8),
            unacknowledged: s(9),
            zero_window: s(10),
            udp: s(11),
            udp_stream: s(12),
            icmp: s(13),
            other: s(14),
        };
        assert_eq!(firewall.timeouts(), timeouts);
    }

    #[test]
    fn what_is_unknown_or_out_of_range_is_named() {
        assert!(parse("tcp_lose = true").expect_err("unknown").contains("tcp_lose"));
        assert!(parse("[timeouts]\ntcp_s = 1").expect_err("unknown").contains("tcp_s"));
        for seconds in [0, 2_592_001] {
            let error = parse(&format!("[timeouts]\nudp_s = {seconds}")).expect_err("out of range");
            assert!(
                error.contains(&format!("firewall.timeouts.udp_s = {seconds}")),
                "{error}"
            );
        }
        assert!(parse("[timeouts]\ntcp_close_s = -1").is_err());
    }
}
