//! `/v1/groups`, `/v1/address-sets`

use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use outboard_api::{
    address_set::{AddressSetSpec, AddressSetView},
    error::ErrorBody,
    group::{GroupSpec, GroupView, RuleSpec},
};

use super::{
    Api,
    objects::same_name,
    request::{Answered, Mutation, name, show},
};
use crate::{
    core::{Command, Failure},
    views,
};

/// All security groups.
#[utoipa::path(get, path = "/v1/groups", tag = "groups", responses((status = 200, body = Vec<GroupView>)))]
pub async fn list_groups(State(api): State<Api>) -> Answered<Json<Vec<GroupView>>> {
    show(&api, |core| {
        let inventory = core.inventory();
        Ok(inventory.groups.values().map(|g| views::group(inventory, g)).collect())
    })
    .await
}

/// One security group.
#[utoipa::path(get, path = "/v1/groups/{name}", tag = "groups", params(("name" = String, Path)),
    responses((status = 200, body = GroupView), (status = "default", body = ErrorBody)))]
pub async fn get_group(State(api): State<Api>, path: Path<String>) -> Answered<Json<GroupView>> {
    let name = name("group", path)?;
    show(&api, move |core| {
        let inventory = core.inventory();
        let group = inventory
            .groups
            .get(&name)
            .ok_or_else(|| Failure::not_found("group", &name))?;
        Ok(views::group(inventory, group))
    })
    .await
}

/// Declares a security group. What it says is in force for all its ports once their cards have it; established
/// connections live on only where it still allows them.
#[utoipa::path(put, path = "/v1/groups/{name}", tag = "groups", params(("name" = String, Path)),
    request_body = GroupSpec, responses((status = 200, body = GroupView), (status = "default", body = ErrorBody)))]
pub async fn put_group(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let spec: GroupSpec = mutation.json()?;
    same_name("group", &name("group", path)?, &spec.name)?;
    mutation.answer(&api, Command::PutGroup(spec)).await
}

/// Removes a security group. Refused while a port has it or another group's rule names it.
#[utoipa::path(delete, path = "/v1/groups/{name}", tag = "groups", params(("name" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub async fn delete_group(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let name = name("group", path)?;
    mutation.answer(&api, Command::DeleteGroup(name)).await
}

/// Adds a rule to a security group, after those it has. A group that has exactly this rule stays as it is.
#[utoipa::path(post, path = "/v1/groups/{name}/rules", tag = "groups", params(("name" = String, Path)),
    request_body = RuleSpec, responses((status = 200, body = GroupView), (status = "default", body = ErrorBody)))]
pub async fn add_rule(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let rule: RuleSpec = mutation.json()?;
    let group = name("group", path)?;
    mutation.answer(&api, Command::AddRule { group, rule }).await
}

/// Removes a rule from a security group: by its name, or such as `ingress/1` (the slash as `%2F`).
#[utoipa::path(delete, path = "/v1/groups/{name}/rules/{rule}", tag = "groups",
    params(("name" = String, Path), ("rule" = String, Path)),
    responses((status = 200, body = GroupView), (status = "default", body = ErrorBody)))]
pub async fn remove_rule(
    State(api): State<Api>,
    Path((group, rule)): Path<(String, String)>,
    mutation: Mutation,
) -> Answered<Response> {
    let group = name("group", Path(group))?;
    mutation.answer(&api, Command::RemoveRule { group, rule }).await
}

/// All address sets.
#[utoipa::path(get, path = "/v1/address-sets", tag = "groups", responses((status = 200, body = Vec<AddressSetView>)))]
pub async fn list_address_sets(State(api): State<Api>) -> Answered<Json<Vec<AddressSetView>>> {
    show(&api, |core| {
        let inventory = core.inventory();
        let sets = inventory.address_sets.values();
        Ok(sets.map(|s| views::address_set(inventory, s)).collect())
    })
    .await
}

/// One address set.
#[utoipa::path(get, path = "/v1/address-sets/{name}", tag = "groups", params(("name" = String, Path)),
    responses((status = 200, body = AddressSetView), (status = "default", body = ErrorBody)))]
pub async fn get_address_set(State(api): State<Api>, path: Path<String>) -> Answered<Json<AddressSetView>> {
    let name = name("address-set", path)?;
    show(&api, move |core| {
        let inventory = core.inventory();
        let set = inventory
            .address_sets
            .get(&name)
            .ok_or_else(|| Failure::not_found("address-set", &name))?;
        Ok(views::address_set(inventory, set))
    })
    .await
}

/// Declares an address set. Rules that name it follow it.
#[utoipa::path(put, path = "/v1/address-sets/{name}", tag = "groups", params(("name" = String, Path)),
    request_body = AddressSetSpec, responses((status = 200, body = AddressSetView), (status = "default", body = ErrorBody)))]
pub async fn put_address_set(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let spec: AddressSetSpec = mutation.json()?;
    same_name("address-set", &name("address-set", path)?, &spec.name)?;
    mutation.answer(&api, Command::PutAddressSet(spec)).await
}

/// Removes an address set. Refused while a rule names it.
#[utoipa::path(delete, path = "/v1/address-sets/{name}", tag = "groups", params(("name" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub async fn delete_address_set(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let name = name("address-set", path)?;
    mutation.answer(&api, Command::DeleteAddressSet(name)).await
}
