//! `/v1/networks`, `/v1/ports`, `/v1/volumes`

use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use outboard_api::{
    error::ErrorBody,
    network::{NetworkSpec, NetworkView},
    port::{PortSpec, PortView},
    volume::{VolumeSpec, VolumeView},
};
use outboard_protocol::id::{Name, ObjectKind, ObjectRef};

use super::{
    Api,
    request::{Answered, Mutation, name, show},
};
use crate::{
    core::{Command, Failure},
    views,
};

/// The name in the body must be the one in the path.
pub fn same_name(kind: &str, path: &Name, body: &Name) -> Result<(), Failure> {
    if path == body {
        return Ok(());
    }
    let message = format!("the path names {kind} {path}, the body {kind} {body}");
    Err(Failure::about(
        422,
        "name_mismatch",
        format!("{kind} {path}"),
        message,
        "use the same name in both",
    ))
}

/// All networks.
#[utoipa::path(get, path = "/v1/networks", tag = "networks", responses((status = 200, body = Vec<NetworkView>)))]
pub async fn list_networks(State(api): State<Api>) -> Answered<Json<Vec<NetworkView>>> {
    show(&api, |core| {
        let inventory = core.inventory();
        Ok(inventory
            .networks
            .keys()
            .filter_map(|name| views::network(inventory, name))
            .collect())
    })
    .await
}

/// One network.
#[utoipa::path(get, path = "/v1/networks/{name}", tag = "networks", params(("name" = String, Path)),
    responses((status = 200, body = NetworkView), (status = "default", body = ErrorBody)))]
pub async fn get_network(State(api): State<Api>, path: Path<String>) -> Answered<Json<NetworkView>> {
    let name = name("network", path)?;
    show(&api, move |core| {
        views::network(core.inventory(), &name).ok_or_else(|| Failure::not_found("network", &name))
    })
    .await
}

/// Declares a network.
#[utoipa::path(put, path = "/v1/networks/{name}", tag = "networks", params(("name" = String, Path)),
    request_body = NetworkSpec, responses((status = 200, body = NetworkView), (status = "default", body = ErrorBody)))]
pub async fn put_network(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let spec: NetworkSpec = mutation.json()?;
    same_name("network", &name("network", path)?, &spec.name)?;
    mutation.answer(&api, Command::PutNetwork(spec)).await
}

/// Removes a network. Refused while it has ports.
#[utoipa::path(delete, path = "/v1/networks/{name}", tag = "networks", params(("name" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub async fn delete_network(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let name = name("network", path)?;
    mutation.answer(&api, Command::DeleteNetwork(name)).await
}

/// All ports.
#[utoipa::path(get, path = "/v1/ports", tag = "ports", responses((status = 200, body = Vec<PortView>)))]
pub async fn list_ports(State(api): State<Api>) -> Answered<Json<Vec<PortView>>> {
    show(&api, |core| {
        let inventory = core.inventory();
        Ok(inventory
            .ports
            .values()
            .map(|p| views::port(inventory, core.live(), p))
            .collect())
    })
    .await
}

/// One port.
#[utoipa::path(get, path = "/v1/ports/{name}", tag = "ports", params(("name" = String, Path)),
    responses((status = 200, body = PortView), (status = "default", body = ErrorBody)))]
pub async fn get_port(State(api): State<Api>, path: Path<String>) -> Answered<Json<PortView>> {
    let name = name("port", path)?;
    show(&api, move |core| {
        let inventory = core.inventory();
        let port = inventory
            .ports
            .get(&name)
            .ok_or_else(|| Failure::not_found("port", &name))?;
        Ok(views::port(inventory, core.live(), port))
    })
    .await
}

/// Declares a port. A new one is granted to its card's host.
#[utoipa::path(put, path = "/v1/ports/{name}", tag = "ports", params(("name" = String, Path)),
    request_body = PortSpec, responses((status = 200, body = PortView), (status = "default", body = ErrorBody)))]
pub async fn put_port(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let spec: PortSpec = mutation.json()?;
    same_name("port", &name("port", path)?, &spec.name)?;
    mutation.answer(&api, Command::PutPort(spec)).await
}

/// Removes a port: it is revoked, and its binding ends once the card says so.
#[utoipa::path(delete, path = "/v1/ports/{name}", tag = "ports", params(("name" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub async fn delete_port(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let name = name("port", path)?;
    mutation
        .answer(
            &api,
            Command::Delete(ObjectRef {
                kind: ObjectKind::Port,
                name,
            }),
        )
        .await
}

/// All volumes.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", responses((status = 200, body = Vec<VolumeView>)))]
pub async fn list_volumes(State(api): State<Api>) -> Answered<Json<Vec<VolumeView>>> {
    show(&api, |core| {
        let inventory = core.inventory();
        Ok(inventory
            .volumes
            .values()
            .map(|v| views::volume(inventory, core.live(), v))
            .collect())
    })
    .await
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    responses((status = 200, body = VolumeView), (status = "default", body = ErrorBody)))]
pub async fn get_volume(State(api): State<Api>, path: Path<String>) -> Answered<Json<VolumeView>> {
    let name = name("volume", path)?;
    show(&api, move |core| {
        let inventory = core.inventory();
        let volume = inventory
            .volumes
            .get(&name)
            .ok_or_else(|| Failure::not_found("volume", &name))?;
        Ok(views::volume(inventory, core.live(), volume))
    })
    .await
}

/// Declares a volume. A new one is granted to its card's host. One that is in use does not change.
#[utoipa::path(put, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    request_body = VolumeSpec, responses((status = 200, body = VolumeView), (status = "default", body = ErrorBody)))]
pub async fn put_volume(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let spec: VolumeSpec = mutation.json()?;
    same_name("volume", &name("volume", path)?, &spec.name)?;
    mutation.answer(&api, Command::PutVolume(spec)).await
}

/// Removes a volume: it is revoked, and its binding ends once the card says so. Its file stays where it is.
#[utoipa::path(delete, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub async fn delete_volume(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let name = name("volume", path)?;
    mutation
        .answer(
            &api,
            Command::Delete(ObjectRef {
                kind: ObjectKind::Volume,
                name,
            }),
        )
        .await
}
