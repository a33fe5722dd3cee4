//! Tables for people and JSON for programs, on standard output.

use std::{fmt::Display, io::Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::CliError;

/// Writes one line, or a text that ends in none.
///
/// # Errors
/// Standard output is closed or full.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    written.map_err(|e| {
        CliError::new(
            format!("cannot write to standard output: {e}"),
            "check where it is sent",
        )
    })
}

/// Writes a value as JSON, indented: programs and people can both read it.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    print(&serde_json::to_string_pretty(value).map_err(unprintable)?)
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// As [`print`].
pub fn print_json_line(value: &impl Serialize) -> Result<(), CliError> {
    print(&serde_json::to_string(value).map_err(unprintable)?)
}

fn unprintable(e: serde_json::Error) -> CliError {
    CliError::new(
        format!("cannot print the answer as JSON: {e}"),
        "leave --json out, and report this",
    )
}

/// A table without lines between rows; what `nothing` says where there are none.
pub fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>, nothing: &str) -> String {
    if rows.is_empty() {
        return nothing.to_owned();
    }
    let mut table = plain();
    table.set_header(header);
    table.add_rows(rows);
    trim(&table)
}

/// Keys and values, one a line.
pub fn details(rows: Vec<(&str, String)>) -> String {
    let mut table = plain();
    table.add_rows(rows.into_iter().map(|(key, value)| [format!("{key}:"), value]));
    trim(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Cells are padded to their column's width; the last one of a line need not be.
fn trim(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
        .collect();
    lines.join("\n")
}

/// A value, or a dash where there is none.
pub fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Values with spaces between, or a dash where there are none.
pub fn list<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let text = values.into_iter().map(|v| v.to_string()).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_an_empty_one_says_so() {
        let rows = vec![
            ["vm1".to_owned(), "active".to_owned()],
            ["longer".to_owned(), "-".to_owned()],
        ];
        assert_eq!(
            table(["NAME", "STATE"], rows, "none"),
            "NAME    STATE\nvm1     active\nlonger  -"
        );
        assert_eq!(table(["NAME"], vec![], "There are no ports."), "There are no ports.");
    }
}
