//! An orderly upgrade of the DPU's program under sessions that stay: a new file is started
//! that takes over from the old process, and what a guest that pings a thousand times a second sees of it is measured by the load generator.
//!
//! `cargo test -p outboard-integration --release --test upgrade -- --nocapture` prints least, median and most of the
//! longest gap over `OUTBOARD_ROUNDS` upgrades (5).

use std::{
    env, fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use outboard_integration::{
    binaries::Binaries,
    process::Process,
    site::{LIMIT, Outcome, Site},
    spread::Spread,
    wait,
};

const ROUNDS: u32 = 5;
/// Seconds that the generator measures; the upgrade comes after the first.
const SECONDS: &str = "3";
/// How long no answer may come. The kernel lets a machine that is busy with other work add to it.
const GAP_LIMIT: Duration = Duration::from_secs(1);

fn site() -> Outcome<Site> {
    let mut topology = String::from("[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n");
    for (name, number) in [("a", 10), ("b", 11)] {
        topology += &format!(
            "[[port]]\nname = \"{name}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:{number:02x}\"\n\
             addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
        );
    }
    Site::new(&topology)
}

/// One upgrade under a 1 kHz ping: the longest time without an answer, and how long the old process took to end.
fn upgrade(site: &mut Site) -> Outcome<(Duration, Duration)> {
    let (report, said) = (site.folder().join("report"), site.folder().join("generator.log"));
    let output = fs::File::create(&report)?;
    let socket = |name: &str| site.run_path(&format!("ports/{name}.sock"));
    let mut generator = Process::start(
        "outboard-generator",
        &Binaries::build_generator()?,
        |command| {
            command.args(["net", "--mode", "paced", "--rate", "1000", "--notify", "eventfd"]);
            command.args([
                "--seconds",
                SECONDS,
                "--warmup",
                "0.5",
                "--max-loss-percent",
                "100",
                "--json",
            ]);
            command.arg("--a").arg(socket("a")).arg("--b").arg(socket("b"));
            command.stdout(Stdio::from(output));
        },
        &said,
    )?;
    site.wait_binding("port", "a", "active")?;
    site.wait_binding("port", "b", "active")?;
    thread::sleep(Duration::from_millis(1500));
    site.install_anew("dpu")?;
    let began = Instant::now();
    site.take_over()?;
    let stopped = began.elapsed();
    let status = wait::until(LIMIT, || generator.ended()).ok_or("the generator does not end")?;
    let text = fs::read_to_string(&report)?;
    if !status.success() {
        return Err(format!("{text}{}{}", fs::read_to_string(&said)?, site.log("dpu")).into());
    }
    let report: serde_json::Value = serde_json::from_str(&text)?;
    let gap = report["longest_gap_us"].as_f64().ok_or(text)?;
    Ok((Duration::from_secs_f64(gap / 1e6), stopped))
}

#[test]
fn the_longest_gap_of_a_ping_over_an_upgrade() -> Outcome {
    let rounds = env::var("OUTBOARD_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let mut site = site()?;
    let (mut gaps, mut stops) = (Spread::default(), Spread::default());
    for _ in 0..rounds.unwrap_or(ROUNDS) {
        let (gap, stopped) = upgrade(&mut site)?;
        gaps.add(gap);
        stops.add(stopped);
        // the next round's sessions begin when these have ended
        site.wait_device("port a", "waiting-for-vmm")?;
        site.wait_device("port b", "waiting-for-vmm")?;
    }
    println!("longest gap of a 1 kHz ping over an upgrade: {gaps}; of that, until the old process had ended: {stops}");
    assert!(gaps.median() <= GAP_LIMIT, "{gaps}");
    assert!(gaps.max() <= 3 * wait::on_this_machine(GAP_LIMIT), "{gaps}");
    Ok(())
}
