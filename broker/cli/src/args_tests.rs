use clap::CommandFactory;

use super::*;

/// Every command that people can find, with the words that lead to it.
fn visible(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
    let mut found = vec![(path.to_owned(), command.clone())];
    for sub in command
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        found.extend(visible(sub, &format!("{path} {}", sub.get_name())));
    }
    found
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_help_has_an_example_that_is_understood() {
    let commands = visible(&Cli::command(), "outboard");
    assert!(commands.len() > 30, "{}", commands.len());
    for (path, command) in commands {
        // Wide, so that no example is broken over two lines.
        let mut command = command.term_width(1000);
        let help = command.render_long_help().to_string();
        let (_, examples) = help
            .split_once("Examples:\n")
            .unwrap_or_else(|| panic!("no example in: {path} --help"));
        let own: Vec<&str> = examples
            .lines()
            .map(str::trim)
            .filter(|l| l.starts_with("outboard "))
            .collect();
        assert!(
            own.iter().any(|line| line.starts_with(&path)),
            "no example of its own in: {path} --help"
        );
        for line in own {
            let line = line
                .split("  ")
                .next()
                .unwrap_or(line)
                .split(" |")
                .next()
                .unwrap_or(line);
            let words = line.split_whitespace().map(|w| w.trim_matches('\''));
            if let Err(e) = Cli::try_parse_from(words) {
                panic!("the example '{line}' of {path} --help is not understood: {e}");
            }
        }
    }
}

#[test]
fn help_fits_a_terminal_of_100_columns_without_being_broken() {
    for (path, command) in visible(&Cli::command(), "outboard") {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let long = after
            .lines()
            .find(|line| line.chars().count() > 100 && !line.trim_start().starts_with("outboard "));
        assert_eq!(long, None, "in: {path} --help");
    }
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn global_options_go_before_and_after_the_noun() {
    for line in [
        "outboard --json --socket /s port list",
        "outboard port list --json --socket /s",
    ] {
        let cli = parse(line).expect("understood");
        assert!(
            cli.global.json && cli.global.socket.as_deref() == Some("/s".as_ref()),
            "{line}"
        );
    }
}

#[test]
fn names_macs_sizes_and_subnets_are_checked_before_anything_is_sent() {
    for line in [
        "outboard port show ../x",
        "outboard port create vm1 --network blue --mac 52:54:00:00:01",
        "outboard port create vm1 --network blue --mac 52:54:00:00:00:01 --address 10.0.0",
        "outboard volume create d --size 4GB --memory",
        "outboard volume create d --size 4GiB",
        "outboard volume create d --size 4GiB --memory --null",
        "outboard network create blue --subnet 10.0.0.1/24",
        "outboard grant create gpu x",
        "outboard --operation-id 7 port delete vm1",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
    assert!(
        parse("outboard volume create d --size 4GiB --memory").is_ok(),
        "control"
    );
}

#[test]
fn tls_options_go_together() {
    let global = |line: &str| parse(line).expect("understood").global;
    for line in [
        "outboard --api https://b:1 status",
        "outboard --ca /x status",
        "outboard --key /x --cert /y status",
    ] {
        assert_eq!(global(line).client().expect_err("incomplete").code(), "usage", "{line}");
    }
    assert!(global("outboard --socket /s status").client().is_ok(), "control");
}
