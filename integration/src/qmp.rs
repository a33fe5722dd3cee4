//! QEMU's machine protocol, as far as tests need it.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

/// How long QEMU has to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection to a QEMU that was started with `-qmp unix:PATH,server=on,wait=off`.
#[derive(Debug)]
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects and leaves the negotiation mode.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut qmp = Self(BufReader::new(stream));
        qmp.answer()?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command: what it returns.
    pub fn run(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())?;
        self.answer()
    }

    /// The next message that is no event.
    fn answer(&mut self) -> io::Result<Value> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut message: Value = serde_json::from_str(&line)?;
            if let Some(error) = message.get("error") {
                return Err(io::Error::other(format!("QEMU: {error}")));
            }
            if message.get("QMP").is_some() {
                return Ok(Value::Null);
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
        }
    }
}
