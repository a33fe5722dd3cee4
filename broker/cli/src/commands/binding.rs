//! `binding`: which host has which port or volume.

use clap::{Args, Subcommand, ValueEnum};
use outboard_api::binding::{BindingView, FunctionView};
use outboard_protocol::id::{Name, ObjectKind};

use super::{show, spelt};
use crate::{error::CliError, options::Global, output};

/// `outboard binding`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard binding list
  outboard binding show port vm1")]
pub struct BindingArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All bindings
    #[command(after_help = "Examples:\n  outboard binding list")]
    List,
    /// The bindings of one port or volume
    #[command(after_help = "Examples:\n  outboard binding show port vm1")]
    Show {
        /// port or volume
        kind: Kind,
        /// Its name
        name: Name,
    },
}

/// What can be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A virtio-net device
    Port,
    /// A virtio-blk device
    Volume,
}

impl Kind {
    /// As in the API's paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Volume => "volume",
        }
    }

    fn is(self, kind: ObjectKind) -> bool {
        matches!(
            (self, kind),
            (Self::Port, ObjectKind::Port) | (Self::Volume, ObjectKind::Volume)
        )
    }
}

/// Does it.
///
/// # Errors
/// The broker is away, or the object has no binding.
pub async fn run(global: &Global, args: &BindingArgs) -> Result<(), CliError> {
    let mut bindings: Vec<BindingView> = global.client()?.get("/v1/bindings").await?;
    match &args.verb {
        Verb::List => show(global, &bindings, |bindings| table(bindings)),
        Verb::Show { kind, name } => {
            bindings.retain(|b| kind.is(b.kind) && b.name == *name);
            if bindings.is_empty() {
                let object = format!("{} {name}", kind.name());
                let remedy = format!(
                    "'outboard {} show {name}' tells whether it exists and is granted",
                    kind.name()
                );
                return Err(CliError::coded("not_found", format!("{object} has no binding"), remedy).about(object));
            }
            show(global, &bindings, |bindings| {
                bindings.iter().map(details).collect::<Vec<_>>().join("\n\n")
            })
        }
    }
}

/// `card/controller.pf.function#incarnation`.
pub fn function(function: &FunctionView) -> String {
    let FunctionView {
        card,
        controller,
        pf,
        function,
        kind,
        incarnation,
    } = function;
    format!("{card}/{controller}.{pf}.{function}#{incarnation} {}", spelt(kind))
}

fn table(bindings: &[BindingView]) -> String {
    let row = |b: &BindingView| {
        [
            format!("{} {}", spelt(&b.kind), b.name),
            b.host.to_string(),
            function(&b.function),
            b.generation.to_string(),
            spelt(&b.state),
            output::or_dash(b.error.as_ref().map(|e| &e.message)),
        ]
    };
    let header = ["OBJECT", "HOST", "FUNCTION", "GENERATION", "STATE", "ERROR"];
    output::table(header, bindings.iter().map(row).collect(), "There are no bindings.")
}

fn details(binding: &BindingView) -> String {
    output::details(vec![
        ("object", format!("{} {}", spelt(&binding.kind), binding.name)),
        ("host", binding.host.to_string()),
        ("function", function(&binding.function)),
        ("generation", binding.generation.to_string()),
        ("state", spelt(&binding.state)),
        ("since", output::or_dash(binding.since)),
        ("error", output::or_dash(binding.error.as_ref().map(|e| &e.message))),
    ])
}
