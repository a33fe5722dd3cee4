//! QEMU moves a running guest to another QEMU on another port, while frames are written into its memory: the dirty log
//! has to name every page that the device wrote, or the guest wakes up with old ones.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use outboard_integration::{
    frontend::{NetGuest, echo_frame},
    guest::{Guest, GuestSpec},
    qmp::Qmp,
    setup,
    site::{LIMIT, Outcome, Site},
    wait,
};
use serde_json::json;

const COMMAND_LIMIT: Duration = Duration::from_secs(60);
const MIGRATION_LIMIT: Duration = Duration::from_secs(120);

fn site() -> Outcome<Site> {
    let mut topology = String::from("[[network]]\nname = \"blue\"\nsubnets = [\"10.0.0.0/24\"]\n");
    for number in 1..=3 {
        topology += &format!(
            "[[port]]\nname = \"vm{number}\"\nnetwork = \"blue\"\nmac = \"52:54:00:00:00:0{number}\"\n\
             addresses = [\"10.0.0.{number}\"]\ncard = \"local\"\n"
        );
    }
    Site::new(&topology)
}

fn boot(site: &Site, number: u8, more: &[String]) -> Outcome<Guest> {
    let name = format!("vm{number}");
    let spec = GuestSpec {
        port: Some((
            site.run_path(&format!("ports/{name}.sock")),
            // the same device on both sides: the guest takes its own MAC along
            "52:54:00:00:00:01".into(),
        )),
        address: Some("10.0.0.1/24".into()),
        arguments: [
            &[
                "-qmp".into(),
                format!("unix:{},server=on,wait=off", site.folder().join(&name).display()),
            ],
            more,
        ]
        .concat(),
        name,
        ..GuestSpec::default()
    };
    Ok(Guest::start(&spec, &setup::guest_image()?, site.folder())?)
}

#[test]
fn a_guest_moves_to_another_qemu() -> Outcome {
    let site = site()?;
    let mut source = boot(&site, 1, &[])?;
    source.wait_booted()?;
    let mut peer = wait::until(LIMIT, || NetGuest::start(&site.run_path("ports/vm3.sock")).ok()).ok_or("vm3")?;
    let answered = wait::until(COMMAND_LIMIT, || {
        source.run("ping -c 1 -W 1 10.0.0.1", COMMAND_LIMIT).ok()
    });
    answered.ok_or("the guest has no network")?;
    // files that are read again after the move: what the device wrote lies in the page cache beside them
    source.run(
        "dd if=/dev/urandom of=/tmp/x bs=1M count=24 2>/dev/null; sha256sum </tmp/x >/tmp/sum",
        COMMAND_LIMIT,
    )?;

    let channel = format!("unix:{}", site.folder().join("migration").display());
    let mut target = boot(&site, 2, &["-incoming".into(), channel.clone()])?;
    let listening = wait::until(LIMIT, || site.folder().join("migration").exists().then_some(()));
    listening.ok_or("the target does not listen")?;
    let stop = AtomicBool::new(false);
    let (status, sent) = thread::scope(|scope| -> Outcome<_> {
        let sending = scope.spawn(|| {
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                // what the guest answers is not looked at: its memory is what this writes to
                sent += u64::from(peer.send(&echo_frame(3, 1, 1)));
                while peer.receive(Duration::from_micros(300)).is_some() {}
            }
            sent
        });
        let moved = (|| -> Outcome<_> {
            let mut qmp = Qmp::connect(&site.folder().join("vm1"))?;
            let fast = json!({ "max-bandwidth": 1u64 << 30, "downtime-limit": 300 });
            qmp.run("migrate-set-parameters", fast)?;
            qmp.run("migrate", json!({ "uri": channel }))?;
            let until = Instant::now() + MIGRATION_LIMIT;
            loop {
                let state = qmp.run("query-migrate", json!({}))?;
                match state["status"].as_str() {
                    Some("completed") => return Ok(state),
                    Some("failed" | "cancelled") => return Err(state.to_string().into()),
                    _ if Instant::now() > until => return Err(format!("it does not end: {state}").into()),
                    _ => thread::sleep(Duration::from_millis(100)),
                }
            }
        })();
        stop.store(true, Ordering::Relaxed);
        let sent = sending.join().map_err(|_| "the peer panicked")?;
        Ok((moved?, sent))
    })?;
    drop(source);
    assert!(sent > 100, "frames were sent while it moved");
    println!(
        "moved in {} ms, down for {} ms, {sent} frames meanwhile",
        status["total-time"], status["downtime"]
    );
    target.run("test \"$(sha256sum </tmp/x)\" = \"$(cat /tmp/sum)\"", COMMAND_LIMIT)?;
    let (_, complaints) = target.try_run("dmesg | grep -E 'BUG|Oops|is not a head|bad gso'", COMMAND_LIMIT)?;
    assert_eq!(complaints, "", "the guest's kernel complains");
    // its device goes on; the port that it moved to has another address, which is the operator's to change
    target.run(
        "ip link set eth0 down; ip link set eth0 address 52:54:00:00:00:02; ip addr flush dev eth0; \
         ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up",
        COMMAND_LIMIT,
    )?;
    let frame = echo_frame(3, 2, 7);
    let answered = wait::until(COMMAND_LIMIT, || {
        peer.send(&frame);
        while let Some(came) = peer.receive(Duration::from_millis(200)) {
            // the guest asks for our address first, and gets it here
            if came.get(12..14) == Some(&[0x08, 0x06]) && came.get(38..42) == Some(&[10, 0, 0, 3]) {
                peer.send(&arp_answer(&came));
            }
            if came.get(12..14) == Some(&[0x08, 0x00]) && came.get(34) == Some(&0) {
                return Some(());
            }
        }
        None
    });
    Ok(answered.ok_or("the guest does not answer after the move")?)
}

/// The answer to an ARP request, from port 3.
fn arp_answer(request: &[u8]) -> Vec<u8> {
    let mac = [0x52, 0x54, 0, 0, 0, 3];
    let (asker_mac, asker_ip) = (&request[22..28], &request[28..32]);
    [
        asker_mac,
        &mac,
        &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2],
        &mac,
        &[10, 0, 0, 3],
        asker_mac,
        asker_ip,
    ]
    .concat()
}
