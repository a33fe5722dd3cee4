//! Time as the table keeps it: ticks of 2^27 ns, about 134 ms. 32 bits of them last 18 years.

use std::time::Duration;

const TICK_SHIFT: u32 = 27;

/// Which tick `now_ns` lies in.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "18 years of ticks fit")]
pub(crate) const fn tick(now_ns: u64) -> u32 {
    (now_ns >> TICK_SHIFT) as u32
}

/// How many nanoseconds so many ticks are.
pub(crate) const fn ns_of(ticks: u32) -> u64 {
    (ticks as u64) << TICK_SHIFT
}

/// How long an entry lives in each state after the packet that brought it there or kept it there.
///
/// The defaults are those of Linux (`nf_conntrack_*_timeout*`). An entry lives up to one tick (134 ms) and 1/64 of its
/// timeout longer, so that a busy connection's deadline isn't written for every packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP: a SYN was sent.
    pub syn_sent: Duration,
    /// TCP: it was answered.
    pub syn_recv: Duration,
    /// TCP: the handshake is done.
    pub established: Duration,
    /// TCP: one end sent a FIN.
    pub fin_wait: Duration,
    /// TCP: the FIN was acknowledged.
    pub close_wait: Duration,
    /// TCP: the other end sent its FIN.
    pub last_ack: Duration,
    /// TCP: that was acknowledged too.
    pub time_wait: Duration,
    /// TCP: reset.
    pub close: Duration,
    /// TCP: the upper bound while data stays unacknowledged, or after a connection was picked up in its midst.
    pub unacknowledged: Duration,
    /// TCP: the upper bound while an end's window is shut.
    pub zero_window: Duration,
    /// UDP: nothing came back, or the exchange is younger than two seconds.
    pub udp: Duration,
    /// UDP: both ends have been talking for more than two seconds.
    pub udp_stream: Duration,
    /// ICMP and ICMPv6 questions.
    pub icmp: Duration,
    /// Every other protocol.
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            syn_sent: 2 * MINUTE,
            syn_recv: MINUTE,
            established: 5 * 24 * 60 * MINUTE,
            fin_wait: 2 * MINUTE,
            close_wait: MINUTE,
            last_ack: MINUTE / 2,
            time_wait: 2 * MINUTE,
            close: MINUTE / 6,
            unacknowledged: 5 * MINUTE,
            zero_window: 5 * MINUTE,
            udp: MINUTE / 2,
            udp_stream: 2 * MINUTE,
            icmp: MINUTE / 2,
            other: 10 * MINUTE,
        }
    }
}

/// A timeout in ticks, as the datapath adds it: bounded to a year, so that no sum wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticks(u32);

impl Ticks {
    const MAX: u32 = 1 << 28;

    pub fn of(timeout: Duration) -> Self {
        let ticks = timeout.as_nanos() >> TICK_SHIFT;
        Self(u32::try_from(ticks).unwrap_or(Self::MAX).min(Self::MAX))
    }

    /// The last tick in which an entry that is used in tick `now` lives; `current` where that is near enough.
    #[inline]
    pub fn deadline(self, now: u32, current: u32) -> u32 {
        // One more, because `now` may be anywhere in its tick.
        let (earliest, slack) = (now.saturating_add(self.0).saturating_add(1), self.0 >> 6);
        let latest = earliest.saturating_add(slack);
        if (earliest..=latest).contains(&current) {
            current
        } else {
            latest
        }
    }
}

/// [`Timeouts`] in ticks.
#[derive(Debug)]
pub(crate) struct TimeoutTicks {
    pub syn_sent: Ticks,
    pub syn_recv: Ticks,
    pub established: Ticks,
    pub fin_wait: Ticks,
    pub close_wait: Ticks,
    pub last_ack: Ticks,
    pub time_wait: Ticks,
    pub close: Ticks,
    pub unacknowledged: Ticks,
    pub zero_window: Ticks,
    pub udp: Ticks,
    pub udp_stream: Ticks,
    pub icmp: Ticks,
    pub other: Ticks,
}

impl From<&Timeouts> for TimeoutTicks {
    fn from(t: &Timeouts) -> Self {
        Self {
            syn_sent: Ticks::of(t.syn_sent),
            syn_recv: Ticks::of(t.syn_recv),
            established: Ticks::of(t.established),
            fin_wait: Ticks::of(t.fin_wait),
            close_wait: Ticks::of(t.close_wait),
            last_ack: Ticks::of(t.last_ack),
            time_wait: Ticks::of(t.time_wait),
            close: Ticks::of(t.close),
            unacknowledged: Ticks::of(t.unacknowledged),
            zero_window: Ticks::of(t.zero_window),
            udp: Ticks::of(t.udp),
            udp_stream: Ticks::of(t.udp_stream),
            icmp: Ticks::of(t.icmp),
            other: Ticks::of(t.other),
        }
    }
}
