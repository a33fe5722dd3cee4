//! Why a frame was dropped. Every drop has exactly one reason, counted at one port.

use vhost_net_dpu::{error::TxRefusal, packet::ParseError};

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal, $sentence:literal;)*) => {
        /// Why a frame was dropped. Counted at the sender's port, but for the reasons from [`DropReason::PortShut`] on,
        /// which are counted at the receiver's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $(#[doc = $sentence] $(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = [$($name,)*].len();

            /// The stable name, `snake_case`, as in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence: what happened, and what to do about it where that is not plain.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

drop_reasons! {
    MalformedChain => "malformed_chain",
        "The guest's transmit buffer has a part for the device to write to, or no whole virtio header.";
    Runt => "runt",
        "The frame is shorter than an Ethernet header.";
    Oversize => "oversize",
        "The frame is longer than 65,550 bytes.";
    OverMtu => "over_mtu",
        "The frame is longer than the sending port's MTU (1500 unless the VMM told the guest another) and not to be segmented: lower the MTU in the guest.";
    BadOffload => "bad_offload",
        "The guest's virtio header asks for an offload that its frame's own headers do not bear out.";
    HeadersTooLong => "headers_too_long",
        "The frame's headers do not fit the 256 bytes that are inspected, or there are too many.";
    MalformedIpv4 => "malformed_ipv4",
        "The IPv4 header contradicts itself or the frame's length.";
    MalformedIpv6 => "malformed_ipv6",
        "The IPv6 headers contradict themselves or the frame's length.";
    SpoofedMac => "spoofed_mac",
        "The source MAC is not the port's.";
    VlanTagged => "vlan_tagged",
        "The frame carries a VLAN tag that no trunk takes off: the port has no subports, or it is a second tag, or of another kind than 802.1Q.";
    UnknownVlan => "unknown_vlan",
        "The VLAN id of the frame's tag is none of the port's subports': correct it in the guest, or declare the subport.";
    PriorityTagged => "priority_tagged",
        "The frame carries a VLAN tag with id 0, which says nothing but a priority: send it without a tag.";
    SubportShut => "subport_shut",
        "The guest sends on a VLAN whose subport is not granted, or whose grant was revoked.";
    UnknownEthertype => "unknown_ethertype",
        "The frame is neither ARP, IPv4 nor IPv6.";
    MalformedArp => "malformed_arp",
        "The ARP message is not a request or reply for IPv4 over Ethernet.";
    SpoofedArp => "spoofed_arp",
        "The ARP message claims a MAC or an address that is not the port's.";
    SpoofedIpv4 => "spoofed_ipv4",
        "The IPv4 source is not one of the port's addresses.";
    DhcpWithoutServer => "dhcp_without_server",
        "A DHCP client asks for an address, which no server in this version answers: configure the port's addresses in the guest.";
    RogueDhcp => "rogue_dhcp",
        "The guest answers as a DHCP or DHCPv6 server, which a port may not.";
    SpoofedIpv6 => "spoofed_ipv6",
        "The IPv6 source is neither one of the port's addresses nor the link-local address made from its MAC.";
    MalformedNd => "malformed_nd",
        "The neighbour discovery message is fragmented, has a hop limit other than 255, or is malformed.";
    SpoofedNd => "spoofed_nd",
        "The neighbour discovery message claims a MAC or an address that is not the port's.";
    RouterMessage => "router_message",
        "The guest sent a router advertisement or redirect (ICMP or ICMPv6), which a port may not.";
    SourceRouted => "source_routed",
        "The packet names the stations of its way (IPv4 source route, IPv6 routing header), which no port needs: there is no router.";
    ReservedMulticast => "reserved_multicast",
        "The destination is one of the addresses 01:80:c2:00:00:0x, which no bridge forwards.";
    ToItself => "to_itself",
        "The destination MAC is the sending port's own.";
    NoReceiver => "no_receiver",
        "A broadcast or multicast in a network that has no other port.";
    UnknownDestination => "unknown_destination",
        "No port of the network has the destination MAC: what no layer sends anywhere is dropped.";
    CtInvalid => "ct_invalid",
        "The packet is of no connection that the firewall knows and opens none, or contradicts its connection's state: of TCP, it lies outside the window or came without a handshake.";
    EgressNoRule => "egress_no_rule",
        "No rule of the sending port's security groups allows it.";
    EgressDenied => "egress_denied_by_rule",
        "A rule of the sending port's security groups denies it; a trace of the frame names the rule.";
    EgressRejected => "egress_rejected_by_rule",
        "A rule of the sending port's security groups rejects it, and its guest was told, as far as answers are due; a trace of the frame names the rule.";
    FragmentWithoutFirst => "fragment_without_first",
        "A fragment whose datagram's first fragment did not pass the firewall, has not come yet, or reaches into it; to a group of stations no later fragment passes a firewall.";
    ConnectionBudget => "connection_budget",
        "The sending port has as many connections as it may, and none that is half-open can give way.";
    ConnectionTableFull => "connection_table_full",
        "The switch's connection table is full, and no half-open connection of the port can give way.";
    TxMemoryGone => "tx_memory_gone",
        "The sending guest's memory could not be read.";
    TxPortShut => "tx_port_shut",
        "The sending port's grant was revoked while the frame was on its way to another worker of the DPU.";
    PortShut => "port_shut",
        "The receiving port is not granted, or its grant was revoked.";
    RxNotRunning => "rx_not_running",
        "The receiving guest has not started its receive queue.";
    RxFull => "rx_full",
        "The receiving guest has too few receive buffers ready: it is slower than its senders.";
    RxBufferTooSmall => "rx_buffer_too_small",
        "The receiving guest's buffers are too small for the frame.";
    RxBroken => "rx_broken",
        "The receiving guest's queue was found malformed, or its memory gone; it is dead until reset.";
    IngressNoRule => "ingress_no_rule",
        "No rule of the receiving port's security groups allows it.";
    IngressDenied => "ingress_denied_by_rule",
        "A rule of the receiving port's security groups denies it; a trace of the frame names the rule.";
    IngressRejected => "ingress_rejected_by_rule",
        "A rule of the receiving port's security groups rejects it, and the sender was told, as far as answers are due; a trace of the frame names the rule.";
    RxOverMtu => "rx_over_mtu",
        "The frame is longer than the receiving port's MTU (1500 unless the VMM told the guest another): give all guests of a network one MTU.";
    RxWorkerBusy => "rx_worker_busy",
        "The DPU's worker that serves the receiving guest's queue is behind with what other workers hand it.";
}

impl DropReason {
    /// Is it counted at the receiver's port?
    pub const fn at_receiver(self) -> bool {
        self as usize >= Self::PortShut as usize
    }
}

impl From<TxRefusal> for DropReason {
    fn from(refusal: TxRefusal) -> Self {
        match refusal {
            TxRefusal::Chain => Self::MalformedChain,
            TxRefusal::Oversize => Self::Oversize,
            TxRefusal::OverMtu { .. } => Self::OverMtu,
            TxRefusal::Parse(ParseError::Runt(_)) => Self::Runt,
            TxRefusal::Parse(ParseError::Ipv4(_)) => Self::MalformedIpv4,
            TxRefusal::Parse(ParseError::Ipv6(_)) => Self::MalformedIpv6,
            TxRefusal::Parse(ParseError::HeadersTooLong) => Self::HeadersTooLong,
            TxRefusal::Offload(_) => Self::BadOffload,
            TxRefusal::MemoryGone => Self::TxMemoryGone,
        }
    }
}
