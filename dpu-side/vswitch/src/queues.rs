//! The running queues of a port, in one direction.

use vhost_net_dpu::QUEUE_PAIRS_MAX;

use crate::crossing::Crossing;

/// A queue that runs.
#[derive(Debug)]
pub(crate) struct Running<Q> {
    /// The pair it is of.
    pub(crate) pair: u16,
    pub(crate) queue: Q,
    /// Frames that went through it since it was started.
    pub(crate) frames: u64,
    /// Bytes of those, without virtio headers.
    pub(crate) bytes: u64,
    /// What a frame of the last burst cost on average, in frames, for what it holds: those that may have to be cut cost more.
    pub(crate) weight: usize,
    /// Of those that were started in this worker, which one it is.
    pub(crate) number: u64,
    /// For frames that other workers deliver.
    #[expect(clippy::vec_box, reason = "what goes from worker to worker is the pointer")]
    pub(crate) spare: Vec<Box<Crossing>>,
}

impl<Q> Running<Q> {
    /// One that has just been started.
    pub(crate) fn new(pair: u16, number: u64, queue: Q) -> Self {
        Self {
            pair,
            queue,
            frames: 0,
            bytes: 0,
            weight: 1,
            number,
            spare: Vec::new(),
        }
    }

    pub(crate) fn count(&mut self, frames: u64, bytes: u64) {
        self.frames = self.frames.wrapping_add(frames);
        self.bytes = self.bytes.wrapping_add(bytes);
    }
}

/// The running queues of one direction, by pair. Their places are dense, so that whoever picks or polls them has
/// nothing to skip; places change only when a queue starts or stops.
#[derive(Debug)]
pub(crate) struct Queues<Q>(Vec<Running<Q>>);

impl<Q> Default for Queues<Q> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<Q> Queues<Q> {
    /// How many run.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The queue at a place.
    pub(crate) fn at(&mut self, place: usize) -> Option<&mut Running<Q>> {
        self.0.get_mut(place)
    }

    /// The same, to look at.
    pub(crate) fn get(&self, place: usize) -> Option<&Running<Q>> {
        self.0.get(place)
    }

    /// The queue of a pair.
    pub(crate) fn of_pair(&mut self, pair: u16) -> Option<&mut Running<Q>> {
        let place = self.0.binary_search_by_key(&pair, |running| running.pair).ok()?;
        self.0.get_mut(place)
    }

    /// Adds a queue; none of that pair runs.
    pub(crate) fn start(&mut self, running: Running<Q>) {
        let place = self.0.partition_point(|other| other.pair < running.pair);
        self.0
            .reserve_exact(usize::from(QUEUE_PAIRS_MAX).saturating_sub(self.0.len()));
        self.0.insert(place, running);
    }

    /// Takes a queue out.
    pub(crate) fn stop(&mut self, pair: u16) -> Option<Running<Q>> {
        let place = self.0.iter().position(|running| running.pair == pair)?;
        Some(self.0.remove(place))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Running<Q>> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Running<Q>> {
        self.0.iter_mut()
    }
}
