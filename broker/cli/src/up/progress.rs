//! What `up` is doing, on standard error.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// A line that changes on a terminal; a line per step elsewhere; nothing with `--json`.
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
    last: String,
}

impl Progress {
    /// For this process's standard error.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !quiet;
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
            lines: !terminal && !quiet,
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
        if self.lines {
            eprintln!("{text}")
        } else {
            self.bar.println(text)
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
