//! `apply` and `diff`: a topology file, made so or compared.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use outboard_api::topology::{self, Change, TOPOLOGY_LEN_MAX, Topology};

use super::show;
use crate::{EXIT_CHANGES, error::CliError, options::Global, output};

/// `outboard apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
Applying is declarative: what the file declares is made or changed, what an earlier apply made and
the file no longer declares is deleted, and what was made by hand stays. Applying the same file
again changes nothing.

Examples:
  outboard apply -f two-vms.toml
  generate-topology | outboard apply -f -
  outboard apply -f two-vms.toml --json")]
pub struct ApplyArgs {
    /// The topology file; '-' reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
}

/// `outboard diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 nothing would change, 2 something would, 1 error.

Examples:
  outboard diff -f two-vms.toml
  outboard diff -f two-vms.toml --json | jq '.[].object.name'")]
pub struct DiffArgs {
    /// The topology file; '-' reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
}

/// Applies a file and prints what that changed.
///
/// # Errors
/// The file cannot be used, or the broker refuses it.
pub async fn apply(global: &Global, args: &ApplyArgs) -> Result<(), CliError> {
    let wanted = load(&args.file)?;
    let changes: Vec<Change> = global.client()?.put("/v1/topology", &wanted).await?;
    show(global, &changes, |c| describe(c, "Nothing to change."))
}

/// Prints what applying a file would change.
///
/// # Errors
/// As [`apply`].
pub async fn diff(global: &Global, args: &DiffArgs) -> Result<ExitCode, CliError> {
    let wanted = load(&args.file)?;
    let changes: Vec<Change> = global.client()?.query("/v1/topology/diff", &wanted).await?;
    show(global, &changes, |c| describe(c, "Nothing would change."))?;
    Ok(if changes.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_CHANGES)
    })
}

/// Reads and checks a topology file.
///
/// # Errors
/// It cannot be read, or is no good topology; the text names file, line and object.
pub fn load(path: &Path) -> Result<Topology, CliError> {
    let unreadable = |e: &std::io::Error| CliError::io("read", path, e, "name the topology file, a TOML file");
    let mut text = String::new();
    let limit = TOPOLOGY_LEN_MAX as u64 + 1;
    let read = match path.to_str() {
        Some("-") => std::io::stdin().take(limit).read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)),
    };
    read.map_err(|e| unreadable(&e))?;
    topology::parse(&text).map_err(|e| CliError::from(&e).in_file(path))
}

/// One line per change.
pub fn describe(changes: &[Change], nothing: &str) -> String {
    let row = |c: &Change| [c.action.name().to_owned(), c.object.to_string(), c.detail.clone()];
    output::table(
        ["ACTION", "OBJECT", "DETAIL"],
        changes.iter().map(row).collect(),
        nothing,
    )
}
