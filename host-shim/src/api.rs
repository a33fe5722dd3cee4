//! The local HTTP API: JSON over a unix socket, for root, the shim's own uid and `api_uids`.

use std::{io, path::Path, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get},
    serve::IncomingStream,
};
use outboard_controls::{Check, on};
use outboard_shim_api::{Detached, DeviceKind, DeviceList, DeviceSpec, ErrorBody, ErrorDetail};
use rustix::{fs::Mode, process::geteuid};
use tokio::net::UnixListener;

use crate::{
    agent::AttachError,
    config::{ConfigError, object},
    daemon::{DeviceError, Shim},
    sockets::{Listener, ROOT_UID, SocketError},
};

/// Longest body of a request, in bytes.
const BODY_LEN_MAX: usize = 16 << 10;

/// Who may use the API.
#[derive(Debug, Clone)]
pub struct Allowed(Arc<[u32]>);

impl Allowed {
    /// Root, the shim's own uid and these.
    pub fn new(api_uids: &[u32]) -> Self {
        Self([ROOT_UID, geteuid().as_raw()].iter().chain(api_uids).copied().collect())
    }

    /// These and nobody else.
    pub fn only(uids: &[u32]) -> Self {
        Self(uids.into())
    }

    fn admits(&self, uid: Option<u32>) -> bool {
        !on(Check::PeerUid) || uid.is_some_and(|uid| self.0.contains(&uid))
    }
}

/// The uid on the other end of a connection; none if the kernel cannot tell.
#[derive(Debug, Clone, Copy)]
struct PeerUid(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for PeerUid {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|credentials| credentials.uid()))
    }
}

/// The API's socket, bound.
#[derive(Debug)]
pub struct Api {
    listener: Listener,
    allowed: Allowed,
}

impl Api {
    /// Binds the socket. It is open to all uids only if some beside the shim's own are configured; each connection is
    /// checked in any case.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path, api_uids: &[u32]) -> Result<Self, SocketError> {
        let mode = if api_uids.is_empty() {
            Mode::from_raw_mode(0o600)
        } else {
            Mode::from_raw_mode(0o666)
        };
        Ok(Self {
            listener: Listener::bind(path, mode, None)?,
            allowed: Allowed::new(api_uids),
        })
    }

    /// The same with another list of uids.
    #[must_use]
    pub fn with_allowed(self, allowed: Allowed) -> Self {
        Self { allowed, ..self }
    }

    /// Serves until `stop` is ready.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn serve(self, shim: Shim, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let service = router(shim, self.allowed).into_make_service_with_connect_info::<PeerUid>();
        // Not graceful: an idle client would hold the shim's end up.
        let serving = async { axum::serve(listener, service).await };
        tokio::select! {
            served = serving => served,
            () = stop => Ok(()),
        }
    }
}

fn router(shim: Shim, allowed: Allowed) -> Router {
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/devices", get(list).post(attach))
        .route("/v1/devices/{kind}/{name}", delete(detach))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_path)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .layer(from_fn_with_state(allowed, check_peer))
        .with_state(shim)
}

async fn check_peer(
    State(allowed): State<Allowed>,
    ConnectInfo(PeerUid(uid)): ConnectInfo<PeerUid>,
    request: Request,
    next: Next,
) -> Response {
    if allowed.admits(uid) {
        return next.run(request).await;
    }
    let who = uid.map_or("a process of unknown uid".to_owned(), |uid| format!("uid {uid}"));
    tracing::warn!(%who, path = request.uri().path(), "the API refused a peer");
    ApiError {
        status: StatusCode::FORBIDDEN,
        code: "uid_refused",
        object: "api".to_owned(),
        message: format!("{who} may not use the shim's API"),
        remedy: "use it as root or as the shim's user, or add the uid to `api_uids` in the shim's configuration"
            .to_owned(),
    }
    .into_response()
}

async fn health(State(shim): State<Shim>) -> Result<Response, ApiError> {
    Ok(Json(shim.health().await?).into_response())
}

async fn list(State(shim): State<Shim>) -> Result<Response, ApiError> {
    let devices = shim.health().await?.devices;
    Ok(Json(DeviceList { devices }).into_response())
}

async fn attach(State(shim): State<Shim>, body: Bytes) -> Result<Response, ApiError> {
    let spec: DeviceSpec = serde_json::from_slice(&body).map_err(|error| ApiError {
        status: StatusCode::BAD_REQUEST,
        code: "malformed",
        object: "device".to_owned(),
        message: format!("the body is not a device: {error}"),
        remedy: "send kind (port or volume) and name, and if need be socket, role (listen or connect) and uid"
            .to_owned(),
    })?;
    let view = shim.attach(spec).await?;
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

async fn detach(
    State(shim): State<Shim>,
    axum::extract::Path((kind, name)): axum::extract::Path<(String, String)>,
) -> Result<Response, ApiError> {
    let kind = match kind.as_str() {
        "port" => DeviceKind::Port,
        "volume" => DeviceKind::Volume,
        _ => return Err(unknown_path()),
    };
    let object = object(kind, &name).map_err(DeviceError::from)?;
    let release = shim.detach(object).await?;
    Ok(Json(Detached { release }).into_response())
}

async fn no_such_path() -> ApiError {
    unknown_path()
}

fn unknown_path() -> ApiError {
    ApiError {
        status: StatusCode::NOT_FOUND,
        code: "no_such_path",
        object: "api".to_owned(),
        message: "the shim's API has no such path or method".to_owned(),
        remedy: "use GET /v1/health, GET or POST /v1/devices, or DELETE /v1/devices/{port|volume}/{name}".to_owned(),
    }
}

/// An answer with an error status.
struct ApiError {
    status: StatusCode,
    code: &'static str,
    object: String,
    message: String,
    remedy: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = ErrorDetail {
            code: self.code.to_owned(),
            object: self.object,
            message: self.message,
            remedy: self.remedy,
        };
        (self.status, Json(ErrorBody { error })).into_response()
    }
}

impl From<DeviceError> for ApiError {
    fn from(error: DeviceError) -> Self {
        let message = error.to_string();
        let (status, code, object, remedy) = match &error {
            DeviceError::Config(config) => {
                let object = match config {
                    ConfigError::Name { kind, name, .. } => format!("{kind} {name}"),
                    ConfigError::Socket { object, .. } | ConfigError::Twice(object) => object.to_string(),
                    _ => "device".to_owned(),
                };
                (StatusCode::BAD_REQUEST, "bad_device", object, config.remedy())
            }
            DeviceError::Attach(attach) => attach_error(attach),
            DeviceError::Stopping => (
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "shim".to_owned(),
                "ask again once it has been started".to_owned(),
            ),
        };
        Self {
            status,
            code,
            object,
            message,
            remedy,
        }
    }
}

fn attach_error(error: &AttachError) -> (StatusCode, &'static str, String, String) {
    let (status, code, object, remedy) = match error {
        AttachError::Exists(object) => (
            StatusCode::CONFLICT,
            "already_attached",
            object,
            "detach it first, or repeat it with the same settings",
        ),
        AttachError::SocketTaken { object, .. } => (
            StatusCode::CONFLICT,
            "socket_taken",
            object,
            "give it a `socket` of its own",
        ),
        AttachError::Leaving(object) => (
            StatusCode::CONFLICT,
            "leaving",
            object,
            "start the DPU, then attach it again once it is released",
        ),
        AttachError::TooMany(object) => (StatusCode::CONFLICT, "too_many", object, "detach what is not used"),
        AttachError::Unknown(object) => (
            StatusCode::NOT_FOUND,
            "not_attached",
            object,
            "see `outboard-shim list` for what is attached",
        ),
    };
    (status, code, object.to_string(), remedy.to_owned())
}
