//! The broker itself: health, metrics, its API's description, and operators' certificates.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use outboard_api::{error::ErrorBody, health::Health, operator::OperatorCredentials};

use super::{
    Access, Api,
    request::{Answered, Mutation, name, show},
};
use crate::{
    clock::unix_now_s,
    core::{Command, Failure},
    inventory::CertificateRecord,
    metrics, views,
};

/// The broker's own state.
#[utoipa::path(get, path = "/v1/health", tag = "broker", responses((status = 200, body = Health)))]
pub async fn health(State(api): State<Api>) -> Answered<Json<Health>> {
    show(&api, |core| Ok(views::health(core.inventory(), core.live()))).await
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "broker",
    responses((status = 200, description = "OpenAPI", body = serde_json::Value)))]
pub async fn openapi(Extension(document): Extension<Arc<utoipa::openapi::OpenApi>>) -> Response {
    Json(document.as_ref()).into_response()
}

/// Metrics in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "broker", responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn metrics(State(api): State<Api>) -> Answered<Response> {
    let text = api
        .core
        .call(|core| metrics::text(core.inventory(), core.live(), Instant::now()))
        .await?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// Makes a certificate for an operator of the API over mutual TLS; an earlier one of that name is not let in any more.
/// Only over the unix socket. The key is shown once and not kept.
#[utoipa::path(post, path = "/v1/operators/{name}", tag = "broker", params(("name" = String, Path)),
    responses((status = 200, body = OperatorCredentials), (status = "default", body = ErrorBody)))]
pub async fn make_operator(
    State(api): State<Api>,
    Extension(access): Extension<Access>,
    path: Path<String>,
    mutation: Mutation,
) -> Answered<Json<OperatorCredentials>> {
    let operator = name("operator", path)?;
    if access != Access::Local {
        let message = "operators are made over the broker's unix socket only";
        let remedy = "ask somebody who has access to the machine that the broker runs on";
        return Err(Failure::about(403, "local_only", format!("operator {operator}"), message, remedy).into());
    }
    let issued = api.authority.issue_operator(&operator, unix_now_s());
    let (issued, key) =
        issued.map_err(|e| Failure::general(503, "not_issued", e.to_string(), "look at the broker's log"))?;
    let certificate = CertificateRecord {
        fingerprint: issued.fingerprint,
        not_after_s: issued.not_after_s,
    };
    mutation
        .run(&api, Command::RecordOperator { operator, certificate })
        .await?;
    Ok(Json(OperatorCredentials {
        certificate: issued.pem,
        key,
        ca: api.authority.certificate_pem().to_owned(),
    }))
}
