//! From an HTTP request to typed input, and from a failure to an answer.

use axum::{
    Json,
    body::{Bytes, to_bytes},
    extract::{FromRequest, Path, Request},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use outboard_api::{BODY_LEN_MAX, OPERATION_ID_HEADER};
use outboard_protocol::id::Name;
use serde::{Serialize, de::DeserializeOwned};

use super::Api;
use crate::{
    clock::unix_now_s,
    core::{Command, Failure, Operation, Outcome},
    identity::sha256_hex,
};

/// A failure as an answer.
#[derive(Debug)]
pub struct Refused(pub Failure);

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl From<crate::core::Gone> for Refused {
    fn from(gone: crate::core::Gone) -> Self {
        Self(gone.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0.body)).into_response()
    }
}

/// What a handler answers with.
pub type Answered<T> = Result<T, Refused>;

/// The name in a path.
pub fn name(kind: &str, Path(text): Path<String>) -> Result<Name, Failure> {
    text.parse().map_err(|error| {
        // A name from outside goes into messages only as far as names reach.
        let shown: String = text.chars().take(outboard_protocol::id::NAME_LEN_MAX).collect();
        Failure::about(
            422,
            "bad_name",
            format!("{kind} {shown:?}"),
            format!("{error}"),
            "correct the name in the path",
        )
    })
}

/// A request that changes something: its body and its operation id.
pub struct Mutation {
    operation: Option<Operation>,
    body: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for Mutation {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, BODY_LEN_MAX).await.map_err(|_| {
            let message = format!("the body has more than {BODY_LEN_MAX} bytes, or was cut off");
            Failure::general(413, "body_too_long", message, "send less at a time")
        })?;
        let operation = operation(&parts.headers, parts.method.as_str(), parts.uri.path(), &body)?;
        Ok(Self { operation, body })
    }
}

fn operation(headers: &HeaderMap, method: &str, path: &str, body: &[u8]) -> Result<Option<Operation>, Failure> {
    let Some(value) = headers.get(OPERATION_ID_HEADER) else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        let message = format!("the header {OPERATION_ID_HEADER} holds no UUID");
        Failure::general(
            422,
            "bad_operation_id",
            message,
            "use a random UUID, a new one for each new request",
        )
    })?;
    let mut request = format!("{method} {path}\n").into_bytes();
    request.extend_from_slice(body);
    Ok(Some(Operation {
        id,
        request_sha256: sha256_hex(&request),
    }))
}

impl Mutation {
    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let message = format!("the body is not what is expected here: {error}");
            Failure::general(
                422,
                "bad_body",
                message,
                "GET /v1/openapi.json describes the body of each request",
            )
        })
    }

    /// The body as JSON; an empty one stands for the default.
    pub fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Failure> {
        if self.body.is_empty() {
            Ok(T::default())
        } else {
            self.json()
        }
    }

    /// Has the core carry out a command.
    pub async fn run(self, api: &Api, command: Command) -> Result<Outcome, Failure> {
        let Self { operation, .. } = self;
        api.core
            .call(move |core| core.mutate(operation.as_ref(), command, unix_now_s()))
            .await?
    }

    /// Has the core carry out a command, and answers with what it says.
    pub async fn answer(self, api: &Api, command: Command) -> Answered<Response> {
        let Outcome { status, body, .. } = self.run(api, command).await?;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        if body.is_empty() {
            return Ok(status.into_response());
        }
        Ok((status, [(CONTENT_TYPE, "application/json")], body).into_response())
    }
}

/// JSON from the core's state.
pub async fn show<T: Serialize + Send + 'static>(
    api: &Api,
    view: impl FnOnce(&crate::core::Core) -> Result<T, Failure> + Send + 'static,
) -> Answered<Json<T>> {
    Ok(Json(api.core.call(|core| view(core)).await??))
}
