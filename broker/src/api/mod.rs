//! The operators' side: HTTP and JSON, over a unix socket of mode 0600 or over mutual TLS.

mod access;
mod capture;
mod cards;
mod explain;
mod flow;
mod grants;
mod groups;
mod objects;
mod request;
mod serve;
mod strangers;
mod system;
mod topology;
mod trace;
mod unix_socket;

use std::sync::Arc;

use axum::{Extension, Router, extract::Request, http::StatusCode, middleware::from_fn, response::IntoResponse};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use access::Access;
use request::Refused;
pub use serve::{serve_tls, serve_unix};
pub use unix_socket::{ApiSocket, bind_unix};

use crate::{
    cards::Inquiries,
    core::{CoreHandle, Failure},
    identity::Authority,
};

/// What the handlers need.
#[derive(Clone)]
pub struct Api {
    /// The core.
    pub core: CoreHandle,
    /// Asks cards.
    pub inquiries: Inquiries,
    /// Signs operators' certificates.
    pub authority: Arc<Authority>,
    /// What enrolment tokens tell a card to connect to.
    pub card_address: Arc<str>,
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Outboard broker",
    description = "Declares networks, security groups, ports and volumes, enrols cards and says which host may have what. A mutation may \
                   carry the header `Outboard-Operation-Id: <uuid>`: the same id with the same request gets the same \
                   answer and has one effect; with another request it is refused."
))]
struct Document;

/// The routes, and the document that describes them.
pub fn router(api: Api) -> (Router, utoipa::openapi::OpenApi) {
    let (routes, document) = OpenApiRouter::<Api>::with_openapi(Document::openapi())
        .routes(routes!(system::health))
        .routes(routes!(system::openapi))
        .routes(routes!(system::metrics))
        .routes(routes!(system::make_operator))
        .routes(routes!(cards::list))
        .routes(routes!(cards::get, cards::delete))
        .routes(routes!(cards::enrol))
        .routes(routes!(objects::list_networks))
        .routes(routes!(
            objects::get_network,
            objects::put_network,
            objects::delete_network
        ))
        .routes(routes!(groups::list_groups))
        .routes(routes!(groups::get_group, groups::put_group, groups::delete_group))
        .routes(routes!(groups::add_rule))
        .routes(routes!(groups::remove_rule))
        .routes(routes!(groups::list_address_sets))
        .routes(routes!(
            groups::get_address_set,
            groups::put_address_set,
            groups::delete_address_set
        ))
        .routes(routes!(objects::list_ports))
        .routes(routes!(objects::get_port, objects::put_port, objects::delete_port))
        .routes(routes!(objects::list_volumes))
        .routes(routes!(
            objects::get_volume,
            objects::put_volume,
            objects::delete_volume
        ))
        .routes(routes!(grants::list))
        .routes(routes!(grants::put, grants::delete))
        .routes(routes!(grants::bindings))
        .routes(routes!(explain::explain))
        .routes(routes!(explain::reasons))
        .routes(routes!(trace::trace))
        .routes(routes!(capture::open))
        .routes(routes!(capture::read))
        .routes(routes!(capture::close))
        .routes(routes!(flow::list))
        .routes(routes!(flow::flush))
        .routes(routes!(topology::diff))
        .routes(routes!(topology::apply))
        .split_for_parts();
    let router = routes
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn(access::guard))
        .layer(Extension(Arc::new(document.clone())))
        .layer(Extension(api.clone()))
        .with_state(api);
    (router, document)
}

async fn unknown_path(request: Request) -> impl IntoResponse {
    let message = format!("there is nothing at {}", request.uri().path());
    Refused(Failure::general(
        404,
        "unknown_path",
        message,
        "GET /v1/openapi.json lists what there is",
    ))
}

async fn unknown_method(request: Request) -> impl IntoResponse {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    let status = StatusCode::METHOD_NOT_ALLOWED.as_u16();
    Refused(Failure::general(
        status,
        "unknown_method",
        message,
        "GET /v1/openapi.json lists what there is",
    ))
}
