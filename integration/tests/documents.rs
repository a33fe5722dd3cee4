//! What the documents say about tests is true: every attack in the threat model's table has tests by its name.

use std::{fs, io, path::Path};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn test_names(folder: &Path, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            test_names(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let defined = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            names.extend(defined.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()));
        }
    }
    Ok(())
}

#[test]
fn every_attack_of_the_threat_model_has_tests_by_its_name() -> io::Result<()> {
    let mut names = Vec::new();
    test_names(Path::new(ROOT), &mut names)?;
    let model = fs::read_to_string(Path::new(ROOT).join("THREAT_MODEL.md"))?;
    // a row begins "| h07 h08 | what the attack is |"
    let rows = model.lines().filter_map(|line| line.strip_prefix("| h"));
    let first_cells = rows
        .filter_map(|row| row.split_once(" |"))
        .map(|(cell, _)| format!("h{cell}"));
    let attacks: Vec<String> = first_cells
        .flat_map(|cell| cell.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(attacks.len() >= 25, "the table was found: {attacks:?}");
    for attack in attacks {
        let named = names
            .iter()
            .any(|name| name.starts_with(&format!("{attack}_")) || name.contains(&format!("_{attack}_")));
        assert!(named, "no test is named after {attack}");
    }
    Ok(())
}
