//! The plot: for each case a panel with a bar for each system, and a whisker from the least to the most.

use std::fmt::{self, Write};

use crate::{
    cases::System,
    result::{CaseResult, Line, Row},
    stats::readable,
};

const WIDTH: f64 = 860.0;
/// Where bars begin: to the left are the systems' names.
const BARS_AT: f64 = 110.0;
/// Where the longest whisker ends: to the right are the values.
const BARS_END: f64 = 660.0;
const HEADER_HEIGHT: f64 = 62.0;
const TITLE_HEIGHT: f64 = 30.0;
const ROW_HEIGHT: f64 = 24.0;
const BAR_HEIGHT: f64 = 15.0;
const PANEL_GAP: f64 = 14.0;
const MARGIN: f64 = 20.0;

fn colour(system: System) -> &'static str {
    match system {
        System::Outboard => "#d1495b",
        System::DpdkIo => "#8d99ae",
        System::OvsDpdk => "#2e86ab",
        System::Qsd => "#3a7d44",
        System::Spdk => "#edae49",
        System::Raw => "#b8b8b8",
    }
}

/// The plot as SVG. Each case has a scale of its own, from 0.
pub fn svg(title: &str, subtitle: &str, results: &[CaseResult]) -> String {
    let mut text = String::new();
    // writing to a string cannot fail
    let _ = write_svg(&mut text, title, subtitle, results);
    text
}

fn write_svg(text: &mut String, title: &str, subtitle: &str, results: &[CaseResult]) -> fmt::Result {
    let panels = results
        .iter()
        .map(|result| TITLE_HEIGHT + ROW_HEIGHT * rows(result) + PANEL_GAP);
    let height = HEADER_HEIGHT + panels.sum::<f64>() + MARGIN;
    writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#222\">"
    )?;
    writeln!(text, "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>")?;
    writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"28\" font-size=\"18\" font-weight=\"600\">{}</text>",
        escaped(title)
    )?;
    writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"48\" font-size=\"11\" fill=\"#666\">{}</text>",
        escaped(subtitle)
    )?;
    let mut top = HEADER_HEIGHT;
    for result in results {
        top = write_panel(text, result, top)?;
    }
    writeln!(text, "</svg>")
}

fn rows(result: &CaseResult) -> f64 {
    result.rows.iter().map(|_| 1.0).sum()
}

fn write_panel(text: &mut String, result: &CaseResult, top: f64) -> Result<f64, fmt::Error> {
    let unit = result.case.unit().replace("us", "µs");
    let better = if result.case.is_latency() {
        ", less is better"
    } else {
        ""
    };
    writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"{:.1}\" font-weight=\"600\">{} <tspan font-weight=\"400\" fill=\"#666\">({}{better})</tspan></text>",
        top + 18.0,
        escaped(&result.case.name),
        escaped(&unit)
    )?;
    let most = result.rows.iter().filter_map(|row| match row {
        Row::Measured(line, _) => Some(line.max),
        Row::Absent(..) | Row::Failed(..) => None,
    });
    let scale = (BARS_END - BARS_AT) / most.fold(f64::MIN_POSITIVE, f64::max);
    let mut y = top + TITLE_HEIGHT;
    for row in &result.rows {
        let middle = y + ROW_HEIGHT / 2.0;
        writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            BARS_AT - 8.0,
            middle + 4.5,
            row.system().name()
        )?;
        match row {
            Row::Measured(line, _) => write_bar(text, line, scale, middle)?,
            Row::Absent(_, reason) => write_remark(text, reason, middle)?,
            Row::Failed(..) => write_remark(text, "failed", middle)?,
        }
        y += ROW_HEIGHT;
    }
    Ok(y + PANEL_GAP)
}

fn write_bar(text: &mut String, line: &Line, scale: f64, middle: f64) -> fmt::Result {
    let (length, low, high) = (
        line.median * scale,
        BARS_AT + line.min * scale,
        BARS_AT + line.max * scale,
    );
    writeln!(
        text,
        "<rect x=\"{BARS_AT}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{}\"/>",
        middle - BAR_HEIGHT / 2.0,
        colour(line.system)
    )?;
    // from the least to the most, with a stroke across at each end
    writeln!(
        text,
        "<path d=\"M{low:.1} {:.1}v8m0 -4H{high:.1}m0 -4v8\" stroke=\"#222\" fill=\"none\"/>",
        middle - 4.0
    )?;
    let p99 = line
        .p99
        .map(|p99| format!(", p99 {}", readable(p99)))
        .unwrap_or_default();
    let limited = if line.generator_limited {
        ", generator's limit"
    } else {
        ""
    };
    writeln!(
        text,
        "<text x=\"{:.1}\" y=\"{:.1}\">{}<tspan fill=\"#666\">{p99}{limited}</tspan></text>",
        high.max(BARS_AT + length) + 8.0,
        middle + 4.5,
        readable(line.median)
    )
}

fn write_remark(text: &mut String, remark: &str, middle: f64) -> fmt::Result {
    writeln!(
        text,
        "<text x=\"{BARS_AT}\" y=\"{:.1}\" font-style=\"italic\" fill=\"#666\">{}</text>",
        middle + 4.5,
        escaped(remark)
    )
}

/// Text in XML (XML 1.0 §2.4).
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::*;
    use crate::{
        cases::{Suite, cases},
        error::Failure,
        result::Notes,
    };

    fn results() -> Vec<CaseResult> {
        let measured = |case: &str, system, median: f64| {
            let line = Line {
                suite: Suite::Net,
                case: case.into(),
                system,
                unit: "Mpps",
                median,
                min: median * 0.9,
                max: median * 1.1,
                runs: 5,
                backend_cpu_pct: 100.0,
                host_cpu_pct: 0.0,
                generator_limited: false,
                p99: None,
                memcpy: None,
                changes_per_s: None,
            };
            Row::Measured(line, Notes::default())
        };
        let found = cases(Suite::Net).into_iter().take(2);
        found
            .map(|case| CaseResult {
                rows: vec![
                    measured(&case.name, System::Outboard, 5.0),
                    measured(&case.name, System::DpdkIo, 20.0),
                    Row::Absent(System::OvsDpdk, "needs <more> & better".into()),
                    Row::Failed(System::Spdk, Failure::new("spdk", "ended", "start it")),
                ],
                case,
                ceiling: None,
            })
            .collect()
    }

    #[test]
    fn it_is_well_formed_and_has_a_bar_and_a_whisker_for_each_measured_row() -> Result<(), roxmltree::Error> {
        let text = svg("Frames & <requests>", "5 runs", &results());
        let document = Document::parse(&text)?;
        let count = |name: &str| document.descendants().filter(|node| node.has_tag_name(name)).count();
        // the background is a rectangle too
        assert_eq!((count("rect"), count("path")), (1 + 4, 4));
        let titles: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
        assert!(titles.contains(&"Frames & <requests>") && titles.contains(&"needs <more> & better"));
        Ok(())
    }

    #[test]
    fn bars_are_to_scale_and_stay_inside() -> Result<(), Box<dyn std::error::Error>> {
        let text = svg("t", "s", &results()[..1]);
        let document = Document::parse(&text)?;
        let bars = document
            .descendants()
            .filter(|node| node.attribute("x") == Some("110") && node.has_tag_name("rect"));
        let widths = bars.filter_map(|bar| bar.attribute("width")).map(str::parse);
        let widths: Vec<f64> = widths.collect::<Result<_, _>>()?;
        assert_eq!(widths.len(), 2);
        assert!((widths[1] / widths[0] - 4.0).abs() < 0.01, "{widths:?}");
        // the longest whisker, at 1.1 times its bar, ends where bars end
        assert!((widths[1] * 1.1 - (BARS_END - BARS_AT)).abs() < 0.5, "{widths:?}");
        Ok(())
    }

    #[test]
    fn nothing_measured_is_still_a_picture() -> Result<(), roxmltree::Error> {
        let mut results = results();
        for result in &mut results {
            result.rows.retain(|row| row.median().is_none());
        }
        Document::parse(&svg("t", "s", &results)).map(drop)
    }
}
