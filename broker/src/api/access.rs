//! Who asks, and whether they still may.

use std::time::Instant;

use axum::{
    Extension,
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::timeout;

use super::{Api, request::Refused};
use crate::{core::Failure, identity::Peer, limits::REQUEST_TIMEOUT};

/// How a request came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Over the unix socket: the broker's own user or root.
    Local,
    /// Over TLS, with an operator's certificate that the authority signed.
    Operator(Peer),
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Operator(peer) => write!(f, "operator {}", peer.name),
        }
    }
}

/// Lets a request in, bounds its time and logs it if it may change something.
pub async fn guard(Extension(api): Extension<Api>, request: Request, next: Next) -> Response {
    // Both listeners set it; without it nobody knows who asks.
    let Some(access) = request.extensions().get::<Access>().cloned() else {
        return Refused(Failure::general(
            403,
            "unknown_caller",
            "nobody knows who asks",
            "report this",
        ))
        .into_response();
    };
    if let Access::Operator(peer) = &access
        && let Err(failure) = is_current(&api, peer).await
    {
        tracing::warn!("refused operator {}: {}", peer.name, failure.body.error.message);
        return Refused(failure).into_response();
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begun = Instant::now();
    let answer = timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
        let message = format!("the request took more than {} s", REQUEST_TIMEOUT.as_secs());
        Refused(Failure::general(
            408,
            "too_slow",
            message,
            "send the body faster, or look at the broker's load",
        ))
        .into_response()
    });
    if !method.is_safe() {
        let (status, took_ms) = (answer.status().as_u16(), begun.elapsed().as_millis());
        tracing::info!(caller = %access, %method, path, status, took_ms, "api");
    }
    answer
}

/// An operator's certificate counts until another is made for the same name.
async fn is_current(api: &Api, peer: &Peer) -> Result<(), Failure> {
    let name = peer.name.clone();
    let known = api
        .core
        .call(move |core| core.inventory().operators.get(&name).cloned())
        .await?;
    match known {
        Some(operator) if operator.certificate.fingerprint == peer.fingerprint => Ok(()),
        _ => Err(Failure::about(
            403,
            "certificate_replaced",
            format!("operator {}", peer.name),
            format!(
                "operator {} comes with a certificate that a later one replaced",
                peer.name
            ),
            format!(
                "make a new one: POST /v1/operators/{} on the broker's unix socket",
                peer.name
            ),
        )),
    }
}
