//! Writes frames as pcapng (draft-ietf-opsawg-pcapng): one section, one Ethernet interface, times in nanoseconds.

use std::io::{self, Write};

use outboard_api::capture::FrameView;
use outboard_protocol::inquiry::Way;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
/// Options: their codes.
const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_TIME_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;
/// Times are in 10^-9 s.
const NANOSECONDS: u8 = 9;
/// Directions in a packet's flags: what the guest gets is inbound.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Begins a file of frames at a port.
///
/// # Errors
/// `out` cannot be written to.
pub fn begin(out: &mut impl Write, port: &str, snaplen: u32) -> io::Result<()> {
    let mut section = Vec::new();
    section.extend(BYTE_ORDER_MAGIC.to_le_bytes());
    // Version 1.0, and a section of unknown length.
    section.extend(1_u16.to_le_bytes());
    section.extend(0_u16.to_le_bytes());
    section.extend(u64::MAX.to_le_bytes());
    let application = format!("outboard {}", env!("CARGO_PKG_VERSION"));
    option(&mut section, SECTION_APPLICATION, application.as_bytes());
    block(out, SECTION_HEADER, section)?;
    let mut interface = Vec::new();
    interface.extend(LINKTYPE_ETHERNET.to_le_bytes());
    interface.extend(0_u16.to_le_bytes());
    interface.extend(snaplen.to_le_bytes());
    option(&mut interface, INTERFACE_NAME, port.as_bytes());
    option(&mut interface, INTERFACE_TIME_RESOLUTION, &[NANOSECONDS]);
    block(out, INTERFACE_DESCRIPTION, interface)
}

/// Adds a frame. A drop is told in its comment.
///
/// # Errors
/// `out` cannot be written to.
pub fn frame(out: &mut impl Write, frame: &FrameView) -> io::Result<()> {
    let mut packet = Vec::new();
    packet.extend(0_u32.to_le_bytes());
    let [t0, t1, t2, t3, t4, t5, t6, t7] = frame.unix_ns.to_le_bytes();
    // The upper half comes first.
    packet.extend([t4, t5, t6, t7, t0, t1, t2, t3]);
    packet.extend(u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    packet.extend(frame.len.to_le_bytes());
    packet.extend(&frame.bytes);
    pad(&mut packet);
    let direction = match frame.way {
        Way::ToGuest => INBOUND,
        Way::FromGuest => OUTBOUND,
    };
    option(&mut packet, PACKET_FLAGS, &direction.to_le_bytes());
    if let Some(reason) = &frame.dropped {
        let comment = format!("dropped: {}. {}", reason.name, reason.sentence);
        option(&mut packet, COMMENT, comment.as_bytes());
    }
    block(out, ENHANCED_PACKET, packet)
}

/// An option, and before the block's end the one that ends them: added by [`block`].
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    body.extend(value);
    pad(body);
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A block: every one of ours has options, so that they end here.
fn block(out: &mut impl Write, kind: u32, mut body: Vec<u8>) -> io::Result<()> {
    body.extend([0; 4]);
    let len = u32::try_from(body.len() + 12).map_err(io::Error::other)?.to_le_bytes();
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&len)?;
    out.write_all(&body)?;
    out.write_all(&len)
}

#[cfg(test)]
mod tests {
    use outboard_api::trace::ReasonView;

    use super::*;

    /// The blocks of a file: kind and body, the lengths on both sides checked.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let len = word(&file[4..]) as usize;
            assert!(len.is_multiple_of(4) && len >= 12);
            assert_eq!(word(&file[len - 4..]) as usize, len);
            blocks.push((word(file), file[8..len - 4].to_vec()));
            file = &file[len..];
        }
        blocks
    }

    fn options(mut body: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let half = |bytes: &[u8]| u16::from_le_bytes(bytes[..2].try_into().unwrap());
        let mut options = Vec::new();
        loop {
            let (code, len) = (half(body), usize::from(half(&body[2..])));
            if code == 0 {
                assert_eq!(body.len(), 4, "the end of options is the end of the block");
                return options;
            }
            options.push((code, body[4..4 + len].to_vec()));
            body = &body[4 + len.next_multiple_of(4)..];
        }
    }

    #[test]
    fn a_file_has_its_header_its_port_and_its_frames_with_their_drops() {
        let reason = ReasonView {
            name: "runt".into(),
            sentence: "It is short.".into(),
            at_receiver: false,
        };
        let captured = |way, dropped| FrameView {
            number: 1,
            unix_ns: 0x1122_3344_5566_7788,
            way,
            len: 1500,
            bytes: vec![7; 13],
            dropped,
        };
        let mut file = Vec::new();
        begin(&mut file, "vm1", 256).unwrap();
        frame(&mut file, &captured(Way::ToGuest, None)).unwrap();
        frame(&mut file, &captured(Way::FromGuest, Some(reason))).unwrap();
        let blocks = blocks(&file);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(
            kinds,
            [SECTION_HEADER, INTERFACE_DESCRIPTION, ENHANCED_PACKET, ENHANCED_PACKET]
        );
        assert_eq!(blocks[0].1[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
        assert_eq!(blocks[1].1[..8], [1, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(options(&blocks[1].1[8..]), [(2, b"vm1".to_vec()), (9, vec![9])]);
        let packet = &blocks[2].1;
        assert_eq!(
            packet[4..12],
            [0x44, 0x33, 0x22, 0x11, 0x88, 0x77, 0x66, 0x55],
            "upper half first"
        );
        assert_eq!(packet[12..20], [13, 0, 0, 0, 0xdc, 5, 0, 0]);
        assert_eq!(packet[20..36], [&[7; 13][..], &[0; 3]].concat());
        assert_eq!(options(&packet[36..]), [(2, vec![1, 0, 0, 0])]);
        let comment = b"dropped: runt. It is short.".to_vec();
        assert_eq!(options(&blocks[3].1[36..]), [(2, vec![2, 0, 0, 0]), (1, comment)]);
    }
}
