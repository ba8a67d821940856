//! The statistics page, as operators' monitoring knows it: JSON, or Prometheus' text.
//!
//! Fields for which there is no such thing here are there with 0 or a constant, so that what reads the page keeps working.

use crate::zone::{Counter, Counts, Totals};
use std::fmt::Write;
use std::time::Duration;

/// What the page looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Prometheus,
}

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Prometheus => "text/plain; version=0.0.4",
        }
    }
}

/// A field of the page.
enum Field {
    Counter(Counter),
    /// Of detection, in ms.
    DetectMs,
    RequestsLost,
    Constant(u64),
}

/// Name, what it means, and where it comes from; those that stand at the top of the page.
const FIELDS: [(&str, &str, Field); 23] = [
    ("requests", "requests processed", Field::Counter(Counter::Requests)),
    ("attacks", "requests with hits", Field::Counter(Counter::Attacks)),
    ("blocked", "requests refused", Field::Counter(Counter::Blocked)),
    ("blocked_by_acl", "requests refused because their source is on the denylist", Field::Counter(Counter::BlockedByAcl)),
    ("abnormal", "requests with hits, over the time limit, or incomplete", Field::Counter(Counter::Abnormal)),
    ("bytes_in", "bytes of requests", Field::Counter(Counter::BytesIn)),
    ("bytes_out", "bytes of responses", Field::Counter(Counter::BytesOut)),
    ("bytes_blocked_in", "bytes of requests that were refused", Field::Counter(Counter::BytesBlockedIn)),
    ("bytes_blocked_out", "bytes of responses to requests that were refused", Field::Counter(Counter::BytesBlockedOut)),
    ("tnt_errors", "requests that postanalytics did not get, or may not have got", Field::Counter(Counter::TntErrors)),
    ("api_errors", "always 0", Field::Constant(0)),
    ("requests_lost", "tnt_errors and api_errors", Field::RequestsLost),
    (
        "maybe_stored_elsewhere",
        "records sent to another server because the first went away, which may have stored them as well",
        Field::Counter(Counter::MaybeStoredElsewhere),
    ),
    ("overlimits_time", "requests whose inspection took longer than the limit", Field::Counter(Counter::OverlimitsTime)),
    ("incomplete", "requests of which a part was not inspected", Field::Counter(Counter::Incomplete)),
    ("segfaults", "workers that ended without shutting down", Field::Counter(Counter::Segfaults)),
    ("memfaults", "always 0", Field::Constant(0)),
    ("softmemfaults", "always 0", Field::Constant(0)),
    ("proton_errors", "failures inside the module, of which requests noticed nothing", Field::Counter(Counter::Panics)),
    ("time_detect", "time that inspection took, ms", Field::DetectMs),
    ("db_id", "always 0", Field::Constant(0)),
    ("lom_id", "always 0", Field::Constant(0)),
    ("stalled_workers_count", "always 0", Field::Constant(0)),
];

/// The page.
pub fn page(format: Format, totals: &Totals, now: Duration) -> String {
    match format {
        Format::Json => json(totals, now),
        Format::Prometheus => prometheus(totals, now),
    }
}

fn value(field: &Field, counts: &Counts) -> u64 {
    match field {
        Field::Counter(counter) => counts.of(*counter),
        Field::DetectMs => counts.of(Counter::DetectUs) / 1000,
        Field::RequestsLost => counts.of(Counter::TntErrors),
        Field::Constant(value) => *value,
    }
}

/// The fields that are counted by application.
fn application_fields() -> impl Iterator<Item = &'static (&'static str, &'static str, Field)> {
    let of_application = |field: &Field| match field {
        Field::Counter(counter) => {
            !matches!(counter, Counter::Segfaults | Counter::Panics | Counter::TntErrors | Counter::MaybeStoredElsewhere)
        }
        Field::DetectMs => true,
        Field::RequestsLost | Field::Constant(_) => false,
    };
    FIELDS.iter().filter(move |(_, _, field)| of_application(field))
}

fn json(totals: &Totals, now: Duration) -> String {
    let mut page = String::from("{");
    for (name, _, field) in &FIELDS {
        put(&mut page, format_args!("\"{name}\":{},", value(field, &totals.counts)));
    }
    let Totals { workers, connected, failed, start_id, .. } = totals;
    put(
        &mut page,
        format_args!("\"proton_instances\":{{\"total\":{workers},\"success\":{connected},\"fallback\":0,\"failed\":{failed}}},"),
    );
    put(&mut page, format_args!("\"stalled_workers\":[],\"startid\":{start_id},"));
    put(&mut page, format_args!("\"timestamp\":{}.{:06},", now.as_secs(), now.subsec_micros()));
    page.push_str("\"split\":{\"clients\":[{\"client_id\":null");
    for (name, _, field) in application_fields() {
        put(&mut page, format_args!(",\"{name}\":{}", value(field, &totals.counts)));
    }
    page.push_str(",\"applications\":[");
    for (at, (id, counts)) in totals.applications.iter().enumerate() {
        put(&mut page, format_args!("{}{{\"app_id\":{id}", if at == 0 { "" } else { "," }));
        for (name, _, field) in application_fields() {
            put(&mut page, format_args!(",\"{name}\":{}", value(field, counts)));
        }
        page.push('}');
    }
    page.push_str("]}]}}\n");
    page
}

fn prometheus(totals: &Totals, now: Duration) -> String {
    let mut page = String::new();
    let mut metric = |name: &str, help: &str, kind: &str, value: &dyn std::fmt::Display| {
        put(&mut page, format_args!("# HELP wallarm_{name} {help}\n# TYPE wallarm_{name} {kind}\nwallarm_{name} {value}\n"));
    };
    for (name, help, field) in &FIELDS {
        let kind = if matches!(field, Field::Constant(_)) { "gauge" } else { "counter" };
        metric(name, help, kind, &value(field, &totals.counts));
    }
    metric("proton_instances_total", "workers that run the module", "gauge", &totals.workers);
    metric("proton_instances_success", "of them, those with a client of postanalytics", "gauge", &totals.connected);
    metric("proton_instances_fallback", "always 0", "gauge", &0);
    metric("proton_instances_failed", "of them, those whose client could not be made", "gauge", &totals.failed);
    metric("startid", "random number of this start of NGINX", "gauge", &totals.start_id);
    metric("timestamp", "Unix time of this page", "gauge", &format_args!("{}.{:06}", now.as_secs(), now.subsec_micros()));
    for (name, help, field) in application_fields() {
        let name = format!("wallarm_application_{name}");
        put(&mut page, format_args!("# HELP {name} {help}, by application\n# TYPE {name} counter\n"));
        for (id, counts) in &totals.applications {
            put(&mut page, format_args!("{name}{{app_id=\"{id}\"}} {}\n", value(field, counts)));
        }
    }
    page
}

fn put(page: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = page.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals() -> Totals {
        let mut totals = Totals { workers: 3, connected: 2, failed: 1, start_id: 42, ..Totals::default() };
        totals.counts.set(Counter::Requests, 7);
        totals.counts.set(Counter::TntErrors, 3);
        totals.counts.set(Counter::DetectUs, 5_999);
        let mut of_application = Counts::default();
        of_application.set(Counter::Requests, 4);
        totals.applications = vec![(-1, of_application.clone()), (9, of_application)];
        totals
    }

    #[test]
    fn json_has_what_monitoring_reads() {
        let page = page(Format::Json, &totals(), Duration::from_millis(1_500));
        let wanted = [
            "\"requests\":7,",
            "\"attacks\":0,",
            "\"blocked\":0,",
            "\"blocked_by_acl\":0,",
            "\"abnormal\":0,",
            "\"bytes_in\":0,",
            "\"bytes_out\":0,",
            "\"bytes_blocked_in\":0,",
            "\"bytes_blocked_out\":0,",
            "\"tnt_errors\":3,",
            "\"api_errors\":0,",
            "\"requests_lost\":3,",
            "\"maybe_stored_elsewhere\":0,",
            "\"overlimits_time\":0,",
            "\"incomplete\":0,",
            "\"segfaults\":0,",
            "\"memfaults\":0,",
            "\"softmemfaults\":0,",
            "\"proton_errors\":0,",
            "\"proton_instances\":{\"total\":3,\"success\":2,\"fallback\":0,\"failed\":1}",
            "\"stalled_workers_count\":0,",
            "\"stalled_workers\":[]",
            "\"db_id\":0,",
            "\"lom_id\":0,",
            "\"time_detect\":5,",
            "\"startid\":42,",
            "\"timestamp\":1.500000,",
            "\"split\":{\"clients\":[",
            "{\"app_id\":-1,\"requests\":4,\"attacks\":0",
            "{\"app_id\":9,",
        ];
        for part in wanted {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(page.ends_with("}\n") && !page.contains(",}") && !page.contains(",]"), "{page}");
    }

    #[test]
    fn prometheus_has_the_same_names() {
        let page = page(Format::Prometheus, &totals(), Duration::from_secs(1));
        for (name, _, _) in &FIELDS {
            assert!(page.contains(&format!("\nwallarm_{name} ")), "{name} is not in {page}");
        }
        for line in ["wallarm_tnt_errors 3", "wallarm_proton_instances_failed 1", "wallarm_application_requests{app_id=\"9\"} 4"]
        {
            assert!(page.lines().any(|other| other == line), "{line} is not in {page}");
        }
    }
}
