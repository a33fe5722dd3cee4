//! HTTP/1.1 with JSON bodies, over a unix socket or mutual TLS.
//!
//! A mutation carries one operation id, made once: when the connection breaks before the answer is there, it is sent
//! again with the same id, so that it takes effect once however often it arrives.

pub mod connect;
pub mod tls;

use std::{error::Error, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use outboard_api::{BODY_LEN_MAX, OPERATION_ID_HEADER, error::ErrorBody};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use self::connect::{Stream, Target};
use crate::error::CliError;

/// How long one request may take until its answer is complete.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a request is sent when connections break.
pub const ATTEMPTS_MAX: u32 = 3;

/// Pause before the second attempt; it doubles with each further one.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A server and how to reach it. Every request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
    operation_id: Option<Uuid>,
    timeout: Duration,
}

/// How an attempt failed.
enum Failure {
    /// Nothing listens, or it does not let us in: trying again at once is of no use.
    Unreachable(CliError),
    /// The connection broke before the answer was complete.
    Broken(String),
    /// The server answered with something that is no answer.
    Nonsense(CliError),
}

impl Client {
    /// A client of that server.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            operation_id: None,
            timeout: REQUEST_TIMEOUT,
        }
    }

    /// Names the next mutation, where the caller repeats one of before. At most one mutation may follow.
    #[must_use]
    pub fn with_operation_id(mut self, id: Option<Uuid>) -> Self {
        self.operation_id = id;
        self
    }

    /// Another limit than [`REQUEST_TIMEOUT`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where it connects to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `GET path`.
    ///
    /// # Errors
    /// The server is away, refuses, or answers with something else than a `T`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.decode(self.send(Method::GET, path, None, None).await?)
    }

    /// Asks for something to be worked out, without changing anything: `POST path`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn query<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, CliError> {
        self.decode(self.send(Method::POST, path, Some(encode(body)?), None).await?)
    }

    /// `PUT path`, under one operation id.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn put<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, CliError> {
        self.mutate(Method::PUT, path, Some(encode(body)?)).await
    }

    /// `POST path`, under one operation id.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, CliError> {
        self.mutate(Method::POST, path, Some(encode(body)?)).await
    }

    /// `DELETE path`, under one operation id.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.mutate(Method::DELETE, path, None).await
    }

    async fn mutate<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<T, CliError> {
        let id = self.operation_id.unwrap_or_else(Uuid::new_v4);
        self.decode(self.send(method, path, body, Some(id)).await?)
    }

    /// Sends it until there is an answer, at most [`ATTEMPTS_MAX`] times.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        operation: Option<Uuid>,
    ) -> Result<Bytes, CliError> {
        let mut pause = RETRY_PAUSE;
        let mut attempt = 1;
        loop {
            let sent = self.attempt(&method, path, body.clone().unwrap_or_default(), operation);
            let failure = match tokio::time::timeout(self.timeout, sent).await {
                Ok(Ok((status, answer))) => return self.judge(status, answer),
                Ok(Err(failure)) => failure,
                Err(_) => {
                    let what = format!("{} gave no answer within {} s", self.target, self.timeout.as_secs_f32());
                    return Err(CliError::coded("timeout", what, repeat_with(operation, "try again")));
                }
            };
            match failure {
                Failure::Unreachable(e) | Failure::Nonsense(e) => return Err(e),
                Failure::Broken(why) if attempt == ATTEMPTS_MAX => {
                    let what = format!("{} broke the connection {attempt} times: {why}", self.target);
                    let remedy = repeat_with(operation, "look at its log, then try again");
                    return Err(CliError::coded("connection_broken", what, remedy));
                }
                Failure::Broken(_) => tokio::time::sleep(pause).await,
            }
            (attempt, pause) = (attempt + 1, pause * 2);
        }
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        operation: Option<Uuid>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let request = self.request(method, path, body, operation)?;
        let stream: Box<dyn Stream> = self.target.connect().await.map_err(Failure::Unreachable)?;
        let broken = |e: hyper::Error| self.failure(&e);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let driver = tokio::spawn(connection);
        let answer = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_LEN_MAX).collect().await;
            Ok((status, body.map_err(|e| self.failure(e.as_ref()))?.to_bytes()))
        };
        let answer = answer.await;
        driver.abort();
        answer
    }

    /// A server may refuse a certificate only after the handshake (RFC 8446 §4.4.2.4 and appendix E.1.2): the alert then
    /// comes in place of the answer.
    fn failure(&self, error: &(dyn Error + 'static)) -> Failure {
        let (mut root, mut alert) = (error, tls::alert(error));
        while let (None, Some(cause)) = (alert, root.source()) {
            (root, alert) = (cause, tls::alert(cause));
        }
        match (&self.target, alert) {
            (Target::Tls(target), Some(alert)) => Failure::Unreachable(target.refused(&format!("{alert:?}"))),
            _ => Failure::Broken(root.to_string()),
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        operation: Option<Uuid>,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.target.host())
            .header(header::ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(id) = operation {
            request = request.header(OPERATION_ID_HEADER, id.to_string());
        }
        request.body(Full::new(body)).map_err(|e| {
            Failure::Nonsense(CliError::new(
                format!("cannot ask for {path}: {e}"),
                "check the names on the command line",
            ))
        })
    }

    /// The body of a good answer, or the error that a bad one tells.
    fn judge(&self, status: StatusCode, answer: Bytes) -> Result<Bytes, CliError> {
        if status.is_success() {
            return Ok(answer);
        }
        Err(match serde_json::from_slice::<ErrorBody>(&answer) {
            Ok(body) => body.into(),
            Err(_) => CliError::coded(
                "unexpected_answer",
                format!("{} answered {status} without saying why", self.target),
                "check that the address is that of an Outboard service, and of this version",
            ),
        })
    }

    fn decode<T: DeserializeOwned>(&self, answer: Bytes) -> Result<T, CliError> {
        let text: &[u8] = if answer.is_empty() { b"null" } else { &answer };
        serde_json::from_slice(text).map_err(|e| {
            CliError::coded(
                "unexpected_answer",
                format!("{} gave an answer that this version cannot read: {e}", self.target),
                format!(
                    "use the 'outboard' of the same version; this is {}",
                    env!("CARGO_PKG_VERSION")
                ),
            )
        })
    }
}

fn encode(body: &impl Serialize) -> Result<Bytes, CliError> {
    let text = serde_json::to_vec(body);
    text.map(Bytes::from)
        .map_err(|e| CliError::new(format!("cannot write the request: {e}"), "check its values"))
}

fn repeat_with(operation: Option<Uuid>, otherwise: &str) -> String {
    match operation {
        Some(id) => format!("it may have taken effect; repeat the same command with --operation-id {id} to be sure"),
        None => otherwise.to_owned(),
    }
}
