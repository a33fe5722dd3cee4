//! `/v1/explain` and a card's reasons: why things are as they are.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
};
use outboard_api::{error::ErrorBody, explain::Explanation, trace::ReasonView};
use outboard_protocol::{
    id::{ObjectKind, ObjectRef},
    inquiry::{Answer, Question},
};

use super::{
    Api,
    request::{Answered, name},
};
use crate::{
    cards::AskError,
    core::Failure,
    explain::{Told, facts},
};

/// How long a card may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The state of a port or volume, from its record to its rings, and why it is so. Answered even if its card is away:
/// then it says what only the card knows.
#[utoipa::path(get, path = "/v1/explain/{kind}/{name}", tag = "explain",
    params(("kind" = String, Path, description = "port or volume"), ("name" = String, Path)),
    responses((status = 200, body = Explanation), (status = "default", body = ErrorBody)))]
pub async fn explain(
    State(api): State<Api>,
    Path((kind, text)): Path<(String, String)>,
) -> Answered<Json<Explanation>> {
    let kind = match kind.as_str() {
        "port" => ObjectKind::Port,
        "volume" => ObjectKind::Volume,
        _ => {
            let remedy = "use /v1/explain/port/NAME or /v1/explain/volume/NAME";
            let failure = Failure::general(404, "bad_kind", "only ports and volumes are explained", remedy);
            return Err(failure.into());
        }
    };
    let object = ObjectRef {
        kind,
        name: name(&kind.to_string(), Path(text))?,
    };
    let wanted = object.clone();
    let facts = api
        .core
        .call(move |core| facts(core.inventory(), core.live(), &wanted))
        .await?
        .ok_or_else(|| Failure::not_found(&kind.to_string(), &object.name))?;
    let asked = api
        .inquiries
        .ask(facts.card(), Question::Object { object }, DEADLINE)
        .await;
    let told: Told = match asked {
        Ok(Answer::Object { report }) => Ok(report),
        Ok(_) => Err(AskError::other_answer(facts.card())),
        Err(error) => Err(error),
    };
    Ok(Json(facts.explain(told)))
}

/// Every reason for which this card drops frames, with its sentence.
#[utoipa::path(get, path = "/v1/cards/{name}/reasons", tag = "explain", params(("name" = String, Path)),
    responses((status = 200, body = Vec<ReasonView>), (status = "default", body = ErrorBody)))]
pub async fn reasons(State(api): State<Api>, path: Path<String>) -> Answered<Json<Vec<ReasonView>>> {
    let card = name("card", path)?;
    let wanted = card.clone();
    let known = api
        .core
        .call(move |core| core.inventory().cards.contains_key(&wanted))
        .await?;
    if !known {
        return Err(Failure::not_found("card", &card).into());
    }
    match api.inquiries.ask(&card, Question::Reasons, DEADLINE).await {
        Ok(Answer::Reasons { reasons }) => Ok(Json(reasons.into_iter().map(Into::into).collect())),
        Ok(_) => Err(Failure::from(AskError::other_answer(&card)).into()),
        Err(error) => Err(Failure::from(error).into()),
    }
}
