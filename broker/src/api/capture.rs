//! `/v1/ports/{name}/captures`, and what they have: `/v1/cards/{card}/captures/{id}`.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use outboard_api::{
    capture::{CaptureRequest, CaptureView, CapturedView, SECONDS_DEFAULT, SNAPLEN_DEFAULT},
    error::ErrorBody,
};
use outboard_packet::parse_filter;
use outboard_protocol::{
    id::Name,
    inquiry::{Answer, CAPTURE_MAX_S, Question, SNAPLEN_MAX},
};

use super::{
    Api,
    request::{Answered, Mutation, name},
    trace::bad_expression,
};
use crate::{cards::AskError, core::Failure};

/// How long the card may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Begins to capture frames at a port. It ends by itself: after its time or count, or when it is not read for 10 s.
#[utoipa::path(post, path = "/v1/ports/{name}/captures", tag = "explain", params(("name" = String, Path)),
    request_body = CaptureRequest, responses((status = 200, body = CaptureView), (status = "default", body = ErrorBody)))]
pub async fn open(State(api): State<Api>, path: Path<String>, request: Mutation) -> Answered<Json<CaptureView>> {
    let port = name("port", path)?;
    let CaptureRequest {
        filter: text,
        snaplen,
        count,
        seconds,
    } = request.json_or_default()?;
    let filter = parse_filter(&text).map_err(|error| bad_expression("bad_filter", "filter", &text, &error))?;
    let (snaplen, seconds_max) = (snaplen.unwrap_or(SNAPLEN_DEFAULT), seconds.unwrap_or(SECONDS_DEFAULT));
    if snaplen > SNAPLEN_MAX || seconds_max > CAPTURE_MAX_S {
        let message =
            format!("a capture keeps at most {SNAPLEN_MAX} bytes of a frame, and runs at most {CAPTURE_MAX_S} s");
        return Err(Failure::general(422, "bad_capture", message, "ask for less").into());
    }
    let card = card_of(&api, &port).await?;
    let question = Question::OpenCapture {
        port,
        filter,
        snaplen,
        frames_max: count,
        seconds_max,
    };
    match ask(&api, &card, question).await? {
        Answer::CaptureOpened { capture } => Ok(Json(CaptureView { card, id: capture })),
        _ => Err(Failure::from(AskError::other_answer(&card)).into()),
    }
}

/// What was captured beyond frame `number`, as much as fits an answer; that frame and those before are forgotten. 0 begins.
#[utoipa::path(get, path = "/v1/cards/{card}/captures/{id}/after/{number}", tag = "explain",
    params(("card" = String, Path), ("id" = u64, Path), ("number" = u64, Path)),
    responses((status = 200, body = CapturedView), (status = "default", body = ErrorBody)))]
pub async fn read(
    State(api): State<Api>,
    Path((card, capture, after)): Path<(String, u64, u64)>,
) -> Answered<Json<CapturedView>> {
    let card = name("card", Path(card))?;
    match ask(&api, &card, Question::ReadCapture { capture, after }).await? {
        Answer::Captured { frames, lost, ended } => Ok(Json(CapturedView {
            frames: frames.into_iter().map(Into::into).collect(),
            lost,
            ended,
        })),
        _ => Err(Failure::from(AskError::other_answer(&card)).into()),
    }
}

/// Ends a capture.
#[utoipa::path(delete, path = "/v1/cards/{card}/captures/{id}", tag = "explain",
    params(("card" = String, Path), ("id" = u64, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub async fn close(State(api): State<Api>, Path((card, capture)): Path<(String, u64)>) -> Answered<StatusCode> {
    let card = name("card", Path(card))?;
    ask(&api, &card, Question::CloseCapture { capture }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn ask(api: &Api, card: &Name, question: Question) -> Result<Answer, Failure> {
    Ok(api.inquiries.ask(card, question, DEADLINE).await?)
}

/// The card that serves a port.
pub(super) async fn card_of(api: &Api, port: &Name) -> Result<Name, Failure> {
    let wanted = port.clone();
    let card = api
        .core
        .call(move |core| {
            core.inventory()
                .ports
                .get(&wanted)
                .map(|port| port.placement.card.clone())
        })
        .await?;
    card.ok_or_else(|| Failure::not_found("port", port))
}
