//! What `outboard up` prints for VMMs, and what README says to add by hand, is taken by the programs that it is for.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use outboard_integration::{
    binaries::Binaries,
    guest::BOOT_LIMIT,
    process::Process,
    setup,
    site::{LIMIT, Outcome},
    stack::Stack,
    wait,
};
use tempfile::TempDir;

const TOPOLOGY: &str = r#"
[[network]]
name = "blue"
subnets = ["10.0.0.0/24"]
[[volume]]
name = "disk1"
size = "16MiB"
backend = { memory = true }
[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1"]
"#;

fn up() -> Outcome<(Stack, TempDir)> {
    let folder = tempfile::Builder::new().prefix("outboard.").tempdir()?;
    let file = folder.path().join("topology.toml");
    fs::write(&file, TOPOLOGY)?;
    let stack = Stack::up(&Binaries::build()?, &file, folder.path(), |_| {})?;
    Ok((stack, folder))
}

/// Has libvirt define a domain with these parts. Its test driver parses it as the real one does, and `--validate` holds it
/// against libvirt's schema.
fn define(folder: &Path, parts: &str) -> Outcome<Output> {
    let file = folder.join("domain.xml");
    fs::write(
        &file,
        format!(
            "<domain type='kvm'>\n<name>vm1</name>\n<memory unit='MiB'>512</memory>\n\
             <os><type arch='x86_64' machine='q35'>hvm</type></os>\n{parts}\n</domain>\n"
        ),
    )?;
    let mut virsh = Command::new("virsh");
    virsh.args(["-c", "test:///default", "define", "--validate"]).arg(&file);
    Ok(virsh.output()?)
}

#[test]
fn libvirt_takes_its_xml() -> Outcome {
    let (stack, folder) = up()?;
    let xml = stack.ready()["guests"][0]["libvirt"]
        .as_str()
        .ok_or("no XML")?
        .to_owned();
    let defined = define(folder.path(), &xml)?;
    assert!(defined.status.success(), "{}", String::from_utf8_lossy(&defined.stderr));
    for (part, wrong) in [("mode='client'", "mode='customer'"), ("timeout='1'", "timeout='soon'")] {
        assert!(xml.contains(part));
        let refused = define(folder.path(), &xml.replace(part, wrong))?;
        assert!(!refused.status.success(), "control: {wrong} is refused");
    }
    stack.stop()?;
    Ok(())
}

/// What README's example adds to the arguments that `up` prints, with the guest's folder put in.
fn added_by_hand(guest: &Path) -> Outcome<Vec<String>> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let (_, rest) = readme
        .split_once("…as up printed… ")
        .ok_or("README has no such example")?;
    let (example, _) = rest.split_once("```").ok_or("the example does not end")?;
    let mut words = Vec::new();
    // one argument is in quotation marks
    for (index, part) in example.replace("\\\n", " ").split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    let folder = guest.display().to_string();
    Ok(words.iter().map(|word| word.replace("$guest", &folder)).collect())
}

#[test]
fn stock_qemu_by_hand_as_readme_says() -> Outcome {
    let (stack, folder) = up()?;
    let image = setup::guest_image()?;
    let added = added_by_hand(image.initramfs.parent().ok_or("no folder")?)?;
    let printed = &stack.ready()["guests"][0]["qemu"];
    let words = |part: &str| {
        let list = printed[part].as_array().cloned().unwrap_or_default();
        list.iter()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    // as README says to where KVM cannot run guests, which no test can rely on
    let machine = words("machine").join(" ").replace("-accel kvm ", "");
    assert!(machine.contains("-accel tcg"), "{machine}");
    let mut qemu = Process::start(
        "QEMU by hand",
        Path::new("qemu-system-x86_64"),
        |command| {
            command.args(machine.split(' ')).args(words("devices")).args(&added);
            command.current_dir(folder.path());
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        },
        &folder.path().join("qemu.err"),
    )?;
    let output = qemu.take_stdout().ok_or("no output")?;
    let mut input = qemu.take_stdin().ok_or("no input")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut said = String::new();
    let mut hear = |text: &str, limit: Duration| -> Outcome {
        loop {
            let line = lines.recv_timeout(limit).map_err(|_| {
                let errors = fs::read_to_string(folder.path().join("qemu.err")).unwrap_or_default();
                format!("'{text}' never came; so far: {said}\n{errors}")
            })?;
            said += &format!("{line}\n");
            if line.contains(text) {
                return Ok(());
            }
        }
    };
    hear("@@READY", BOOT_LIMIT)?;
    // a port is active once the guest's driver has started it
    for (kind, name) in [("port", "vm1"), ("volume", "disk1")] {
        assert!(stack.wait_binding(kind, name, "active", LIMIT), "{kind} {name}");
    }
    input.write_all(b"blockdev --getsize64 /dev/vda; ip addr show eth0\n")?;
    hear("16777216", LIMIT)?;
    hear("10.0.0.1/24", LIMIT)?;
    assert!(folder.path().join("console").exists(), "the kernel's messages");
    // Ctrl-A X
    input.write_all(b"\x01x")?;
    let status = wait::until(LIMIT, || qemu.ended()).ok_or("QEMU does not end")?;
    assert!(status.success(), "{status}");
    stack.stop()?;
    Ok(())
}
