//! `/v1/topology`

use axum::{Json, extract::State, response::Response};
use outboard_api::{
    error::ErrorBody,
    topology::{Change, Topology, diff as difference},
};

use super::{
    Api,
    request::{Answered, Mutation, show},
};
use crate::core::{Command, current, placed};

/// What applying a topology would do. Changes nothing.
#[utoipa::path(post, path = "/v1/topology/diff", tag = "topology", request_body = Topology,
    responses((status = 200, body = Vec<Change>), (status = "default", body = ErrorBody)))]
pub async fn diff(State(api): State<Api>, mutation: Mutation) -> Answered<Json<Vec<Change>>> {
    let wanted: Topology = mutation.json()?;
    show(&api, move |core| {
        let now = current(core.inventory());
        let wanted = placed(core.inventory(), &now, wanted)?;
        Ok(difference(&now, &wanted))
    })
    .await
}

/// Makes what the topology declares be there, all of it or nothing. What an earlier apply made and this one does not
/// have is deleted; what was declared by hand stays.
#[utoipa::path(put, path = "/v1/topology", tag = "topology", request_body = Topology,
    responses((status = 200, body = Vec<Change>), (status = "default", body = ErrorBody)))]
pub async fn apply(State(api): State<Api>, mutation: Mutation) -> Answered<Response> {
    let topology: Topology = mutation.json()?;
    mutation.answer(&api, Command::ApplyTopology(topology)).await
}
