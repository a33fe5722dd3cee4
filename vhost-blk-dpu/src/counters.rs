//! What a volume counts.

/// Counts since the unit was made. Each request that is over is in exactly one of the first ten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeCounters {
    /// Reads answered with success.
    pub reads: u64,
    /// Writes answered with success.
    pub writes: u64,
    /// Flushes answered with success.
    pub flushes: u64,
    /// Requests for the id answered with success.
    pub ids: u64,
    /// Discards answered with success.
    pub discards: u64,
    /// Write-zeroes requests answered with success.
    pub zeroes: u64,
    /// Requests of a type that was not negotiated, or with flags that it does not have.
    pub unsupported: u64,
    /// Requests refused as malformed: lengths, range, a write to a read-only volume, no room for the answer.
    pub refused: u64,
    /// Requests that the backend failed.
    pub failed: u64,
    /// Requests whose answer the guest never got: the volume was revoked, or the queue was broken by then.
    pub silenced: u64,
    /// Bytes read by the reads.
    pub read_bytes: u64,
    /// Bytes written by the writes.
    pub written_bytes: u64,
    /// Bytes in the ranges of the discards.
    pub discarded_bytes: u64,
    /// Bytes in the ranges of the write-zeroes requests.
    pub zeroed_bytes: u64,
    /// Queues that the guest or its host broke.
    pub broken_queues: u64,
}
