//! After all is ready: daemons that end are started again, and the DPU's program is replaced when somebody asks.
//!
//! The shim keeps the guests' sessions while there is no DPU, and the DPU serves from its own disk while there is no
//! broker, so the guests go on. When the shim ends, their VMMs connect again.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::signal::unix::Signal;

use super::{
    daemons::{Daemons, Ended},
    layout::RunDir,
    progress::Progress,
    restarts::{Decision, Restarts},
};
use crate::error::CliError;

/// Something that happened to a daemon: a line of JSON on standard output, or text on standard error.
#[derive(Debug, Serialize)]
struct Event<'a> {
    event: &'static str,
    daemon: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// A daemon that is to be started again.
struct Due {
    name: &'static str,
    at: Instant,
}

/// Watches over the daemons.
pub struct Supervisor<'a> {
    dir: &'a RunDir,
    daemons: &'a mut Daemons,
    progress: &'a Progress,
    restarts: Vec<(&'static str, Restarts)>,
    due: Vec<Due>,
}

impl<'a> Supervisor<'a> {
    /// Of daemons that all run.
    pub fn new(dir: &'a RunDir, daemons: &'a mut Daemons, progress: &'a Progress) -> Self {
        let restarts = daemons.pids().map(|(name, _)| (name, Restarts::default())).collect();
        Self {
            dir,
            daemons,
            progress,
            restarts,
            due: Vec::new(),
        }
    }

    /// Goes on until a daemon must be given up, and tells why.
    pub async fn run(&mut self, upgrade: &mut Signal) -> CliError {
        loop {
            let next = self.due.iter().map(|due| due.at).min();
            let done = tokio::select! {
                ended = self.daemons.next_end() => self.ended(&ended),
                () = until(next) => self.start_due(),
                _ = upgrade.recv() => {
                    self.upgrade();
                    Ok(())
                }
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    fn ended(&mut self, ended: &Ended) -> Result<(), CliError> {
        let name = ended.name;
        let other = self.daemons.pids().find(|(other, _)| *other == name);
        if let Some((_, pid)) = other {
            self.of_two_one_ended(ended, pid);
            return Ok(());
        }
        let Some(restarts) = self.restarts_of(name) else {
            return Err(ended.error());
        };
        match restarts.died(ended.lived) {
            Decision::After(pause) => {
                let text = format!("outboard-{name} (process {}) {}", ended.pid, ended.how());
                let when = if pause.is_zero() {
                    "starting it again".to_owned()
                } else {
                    format!("starting it again in {} ms", pause.as_millis())
                };
                self.tell("ended", ended, None, &format!("{text}; {when}"), true);
                self.due.push(Due {
                    name,
                    at: Instant::now() + pause,
                });
                Ok(())
            }
            Decision::GiveUp(times) => Err(ended.given_up(times)),
        }
    }

    /// One of two DPUs ended, while one takes over from the other.
    fn of_two_one_ended(&self, ended: &Ended, other: u32) {
        let Ended { name, pid, .. } = ended;
        if ended.was_successor {
            let text = format!(
                "outboard-{name} was not upgraded: the new process {pid} {}; process {other} goes on",
                ended.how()
            );
            self.tell("not-upgraded", ended, Some(other), &text, true);
        } else {
            let text = format!("outboard-{name} is now process {other}, which took over from process {pid}");
            self.tell("upgraded", ended, Some(other), &text, false);
        }
    }

    fn start_due(&mut self) -> Result<(), CliError> {
        let now = Instant::now();
        let (due, later): (Vec<Due>, Vec<Due>) = self.due.drain(..).partition(|due| due.at <= now);
        self.due = later;
        for Due { name, .. } in due {
            match self.daemons.start_again(self.dir, name) {
                Ok(pid) => {
                    let event = Event {
                        event: "started",
                        daemon: name,
                        pid: Some(pid),
                        reason: None,
                    };
                    self.say(&event, &format!("outboard-{name} runs again as process {pid}"));
                }
                Err(error) => self.not_started(name, error)?,
            }
        }
        Ok(())
    }

    /// The program's file is just being replaced, or a limit is reached: like a quick death.
    fn not_started(&mut self, name: &'static str, error: CliError) -> Result<(), CliError> {
        let Some(Decision::After(pause)) = self.restarts_of(name).map(|known| known.died(Duration::ZERO)) else {
            return Err(error);
        };
        let text = error.to_string();
        let event = Event {
            event: "not-started",
            daemon: name,
            pid: None,
            reason: Some(&text),
        };
        self.say(
            &event,
            &format!("{}; trying again in {} ms", text.trim_end(), pause.as_millis()),
        );
        self.due.push(Due {
            name,
            at: Instant::now() + pause,
        });
        Ok(())
    }

    fn restarts_of(&mut self, name: &str) -> Option<&mut Restarts> {
        self.restarts
            .iter_mut()
            .find(|(known, _)| *known == name)
            .map(|(_, restarts)| restarts)
    }

    /// Starts the DPU's program as its file is now; it takes over from the one that runs, or leaves that alone.
    fn upgrade(&mut self) {
        let running = self.daemons.pids().filter(|(name, _)| *name == "dpu").count();
        let said = match running {
            1 => match self.daemons.start_again(self.dir, "dpu") {
                Ok(pid) => format!("upgrading: outboard-dpu process {pid} takes over"),
                Err(e) => format!("outboard-dpu was not upgraded, and goes on: {e}"),
            },
            0 => "outboard-dpu is about to be started anyway, from the file as it is then".to_owned(),
            _ => "outboard-dpu is being upgraded already".to_owned(),
        };
        let event = Event {
            event: "upgrade",
            daemon: "dpu",
            pid: None,
            reason: Some(&said),
        };
        self.say(&event, &said);
    }

    fn tell(&self, event: &'static str, ended: &Ended, pid: Option<u32>, text: &str, quote: bool) {
        if quote && !self.progress.is_json() {
            for line in ended.log.tail() {
                self.progress.note(&format!("  | {line}"));
            }
        }
        let reason = ended.how();
        let event = Event {
            event,
            daemon: ended.name,
            pid,
            reason: Some(&reason),
        };
        self.say(&event, text);
    }

    fn say(&self, event: &Event<'_>, text: &str) {
        if self.progress.is_json() {
            self.progress.json_line(event);
        } else {
            self.progress.note(text);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
