//! `/v1/cards`

use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use jiff::Timestamp;
use outboard_api::{
    card::{CardView, EnrolRequest, EnrolResponse, TOKEN_TTL_DEFAULT_S},
    error::ErrorBody,
};
use outboard_protocol::token::EnrolToken;

use super::{
    Api,
    request::{Answered, Mutation, name, show},
};
use crate::{
    clock::unix_now_s,
    core::{Command, Failure},
    identity::new_secret,
    views,
};

/// All cards.
#[utoipa::path(get, path = "/v1/cards", tag = "cards", responses((status = 200, body = Vec<CardView>)))]
pub async fn list(State(api): State<Api>) -> Answered<Json<Vec<CardView>>> {
    show(&api, |core| {
        Ok(core
            .inventory()
            .cards
            .values()
            .map(|c| views::card(core.live(), c))
            .collect())
    })
    .await
}

/// One card.
#[utoipa::path(get, path = "/v1/cards/{name}", tag = "cards", params(("name" = String, Path)),
    responses((status = 200, body = CardView), (status = "default", body = ErrorBody)))]
pub async fn get(State(api): State<Api>, path: Path<String>) -> Answered<Json<CardView>> {
    let name = name("card", path)?;
    show(&api, move |core| {
        let card = core
            .inventory()
            .cards
            .get(&name)
            .ok_or_else(|| Failure::not_found("card", &name))?;
        Ok(views::card(core.live(), card))
    })
    .await
}

/// Removes a card. Its certificate is worth nothing from then on. Refused while ports or volumes are placed on it.
#[utoipa::path(delete, path = "/v1/cards/{name}", tag = "cards", params(("name" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub async fn delete(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Response> {
    let name = name("card", path)?;
    mutation.answer(&api, Command::DeleteCard(name)).await
}

/// Prints a one-time token with which the card gets its certificate; makes the card if it is new. A card that has a
/// certificate keeps it until the token is redeemed.
#[utoipa::path(post, path = "/v1/cards/{name}/enrol", tag = "cards", params(("name" = String, Path)),
    request_body = EnrolRequest, responses((status = 200, body = EnrolResponse), (status = "default", body = ErrorBody)))]
pub async fn enrol(State(api): State<Api>, path: Path<String>, mutation: Mutation) -> Answered<Json<EnrolResponse>> {
    let card = name("card", path)?;
    let EnrolRequest { serial, ttl_s } = mutation.json()?;
    let ttl_s = ttl_s.unwrap_or(TOKEN_TTL_DEFAULT_S);
    let secret = new_secret().ok_or_else(|| {
        Failure::general(
            503,
            "no_randomness",
            "there are no random numbers",
            "look at the system",
        )
    })?;
    let token = EnrolToken {
        broker: api.card_address.to_string(),
        card: card.clone(),
        ca_sha256: api.authority.sha256(),
        secret,
    };
    let now_s = unix_now_s();
    mutation
        .run(
            &api,
            Command::EnrolCard {
                card,
                serial,
                ttl_s,
                secret: secret.to_vec(),
            },
        )
        .await?;
    let expires = i64::try_from(now_s.saturating_add(ttl_s))
        .ok()
        .and_then(|s| Timestamp::from_second(s).ok());
    Ok(Json(EnrolResponse {
        token: token.print(),
        expires: expires.unwrap_or(Timestamp::MAX),
    }))
}
