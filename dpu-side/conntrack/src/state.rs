//! Where a connection stands.

/// Where a connection stands. The TCP states are named as Linux does: for what was seen in the middle, not at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Not TCP: nothing came back yet.
    Unreplied = 0,
    /// Not TCP: both directions were seen.
    Replied = 1,
    /// UDP: both directions were seen, for more than two seconds.
    Stream = 2,
    /// TCP: a SYN was sent.
    SynSent = 3,
    /// TCP: both ends sent a SYN (simultaneous open, RFC 9293 §3.5).
    SynSent2 = 4,
    /// TCP: a SYN was answered with SYN and ACK.
    SynRecv = 5,
    /// TCP: the handshake is done, or the connection was picked up in its midst.
    Established = 6,
    /// TCP: one end sent a FIN.
    FinWait = 7,
    /// TCP: that FIN was acknowledged.
    CloseWait = 8,
    /// TCP: the other end sent its FIN.
    LastAck = 9,
    /// TCP: that FIN was acknowledged too.
    TimeWait = 10,
    /// TCP: reset.
    Close = 11,
}

impl State {
    const ALL: [Self; 12] = [
        Self::Unreplied,
        Self::Replied,
        Self::Stream,
        Self::SynSent,
        Self::SynSent2,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
    ];

    #[inline]
    const fn from_bits(bits: u8) -> Self {
        // Only states are ever stored; the mask keeps the index in bounds without a branch that could panic.
        const TABLE: [State; 16] = {
            let mut table = [State::Close; 16];
            let mut i = 0;
            while i < State::ALL.len() {
                table[i] = State::ALL[i];
                i += 1;
            }
            table
        };
        TABLE[(bits & 15) as usize]
    }

    /// A few words for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
            Self::Stream => "stream",
            Self::SynSent => "syn-sent",
            Self::SynSent2 => "syn-sent-both",
            Self::SynRecv => "syn-received",
            Self::Established => "established",
            Self::FinWait => "fin-wait",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::TimeWait => "time-wait",
            Self::Close => "closed",
        }
    }
}

/// State, what is known of both ends, and the deadline: one word of an entry, read and written whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    pub state: State,
    /// A packet of the reply direction was accepted.
    pub replied: bool,
    /// Both ends are known to want it: never evicted for a newer one. An entry that isn't is *half-open*.
    pub assured: bool,
    /// The last tick in which it lives.
    pub deadline: u32,
}

impl Life {
    const REPLIED: u64 = 1 << 40;
    const ASSURED: u64 = 1 << 41;

    #[inline]
    pub const fn to_bits(self) -> u64 {
        let mut bits = self.deadline as u64 | (self.state as u64) << 32;
        if self.replied {
            bits |= Self::REPLIED;
        }
        if self.assured {
            bits |= Self::ASSURED;
        }
        bits
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields of the word")]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            state: State::from_bits((bits >> 32) as u8),
            replied: bits & Self::REPLIED != 0,
            assured: bits & Self::ASSURED != 0,
            deadline: bits as u32,
        }
    }

    #[inline]
    pub const fn is_over(self, now: u32) -> bool {
        now > self.deadline
    }
}
