//! What a topology file asks of this machine.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use outboard_api::{
    topology::Topology,
    volume::{Backend, VolumeSpec},
};
use outboard_protocol::id::Name;

use super::UpArgs;
use crate::{error::CliError, paths};

/// Name of the card where the file names none.
pub const CARD_DEFAULT: &str = "local";

/// Everything that is decided before anything is touched. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is wanted, with the card filled in everywhere.
    pub topology: Topology,
    /// The one card.
    pub card: Name,
    /// Directory for sockets, state and logs.
    pub run_dir: PathBuf,
    /// Directory that relative paths of volumes' files start from.
    pub volume_dir: PathBuf,
    /// Workers of the DPU.
    pub workers: usize,
    /// A core for each of them, or none.
    pub cores: Vec<usize>,
    /// Connections that the DPU follows at a time, if that is told.
    pub tracked_connections: Option<u32>,
}

impl Plan {
    /// Decides.
    ///
    /// # Errors
    /// The file names more than one card, a directory cannot be used, or there is no core for each worker.
    pub fn new(mut topology: Topology, args: &UpArgs) -> Result<Self, CliError> {
        let card = only_card(&topology)?;
        topology
            .place(std::slice::from_ref(&card), &[])
            .map_err(|e| CliError::from(&e))?;
        let run_dir = match &args.run_dir {
            Some(dir) => dir.clone(),
            None => paths::run_dir()?,
        };
        let run_dir = absolute(&run_dir)?;
        check_characters(&run_dir)?;
        let volume_dir = match (&args.volume_dir, args.file.parent()) {
            (Some(dir), _) => dir.clone(),
            (None, Some(dir)) if !dir.as_os_str().is_empty() => dir.to_owned(),
            (None, _) => PathBuf::from("."),
        };
        Ok(Self {
            topology,
            card,
            run_dir,
            volume_dir: absolute(&volume_dir)?,
            workers: workers(args)?,
            cores: args.cores.clone(),
            tracked_connections: args.tracked_connections,
        })
    }

    /// Where a volume's file is, if it has one.
    pub fn file_of(&self, volume: &VolumeSpec) -> Option<PathBuf> {
        match &volume.backend {
            Backend::File(path) => Some(self.volume_dir.join(path)),
            Backend::Memory | Backend::Null => None,
        }
    }
}

/// As many as there are cores for, if they are named.
fn workers(args: &UpArgs) -> Result<usize, CliError> {
    let cores = args.cores.len();
    let workers = args.workers.unwrap_or(cores.max(1));
    if workers == 0 || (cores > 0 && cores != workers) {
        return Err(CliError::coded(
            "usage",
            format!("--workers {workers} does not go with {cores} cores"),
            "name one core for each worker, like --core 2,3, or leave one of both options out",
        ));
    }
    Ok(workers)
}

fn only_card(topology: &Topology) -> Result<Name, CliError> {
    let named: BTreeSet<&Name> = topology.cards().collect();
    let mut named = named.into_iter();
    match (named.next(), named.next()) {
        (None, _) => CARD_DEFAULT
            .parse()
            .map_err(|e| CliError::new(format!("card {CARD_DEFAULT}: {e}"), "report this")),
        (Some(card), None) => Ok(card.clone()),
        (Some(a), Some(b)) => Err(CliError::coded(
            "several_cards",
            format!("'up' runs one card, and the file names at least two: {a} and {b}"),
            "name one card everywhere, or apply the file to a broker with those cards: outboard apply -f FILE",
        )),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|e| CliError::io("find", path, &e, "name a directory that exists"))
}

/// VMMs' command lines and libvirt's XML take no quoting that all of them understand, and the paths below the run
/// directory are pasted into them.
fn check_characters(run_dir: &Path) -> Result<(), CliError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
    match run_dir.to_str() {
        Some(text) if text.chars().all(plain) => Ok(()),
        _ => Err(CliError::coded(
            "run_dir_characters",
            format!(
                "the run directory {} has characters that VMMs' command lines cannot carry",
                run_dir.display()
            ),
            "name one of letters, digits and any of / . _ - + @ : with --run-dir",
        )),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
