//! For tests: a disk that crashes.

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::StorageBackend;

use super::Store;

/// A disk that keeps only what a successful sync covered, and stops at a chosen call.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    /// What survives a crash.
    durable: Vec<u8>,
    /// What reads see.
    present: Vec<u8>,
    /// Writes, resizes and syncs so far.
    calls: usize,
    /// The call that does not happen any more, and none after it.
    dies_at: Option<usize>,
    /// Of the call that it dies at, the part of the unsynced writes that got to the platter: every write whose number is
    /// a multiple of this. A disk may write in any order before a sync.
    leaks: Option<usize>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

impl DiskState {
    fn call(&mut self) -> io::Result<()> {
        if self.dies_at.is_some_and(|at| self.calls >= at) {
            return Err(io::Error::other("power is gone"));
        }
        self.calls += 1;
        Ok(())
    }
}

impl Disk {
    /// A disk with a store that nothing was done to yet.
    pub fn with_store() -> Self {
        let disk = Self::default();
        drop(Store::open_on(disk.clone()).unwrap());
        disk.after_crash()
    }

    /// The disk, to die at a call.
    pub fn dying_at(&self, call: usize, leaks: Option<usize>) -> Self {
        let state = self.0.lock().unwrap();
        let (durable, present) = (state.durable.clone(), state.durable.clone());
        Self(Arc::new(Mutex::new(DiskState {
            durable,
            present,
            dies_at: Some(call),
            leaks,
            ..DiskState::default()
        })))
    }

    /// The disk after the power comes back.
    pub fn after_crash(&self) -> Self {
        let state = self.0.lock().unwrap();
        let mut durable = state.durable.clone();
        if let Some(every) = state.leaks {
            for (offset, data) in state.unsynced.iter().step_by(every) {
                let begin = usize::try_from(*offset).unwrap();
                durable.resize(durable.len().max(begin + data.len()), 0);
                durable[begin..begin + data.len()].copy_from_slice(data);
            }
        }
        Self(Arc::new(Mutex::new(DiskState {
            present: durable.clone(),
            durable,
            ..DiskState::default()
        })))
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.0.lock().unwrap().calls
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().unwrap().present.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let state = self.0.lock().unwrap();
        let begin = usize::try_from(offset).unwrap();
        let bytes = state
            .present
            .get(begin..begin + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut state = self.0.lock().unwrap();
        state.call()?;
        state.present.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut state = self.0.lock().unwrap();
        state.call()?;
        state.durable = state.present.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut state = self.0.lock().unwrap();
        state.call()?;
        let begin = usize::try_from(offset).unwrap();
        state.present[begin..begin + data.len()].copy_from_slice(data);
        state.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}
