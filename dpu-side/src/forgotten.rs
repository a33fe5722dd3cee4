//! Forgetting a host's boot epoch, when the host said one that it cannot reach again.

use outboard_protocol::{card_side::CardRecord, codec::encode, id::BootEpoch};

use crate::{
    config::Config,
    error::Failure,
    state_file::{Loaded, StateFile},
    state_lock::{IfHeld, StateLock},
};

/// Forgets the highest boot epoch that the card's host has said, so that the next one is taken whatever it is. Bindings,
/// grants and their generations stay. What was forgotten; none if no host ever said one.
///
/// The daemon must not run: its state is changed.
pub fn forget_host_epoch(config: &Config) -> Result<Option<BootEpoch>, Failure> {
    let _lock = StateLock::take(&config.state_dir, IfHeld::Fail)?;
    let failed = |verb: &str, e: &std::io::Error| {
        Failure::io(
            verb,
            &config.state_dir,
            e,
            "check the directory's owner and the free space",
        )
    };
    let (mut file, loaded) = StateFile::open(&config.state_dir).map_err(|e| failed("read the state in", &e))?;
    let damaged = |what: &str| {
        Failure::new(
            format!("the state file {} is not changed: {what}", file.path().display()),
            "start outboard-dpu, which sets it aside and asks the broker again",
        )
    };
    let bytes = match loaded {
        Loaded::Fresh => return Ok(None),
        Loaded::State(bytes) => bytes,
        Loaded::Damaged(damage) => return Err(damaged(&damage.to_string())),
    };
    let mut record = CardRecord::decode(&bytes).map_err(|e| damaged(&e.to_string()))?;
    let highest = record.host_epochs.iter().map(|(_, epoch)| *epoch).max();
    if highest.is_some() {
        record.host_epochs.clear();
        file.save(&encode(&record))
            .map_err(|e| failed("write the state in", &e))?;
    }
    Ok(highest)
}
