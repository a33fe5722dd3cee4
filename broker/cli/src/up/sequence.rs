//! The steps of `up`, in order.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use outboard_api::{
    binding::BindingView,
    card::{CardState, CardView, EnrolRequest, EnrolResponse},
    grant::GrantView,
    health::Health,
    topology::Change,
};
use outboard_protocol::id::ObjectKind;
use outboard_shim_api::{self as shim, DeviceKind, DeviceSpec, DeviceView, Role};

use super::{
    config,
    daemons::Daemons,
    layout::{CardIdentity, RunDir},
    plan::Plan,
    progress::Progress,
    ready::{Ready, is_ready},
    snippets,
};
use crate::{
    client::{
        Client,
        connect::{Service, Target},
    },
    error::CliError,
};

/// How long each step may take before `up` gives up. Generous: machines that boot guests are busy.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two looks at something that is awaited.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Lifetime of the token that enrols the card, which is used at once, in seconds.
const TOKEN_TTL_S: u64 = 120;

/// A certificate that ends sooner than this is replaced when `up` starts: a card's is valid for a year.
const CERTIFICATE_LEFT_MIN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// File in which the broker tells the address that cards reach it at, in its state directory.
const CARD_ADDRESS_FILE: &str = "card_address";

/// File of a DPU's key and certificate, in its state directory.
const IDENTITY_FILE: &str = "identity.toml";

/// Starts everything and waits until every device awaits its VMM.
///
/// # Errors
/// What stands in the way. Daemons that were started are in `daemons`.
pub async fn start(
    plan: &Plan,
    dir: &RunDir,
    daemons: &mut Daemons,
    progress: &mut Progress,
) -> Result<Ready, CliError> {
    let card = dir.card(plan.card.as_str())?;
    let broker = Client::new(Target::socket(dir.broker_socket(), Service::Broker));
    let shim = Client::new(Target::socket(dir.shim_socket(), Service::Shim));

    progress.step("starting outboard-broker");
    daemons.start(dir, "broker", &config::write_broker(dir, None)?)?;
    daemons.watch(answers::<Health>(&broker, "broker", dir)).await?;
    let card_address = card_address(dir)?;
    // A broker that is started again is where the DPU knows it to be.
    config::write_broker(dir, Some(&card_address))?;
    let dpu_config = config::write_dpu(dir, plan, &card, &card_address)?;

    if needs_enrolment(&broker, dir, &card).await? {
        progress.step(&format!("enrolling card {}", card.name));
        let request = EnrolRequest {
            serial: card.serial.clone(),
            ttl_s: Some(TOKEN_TTL_S),
        };
        let answer: EnrolResponse = broker.post(&format!("/v1/cards/{}/enrol", card.name), &request).await?;
        let enrolled = daemons.enrol(dir, &dpu_config, &answer.token)?;
        daemons.watch(enrolled).await?;
    }
    progress.step("starting outboard-dpu");
    daemons.start(dir, "dpu", &dpu_config)?;
    daemons.watch(connected(&broker, dir, &card)).await?;

    progress.step("applying the topology");
    let changes: Vec<Change> = broker.put("/v1/topology", &plan.topology).await?;

    progress.step("starting outboard-shim");
    daemons.start(dir, "shim", &config::write_shim(dir, Vec::new())?)?;
    daemons.watch(answers::<shim::Health>(&shim, "shim", dir)).await?;
    for device in wanted(plan) {
        let _: DeviceView = shim.post("/v1/devices", &device).await?;
    }
    // A shim that is started again attaches them by itself.
    config::write_shim(dir, wanted(plan))?;
    let devices = daemons.watch(devices_ready(&broker, &shim, progress)).await?;
    let qemu = snippets::installed_qemu().await;
    Ok(Ready::new(plan, dir, daemons.pids().collect(), changes, devices, qemu))
}

/// Every port with a device and every volume of the file, in its order.
fn wanted(plan: &Plan) -> Vec<DeviceSpec> {
    let device = |kind, name: &str| DeviceSpec {
        kind,
        name: name.to_owned(),
        socket: None,
        role: Role::Listen,
        uid: None,
    };
    let ports = plan
        .topology
        .ports
        .iter()
        .filter(|p| p.trunk.is_none())
        .map(|p| device(DeviceKind::Port, p.name.as_str()));
    let volumes = plan
        .topology
        .volumes
        .iter()
        .map(|v| device(DeviceKind::Volume, v.name.as_str()));
    ports.chain(volumes).collect()
}

/// Waits until a daemon answers on its socket.
async fn answers<T: serde::de::DeserializeOwned>(client: &Client, name: &str, dir: &RunDir) -> Result<(), CliError> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        match client.get::<T>("/v1/health").await {
            Ok(_) => return Ok(()),
            Err(e) if Instant::now() >= deadline => {
                let remedy = format!("look at {}", dir.log(name).display());
                return Err(e.with_remedy(remedy));
            }
            Err(_) => tokio::time::sleep(LOOK_PAUSE).await,
        }
    }
}

fn card_address(dir: &RunDir) -> Result<String, CliError> {
    let path = dir.state("broker").join(CARD_ADDRESS_FILE);
    let text = std::fs::read_to_string(&path)
        .map_err(|e| CliError::io("read", &path, &e, format!("look at {}", dir.log("broker").display())))?;
    Ok(text.trim().to_owned())
}

async fn needs_enrolment(broker: &Client, dir: &RunDir, card: &CardIdentity) -> Result<bool, CliError> {
    let cards: Vec<CardView> = broker.get("/v1/cards").await?;
    let has_identity = dir.state("dpu").join(IDENTITY_FILE).exists();
    Ok(!has_identity || !certified(&cards, &card.name, Timestamp::now()))
}

/// Has the broker given the card a certificate that will do for a while? `up` has both ends in its hands, so it enrols
/// the card anew rather than to leave that to somebody once the certificate is over.
fn certified(cards: &[CardView], name: &str, now: Timestamp) -> bool {
    cards.iter().filter(|c| c.name.as_str() == name).any(|c| {
        let left = c.certificate_expires.map(|end| end.duration_since(now));
        c.state != CardState::Pending && left.is_some_and(|left| left > CERTIFICATE_LEFT_MIN)
    })
}

/// Waits until the broker has the card's connection.
async fn connected(broker: &Client, dir: &RunDir, card: &CardIdentity) -> Result<(), CliError> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        let view: CardView = broker.get(&format!("/v1/cards/{}", card.name)).await?;
        if view.state == CardState::Connected {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let what = format!(
                "card {} did not connect to the broker within {} s",
                card.name,
                STEP_TIMEOUT.as_secs()
            );
            let remedy = format!(
                "look at {} and {}",
                dir.log("dpu").display(),
                dir.log("broker").display()
            );
            return Err(CliError::coded("card_not_connected", what, remedy));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Waits until every device awaits its VMM, but for those whose grant an operator has revoked.
async fn devices_ready(broker: &Client, shim: &Client, progress: &mut Progress) -> Result<Vec<DeviceView>, CliError> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        let health: shim::Health = shim.get("/v1/health").await?;
        let grants: Vec<GrantView> = broker.get("/v1/grants").await?;
        let waiting: Vec<&DeviceView> = health.devices.iter().filter(|d| !settled(d, &grants)).collect();
        let Some(first) = waiting.first() else {
            return Ok(health.devices);
        };
        progress.step(&describe(&waiting, health.devices.len()));
        if Instant::now() >= deadline {
            let bindings: Vec<BindingView> = broker.get("/v1/bindings").await?;
            return Err(why_not(first, &health.link, &bindings));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn settled(device: &DeviceView, grants: &[GrantView]) -> bool {
    let revoked = grants
        .iter()
        .any(|g| is(device, g.kind, g.name.as_str()) && g.revocation.is_some());
    revoked || is_ready(device)
}

fn is(device: &DeviceView, kind: ObjectKind, name: &str) -> bool {
    let same_kind = matches!(
        (device.kind, kind),
        (DeviceKind::Port, ObjectKind::Port) | (DeviceKind::Volume, ObjectKind::Volume)
    );
    same_kind && device.name == name
}

/// How many devices are in which state.
fn describe(waiting: &[&DeviceView], all: usize) -> String {
    let mut states = BTreeMap::<String, usize>::new();
    for device in waiting {
        *states.entry(device.state.to_string()).or_default() += 1;
    }
    let states: Vec<String> = states.iter().map(|(state, n)| format!("{n} {state}")).collect();
    format!(
        "attaching: {} of {all} ready ({})",
        all - waiting.len(),
        states.join(", ")
    )
}

/// The card knows more about an object than the host is told, so what it told the broker comes first.
fn why_not(device: &DeviceView, link: &shim::LinkView, bindings: &[BindingView]) -> CliError {
    let object = format!("{} {}", device.kind, device.name);
    let told = bindings
        .iter()
        .filter(|b| is(device, b.kind, b.name.as_str()))
        .find_map(|b| b.error.as_ref());
    let problem = device.problem.as_ref().or(link.problem.as_ref());
    let (why, remedy) = match (told, problem) {
        (Some(error), _) => (
            error.message.clone(),
            format!("outboard {} show {} tells more", device.kind, device.name),
        ),
        (None, Some(problem)) => (problem.error.clone(), problem.remedy.clone()),
        (None, None) => (
            "the shim tells no reason".to_owned(),
            "look at the logs in the run directory".to_owned(),
        ),
    };
    let what = format!(
        "{object} is still {} after {} s: {why}",
        device.state,
        STEP_TIMEOUT.as_secs()
    );
    CliError::coded("device_not_ready", what, remedy).about(object)
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
