//! fio with io_uring on the file itself: what the storage below a device can do on one core.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::{Backend, Context, store};
use crate::{
    cases::{BlkWork, Store},
    error::Failure,
    generator::{Load, Report, Target, Timing},
    launch::{Launch, run},
};

const WHO: &str = "raw";

/// A file that is ready. Nothing runs.
pub struct Raw {
    path: PathBuf,
    direct: bool,
}

impl Raw {
    /// Makes the file.
    pub fn prepare(context: &Context, store: Store) -> Result<Self, Failure> {
        Ok(Self {
            path: store::file(WHO, context, store)?,
            direct: store == Store::Disk,
        })
    }
}

impl Backend for Raw {
    fn target(&self) -> Target {
        Target::File {
            path: self.path.clone(),
            direct: self.direct,
        }
    }

    fn processes(&self) -> BTreeSet<u32> {
        BTreeSet::new()
    }

    fn pollers(&self) -> BTreeSet<u32> {
        BTreeSet::new()
    }

    fn check(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn version(&self) -> String {
        let said = run(WHO, Command::new("fio").arg("--version")).unwrap_or_default();
        said.trim().to_owned()
    }
}

/// One run of fio. There is no second program: it is driver and storage, on the core of the generator.
pub fn fio_load(path: &Path, direct: bool, work: BlkWork, timing: Timing, core: usize) -> Load {
    let launch = Launch::new(WHO, "fio", core)
        .args([
            "--name=raw",
            "--ioengine=io_uring",
            "--time_based",
            "--norandommap",
            "--randrepeat=0",
        ])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--rw={}", work.operation))
        .arg(format!("--bs={}", work.block_len_bytes))
        .arg(format!("--iodepth={}", work.depth))
        .arg(format!("--direct={}", u8::from(direct)))
        .arg(format!("--runtime={}ms", (timing.seconds * 1e3).round()))
        .arg(format!("--ramp_time={}ms", (timing.warmup * 1e3).round()))
        // in the process that was started, not in a child of it: its CPU time is counted by process
        .args(["--thread", "--output-format=json"]);
    Load::new(launch, timing, parse_fio).is_backend()
}

/// IOPS of the one job: it only reads or only writes, so the sum is the one that is not 0.
fn parse_fio(text: &str) -> Option<Report> {
    let object: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let job = object.get("jobs")?.get(0)?;
    if job.get("error").and_then(Value::as_i64) != Some(0) {
        return None;
    }
    let iops = |way: &str| job.get(way)?.get("iops")?.as_f64();
    let total = iops("read")? + iops("write")?;
    (total > 0.0).then(|| Report {
        iops: Some(total),
        ..Report::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_fio_is_found_behind_its_warnings() {
        let text = "note: both iodepth >= 1 and synchronous I/O engine\n{\"jobs\":[{\"error\":0,\
                    \"read\":{\"iops\":0.0},\"write\":{\"iops\":495000.5}}]}";
        assert_eq!(parse_fio(text).and_then(|report| report.iops), Some(495_000.5));
    }

    #[test]
    fn a_failed_job_is_no_result() {
        let text = "{\"jobs\":[{\"error\":5,\"read\":{\"iops\":10.0},\"write\":{\"iops\":0.0}}]}";
        assert_eq!(parse_fio(text), None);
        assert_eq!(parse_fio("fio: pid=1, err=28"), None);
        let idle = "{\"jobs\":[{\"error\":0,\"read\":{\"iops\":0.0},\"write\":{\"iops\":0.0}}]}";
        assert_eq!(parse_fio(idle), None);
    }
}
