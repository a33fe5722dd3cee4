//! Filters as people write them, after pcap-filter(7).

use std::net::IpAddr;

use outboard_protocol::{
    desired::Cidr,
    id::MacAddr,
    inquiry::{FILTER_TERMS_MAX, Filter, Side, Term, Way},
};

use crate::{
    error::ExpressionError,
    lexer::{Word, Words},
};

/// Deepest nesting of parentheses and `not`.
const DEPTH_MAX: usize = 32;

/// What may stand where a condition is expected.
const CONDITIONS: &str = "a condition: ip, ip6, arp, tcp, udp, icmp, icmp6, proto N, ether N, [src|dst] host IP, [src|dst] net CIDR, [src|dst] \
                          port N, [src|dst] port N-M, [src|dst] mac MAC, in, out, dropped, or reason NAME";

/// The filter that a text describes; an empty one takes everything in.
///
/// ```text
/// filter    = [ any ]     any = all { ( "or" | "||" ) all }     all = one { [ "and" | "&&" ] one }
/// one       = ( "not" | "!" ) one | "(" any ")" | condition
/// condition = "ip" | "ip6" | "arp" | "tcp" | "udp" | "icmp" | "icmp6" | "proto" number | "ether" number
///           | [ "src" | "dst" ] ( "host" ip | "net" cidr | "port" ( number | number "-" number ) | "mac" mac )
///           | "in" | "out" | "dropped" | "reason" name
/// ```
///
/// `in` is what goes to the port's guest, `out` what comes from it.
///
/// # Errors
/// What is wrong, and where.
pub fn parse_filter(text: &str) -> Result<Filter, ExpressionError> {
    let mut words = Words::of(text, &['(', ')', '!'])?;
    let mut parser = Parser {
        filter: Filter::default(),
        words: &mut words,
    };
    if parser.words.peek().is_some() {
        parser.any(0)?;
    }
    let filter = parser.filter;
    if let Some(word) = words.next() {
        return Err(word.error("nothing is open that this could close"));
    }
    if filter.terms.len() > FILTER_TERMS_MAX {
        let message = format!("a filter has at most {FILTER_TERMS_MAX} conditions and words between them");
        return Err(ExpressionError::new(0..text.len(), message));
    }
    Ok(filter)
}

struct Parser<'w, 't> {
    filter: Filter,
    words: &'w mut Words<'t>,
}

impl Parser<'_, '_> {
    fn push(&mut self, term: Term) {
        self.filter.terms.push(term);
    }

    fn any(&mut self, depth: usize) -> Result<(), ExpressionError> {
        self.all(depth)?;
        while self.words.take("or").is_some() || self.words.take("||").is_some() {
            self.all(depth)?;
            self.push(Term::Or);
        }
        Ok(())
    }

    fn all(&mut self, depth: usize) -> Result<(), ExpressionError> {
        self.one(depth)?;
        loop {
            let joined = self.words.take("and").is_some() || self.words.take("&&").is_some();
            let ends = |word: &Word<'_>| matches!(word.text, "or" | "||" | ")");
            if !joined && self.words.peek().is_none_or(|word| ends(&word)) {
                return Ok(());
            }
            self.one(depth)?;
            self.push(Term::And);
        }
    }

    fn one(&mut self, depth: usize) -> Result<(), ExpressionError> {
        let word = self.words.expect(CONDITIONS)?;
        if depth > DEPTH_MAX {
            return Err(word.error(format!("a filter is nested at most {DEPTH_MAX} deep")));
        }
        match word.text {
            "not" | "!" => {
                self.one(depth + 1)?;
                self.push(Term::Not);
            }
            "(" => {
                self.any(depth + 1)?;
                let close = self.words.expect("')'")?;
                if close.text != ")" {
                    return Err(close.error("here 'and', 'or' or ')' is expected"));
                }
            }
            _ => {
                let term = self.condition(word)?;
                self.push(term);
            }
        }
        Ok(())
    }

    fn condition(&mut self, word: Word<'_>) -> Result<Term, ExpressionError> {
        Ok(match word.text {
            "ip" => Term::Ethertype { ethertype: 0x0800 },
            "ip6" => Term::Ethertype { ethertype: 0x86dd },
            "arp" => Term::Ethertype { ethertype: 0x0806 },
            "icmp" => Term::Protocol { number: 1 },
            "tcp" => Term::Protocol { number: 6 },
            "udp" => Term::Protocol { number: 17 },
            "icmp6" => Term::Protocol { number: 58 },
            "proto" => Term::Protocol {
                number: self
                    .words
                    .expect("an IP protocol")?
                    .parse("IP protocol: a number from 0 to 255")?,
            },
            "ether" => Term::Ethertype {
                ethertype: ethertype(self.words.expect("an EtherType")?)?,
            },
            "in" => Term::Way { way: Way::ToGuest },
            "out" => Term::Way { way: Way::FromGuest },
            "dropped" => Term::Dropped { reason: None },
            "reason" => Term::Dropped {
                reason: Some(reason(self.words.expect("a reason")?)?),
            },
            "src" | "dst" => {
                let side = if word.text == "src" {
                    Side::Source
                } else {
                    Side::Destination
                };
                let what = self.words.expect("host, net, port or mac")?;
                self.end(what, side)?
                    .ok_or_else(|| what.error("behind src and dst stands host, net, port or mac"))?
            }
            _ => self
                .end(word, Side::Either)?
                .ok_or_else(|| word.error(format!("here {CONDITIONS} is expected")))?,
        })
    }

    /// A condition about an end; none if the word begins no such condition.
    fn end(&mut self, word: Word<'_>, side: Side) -> Result<Option<Term>, ExpressionError> {
        Ok(Some(match word.text {
            "host" => {
                let address: IpAddr = self.words.expect("an IP address")?.parse("IP address")?;
                let prefix_len = if address.is_ipv4() { 32 } else { 128 };
                Term::Address {
                    side,
                    cidr: Cidr { address, prefix_len },
                }
            }
            "net" => Term::Address {
                side,
                cidr: cidr(self.words.expect("a subnet")?)?,
            },
            "port" => {
                let word = self.words.expect("a port")?;
                let what = "port, or range of ports: write 80 or 80-81";
                let (first, last) = match word.text.find('-') {
                    Some(dash) => (word.part(0..dash), word.part(dash + 1..word.text.len())),
                    None => (word, word),
                };
                let (first, last): (u16, u16) = (first.parse(what)?, last.parse(what)?);
                if first > last {
                    return Err(word.error("the first port is above the last"));
                }
                Term::Port { side, first, last }
            }
            "mac" => {
                let mac: MacAddr = self
                    .words
                    .expect("a MAC")?
                    .parse("MAC address, such as 52:54:00:00:00:01")?;
                Term::Mac { side, mac }
            }
            _ => return Ok(None),
        }))
    }
}

fn cidr(word: Word<'_>) -> Result<Cidr, ExpressionError> {
    let slash = word
        .text
        .find('/')
        .ok_or_else(|| word.error("a subnet is written 10.0.0.0/24"))?;
    let address: IpAddr = word.part(0..slash).parse("IP address")?;
    let length = word.part(slash + 1..word.text.len());
    let prefix_len: u8 = length.parse("prefix length")?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if prefix_len > most {
        return Err(length.error(format!("this is no prefix length: a number from 0 to {most}")));
    }
    let masked = match address {
        IpAddr::V4(v4) => {
            IpAddr::from((v4.to_bits() & !u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0)).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            IpAddr::from((v6.to_bits() & !u128::MAX.checked_shr(prefix_len.into()).unwrap_or(0)).to_be_bytes())
        }
    };
    if masked != address {
        let message = format!("bits are set beyond the prefix: {masked}/{prefix_len} is the subnet of it");
        return Err(word.error(message));
    }
    Ok(Cidr { address, prefix_len })
}

fn ethertype(word: Word<'_>) -> Result<u16, ExpressionError> {
    let parsed = match word.text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16),
        None => word.text.parse(),
    };
    parsed.map_err(|_| word.error("this is no EtherType: a number such as 0x0806"))
}

fn reason(word: Word<'_>) -> Result<String, ExpressionError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if word.text.len() > 64 || !word.text.bytes().all(allowed) {
        return Err(word.error("this is no reason: 'outboard reasons' lists them"));
    }
    Ok(word.text.to_owned())
}
