//! `volume`: a guest's virtio-blk devices.

use clap::{Args, Subcommand};
use outboard_api::{
    size::Size,
    volume::{Backend, VolumeSpec, VolumeView},
};
use outboard_protocol::id::Name;
use serde_json::Value;

use super::{allocation_details, binding_state, done, show};
use crate::{error::CliError, options::Global, output};

/// `outboard volume`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard volume list
  outboard volume show disk1
  outboard volume create disk1 --size 4GiB --file disk1.raw")]
pub struct VolumeArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All volumes: state and counters
    #[command(after_help = "Examples:\n  outboard volume list")]
    List,
    /// One volume: binding and counters
    #[command(after_help = "Examples:\n  outboard volume show disk1")]
    Show {
        /// The volume's name
        name: Name,
    },
    /// Make a volume, or change it to what is said here
    #[command(after_help = "\
The file must be there, on the DPU, and be at least that long: truncate -s 4G disk1.raw makes one.
A volume that a guest uses may grow, after its file has: truncate -s 8G disk1.raw. It cannot
shrink then.

Examples:
  outboard volume create disk1 --size 4GiB --file disk1.raw
  outboard volume create scratch --size 512MiB --memory --card rack7")]
    Create {
        /// The volume's name
        name: Name,
        /// Its size: KiB, MiB, GiB, TiB or bytes, a multiple of 512
        #[arg(long)]
        size: Size,
        #[command(flatten)]
        backend: BackendArgs,
        /// The device refuses writes
        #[arg(long)]
        read_only: bool,
        /// The card that serves it [default: the only one there is]
        #[arg(long)]
        card: Option<Name>,
    },
    /// Delete a volume; its file stays
    #[command(after_help = "Examples:\n  outboard volume delete disk1")]
    Delete {
        /// The volume's name
        name: Name,
    },
}

/// Where its blocks are.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct BackendArgs {
    /// A raw file on the DPU, absolute or relative to the DPU's volume directory
    #[arg(long, value_name = "PATH", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    file: Option<String>,
    /// The DPU's memory: lost when the DPU ends
    #[arg(long)]
    memory: bool,
    /// Nowhere: reads zeros, forgets writes; for measuring
    #[arg(long)]
    null: bool,
}

impl BackendArgs {
    /// Exactly one of them was given: the command line is refused otherwise.
    fn backend(&self) -> Backend {
        match &self.file {
            Some(path) => Backend::File(path.clone()),
            None if self.memory => Backend::Memory,
            None => Backend::Null,
        }
    }
}

/// Does it.
///
/// # Errors
/// The broker is away or refuses.
pub async fn run(global: &Global, args: &VolumeArgs) -> Result<(), CliError> {
    let client = global.client()?;
    match &args.verb {
        Verb::List => show(
            global,
            &client.get::<Vec<VolumeView>>("/v1/volumes").await?,
            |volumes| table(volumes),
        ),
        Verb::Show { name } => show(global, &client.get(&format!("/v1/volumes/{name}")).await?, details),
        Verb::Create {
            name,
            size,
            backend,
            read_only,
            card,
        } => {
            let (name, card, read_only) = (name.clone(), card.clone(), *read_only);
            let spec = VolumeSpec {
                name,
                size: *size,
                backend: backend.backend(),
                read_only,
                card,
            };
            let answer: Value = client.put(&format!("/v1/volumes/{}", spec.name), &spec).await?;
            done(global, &answer, &format!("volume {} is declared", spec.name))
        }
        Verb::Delete { name } => {
            let answer: Value = client.delete(&format!("/v1/volumes/{name}")).await?;
            done(global, &answer, &format!("volume {name} deleted"))
        }
    }
}

/// The table of all volumes.
pub fn table(volumes: &[VolumeView]) -> String {
    let row = |v: &VolumeView| {
        let counters = v.counters.as_ref();
        [
            v.spec.name.to_string(),
            v.spec.size.to_string(),
            v.spec.backend.to_string(),
            mode(v),
            output::or_dash(v.spec.card.as_ref()),
            binding_state(v.binding.as_ref(), v.grant.as_ref()),
            output::or_dash(counters.map(|c| c.read_requests)),
            output::or_dash(counters.map(|c| c.write_requests)),
            output::or_dash(counters.map(|c| c.flush_requests)),
            output::or_dash(counters.map(|c| c.failed_requests)),
        ]
    };
    let header = [
        "VOLUME", "SIZE", "BACKEND", "MODE", "CARD", "STATE", "READS", "WRITES", "FLUSHES", "FAILED",
    ];
    output::table(header, volumes.iter().map(row).collect(), "There are no volumes.")
}

fn mode(volume: &VolumeView) -> String {
    if volume.spec.read_only {
        "read-only"
    } else {
        "read-write"
    }
    .to_owned()
}

fn details(volume: &VolumeView) -> String {
    let mut rows = vec![
        ("volume", volume.spec.name.to_string()),
        ("size", format!("{} ({} bytes)", volume.spec.size, volume.size_bytes)),
        ("backend", volume.spec.backend.to_string()),
        ("mode", mode(volume)),
        ("card", output::or_dash(volume.spec.card.as_ref())),
    ];
    rows.extend(allocation_details(volume.grant.as_ref(), volume.binding.as_ref()));
    if let Some(c) = &volume.counters {
        rows.push(("reads", format!("{} requests, {} bytes", c.read_requests, c.read_bytes)));
        rows.push((
            "writes",
            format!("{} requests, {} bytes", c.write_requests, c.write_bytes),
        ));
        rows.push(("flushes", format!("{} requests", c.flush_requests)));
        rows.push(("failed", format!("{} requests", c.failed_requests)));
    }
    output::details(rows)
}
