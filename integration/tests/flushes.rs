//! What a guest was told is flushed survives a power cut: from a record that a test build of the DPU keeps of writes and
//! syncs, the volume is rebuilt out of what a successful sync covered, and held against what the guest was promised.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use outboard_integration::{
    frontend::{BlkLoad, LockIt, Wanted},
    ledger::{BLOCK_LEN, Loss},
    record::{self, Survivors},
    site::{LIMIT, Outcome, Site},
    wait,
};

const BLOCKS: usize = 256;
const DEPTH: usize = 16;

/// Runs load for a moment; what the record says of the volume then, and what is wrong with it.
fn flushes(off: &str) -> Outcome<(Survivors, Result<(), Loss>)> {
    let file = tempfile::Builder::new().prefix("outboard-disk.").tempfile()?;
    file.as_file().set_len((BLOCKS * BLOCK_LEN) as u64)?;
    let path = file.into_temp_path();
    let topology = format!(
        "[[volume]]\nname = \"disk1\"\nsize = \"1MiB\"\nbackend = {{ file = \"{}\" }}\ncard = \"local\"\n",
        path.display()
    );
    let site = Site::recorded(&topology, off)?;
    let socket = site.run_path("volumes/disk1.sock");
    let load = || BlkLoad::start(&socket, Wanted::default(), BLOCKS, DEPTH, 1).ok();
    let mut load = wait::until(LIMIT, load).ok_or("disk1 does not start")?;
    let (ledger, progress) = (load.ledger(), load.progress());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let running = scope.spawn(|| load.run(&stop));
        let enough = wait::until(LIMIT, || (progress.flushes.load(Ordering::Relaxed) >= 50).then_some(()));
        // The promises first: what is promised now must be in a record that is read later.
        let promised = ledger.lock_it().clone();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let survivors = record::survivors(&site.folder().join("record"), &name, BLOCKS * BLOCK_LEN)?;
        let newest = ledger.lock_it().clone();
        let verdict = promised.check_survivors(&survivors.image, &newest);
        // the load goes on meanwhile and ends without an error
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        running.join().map_err(|_| "the load panicked")??;
        enough.ok_or("there were no 50 flushes")?;
        assert!(promised.flushed_blocks() > BLOCKS / 2, "most blocks were flushed");
        Ok((survivors, verdict))
    })
}

#[test]
fn what_a_flush_acknowledged_was_synced() -> Outcome {
    let (survivors, verdict) = flushes("")?;
    verdict?;
    assert!(
        survivors.writes > 0 && survivors.syncs >= 50,
        "{} syncs",
        survivors.syncs
    );

    let (_, verdict) = flushes("durable-flush")?;
    assert!(
        verdict.is_err(),
        "a flush that does not wait for the disk loses what it acknowledged"
    );
    Ok(())
}
