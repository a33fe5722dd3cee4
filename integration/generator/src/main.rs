//! `outboard-generator`: see `--help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use outboard_generator::{
    args::{Cli, Command},
    blk, ceiling,
    error::Error,
    net,
    report::Report,
};

fn main() -> ExitCode {
    let (json, result) = match Cli::parse().command {
        Command::Net(args) => {
            let result = net::run(&args).map(|outcome| (outcome.report, outcome.wrong));
            (args.common.json, result)
        }
        Command::Ceiling(args) => {
            let result = ceiling::run(&args).map(|outcome| (outcome.report, outcome.wrong));
            (args.common.json, result)
        }
        Command::Blk(args) => (args.common.json, blk::run(&args)),
    };
    let wrong = match result {
        Ok((report, wrong)) => {
            print(&report, json);
            wrong
        }
        Err(error) => Some(error),
    };
    match wrong {
        None => ExitCode::SUCCESS,
        Some(error) => {
            eprintln!("outboard-generator: {error}");
            // As usual, 2 is for a wrong command line.
            ExitCode::from(if matches!(error, Error::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn print(report: &Report, json: bool) {
    match serde_json::to_value(report) {
        Ok(value) if json => println!("{value}"),
        Ok(serde_json::Value::Object(fields)) => {
            let parts: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
            println!("{}", parts.join(" ").replace('"', ""));
        }
        Ok(_) => {}
        Err(error) => eprintln!("outboard-generator: the result could not be printed: {error}"),
    }
}
