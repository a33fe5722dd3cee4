//! The daemons' configuration files.

use std::path::PathBuf;

use outboard_shim_api::DeviceSpec;
use serde::Serialize;

use super::{
    layout::{CardIdentity, RunDir, write_config},
    plan::Plan,
};
use crate::error::CliError;

#[derive(Serialize)]
struct Broker<'a> {
    state_dir: PathBuf,
    api_socket: PathBuf,
    card_listen: &'a str,
}

#[derive(Serialize)]
struct Dpu<'a> {
    state_dir: PathBuf,
    card: &'a str,
    serial: &'a str,
    /// Given at each start: the broker's port is another one each time.
    broker: &'a str,
    link_socket: PathBuf,
    volume_dir: PathBuf,
    workers: usize,
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    worker_cores: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

/// Those of the DPU's limits that can be told here.
#[derive(Serialize)]
struct Limits {
    tracked_connections: u32,
}

#[derive(Serialize)]
struct Shim {
    link_socket: PathBuf,
    api_socket: PathBuf,
    socket_dir: PathBuf,
    state_file: PathBuf,
    #[serde(rename = "device")]
    devices: Vec<DeviceSpec>,
}

/// Writes `broker.toml`. Only this machine's card connects, and any free port will do at first: the broker tells which
/// it got.
///
/// # Errors
/// The run directory cannot be written.
pub fn write_broker(dir: &RunDir, card_listen: Option<&str>) -> Result<PathBuf, CliError> {
    let broker = Broker {
        state_dir: dir.state("broker"),
        api_socket: dir.broker_socket(),
        card_listen: card_listen.unwrap_or("127.0.0.1:0"),
    };
    write(dir, "broker", &broker)
}

/// Writes `dpu.toml`.
///
/// # Errors
/// The run directory cannot be written.
pub fn write_dpu(dir: &RunDir, plan: &Plan, card: &CardIdentity, broker: &str) -> Result<PathBuf, CliError> {
    let dpu = Dpu {
        state_dir: dir.state("dpu"),
        card: &card.name,
        serial: &card.serial,
        broker,
        link_socket: dir.link_socket(),
        volume_dir: plan.volume_dir.clone(),
        workers: plan.workers,
        worker_cores: &plan.cores,
        limits: plan
            .tracked_connections
            .map(|tracked_connections| Limits { tracked_connections }),
    };
    write(dir, "dpu", &dpu)
}

/// Writes `shim.toml`, with the devices that the shim attaches by itself when it starts.
///
/// # Errors
/// The run directory cannot be written.
pub fn write_shim(dir: &RunDir, devices: Vec<DeviceSpec>) -> Result<PathBuf, CliError> {
    let shim = Shim {
        link_socket: dir.link_socket(),
        api_socket: dir.shim_socket(),
        socket_dir: dir.root().to_owned(),
        state_file: dir.state("shim.json"),
        devices,
    };
    write(dir, "shim", &shim)
}

fn write(dir: &RunDir, daemon: &str, value: &impl Serialize) -> Result<PathBuf, CliError> {
    let path = dir.config(daemon);
    write_config(&path, value)?;
    Ok(path)
}
