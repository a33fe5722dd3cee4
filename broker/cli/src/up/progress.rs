//! What `up` is doing, on standard error.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// A line that changes on a terminal; a line per step elsewhere; nothing with `--json`.
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
    json: bool,
    last: String,
}

impl Progress {
    /// For this process's standard error.
    pub fn new(json: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !json;
        let bar = if terminal {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            lines: !terminal && !json,
            json,
            last: String::new(),
        }
    }

    /// What is being done now.
    pub fn step(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        self.bar.enable_steady_tick(Duration::from_millis(100));
        self.bar.set_message(text.to_owned());
        if self.lines {
            eprintln!("{text}");
        }
    }

    /// Something that should stay to be read.
    pub fn note(&self, text: &str) {
        if !self.json {
            self.bar.suspend(|| eprintln!("{text}"));
        }
    }

    /// Are lines of JSON wanted?
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A line of JSON on standard output. Whoever reads only the first line of it and closes it is not told more.
    pub fn json_line(&self, value: &impl Serialize) {
        if let Ok(line) = serde_json::to_string(value) {
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }

    /// Takes the changing line away.
    pub fn clear(&mut self) {
        self.bar.disable_steady_tick();
        self.bar.set_message("");
        self.bar.finish_and_clear();
        self.last.clear();
    }
}
