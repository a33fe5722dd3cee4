//! Wrong input to the real programs: what the user is told names the object and the remedy, and the right input works
//! afterwards in the same place.

use std::{fs, os::unix::net::UnixListener, path::Path};

use outboard_integration::{
    binaries::Binaries,
    frontend::{NetGuest, echo_frame},
    site::{LIMIT, Outcome, Site},
    stack::Stack,
    wait,
};

/// Two ports on network blue.
const TOPOLOGY: &str = r#"
[[network]]
name = "blue"
subnets = ["10.0.0.0/24"]
[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1"]
card = "local"
[[port]]
name = "vm2"
network = "blue"
mac = "52:54:00:00:00:02"
addresses = ["10.0.0.2"]
card = "local"
"#;
const VOLUME: &str = r#"
[[volume]]
name = "disk1"
size = "1MiB"
backend = { file = "disk1.raw" }
card = "local"
"#;

fn assert_says(text: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
}

/// Applies `text`; what the user is told when it is refused.
fn apply(site: &Site, text: &str) -> Outcome<Result<String, String>> {
    let file = site.file("edited.toml", text)?;
    Ok(site.outboard(&["apply", "--file", &file.to_string_lossy()])?)
}

fn refusal(site: &Site, text: &str) -> Outcome<String> {
    match apply(site, text)? {
        Err(said) => Ok(said),
        Ok(done) => Err(format!("it was applied: {done}").into()),
    }
}

fn guest(site: &Site, port: &str) -> Outcome<NetGuest> {
    let socket = site.run_path(&format!("ports/{port}.sock"));
    let guest = wait::until(LIMIT, || NetGuest::start(&socket).ok()).ok_or_else(|| format!("{port} does not start"))?;
    site.wait_binding("port", port, "active")?;
    Ok(guest)
}

fn frame_passes(one: &mut NetGuest, two: &mut NetGuest) -> Outcome {
    let frame = echo_frame(1, 2, 1);
    assert!(one.send(&frame));
    assert_eq!(two.receive(LIMIT).ok_or("the frame is lost")?, frame);
    Ok(())
}

#[test]
fn topology_files_that_are_refused() -> Outcome {
    let site = Site::new(TOPOLOGY)?;

    let said = refusal(&site, &TOPOLOGY.replace("subnets =", "mtu = 9000\nsubnets ="))?;
    assert_says(
        &said,
        &[
            "edited.toml",
            "network blue (line 4)",
            "unknown key 'mtu'",
            "fix: remove or correct it",
            "name, subnets",
        ],
    );

    let said = refusal(&site, &TOPOLOGY.replace("00:00:02", "00:00:01"))?;
    assert_says(
        &said,
        &[
            "port vm2",
            "52:54:00:00:00:01",
            "port vm1",
            "network blue",
            "fix: give each port",
        ],
    );

    let group = "[[group]]\nname = \"web\"\n[[group.rule]]\ndirection = \"ingress\"\n";
    let said = refusal(&site, &format!("{TOPOLOGY}{group}ports = \"80\"\n"))?;
    assert_says(
        &said,
        &[
            "group web (line 19)",
            "rule 1",
            "protocol any has no 'ports'",
            "fix: remove 'ports', or write protocol",
        ],
    );
    let said = refusal(&site, &format!("{TOPOLOGY}{group}from = \"10.0.0.1/24\"\n"))?;
    assert_says(
        &said,
        &["subnet '10.0.0.1/24'", "beyond its prefix", "10.0.0.0/24", "fix:"],
    );
    let said = refusal(&site, &TOPOLOGY.replacen("card =", "groups = [\"web\"]\ncard =", 1))?;
    assert_says(&said, &["port vm1", "group", "web", "fix:"]);

    let encrypted = VOLUME.replace("card =", "encryption = \"aes-256-xts\"\ncard =");
    let said = refusal(&site, &format!("{TOPOLOGY}{encrypted}"))?;
    assert_says(
        &said,
        &[
            "volume disk1",
            "encryption",
            "not in this version",
            "fix: remove 'encryption ='",
        ],
    );

    // nothing of the refused files came about, and the right one is taken
    let done = apply(&site, TOPOLOGY)??;
    assert!(!done.contains("create") && !done.contains("delete"), "{done}");
    let green = "[[network]]\nname = \"green\"\nsubnets = [\"10.1.0.0/24\"]\n";
    assert_says(
        &apply(&site, &format!("{TOPOLOGY}{green}"))??,
        &["create", "network green"],
    );
    Ok(())
}

#[test]
fn unknown_keys_in_the_daemons_configurations() -> Outcome {
    let mut site = Site::new(TOPOLOGY)?;
    for (daemon, key, known) in [
        ("shim", "socket_path", "socket_dir"),
        ("dpu", "volumes", "correct the line shown"),
        ("broker", "api_port", "api_listen"),
    ] {
        site.stop(daemon)?;
        let path = site.run_path(&format!("{daemon}.toml"));
        let right = fs::read_to_string(&path)?;
        // before any section, so that it is a key of the file itself
        fs::write(&path, format!("{key} = 1\n{right}"))?;
        let said = site.refused(daemon)?;
        assert_says(
            &said,
            &["error: ", &path.to_string_lossy(), "line 1", key, "  fix: ", known],
        );
        fs::write(&path, right)?;
        site.start(daemon)?;
    }
    let (mut one, mut two) = (guest(&site, "vm1")?, guest(&site, "vm2")?);
    frame_passes(&mut one, &mut two)
}

#[test]
fn a_serial_of_two_cards() -> Outcome {
    let site = Site::new(TOPOLOGY)?;
    let config = fs::read_to_string(site.run_path("dpu.toml"))?;
    let serial = config
        .split('"')
        .find(|part| part.starts_with("soft-"))
        .ok_or("no serial")?;
    let said = site.outboard(&["card", "enrol", "second", "--serial", serial])?.err();
    assert_says(
        &said.ok_or("a duplicate serial was taken")?,
        &[
            serial,
            "card local",
            "fix: correct the serial",
            "outboard card delete local",
        ],
    );
    let token = site.outboard(&["card", "enrol", "second", "--serial", "another-serial"])??;
    assert_says(&token, &["obt1."]);
    Ok(())
}

#[test]
fn a_volume_whose_file_is_missing_or_too_small() -> Outcome {
    let site = Site::new(TOPOLOGY)?;
    apply(&site, &format!("{TOPOLOGY}{VOLUME}"))??;
    let file = site.folder().join("disk1.raw");
    let shown = |wanted: &str| {
        let look = || site.outboard(&["volume", "show", "disk1"]).ok()?.ok();
        wait::until(LIMIT, || look().filter(|text| text.contains(wanted)))
            .ok_or_else(|| format!("'{wanted}' is missing in {:?}", look()))
    };
    let said = shown("does not exist")?;
    assert_says(&said, &["volume disk1", &file.to_string_lossy(), "truncate -s 1048576"]);

    fs::File::create(&file)?.set_len(1000)?;
    let said = shown("1000 bytes")?;
    assert_says(
        &said,
        &["volume disk1", &file.to_string_lossy(), "1048576", "truncate -s"],
    );

    fs::File::options().write(true).open(&file)?.set_len(1 << 20)?;
    site.shim(&["attach", "volume", "disk1"])??;
    site.wait_device("volume disk1", "waiting-for-vmm")?;
    let said = site.outboard(&["volume", "show", "disk1"])??;
    assert!(!said.contains("error:"), "{said}");
    Ok(())
}

#[test]
fn up_with_a_volume_whose_file_is_missing() -> Outcome {
    let folder = tempfile::Builder::new().prefix("outboard.").tempdir()?;
    let file = folder.path().join("topology.toml");
    fs::write(&file, format!("{TOPOLOGY}{VOLUME}"))?;
    let binaries = Binaries::build()?;
    let up = || Stack::up(&binaries, &file, folder.path(), |_| {});
    let said = up().err().ok_or("it started without the file")?.to_string();
    let disk = folder.path().join("disk1.raw");
    assert_says(&said, &["volume disk1", &disk.to_string_lossy(), "truncate -s 1M"]);
    fs::File::create(&disk)?.set_len(1 << 20)?;
    up()?.stop()?;
    Ok(())
}

#[test]
fn a_socket_path_in_use() -> Outcome {
    let site = Site::new(TOPOLOGY)?;
    site.shim(&["detach", "port", "vm1"])??;
    let path = site.run_path("ports/vm1.sock");
    wait::until(LIMIT, || (!Path::new(&path).exists()).then_some(())).ok_or("the socket stays")?;
    let other = UnixListener::bind(&path)?;
    // refused at once, or told in the list: either way before anybody waits for a VMM in vain
    let attached = site.shim(&["attach", "port", "vm1"])?;
    let said = match attached {
        Err(said) => said,
        Ok(_) => site.wait_device("port vm1", "problem:")?,
    };
    assert_says(&said, &["vm1", &path.to_string_lossy(), "fix: "]);
    assert!(said.contains("in use") || said.contains("listen"), "{said}");
    other.set_nonblocking(true)?;

    // dropping a listener leaves its file behind: a stale socket, which is replaced
    drop(other);
    assert!(path.exists());
    site.shim(&["attach", "port", "vm1"])??;
    site.wait_device("port vm1", "waiting-for-vmm")?;
    let (mut one, mut two) = (guest(&site, "vm1")?, guest(&site, "vm2")?);
    frame_passes(&mut one, &mut two)
}

#[test]
fn a_port_that_is_not_granted_looks_like_one_that_does_not_exist() -> Outcome {
    let site = Site::new(TOPOLOGY)?;
    site.shim(&["detach", "port", "vm2"])??;
    site.outboard(&["grant", "revoke", "port", "vm2"])??;
    let told = |name: &str| -> Outcome<String> {
        site.shim(&["attach", "port", name])??;
        let lines = site.wait_device(&format!("port {name}"), "problem:")?;
        let words: Vec<_> = lines.split_whitespace().collect();
        Ok(words.join(" ").replace(name, "NAME"))
    };
    let (ungranted, absent) = (told("vm2")?, told("vm9")?);
    assert_eq!(ungranted, absent);
    assert_says(
        &ungranted,
        &[
            "waiting-for-grant",
            "port NAME is not granted to this host",
            "fix: grant it",
            "outboard grant create port NAME",
        ],
    );
    site.outboard(&["grant", "create", "port", "vm2"])??;
    site.wait_device("port vm2", "waiting-for-vmm")?;
    let (mut one, mut two) = (guest(&site, "vm1")?, guest(&site, "vm2")?);
    frame_passes(&mut one, &mut two)
}

#[test]
fn the_broker_is_away() -> Outcome {
    let mut site = Site::new(TOPOLOGY)?;
    let (mut one, mut two) = (guest(&site, "vm1")?, guest(&site, "vm2")?);
    site.stop("broker")?;
    let said = site.outboard(&["status"])?.err().ok_or("who answered?")?;
    assert_says(
        &said,
        &[
            "no broker is running",
            &site.run_path("broker.sock").to_string_lossy(),
            "fix: start it",
        ],
    );
    frame_passes(&mut one, &mut two)?;
    site.start("broker")?;
    site.wait_binding("port", "vm1", "active")?;
    frame_passes(&mut one, &mut two)
}

#[test]
fn up_enrols_a_card_anew_that_lost_its_certificate() -> Outcome {
    let folder = tempfile::Builder::new().prefix("outboard.").tempdir()?;
    let file = folder.path().join("topology.toml");
    fs::write(&file, TOPOLOGY)?;
    let binaries = Binaries::build()?;
    let up = || Stack::up(&binaries, &file, folder.path(), |_| {});
    let identity = folder.path().join("run/state/dpu/identity.toml");
    let generation = |stack: &Stack| -> Outcome<Option<u64>> {
        Ok(stack.json(&["port", "show", "vm1"])?["binding"]["generation"].as_u64())
    };

    let stack = up()?;
    let (first, bound) = (fs::read_to_string(&identity)?, generation(&stack)?);
    stack.stop()?;
    let stack = up()?;
    assert_eq!(fs::read_to_string(&identity)?, first, "control: a good one is kept");
    stack.stop()?;

    fs::remove_file(&identity)?;
    let stack = up()?;
    assert_ne!(fs::read_to_string(&identity)?, first, "it was enrolled anew");
    assert_eq!(generation(&stack)?, bound, "what it held it holds still");
    let mut guests = Vec::new();
    for port in ["vm1", "vm2"] {
        let socket = stack.port_socket(port);
        guests.push(wait::until(LIMIT, || NetGuest::start(&socket).ok()).ok_or("a port does not start")?);
        assert!(stack.wait_binding("port", port, "active", LIMIT));
    }
    let [one, two] = &mut guests[..] else {
        return Err("two guests".into());
    };
    frame_passes(one, two)?;
    stack.stop()?;
    Ok(())
}

#[test]
fn an_expired_card_certificate() -> Outcome {
    let mut site = Site::new(TOPOLOGY)?;
    site.stop("dpu")?;
    let path = site.run_path("state/dpu/identity.toml");
    let right = fs::read_to_string(&path)?;
    let address = fs::read_to_string(site.run_path("state/broker/card_address"))?;

    let authority_key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&authority_key)?.pem();
    let key = rcgen::KeyPair::generate()?;
    let mut card = rcgen::CertificateParams::default();
    card.distinguished_name.push(rcgen::DnType::CommonName, "local");
    card.not_before = rcgen::date_time_ymd(2020, 1, 1);
    card.not_after = rcgen::date_time_ymd(2020, 5, 1);
    let certificate = card
        .signed_by(&key, &rcgen::Issuer::new(authority, authority_key))?
        .pem();
    // written over the file in place, which keeps its mode
    fs::write(
        &path,
        format!(
            "card = 'local'\nbroker = '{}'\nca = '''{ca}'''\ncertificate = '''{certificate}'''\nkey = '''{}'''\n",
            address.trim(),
            key.serialize_pem()
        ),
    )?;
    site.launch("dpu")?;
    let said = site.wait_log("dpu", "expired")?;
    assert_says(
        &said,
        &[
            "card certificate of 'local' expired on 2020-05-01",
            "outboard card enrol local",
            "outboard-dpu enrol",
        ],
    );
    // whether it ended by itself is of no interest
    let _ = site.stop("dpu");

    fs::write(&path, right)?;
    site.start("dpu")?;
    site.wait_log("dpu", "connected to broker")?;
    let (mut one, mut two) = (guest(&site, "vm1")?, guest(&site, "vm2")?);
    frame_passes(&mut one, &mut two)
}
