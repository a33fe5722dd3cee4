//! A scripted HTTP server on a unix socket: it records each request, and answers as told.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use serde_json::Value;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method and path, as in `GET /v1/health`.
    pub line: String,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What a request is answered with.
pub enum Answer {
    /// A status and a JSON body.
    Json(u16, Value),
    /// A status and a text that is no JSON.
    Text(u16, &'static str),
    /// The connection is closed.
    Hangup,
    /// Half an answer, then the connection is closed.
    Half,
}

/// A server that lives until its test ends.
pub struct Server {
    dir: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves each request with what `script` makes of it and of how many came before.
    pub fn start(script: impl Fn(&Request, usize) -> Answer + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("s")).expect("a socket");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let request = read(&stream);
                let before = log.lock().expect("the log").len();
                log.lock().expect("the log").push(request.clone());
                answer(&mut stream, &script(&request, before));
            }
        });
        Self { dir, seen }
    }

    /// One that answers everything with 200 and this.
    pub fn always(body: Value) -> Self {
        Self::start(move |_, _| Answer::Json(200, body.clone()))
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("the log").clone()
    }
}

fn read(stream: &UnixStream) -> Request {
    let mut lines = BufReader::new(stream);
    let mut line = || {
        let mut text = String::new();
        lines.read_line(&mut text).expect("a line");
        text.trim_end().to_owned()
    };
    let first = line();
    let mut headers = Vec::new();
    loop {
        let text = line();
        let Some((key, value)) = text.split_once(':') else {
            break;
        };
        headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let len = headers
        .iter()
        .find(|(key, _)| key == "content-length")
        .map_or(0, |(_, len)| len.parse().expect("a number"));
    let mut body = vec![0; len];
    lines.read_exact(&mut body).expect("a body");
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).expect("JSON")
    };
    Request {
        line: first.trim_end_matches(" HTTP/1.1").to_owned(),
        headers,
        body,
    }
}

fn answer(stream: &mut UnixStream, answer: &Answer) {
    let (status, body) = match answer {
        Answer::Json(status, body) => (*status, body.to_string()),
        Answer::Text(status, body) => (*status, (*body).to_owned()),
        Answer::Hangup => return,
        Answer::Half => (200, "x".to_owned()),
    };
    let len = if matches!(answer, Answer::Half) {
        1000
    } else {
        body.len()
    };
    let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {len}\r\n\r\n{body}");
    // The client may have gone already, where the test is about just that.
    let _ = stream.write_all(text.as_bytes());
}
