//! `operator`: who may use the broker's network API.

use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use outboard_api::operator::OperatorCredentials;
use outboard_protocol::id::Name;
use serde_json::json;

use super::show;
use crate::{error::CliError, options::Global};

/// `outboard operator`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard operator issue alice --out alice/
  outboard --api https://broker:7471 --ca alice/ca.pem --cert alice/cert.pem --key alice/key.pem status")]
pub struct OperatorArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make an operator's key and certificate for --api; only over the broker's unix socket
    #[command(after_help = "\
Writes cert.pem, key.pem (mode 0600) and ca.pem, none of which may be there yet. The broker keeps no
copy of the key.

Examples:
  outboard operator issue alice --out alice/")]
    Issue {
        /// The operator's name, as the audit trail will have it
        name: Name,
        /// The directory to write the files to; made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Does it.
///
/// # Errors
/// The broker is away or refuses, or a file cannot be written.
pub async fn run(global: &Global, args: &OperatorArgs) -> Result<(), CliError> {
    let Verb::Issue { name, out } = &args.verb;
    let path = |file: &str| out.join(file);
    let (cert, key, ca) = (path("cert.pem"), path("key.pem"), path("ca.pem"));
    // Looked at before the broker is asked: a key that cannot be kept must not be made.
    std::fs::create_dir_all(out).map_err(|e| CliError::io("make", out, &e, "name a directory of yours with --out"))?;
    if let Some(there) = [&cert, &key, &ca].into_iter().find(|path| path.exists()) {
        let what = format!("{} is there already", there.display());
        return Err(CliError::coded(
            "exists",
            what,
            "name another directory with --out, or move it away",
        ));
    }
    let made: OperatorCredentials = global
        .client()?
        .post(&format!("/v1/operators/{name}"), &json!({}))
        .await?;
    for (path, text) in [(&key, &made.key), (&cert, &made.certificate), (&ca, &made.ca)] {
        write_private(path, text)
            .map_err(|e| CliError::io("write", path, &e, "check the directory, then issue again"))?;
    }
    show(global, &json!({"certificate": cert, "key": key, "ca": ca}), |_| {
        let (ca, cert, key) = (ca.display(), cert.display(), key.display());
        format!(
            "operator {name} may use:\n\n  outboard --api https://HOST:PORT --ca {ca} --cert {cert} --key {key} status"
        )
    })
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
