//! Which pages there are, and who answers them. `docs/openapi.json` describes them; a test compares it with [`ROUTES`].

use super::answer::Response;
use super::parameters::{LIMIT_DEFAULT, Parameters, parse_id, parse_u64};
use super::record::Show;
use super::request::{self, Method, Request};
use super::scan::{self, Found, Wanted};
use super::{cursor, denylist, detection, explain, metrics, status};
use crate::control::state::{State, unix_us};
use serde_json::json;

/// The description of the pages.
const OPENAPI: &str = include_str!("../../../../docs/openapi.json");

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Health,
    Ready,
    Metrics,
    Status,
    OpenApi,
    Requests,
    Request,
    Alerts,
    Attacks,
    Attack,
    Top,
    Timeline,
    Denylist,
    Explain,
}

/// Where a page is, and what may be asked of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) page: Page,
    /// `{id}` stands for one segment.
    path: &'static str,
    /// Names in the query, by method; HEAD is answered as GET.
    pub(super) methods: &'static [(Method, &'static [&'static str])],
}

const fn get(page: Page, path: &'static str) -> Route {
    Route { page, path, methods: &[(Method::Get, &[])] }
}

pub(super) const ROUTES: [Route; 14] = [
    get(Page::Health, "/health"),
    get(Page::Ready, "/ready"),
    get(Page::Metrics, "/metrics"),
    get(Page::Status, "/status"),
    get(Page::OpenApi, "/openapi.json"),
    Route {
        page: Page::Requests,
        path: "/requests",
        methods: &[(Method::Get, &["source", "since", "until", "limit", "cursor"])],
    },
    get(Page::Request, "/requests/{id}"),
    Route {
        page: Page::Alerts,
        path: "/alerts",
        methods: &[(Method::Get, &["detector", "source", "application", "host", "since", "until", "limit"])],
    },
    Route {
        page: Page::Attacks,
        path: "/attacks",
        methods: &[(Method::Get, &["type", "source", "application", "host", "since", "until", "limit"])],
    },
    get(Page::Attack, "/attacks/{id}"),
    Route { page: Page::Top, path: "/top", methods: &[(Method::Get, &["of", "application", "limit"])] },
    Route { page: Page::Timeline, path: "/timeline", methods: &[(Method::Get, &["application", "since"])] },
    Route {
        page: Page::Denylist,
        path: "/denylist",
        methods: &[
            (Method::Get, &["source", "session", "application", "limit", "cursor"]),
            (Method::Post, &[]),
            (Method::Delete, &["source", "session", "application"]),
        ],
    },
    Route { page: Page::Explain, path: "/explain", methods: &[(Method::Get, &["source", "request_id"])] },
];

impl Route {
    /// The segment that `{id}` stands for, empty if there is none; `None`: another page is meant.
    pub(super) fn fits<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.path.strip_suffix("{id}") {
            None => (self.path == path).then_some(""),
            Some(start) => path.strip_prefix(start).filter(|id| !id.is_empty() && !id.contains('/')),
        }
    }

    fn parameters(&self, method: Method) -> Option<&'static [&'static str]> {
        let method = if method == Method::Head { Method::Get } else { method };
        self.methods.iter().find(|(known, _)| *known == method).map(|(_, names)| *names)
    }

    fn allow(&self) -> String {
        let names = self.methods.iter().map(|(method, _)| match method {
            Method::Get => "GET, HEAD",
            method => method.name(),
        });
        names.collect::<Vec<_>>().join(", ")
    }
}

/// Answers a request.
pub(super) async fn answer<'a>(state: &'a State, request: &Request) -> Response<'a> {
    let config = state.config();
    let configured = config.status.as_ref().map(|address| address.host.as_str());
    let host = request.host.as_deref().unwrap_or_default();
    if !request::host_is_ours(host, state.status_address, configured, &config.status_hosts) {
        return Response::error(421, "the Host header is not one of this server's: allow a name with --status-host NAME");
    }
    let Some((route, id)) = ROUTES.iter().find_map(|route| route.fits(&request.path).map(|id| (route, id))) else {
        let paths: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
        return Response::error(404, &format!("there are {}", paths.join(", ")));
    };
    let Some(known) = route.parameters(request.method) else {
        return Response::not_allowed(route.allow());
    };
    let answered = match Parameters::of(request, known, unix_us()) {
        Ok(parameters) => page(state, route.page, request, &parameters, id).await,
        Err(text) => Err(text),
    };
    answered.unwrap_or_else(|text| Response::error(400, &text))
}

/// An error is one of the request: 400.
async fn page<'a>(
    state: &'a State,
    page: Page,
    request: &Request,
    parameters: &Parameters<'_>,
    id: &str,
) -> Result<Response<'a>, String> {
    // Who may see what, before anything is looked for: a wrong token is an error rather than a poorer answer.
    let show = match show_for(state, request) {
        Ok(show) => show,
        Err(response) => return Ok(response),
    };
    Ok(match page {
        Page::Health => Response::json(200, &json!({ "status": "alive" })),
        Page::Ready => {
            let ready = state.ready();
            Response::json(if ready { 200 } else { 503 }, &json!({ "ready": ready }))
        }
        Page::Metrics => Response::new(200, "text/plain; version=0.0.4; charset=utf-8", metrics::metrics(state).await),
        Page::Status => Response::json(200, &status::status(state).await),
        Page::OpenApi => Response::new(200, "application/json", OPENAPI.to_owned()),
        Page::Requests => {
            let read = |text| cursor::read(&state.cursor_key, text, state.shards().len());
            let from = parameters.text("cursor").map(read).transpose()?.unwrap_or_default();
            requests(state, show, &Wanted { from, ..wanted_of(parameters)? }).await
        }
        Page::Request => {
            let id = parse_id(id).ok_or_else(|| "the id of a request is 32 hexadecimal digits".to_owned())?;
            requests(state, show, &Wanted { request_id: Some(id), limit: LIMIT_DEFAULT, ..Wanted::default() }).await
        }
        Page::Alerts => detection::alerts(state, parameters, show).await?,
        Page::Attacks => detection::attacks(state, parameters, show).await?,
        Page::Attack => {
            let id = parse_u64(id).ok_or_else(|| "the id of an attack is 16 hexadecimal digits".to_owned())?;
            detection::attack(state, id, show).await
        }
        Page::Top => detection::top(state, parameters, show).await?,
        Page::Timeline => detection::timeline(state, parameters).await?,
        Page::Explain => explain::explain(state, parameters, show).await?,
        Page::Denylist => denylist::denylist(state, request, parameters, show).await?,
    })
}

/// Reads what `/requests` takes, but for where it goes on.
pub(super) fn wanted_of(parameters: &Parameters<'_>) -> Result<Wanted, String> {
    Ok(Wanted {
        source: parameters.source()?,
        request_id: None,
        since_us: parameters.time_us("since")?,
        until_us: parameters.time_us("until")?,
        limit: parameters.limit()?,
        from: Vec::new(),
        explain: false,
    })
}

async fn requests<'a>(state: &'a State, show: Show, wanted: &Wanted) -> Response<'a> {
    if state.shards().is_empty() {
        return not_ready();
    }
    let body_of = |found: Found| {
        let next = found.next.as_deref().map(|next| cursor::write(&state.cursor_key, next));
        body_of(found.records, found.partial, next.as_deref())
    };
    // One at a time, until its answer is written: others are told at once that theirs is not whole.
    let Some(slot) = state.take_scan_slot() else {
        let next = Some(wanted.from.clone()).filter(|from| !from.is_empty());
        return Response::new(200, "application/json", body_of(Found { records: Vec::new(), partial: true, next }));
    };
    let found = scan::scan(state, &slot, wanted, show).await;
    if wanted.request_id.is_some() && found.records.is_empty() && !found.partial {
        return Response::error(404, "no stored request has this id");
    }
    Response::new(200, "application/json", body_of(found)).with_slot(slot)
}

pub(super) fn not_ready() -> Response<'static> {
    Response::error(503, "the server is not ready yet: /ready says when it is")
}

/// The records go one by one as they are copied, so that the answer is in memory once.
fn body_of(records: Vec<(u64, String)>, is_partial: bool, next: Option<&str>) -> String {
    let bytes: usize = records.iter().map(|(_, json)| json.len() + 1).sum();
    let mut body = String::with_capacity(bytes + 64 + next.map_or(0, str::len));
    body.push_str("{\"requests\":[");
    for (index, (_, json)) in records.into_iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(&json);
    }
    body.push_str(if is_partial { "],\"partial\":true,\"next\":" } else { "],\"partial\":false,\"next\":" });
    match next {
        // Digits, letters, hyphens and dots.
        Some(next) => body.extend(["\"", next, "\"}\n"]),
        None => body.push_str("null}\n"),
    }
    body
}

/// Whether the request may see everything. A wrong token is an error rather than a poorer answer.
fn show_for(state: &State, request: &Request) -> Result<Show, Response<'static>> {
    match (&state.config().status_token, &request.bearer) {
        (Some(token), Some(given)) if request::equal_in_constant_time(token.as_bytes(), given.as_bytes()) => Ok(Show::Everything),
        (Some(_), Some(_)) => Err(Response::error(401, "the token is not that of --status-token-file")),
        _ => Ok(Show::Redacted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn wanted(target: &str) -> Result<Wanted, String> {
        let text = format!("GET {target} HTTP/1.1\r\n\r\n");
        let request = request::parse(text.as_bytes()).expect("good").expect("whole").0;
        wanted_of(&Parameters::of(&request, &["source", "since", "limit"], 0)?)
    }

    #[test]
    fn queries_are_read_and_bounded() {
        let found = wanted("/requests?source=192.0.2.7&limit=5&since=1700000000").expect("good");
        assert_eq!((found.limit, found.since_us), (5, Some(1_700_000_000_000_000)));
        assert_eq!(found.source.expect("given").address().to_string(), "192.0.2.7");
        assert_eq!(wanted("/requests").expect("good"), Wanted { limit: LIMIT_DEFAULT, ..Wanted::default() });
        for bad in ["limit=0", "limit=1001", "limit=x", "source=a", "since=yesterday", "since=-1", "since=900", "form=a"] {
            assert!(wanted(&format!("/requests?{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn bodies_are_json() {
        let records = vec![(2, "{\"a\":1}".to_owned()), (1, "{}".to_owned())];
        assert_eq!(body_of(records, false, None), "{\"requests\":[{\"a\":1},{}],\"partial\":false,\"next\":null}\n");
        assert_eq!(body_of(Vec::new(), true, Some("a-b")), "{\"requests\":[],\"partial\":true,\"next\":\"a-b\"}\n");
    }

    #[test]
    fn a_path_is_one_page_or_none() {
        let page = |path| ROUTES.iter().filter_map(|route| route.fits(path).map(|id| (route.page, id))).collect::<Vec<_>>();
        assert_eq!(page("/requests"), [(Page::Requests, "")]);
        assert_eq!(page("/requests/ab"), [(Page::Request, "ab")]);
        for none in ["/", "/requests/", "/requests/a/b", "/healthy", "/health/", ""] {
            assert!(page(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn the_description_has_every_page_method_and_parameter_and_no_other() {
        let description: Value = serde_json::from_str(OPENAPI).expect("JSON");
        assert_eq!(
            (&description["openapi"], &description["info"]["version"]),
            (&"3.1.0".into(), &env!("CARGO_PKG_VERSION").into())
        );
        let names = |list: &Value, place: &str| -> BTreeSet<String> {
            let list = list.as_array().into_iter().flatten().filter(|one| one["in"] == place);
            list.map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
        };
        let mut described = BTreeSet::new();
        for (path, item) in description["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("methods") {
                assert_eq!(names(&operation["parameters"], "path").len(), usize::from(path.contains('{')), "{method} {path}");
                described.insert((path.clone(), method.clone(), names(&operation["parameters"], "query")));
            }
        }
        let routed = ROUTES.iter().flat_map(|route| {
            route.methods.iter().map(|(method, names)| {
                (route.path.to_owned(), method.name().to_lowercase(), names.iter().map(|name| (*name).to_owned()).collect())
            })
        });
        assert_eq!(described, routed.collect());
    }
}
