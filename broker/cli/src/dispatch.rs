//! From what was typed to the command that does it.

use std::process::ExitCode;

use crate::{
    args::Command,
    commands::{
        address_set, apply, binding, capture, card, explain, flow, grant, group, network, operator, port, status,
        trace, volume,
    },
    error::CliError,
    options::Global,
    up,
};

/// Does what was typed.
///
/// # Errors
/// Whatever stands in the way, with its remedy.
pub async fn run(global: &Global, command: Command) -> Result<ExitCode, CliError> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Up(args) => up::run(global, &args).await.map(done),
        Command::Apply(args) => apply::apply(global, &args).await.map(done),
        Command::Diff(args) => apply::diff(global, &args).await,
        Command::Status(args) => status::run(global, &args).await.map(done),
        Command::Card(args) => card::run(global, &args).await.map(done),
        Command::Network(args) => network::run(global, &args).await.map(done),
        Command::Group(args) => group::run(global, &args).await.map(done),
        Command::AddressSet(args) => address_set::run(global, &args).await.map(done),
        Command::Port(args) => port::run(global, &args).await.map(done),
        Command::Volume(args) => volume::run(global, &args).await.map(done),
        Command::Grant(args) => grant::run(global, &args).await.map(done),
        Command::Binding(args) => binding::run(global, &args).await.map(done),
        Command::Explain(args) => explain::explain(global, &args).await.map(done),
        Command::Trace(args) => trace::run(global, &args).await.map(done),
        Command::Capture(args) => capture::run(global, &args).await.map(done),
        Command::Flow(args) => flow::run(global, &args).await.map(done),
        Command::Reasons(args) => explain::reasons(global, &args).await.map(done),
        Command::Operator(args) => operator::run(global, &args).await.map(done),
        Command::Child(args) => Err(up::child::run(&args)),
    }
}
