//! What is written is what is taken in, and what cannot be read is pointed at.

use outboard_packet::parse_filter;
use outboard_protocol::inquiry::{FILTER_TERMS_MAX, Facts, Way};
use proptest::prelude::*;

/// TCP from 10.0.0.1:1234 to 10.0.0.2:80, from the guest, dropped.
fn facts() -> Facts<'static> {
    Facts {
        ethertype: 0x0800,
        protocol: Some(6),
        addresses: Some(([10, 0, 0, 1].into(), [10, 0, 0, 2].into())),
        ports: Some((1234, 80)),
        macs: Some(([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])),
        way: Some(Way::FromGuest),
        dropped: Some("spoofed_ipv4"),
    }
}

#[test]
fn each_filter_takes_in_what_it_says() {
    for (text, wanted) in [
        ("", true),
        ("tcp", true),
        ("udp", false),
        ("ip and not arp", true),
        ("ip6 or icmp6 or ether 0x0806", false),
        ("ether 0x0800", true),
        ("proto 6", true),
        ("tcp port 80", true),
        ("tcp and port 81", false),
        ("port 1000-2000", true),
        ("src port 80", false),
        ("dst port 80", true),
        ("host 10.0.0.2", true),
        ("src host 10.0.0.2", false),
        ("net 10.0.0.0/24", true),
        ("dst net 10.0.0.2/32", true),
        ("net fd00::/8 || net 0.0.0.0/0", true),
        ("src mac 02:00:00:00:00:01 dst mac 02:00:00:00:00:02", true),
        ("out", true),
        ("in", false),
        ("dropped", true),
        ("reason spoofed_ipv4", true),
        ("reason runt", false),
        ("!(udp or icmp) && dropped", true),
        ("udp or tcp and in", false),
        ("udp and in or tcp", true),
        ("not udp and in", false),
        ("not (udp and in)", true),
    ] {
        let filter = parse_filter(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(filter.check(), Ok(()), "{text}");
        assert_eq!(filter.matches(&facts()), wanted, "{text}");
    }
}

#[test]
fn an_error_points_at_the_place() {
    for (text, marked, said) in [
        ("tpc", "tpc", "ip6"),
        ("tcp and", "", "missing"),
        ("(tcp", "", "')'"),
        ("tcp)", ")", "nothing is open"),
        ("host 10.0.0", "10.0.0", "IP address"),
        ("net 10.0.0.1", "10.0.0.1", "10.0.0.0/24"),
        ("net 10.0.0.1/24", "10.0.0.1/24", "10.0.0.0/24 is the subnet"),
        ("net 10.0.0.0/33", "33", "0 to 32"),
        ("port 80-", "", "port"),
        ("port 81-80", "81-80", "above"),
        ("port http", "http", "port"),
        ("src tcp", "tcp", "host, net, port or mac"),
        ("reason Not-One", "Not-One", "outboard reasons"),
        ("ether ip", "ip", "EtherType"),
        ("proto 300", "300", "255"),
    ] {
        let error = parse_filter(text).expect_err(text);
        assert_eq!(&text[error.place.clone()], marked, "{text}: {error}");
        assert!(error.message.contains(said), "{text}: {error}");
    }
    let long = vec!["tcp"; FILTER_TERMS_MAX].join(" or ");
    assert!(parse_filter(&long).is_err());
    let deep = "(".repeat(200) + "tcp" + &")".repeat(200);
    assert!(parse_filter(&deep).unwrap_err().message.contains("deep"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}") {
        if let Err(error) = parse_filter(&text) {
            prop_assert!(text.get(error.place.clone()).is_some(), "{error:?}");
            error.point(&text);
        }
    }

    #[test]
    fn whatever_is_made_of_its_words_is_a_sound_filter_or_an_error(
        words in proptest::collection::vec(
            prop_oneof!["tcp", "ip", "and", "or", "not", "!", "\\(", "\\)", "src", "dst", "host", "10.0.0.1", "net", "10.0.0.0/8",
                "port", "80", "80-90", "in", "dropped", "reason", "runt"], 0..24)
    ) {
        let text = words.join(" ");
        match parse_filter(&text) {
            Ok(filter) => {
                prop_assert_eq!(filter.check(), Ok(()));
                filter.matches(&facts());
            }
            Err(error) => prop_assert!(text.get(error.place.clone()).is_some(), "{error:?}"),
        }
    }
}
