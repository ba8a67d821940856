//! What the detectors found: alerts, attacks, top lists, the timeline.

use super::answer::Response;
use super::pages::not_ready;
use super::parameters::Parameters;
use super::record::{REDACTED, Show, shown_path};
use crate::analytics::summary::view::{TimelineFilter, TopFilter, TopOf};
use crate::control::ask;
use crate::control::state::State;
use crate::correlator::messages::{AlertFilter, Ask, AttackFilter, Reply};
use serde::Serialize;
use serde_json::{Value, json};

/// Alerts, newest first.
pub(super) async fn alerts(state: &State, parameters: &Parameters<'_>, show: Show) -> Result<Response<'static>, String> {
    let filter = AlertFilter {
        detector: parameters.text("detector").map(str::to_owned),
        source: parameters.source()?.map(|source| source.key()),
        application: parameters.application()?,
        host: parameters.text("host").map(|host| host.as_bytes().to_vec()),
        since_us: parameters.time_us("since")?,
        until_us: parameters.time_us("until")?,
        limit: parameters.limit()?,
    };
    Ok(match ask::correlator(state, Ask::Alerts(filter)).await {
        Some(Reply::Alerts(mut alerts)) => {
            let endpoints = alerts.iter_mut().filter_map(|view| view.alert.scope.endpoint.as_mut());
            endpoints.for_each(|endpoint| shown_path(endpoint, show));
            Response::json(200, &json!({ "alerts": alerts, "detectors_run": state.detectors_run() }))
        }
        _ => no_answer(state),
    })
}

/// Attacks, newest first.
pub(super) async fn attacks(state: &State, parameters: &Parameters<'_>, show: Show) -> Result<Response<'static>, String> {
    let filter = AttackFilter {
        attack_type: parameters.text("type").map(str::to_owned),
        source: parameters.source()?.map(|source| source.key()),
        application: parameters.application()?,
        host: parameters.text("host").map(|host| host.as_bytes().to_vec()),
        since_us: parameters.time_us("since")?,
        until_us: parameters.time_us("until")?,
        limit: parameters.limit()?,
    };
    Ok(match ask::correlator(state, Ask::Attacks(filter)).await {
        Some(Reply::Attacks(mut attacks)) => {
            attacks.iter_mut().for_each(|attack| shown_path(&mut attack.template, show));
            Response::json(200, &json!({ "attacks": attacks }))
        }
        _ => no_answer(state),
    })
}

/// One attack with its samples; their payloads are pieces of what visitors sent.
pub(super) async fn attack(state: &State, id: u64, show: Show) -> Response<'static> {
    match ask::correlator(state, Ask::Attack(id)).await {
        Some(Reply::Attack(Some(mut attack))) => {
            shown_path(&mut attack.attack.template, show);
            for sample in attack.samples.iter_mut().filter(|sample| show == Show::Redacted && !sample.payload.is_empty()) {
                REDACTED.clone_into(&mut sample.payload);
            }
            Response::json(200, &attack)
        }
        Some(Reply::Attack(None)) => Response::error(404, "no attack that is kept has this id: /attacks lists them"),
        _ => no_answer(state),
    }
}

/// The most frequent of something.
pub(super) async fn top(state: &State, parameters: &Parameters<'_>, show: Show) -> Result<Response<'static>, String> {
    let of = match parameters.text("of").unwrap_or("sources") {
        "sources" => TopOf::Sources,
        "paths" => TopOf::Paths,
        "user_agents" => TopOf::UserAgents,
        "types" => TopOf::Types,
        other => return Err(format!("of {other:?} must be sources, paths, user_agents or types")),
    };
    let filter = TopFilter { of, application: parameters.application()?, limit: parameters.limit()? };
    let Some(mut top) = ask::top(state, filter).await else { return Ok(no_answer(state)) };
    if of == TopOf::Paths {
        top.rows.iter_mut().for_each(|row| shown_path(&mut row.value, show));
    }
    Ok(Response::json(200, &with_detectors_run(state, &top)))
}

/// Requests, hits and answers by minute.
pub(super) async fn timeline(state: &State, parameters: &Parameters<'_>) -> Result<Response<'static>, String> {
    let filter = TimelineFilter { application: parameters.application()?, since_us: parameters.time_us("since")? };
    Ok(match ask::timeline(state, filter).await {
        Some(timeline) => Response::json(200, &with_detectors_run(state, &timeline)),
        None => no_answer(state),
    })
}

/// An answer that is empty where no detector runs says so.
fn with_detectors_run(state: &State, answer: &impl Serialize) -> Value {
    let mut answer = serde_json::to_value(answer).unwrap_or_default();
    answer["detectors_run"] = state.detectors_run().into();
    answer
}

pub(super) fn no_answer(state: &State) -> Response<'static> {
    if !state.ready() {
        return not_ready();
    }
    Response::error(503, "no answer came in time, the server is busy: ask again")
}
