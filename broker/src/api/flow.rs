//! `/v1/flows`: connections that cards follow.

use std::time::Duration;

use axum::{Json, extract::State};
use outboard_api::{
    error::ErrorBody,
    flow::{FlowRequest, FlowView, FlowsView, FlushedView},
};
use outboard_packet::parse_filter;
use outboard_protocol::{
    id::Name,
    inquiry::{Answer, FLOWS_MAX, Filter, Question},
};

use tokio::task::JoinSet;

use super::{
    Api,
    capture::card_of,
    request::{Answered, Mutation},
    trace::bad_expression,
};
use crate::{cards::AskError, core::Failure};

/// How long a card may take: it may have to look at millions.
const DEADLINE: Duration = Duration::from_secs(10);

/// Lists connections. Cards that cannot be asked are named; where a port is named, its card must be there.
#[utoipa::path(post, path = "/v1/flows/list", tag = "explain", request_body = FlowRequest,
    responses((status = 200, body = FlowsView), (status = "default", body = ErrorBody)))]
pub async fn list(State(api): State<Api>, request: Mutation) -> Answered<Json<FlowsView>> {
    let FlowRequest { port, filter, limit } = request.json_or_default()?;
    let (filter, limit) = (parse(&filter)?, limit.unwrap_or(FLOWS_MAX));
    let question = Question::Flows {
        port: port.clone(),
        filter,
        limit,
    };
    let mut view = FlowsView {
        flows: vec![],
        more: false,
        unknown: vec![],
    };
    for (card, answer) in ask(&api, port.as_ref(), question).await? {
        match answer {
            Ok(Answer::Flows { flows, more }) => {
                view.more |= more;
                view.flows
                    .extend(flows.into_iter().map(|flow| FlowView::of(card.clone(), flow)));
            }
            Ok(_) => view.unknown.push(AskError::other_answer(&card).to_string()),
            Err(error) => view.unknown.push(error.to_string()),
        }
    }
    Ok(Json(view))
}

/// Ends connections: the next packet of each is judged as the first of a new one.
#[utoipa::path(post, path = "/v1/flows/flush", tag = "explain", request_body = FlowRequest,
    responses((status = 200, body = FlushedView), (status = "default", body = ErrorBody)))]
pub async fn flush(State(api): State<Api>, request: Mutation) -> Answered<Json<FlushedView>> {
    let FlowRequest { port, filter, limit } = request.json_or_default()?;
    if limit.is_some() {
        let message = "connections are ended without a limit";
        return Err(Failure::general(422, "bad_body", message, "leave `limit` out, and filter").into());
    }
    let question = Question::FlushFlows {
        port: port.clone(),
        filter: parse(&filter)?,
    };
    let mut view = FlushedView {
        count: 0,
        unknown: vec![],
    };
    for (card, answer) in ask(&api, port.as_ref(), question).await? {
        match answer {
            Ok(Answer::Flushed { count }) => view.count = view.count.saturating_add(count),
            Ok(_) => view.unknown.push(AskError::other_answer(&card).to_string()),
            Err(error) => view.unknown.push(error.to_string()),
        }
    }
    Ok(Json(view))
}

fn parse(text: &str) -> Result<Filter, Failure> {
    parse_filter(text).map_err(|error| bad_expression("bad_filter", "filter", text, &error))
}

/// Asks the card of a port, which must answer, or else all cards that have enrolled, all at once.
async fn ask(
    api: &Api,
    port: Option<&Name>,
    question: Question,
) -> Result<Vec<(Name, Result<Answer, AskError>)>, Failure> {
    if let Some(port) = port {
        let card = card_of(api, port).await?;
        let answer = api.inquiries.ask(&card, question, DEADLINE).await?;
        return Ok(vec![(card, Ok(answer))]);
    }
    let enrolled = |core: &mut crate::core::Core| {
        let cards = core.inventory().cards.values();
        let enrolled = cards.filter(|card| card.certificate.is_some());
        enrolled.map(|card| card.name.clone()).collect::<Vec<_>>()
    };
    let mut asking = JoinSet::new();
    for card in api.core.call(enrolled).await? {
        let (inquiries, question) = (api.inquiries.clone(), question.clone());
        asking.spawn(async move {
            let answer = inquiries.ask(&card, question, DEADLINE).await;
            (card, answer)
        });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(answers)
}
