//! A broker in a directory of its own, a client of its API, and a small card.

use std::{path::PathBuf, sync::Arc};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use outboard_broker::{
    broker::{Broker, Stopping},
    config::Config,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

pub mod card;

/// A running broker.
pub struct Running {
    pub directory: Arc<TempDir>,
    pub config: Config,
    pub broker: Broker,
}

impl Running {
    pub async fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap())).await
    }

    pub async fn start_in(directory: Arc<TempDir>) -> Self {
        let config = Config {
            state_dir: directory.path().join("state"),
            api_socket: directory.path().join("run/api.sock"),
            api_listen: Some("127.0.0.1:0".parse().unwrap()),
            card_listen: "127.0.0.1:0".parse().unwrap(),
            card_address: None,
        };
        let broker = Broker::start(&config).await.unwrap();
        Self {
            directory,
            config,
            broker,
        }
    }

    pub async fn stop(self) -> (Arc<TempDir>, Stopping) {
        (self.directory, self.broker.stop().await)
    }

    pub fn client(&self) -> Client {
        Client::of(&self.config.api_socket)
    }
}

/// A client of the API over the unix socket.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn of(socket: &std::path::Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    pub async fn send(&self, method: &str, path: &str, body: &str, operation: Option<&str>) -> (u16, Value) {
        exchange(
            UnixStream::connect(&self.socket).await.unwrap(),
            method,
            path,
            body,
            operation,
        )
        .await
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, "", None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// A mutation that must succeed.
    pub async fn change(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.send(method, path, body, None).await;
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }

    /// A request that must be refused: its status and the error.
    pub async fn refused(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, answer) = self.send(method, path, body, None).await;
        assert!(status >= 400, "{method} {path}: {status} {answer}");
        let error = answer["error"].clone();
        for key in ["code", "message", "remedy"] {
            assert!(
                error[key].as_str().is_some_and(|text| !text.is_empty()),
                "{key} is missing: {answer}"
            );
        }
        (status, error)
    }

    /// Asks until `wanted` holds.
    pub async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..6000 {
            last = self.get(path).await;
            if wanted(&last) {
                return last;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{path} stays {last}");
    }

    pub async fn token(&self, card: &str, serial: &str) -> String {
        let body = format!(r#"{{"serial":"{serial}"}}"#);
        let answer = self.change("POST", &format!("/v1/cards/{card}/enrol"), &body).await;
        answer["token"].as_str().unwrap().to_owned()
    }

    pub async fn network(&self) {
        self.change(
            "PUT",
            "/v1/networks/blue",
            r#"{"name":"blue","subnets":["10.0.0.0/24"]}"#,
        )
        .await;
    }

    pub async fn port(&self, name: &str, host: u8) -> Value {
        let spec = port_spec(name, host);
        self.change("PUT", &format!("/v1/ports/{name}"), &spec).await
    }
}

pub fn port_spec(name: &str, host: u8) -> String {
    format!(r#"{{"name":"{name}","network":"blue","mac":"52:54:00:00:00:{host:02x}","addresses":["10.0.0.{host}"]}}"#)
}

/// One HTTP request over an open connection.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    body: &str,
    operation: Option<&str>,
) -> (u16, Value) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "broker");
    if let Some(id) = operation {
        request = request.header("Outboard-Operation-Id", id);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let json = serde_json::from_slice(&body);
    (
        status,
        json.unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned())),
    )
}
