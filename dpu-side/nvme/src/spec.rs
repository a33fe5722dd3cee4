//! Wire structures and numbers of NVM Express.

/// Opcodes of the NVM command set (NVM §3, figure 22).
pub mod opcode {
    /// Make everything durable.
    pub const FLUSH: u8 = 0x00;
    /// Write logical blocks.
    pub const WRITE: u8 = 0x01;
    /// Read logical blocks.
    pub const READ: u8 = 0x02;
    /// Let logical blocks read as zeros.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Tell what ranges of logical blocks are used for.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// The namespace id that means all namespaces (base §3.2.1.2).
pub const NSID_BROADCAST: u32 = 0xffff_ffff;

/// Force Unit Access, in command dword 12 (NVM §3.2.6).
const FUA: u32 = 1 << 30;
/// Deallocate, in command dword 12 of Write Zeroes (NVM §3.2.8).
const DEAC: u32 = 1 << 25;
/// Attribute – Deallocate, in command dword 11 of Dataset Management (NVM §3.2.3).
const AD: u32 = 1 << 2;
/// The most ranges of one Dataset Management command: NR is 8 bits wide.
pub const RANGE_COUNT_MAX: usize = 256;
/// Length of a range in bytes.
pub const RANGE_LEN: usize = 16;
/// FUSE, in the second byte of the command (base §3.3.3.1).
const FUSE_MASK: u8 = 0b11;

/// A command: 64 bytes, little-endian (base §3.3.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmissionEntry([u8; 64]);

impl SubmissionEntry {
    /// A command as it comes over the wire.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> [u8; 64] {
        self.0
    }

    fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        let mut entry = Self([0; 64]);
        entry.0[0] = opcode;
        entry.put(2, cid.to_le_bytes());
        entry.put(4, nsid.to_le_bytes());
        entry
    }

    /// Read `nlb` + 1 logical blocks from `slba` (NVM §3.2.4).
    pub fn read(cid: u16, nsid: u32, slba: u64, nlb: u16) -> Self {
        Self::new(opcode::READ, cid, nsid).with_blocks(slba, u32::from(nlb))
    }

    /// Write `nlb` + 1 logical blocks from `slba` (NVM §3.2.6); with `fua`, complete only once they are durable.
    pub fn write(cid: u16, nsid: u32, slba: u64, nlb: u16, fua: bool) -> Self {
        let flags = if fua { FUA } else { 0 };
        Self::new(opcode::WRITE, cid, nsid).with_blocks(slba, u32::from(nlb) | flags)
    }

    /// Let `nlb` + 1 logical blocks from `slba` read as zeros (NVM §3.2.8); with `deallocate`, their room may be given back;
    /// with `fua`, complete only once that is durable.
    pub fn write_zeroes(cid: u16, nsid: u32, slba: u64, nlb: u16, deallocate: bool, fua: bool) -> Self {
        let flags = if fua { FUA } else { 0 } | if deallocate { DEAC } else { 0 };
        Self::new(opcode::WRITE_ZEROES, cid, nsid).with_blocks(slba, u32::from(nlb) | flags)
    }

    /// Deallocate `nr` + 1 ranges, which are the command's data (NVM §3.2.3).
    pub fn deallocate(cid: u16, nsid: u32, nr: u8) -> Self {
        let mut entry = Self::new(opcode::DATASET_MANAGEMENT, cid, nsid);
        entry.put(40, u32::from(nr).to_le_bytes());
        entry.put(44, AD.to_le_bytes());
        entry
    }

    /// Make durable what was completed before (base §7.1).
    pub fn flush(cid: u16, nsid: u32) -> Self {
        Self::new(opcode::FLUSH, cid, nsid)
    }

    fn with_blocks(mut self, slba: u64, cdw12: u32) -> Self {
        self.put(40, slba.to_le_bytes());
        self.put(48, cdw12.to_le_bytes());
        self
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    /// OPC: what to do.
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// FUSE: not 0 if it is half of a fused operation.
    pub fn fuse(&self) -> u8 {
        self.0[1] & FUSE_MASK
    }

    /// CID: by which its completion is known.
    pub fn cid(&self) -> u16 {
        u16::from_le_bytes(self.get(2))
    }

    /// NSID: on which namespace.
    pub fn nsid(&self) -> u32 {
        u32::from_le_bytes(self.get(4))
    }

    /// SLBA: the first logical block of a read or write.
    pub fn slba(&self) -> u64 {
        u64::from_le_bytes(self.get(40))
    }

    /// Number of logical blocks of a read or write: the field NLB and one more, since 0 means one.
    pub fn block_count(&self) -> u64 {
        u64::from(u16::from_le_bytes(self.get(48))) + 1
    }

    /// FUA of a write.
    pub fn fua(&self) -> bool {
        u32::from_le_bytes(self.get(48)) & FUA != 0
    }

    /// DEAC of Write Zeroes.
    pub fn deac(&self) -> bool {
        u32::from_le_bytes(self.get(48)) & DEAC != 0
    }

    /// Number of ranges of Dataset Management: the field NR and one more.
    pub fn range_count(&self) -> usize {
        usize::from(self.0[40]) + 1
    }

    /// AD of Dataset Management: the ranges are to be deallocated, not merely hinted at.
    pub fn attribute_deallocate(&self) -> bool {
        u32::from_le_bytes(self.get(44)) & AD != 0
    }
}

/// A range of Dataset Management (NVM §3.2.3, figure 32).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// First logical block.
    pub slba: u64,
    /// Number of logical blocks; 0 is none.
    pub block_count: u32,
}

impl Range {
    /// A range as it comes in the data of a command: context attributes, which are hints, length, first block.
    pub fn from_bytes(bytes: [u8; RANGE_LEN]) -> Self {
        let [_, _, _, _, c0, c1, c2, c3, slba @ ..] = bytes;
        Self {
            slba: u64::from_le_bytes(slba),
            block_count: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// Its bytes, without hints.
    pub fn to_bytes(self) -> [u8; RANGE_LEN] {
        let mut bytes = [0; RANGE_LEN];
        bytes[4..8].copy_from_slice(&self.block_count.to_le_bytes());
        bytes[8..].copy_from_slice(&self.slba.to_le_bytes());
        bytes
    }
}

/// The status field of a completion without its phase bit: SC, SCT, CRD, M and DNR (base §3.3.3.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u16);

/// Status code types (base §3.3.3.2.1, figure 92).
const GENERIC: u16 = 0;
const MEDIA: u16 = 2;
/// Do Not Retry.
const DNR: u16 = 1 << 14;

impl Status {
    /// Successful Completion.
    pub const SUCCESS: Self = Self::new(GENERIC, 0x00);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Self = Self::new(GENERIC, 0x01).for_good();
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Self = Self::new(GENERIC, 0x02).for_good();
    /// Command ID Conflict.
    pub const CID_CONFLICT: Self = Self::new(GENERIC, 0x03).for_good();
    /// Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: Self = Self::new(GENERIC, 0x04).for_good();
    /// Internal Error.
    pub const INTERNAL_ERROR: Self = Self::new(GENERIC, 0x06);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Self = Self::new(GENERIC, 0x0b).for_good();
    /// Data SGL Length Invalid: the data is not as long as the blocks.
    pub const DATA_LENGTH_INVALID: Self = Self::new(GENERIC, 0x0f).for_good();
    /// Namespace is Write Protected.
    pub const WRITE_PROTECTED: Self = Self::new(GENERIC, 0x20).for_good();
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(GENERIC, 0x80).for_good();
    /// Write Fault.
    pub const WRITE_FAULT: Self = Self::new(MEDIA, 0x80);
    /// Unrecovered Read Error.
    pub const UNRECOVERED_READ: Self = Self::new(MEDIA, 0x81);

    const fn new(code_type: u16, code: u16) -> Self {
        Self(code_type << 8 | code)
    }

    /// The same with Do Not Retry: the command will fail again.
    pub const fn for_good(self) -> Self {
        Self(self.0 | DNR)
    }

    /// The 15 bits as they are in a completion.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Did the command succeed?
    pub fn is_success(self) -> bool {
        self == Self::SUCCESS
    }
}

/// A completion: 16 bytes, little-endian (base §3.3.3.2). SQHD, SQID and the phase bit are 0 for the front end to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletionEntry([u8; 16]);

impl CompletionEntry {
    /// The end of command `cid`.
    pub fn new(cid: u16, status: Status) -> Self {
        let mut bytes = [0; 16];
        bytes[12..14].copy_from_slice(&cid.to_le_bytes());
        // Bit 0 is the phase.
        bytes[14..16].copy_from_slice(&(status.0 << 1).to_le_bytes());
        Self(bytes)
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// CID of the command that is over.
    pub fn cid(&self) -> u16 {
        u16::from_le_bytes([self.0[12], self.0[13]])
    }

    /// How it went.
    pub fn status(&self) -> Status {
        Status(u16::from_le_bytes([self.0[14], self.0[15]]) >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_encoded_as_the_specification_draws_it() {
        let bytes = SubmissionEntry::write(0x1234, 1, 0x0102_0304_0506_0708, 0x00ff, true).to_bytes();
        assert_eq!(bytes[..8], [0x01, 0, 0x34, 0x12, 1, 0, 0, 0]);
        assert_eq!(bytes[8..40], [0; 32], "metadata and data pointer are the front end's");
        assert_eq!(bytes[40..48], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[48..52], [0xff, 0x00, 0x00, 0x40]);
        assert_eq!(bytes[52..], [0; 12]);
    }

    #[test]
    fn fields_are_read_where_the_specification_puts_them() {
        let mut bytes = SubmissionEntry::read(7, 0xdead_beef, 99, 65_535).to_bytes();
        bytes[1] = 0b1100_0010;
        let entry = SubmissionEntry::from_bytes(bytes);
        assert_eq!((entry.opcode(), entry.fuse(), entry.cid()), (opcode::READ, 0b10, 7));
        assert_eq!(
            (entry.nsid(), entry.slba(), entry.block_count(), entry.fua()),
            (0xdead_beef, 99, 65_536, false)
        );
    }

    #[test]
    fn ranges_and_zeroes_are_encoded_as_the_specification_draws_them() {
        let zeroes = SubmissionEntry::write_zeroes(3, 1, 0x0102_0304, 7, true, true).to_bytes();
        assert_eq!((zeroes[0], &zeroes[40..48]), (0x08, &[4, 3, 2, 1, 0, 0, 0, 0][..]));
        assert_eq!(zeroes[48..52], [7, 0, 0, 0x42], "FUA is bit 30 and DEAC bit 25");
        let entry = SubmissionEntry::deallocate(3, 1, 255);
        let bytes = entry.to_bytes();
        assert_eq!((bytes[0], &bytes[40..48]), (0x09, &[255, 0, 0, 0, 4, 0, 0, 0][..]));
        assert_eq!((entry.range_count(), entry.attribute_deallocate()), (256, true));

        let range = Range {
            slba: 0x0102_0304_0506_0708,
            block_count: 0x090a_0b0c,
        };
        let bytes = [0, 0, 0, 0, 0x0c, 0x0b, 0x0a, 9, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(range.to_bytes(), bytes);
        let mut hinted = bytes;
        hinted[..4].fill(0xff);
        assert_eq!(Range::from_bytes(hinted), range);
    }

    #[test]
    fn a_status_stands_above_the_phase_bit() {
        let entry = CompletionEntry::new(0x0102, Status::WRITE_FAULT.for_good());
        let bytes = entry.to_bytes();
        assert_eq!(bytes[..12], [0; 12]);
        // DNR is bit 31, SCT bits 27:25, SC bits 24:17 of dword 3.
        let dword = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        assert_eq!(dword, 1 << 31 | 2 << 25 | 0x80 << 17 | 0x0102);
        assert_eq!((entry.cid(), entry.status()), (0x0102, Status::WRITE_FAULT.for_good()));
        assert!(!entry.status().is_success() && CompletionEntry::new(0, Status::SUCCESS).status().is_success());
    }
}
