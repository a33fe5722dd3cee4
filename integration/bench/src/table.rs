//! The table for people, and what has to be said beneath it.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::{
    result::{CaseResult, Line, Notes, Row},
    stats::readable,
};

/// One row for each case and system.
pub fn table(results: &[CaseResult]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let yardstick = results.first().map_or("peer", |result| result.case.yardstick().name());
    table.set_header([
        "case".to_owned(),
        "system".into(),
        "median".into(),
        "min … max".into(),
        "unit".into(),
        format!("× {yardstick}"),
        "× best peer".into(),
        "backend CPU".into(),
        "host CPU".into(),
        "notes".into(),
    ]);
    for result in results {
        for (index, row) in result.rows.iter().enumerate() {
            let name = if index == 0 { result.case.name.as_str() } else { "" };
            table.add_row(cells(result, row, name));
        }
    }
    for index in [2, 3, 5, 6, 7, 8] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn cells(result: &CaseResult, row: &Row, name: &str) -> [String; 10] {
    let system = row.system().name().to_owned();
    let empty = String::new;
    match row {
        Row::Measured(line, notes) => {
            let against = |other: Option<&Row>| {
                let ratio = other.and_then(|other| result.ratio(row, other));
                ratio.map_or_else(empty, |ratio| format!("{ratio:.2}"))
            };
            [
                name.to_owned(),
                system,
                readable(line.median),
                format!("{} … {}", readable(line.min), readable(line.max)),
                line.unit.replace("us", "µs"),
                against(result.yardstick()),
                against(result.best_peer()),
                format!("{:.0} %", line.backend_cpu_pct),
                format!("{:.1} %", line.host_cpu_pct),
                remarks(line, notes),
            ]
        }
        Row::Absent(_, reason) => {
            let mut cells = [(); 10].map(|()| empty());
            cells[0] = name.to_owned();
            cells[1] = system;
            cells[2] = "–".into();
            cells[9].clone_from(reason);
            cells
        }
        Row::Failed(_, failure) => {
            let mut cells = [(); 10].map(|()| empty());
            cells[0] = name.to_owned();
            cells[1] = system;
            cells[2] = "✘".into();
            cells[9] = shortened(&format!("failed: {}", failure.short()));
            cells
        }
    }
}

/// What is said of a row in the table itself.
fn remarks(line: &Line, notes: &Notes) -> String {
    let mut parts = Vec::new();
    if let Some(p99) = line.p99 {
        parts.push(format!("p99 {} µs", readable(p99)));
    }
    if let Some(gbit_s) = notes
        .gbit_s
        .filter(|_| line.unit == "Mpps" && line.case.ends_with("1518"))
    {
        parts.push(format!("{} Gbit/s", readable(gbit_s)));
    }
    if let Some(memcpy) = line.memcpy.filter(|memcpy| *memcpy > 0.0) {
        let share = 100.0 * line.median / memcpy;
        parts.push(format!("{share:.0} % of one memcpy's {}", readable(memcpy)));
    }
    if let Some(rate) = line.changes_per_s {
        parts.push(format!("{} changes/s", readable(rate)));
    }
    if let Some([legal, attacked, attack]) = notes.beside_mpps.map(|mpps| mpps.map(readable)) {
        parts.push(format!("{legal} → {attacked} Mpps beside {attack}"));
    }
    if line.generator_limited {
        parts.push("limited by the generator".into());
    }
    if notes.disturbed {
        parts.push(format!("DISTURBED: {:.0} % of a core obtained", notes.obtained_pct));
    } else if notes.discarded > 0 {
        parts.push(format!("{} discarded", notes.discarded));
    }
    parts.join("; ")
}

const REMARK_LEN_MAX: usize = 70;

fn shortened(text: &str) -> String {
    if text.chars().count() <= REMARK_LEN_MAX {
        return text.to_owned();
    }
    let start: String = text.chars().take(REMARK_LEN_MAX - 1).collect();
    start + "…"
}

/// The lines beneath the table: ceilings, and everything that a reader needs to judge the rows.
pub fn beneath(results: &[CaseResult], verbose: bool) -> String {
    let mut text = String::new();
    let ceilings: Vec<String> = results
        .iter()
        .filter_map(|result| {
            let ceiling = result.ceiling?;
            Some(format!(
                "{} {} {}",
                result.case.name,
                readable(ceiling),
                result.case.unit()
            ))
        })
        .collect();
    if !ceilings.is_empty() {
        let _ = writeln!(text, "ceiling of the generator alone: {}", ceilings.join(", "));
    }
    let rows = || {
        results
            .iter()
            .flat_map(|result| result.rows.iter().map(move |row| (&result.case, row)))
    };
    let discarded: usize = rows()
        .map(|(_, row)| match row {
            Row::Measured(_, notes) => notes.discarded,
            Row::Absent(..) | Row::Failed(..) => 0,
        })
        .sum();
    if discarded > 0 {
        let _ = writeln!(
            text,
            "{discarded} runs had less than 97 % of their cores, because others wanted them too; they count only where all did (DISTURBED)"
        );
    }
    for (case, row) in rows() {
        match row {
            Row::Failed(_, failure) => {
                let _ = writeln!(text, "\n{}: {failure}", case.name);
            }
            Row::Measured(line, notes) if verbose => {
                let _ = writeln!(text, "{:<24} {:<9} {}", line.case, line.system.name(), details(notes));
            }
            Row::Measured(..) | Row::Absent(..) => {}
        }
    }
    text
}

fn details(notes: &Notes) -> String {
    let mut parts = Vec::new();
    if let Some(features) = &notes.features {
        parts.push(format!("features {features}"));
    }
    if let Some(share) = notes.empty_polls_pct {
        parts.push(format!("empty polls {share:.1} %"));
    }
    if let Some(share) = notes.ring_full_pct {
        parts.push(format!("ring full {share:.1} %"));
    }
    parts.push(format!("generator CPU {:.0} %", notes.generator_cpu_pct));
    parts.push(format!("core obtained {:.1} %", notes.obtained_pct));
    if let Some(denied) = notes.denied_sent.filter(|denied| *denied > 0) {
        parts.push(format!("{denied} frames sent that must be denied, none arrived"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cases::{Suite, System, cases},
        error::Failure,
    };

    fn result() -> CaseResult {
        let found = cases(Suite::Net).into_iter().find(|case| case.name == "l2-64");
        let case = found.unwrap_or_else(|| panic!("no case"));
        let measured = |system, median| {
            let line = Line {
                suite: Suite::Net,
                case: case.name.clone(),
                system,
                unit: "Mpps",
                median,
                min: median - 0.5,
                max: median + 0.5,
                runs: 5,
                backend_cpu_pct: 99.6,
                host_cpu_pct: 0.3,
                generator_limited: system == System::DpdkIo,
                p99: None,
                memcpy: None,
                changes_per_s: None,
            };
            let notes = Notes {
                features: Some("0x1".into()),
                discarded: usize::from(system == System::OvsDpdk),
                ..Notes::default()
            };
            Row::Measured(line, notes)
        };
        let failure = Failure::new("spdk", "ended", "start it");
        CaseResult {
            rows: vec![
                measured(System::Outboard, 5.5),
                measured(System::DpdkIo, 16.8),
                measured(System::OvsDpdk, 11.0),
                Row::Absent(System::Qsd, "not in this version: frames".into()),
                Row::Failed(System::Spdk, failure),
            ],
            case,
            ceiling: Some(18.2),
        }
    }

    #[test]
    fn rows_have_ratios_and_what_is_missing_is_said() {
        let text = table(&[result()]).to_string();
        let row = |name: &str| {
            text.lines()
                .find(|line| line.contains(name))
                .unwrap_or_default()
                .to_owned()
        };
        let ours = row("outboard");
        assert!(
            ours.contains("l2-64") && ours.contains("0.50") && ours.contains("0.33"),
            "{text}"
        );
        assert!(row("dpdk-io").contains("limited by the generator"), "{text}");
        assert!(row("┆ ovs-dpdk ┆").contains("1 discarded"), "{text}");
        assert!(row("qsd").contains("not in this version"), "{text}");
        assert!(row("spdk").contains("failed: ended"), "{text}");
    }

    #[test]
    fn beneath_are_ceilings_failures_and_details() {
        let text = beneath(&[result()], true);
        assert!(
            text.contains("ceiling of the generator alone: l2-64 18.2 Mpps"),
            "{text}"
        );
        assert!(text.contains("fix: start it"), "{text}");
        assert!(text.contains("features 0x1"), "{text}");
        assert!(!beneath(&[result()], false).contains("features"));
    }
}
