//! What the detectors found: alerts, attacks, top lists, the timeline.

use super::answer::Response;
use super::pages::not_ready;
use super::parameters::Parameters;
use super::record::{REDACTED, Show, shown_path};
use crate::analytics::alerts::REAL_IP_SUSPECT;
use crate::analytics::detectors::Detector;
use crate::analytics::summary::view::{TimelineFilter, TopFilter, TopOf};
use crate::control::ask;
use crate::control::state::State;
use crate::correlator::messages::{AlertFilter, Ask, AttackFilter, Reply};
use postanalytics_protocol::schema::v1::AttackType;
use serde::Serialize;
use serde_json::{Value, json};

/// Alerts, newest first.
pub(super) async fn alerts(state: &State, parameters: &Parameters<'_>, show: Show) -> Result<Response<'static>, String> {
    Ok(match ask::correlator(state, Ask::Alerts(alerts_wanted(parameters)?)).await {
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
    Ok(match ask::correlator(state, Ask::Attacks(attacks_wanted(parameters)?)).await {
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
    let filter = top_wanted(parameters)?;
    let Some(mut top) = ask::top(state, filter).await else { return Ok(no_answer(state)) };
    if filter.of == TopOf::Paths {
        top.rows.iter_mut().for_each(|row| shown_path(&mut row.value, show));
    }
    Ok(Response::json(200, &with_detectors_run(state, &top)))
}

/// Requests, hits and answers by minute.
pub(super) async fn timeline(state: &State, parameters: &Parameters<'_>) -> Result<Response<'static>, String> {
    Ok(match ask::timeline(state, timeline_wanted(parameters)?).await {
        Some(timeline) => Response::json(200, &with_detectors_run(state, &timeline)),
        None => no_answer(state),
    })
}

/// Reads what `/alerts` takes.
pub(super) fn alerts_wanted(parameters: &Parameters<'_>) -> Result<AlertFilter, String> {
    Ok(AlertFilter {
        detector: detector_of(parameters.text("detector"))?,
        source: parameters.source()?.map(|source| source.key()),
        application: parameters.application()?,
        host: parameters.text("host").map(|host| host.as_bytes().to_vec()),
        since_us: parameters.time_us("since")?,
        until_us: parameters.time_us("until")?,
        limit: parameters.limit()?,
    })
}

/// Reads what `/attacks` takes.
pub(super) fn attacks_wanted(parameters: &Parameters<'_>) -> Result<AttackFilter, String> {
    Ok(AttackFilter {
        attack_type: attack_type_of(parameters.text("type"))?,
        source: parameters.source()?.map(|source| source.key()),
        application: parameters.application()?,
        host: parameters.text("host").map(|host| host.as_bytes().to_vec()),
        since_us: parameters.time_us("since")?,
        until_us: parameters.time_us("until")?,
        limit: parameters.limit()?,
    })
}

/// Reads what `/top` takes.
pub(super) fn top_wanted(parameters: &Parameters<'_>) -> Result<TopFilter, String> {
    let of = match parameters.text("of").unwrap_or("sources") {
        "sources" => TopOf::Sources,
        "paths" => TopOf::Paths,
        "user_agents" => TopOf::UserAgents,
        "types" => TopOf::Types,
        other => return Err(format!("of {other:?} must be sources, paths, user_agents or types")),
    };
    Ok(TopFilter { of, application: parameters.application()?, limit: parameters.limit()? })
}

/// Reads what `/timeline` takes.
pub(super) fn timeline_wanted(parameters: &Parameters<'_>) -> Result<TimelineFilter, String> {
    Ok(TimelineFilter { application: parameters.application()?, since_us: parameters.time_us("since")? })
}

/// Names of alerts: a misspelt one would answer that nothing was found.
fn alert_names() -> impl Iterator<Item = &'static str> {
    Detector::ALL.into_iter().map(Detector::name).chain([REAL_IP_SUSPECT])
}

/// Names of attacks: types of hits, and detectors, some of which are called alike.
fn attack_names() -> impl Iterator<Item = &'static str> {
    let detectors = Detector::ALL.into_iter().map(Detector::name).filter(|name| AttackType::from_name(name).is_none());
    AttackType::ALL.iter().map(|known| known.name()).chain(detectors)
}

fn detector_of(text: Option<&str>) -> Result<Option<String>, String> {
    named("detector", text, alert_names())
}

fn attack_type_of(text: Option<&str>) -> Result<Option<String>, String> {
    // A type that nodes newer than this server send is shown as its number.
    let number = text.and_then(|text| text.parse::<u16>().ok()).filter(|number| AttackType::from_wire(*number).is_none());
    match number {
        Some(number) => Ok(Some(number.to_string())),
        None => named("type", text, attack_names()),
    }
}

fn named(parameter: &str, text: Option<&str>, names: impl Iterator<Item = &'static str>) -> Result<Option<String>, String> {
    let Some(text) = text else { return Ok(None) };
    let names: Vec<&str> = names.collect();
    if names.contains(&text) {
        return Ok(Some(text.to_owned()));
    }
    Err(format!("{parameter} {text:?} must be one of {}", names.join(", ")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_answer_contains_are_told_with_those_that_there_are() {
        for known in ["brute_force", "real_ip_suspect"] {
            assert_eq!(detector_of(Some(known)), Ok(Some(known.to_owned())));
        }
        for known in ["sqli", "brute_force", "4711"] {
            assert_eq!(attack_type_of(Some(known)), Ok(Some(known.to_owned())));
        }
        assert_eq!((detector_of(None), attack_type_of(None)), (Ok(None), Ok(None)));
        let error = detector_of(Some("brut_force")).expect_err("unknown");
        assert!(
            error.starts_with("detector \"brut_force\" must be one of brute_force, ") && error.ends_with("real_ip_suspect"),
            "{error}"
        );
        for unknown in ["sqly", "SQLI", "real_ip_suspect", "65536", "1", ""] {
            let error = attack_type_of(Some(unknown)).expect_err(unknown);
            assert!(error.starts_with(&format!("type {unknown:?} must be one of ")) && error.contains("sqli"), "{error}");
        }
    }

    #[test]
    fn the_description_names_them_all() {
        let description: Value = serde_json::from_str(include_str!("../../../../docs/openapi.json")).expect("JSON");
        let names = |page: &str, of: &str| {
            let names = description["paths"][page]["get"]["parameters"][0]["schema"].pointer(of).and_then(Value::as_array);
            names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(names("/alerts", "/enum"), alert_names().collect::<Vec<_>>());
        assert_eq!(names("/attacks", "/anyOf/0/enum"), attack_names().collect::<Vec<_>>());
    }
}
