//! `/v1/grants` and `/v1/bindings`

use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use outboard_api::{
    binding::BindingView,
    error::ErrorBody,
    grant::{GrantRequest, GrantView},
};
use outboard_protocol::id::{ObjectKind, ObjectRef};

use super::{
    Api,
    request::{Answered, Mutation, name, show},
};
use crate::{
    core::{Command, Failure},
    views,
};

fn object(Path((kind, text)): Path<(String, String)>) -> Result<ObjectRef, Failure> {
    let kind = match kind.as_str() {
        "port" => ObjectKind::Port,
        "volume" => ObjectKind::Volume,
        _ => {
            let message = "only ports and volumes are granted";
            return Err(Failure::general(
                404,
                "bad_kind",
                message,
                "use /v1/grants/port/NAME or /v1/grants/volume/NAME",
            ));
        }
    };
    Ok(ObjectRef {
        kind,
        name: name(&kind.to_string(), Path(text))?,
    })
}

/// All grants, in force or revoked.
#[utoipa::path(get, path = "/v1/grants", tag = "grants", responses((status = 200, body = Vec<GrantView>)))]
pub async fn list(State(api): State<Api>) -> Answered<Json<Vec<GrantView>>> {
    show(&api, |core| Ok(views::grants(core.inventory()))).await
}

/// Grants a port or volume to a host: the one of its card unless another is named.
#[utoipa::path(put, path = "/v1/grants/{kind}/{name}", tag = "grants",
    params(("kind" = String, Path, description = "port or volume"), ("name" = String, Path)),
    request_body = GrantRequest, responses((status = 200, body = GrantView), (status = "default", body = ErrorBody)))]
pub async fn put(State(api): State<Api>, path: Path<(String, String)>, mutation: Mutation) -> Answered<Response> {
    let object = object(path)?;
    let GrantRequest { host } = mutation.json_or_default()?;
    mutation.answer(&api, Command::Grant { object, host }).await
}

/// Revokes a grant. `revocation` is `pending` until the card has said that nothing goes in or out any more.
#[utoipa::path(delete, path = "/v1/grants/{kind}/{name}", tag = "grants",
    params(("kind" = String, Path, description = "port or volume"), ("name" = String, Path)),
    responses((status = 200, body = GrantView), (status = "default", body = ErrorBody)))]
pub async fn delete(State(api): State<Api>, path: Path<(String, String)>, mutation: Mutation) -> Answered<Response> {
    let object = object(path)?;
    mutation.answer(&api, Command::Revoke(object)).await
}

/// The latest binding of each object.
#[utoipa::path(get, path = "/v1/bindings", tag = "grants", responses((status = 200, body = Vec<BindingView>)))]
pub async fn bindings(State(api): State<Api>) -> Answered<Json<Vec<BindingView>>> {
    show(&api, |core| {
        let inventory = core.inventory();
        Ok(inventory
            .bindings
            .values()
            .map(|b| views::binding(inventory, b))
            .collect())
    })
    .await
}
