//! Attacks as shown.

use super::messages::{AttackDetail, AttackFilter, AttackSource, AttackView, ROWS_MAX, Sample};
use crate::analytics::alerts::{ALL_APPLICATIONS, source_text, time_text};
use crate::analytics::attacks::samples;
use crate::analytics::attacks::table::{Attack, AttackTable, Kind};
use crate::analytics::detectors::Detector;
use crate::escape::escape;
use postanalytics_protocol::schema::v1::AttackType;

/// Sources shown of an attack.
const SOURCES_MAX: usize = 16;

/// Those that fit, the newest first.
pub fn find(table: &AttackTable, filter: &AttackFilter, now_us: u64) -> Vec<AttackView> {
    let fitting = table.newest_first().filter(|attack| fits(table, attack, filter));
    fitting.take(filter.limit.min(ROWS_MAX)).map(|attack| view(attack, now_us)).collect()
}

/// One with its samples.
pub fn detail(attack: &Attack, now_us: u64) -> AttackDetail {
    AttackDetail { attack: view(attack, now_us), samples: attack.samples.iter().map(sample).collect() }
}

fn fits(table: &AttackTable, attack: &Attack, filter: &AttackFilter) -> bool {
    filter.attack_type.as_ref().is_none_or(|wanted| *wanted == type_name(attack.kind))
        && filter.source.is_none_or(|wanted| table.took_part(attack, wanted))
        && filter.application.is_none_or(|wanted| wanted == attack.application)
        && filter.host.as_ref().is_none_or(|wanted| wanted[..] == attack.host[..])
        && filter.since_us.is_none_or(|since_us| attack.last_us >= since_us)
        && filter.until_us.is_none_or(|until_us| attack.first_us < until_us)
}

fn type_name(kind: Kind) -> String {
    match kind {
        Kind::Hits(number) => AttackType::from_wire(number).map_or_else(|| number.to_string(), |known| known.name().to_owned()),
        Kind::Behaviour(plan) => Detector::of_plan(plan).name().to_owned(),
    }
}

fn view(attack: &Attack, now_us: u64) -> AttackView {
    let of_source = |counter: &crate::analytics::attacks::sources::Counter| AttackSource {
        source: source_text(counter.value, false),
        count: counter.count,
        error: counter.error,
    };
    AttackView {
        id: format!("{:016x}", attack.id),
        kind: if matches!(attack.kind, Kind::Hits(_)) { "hits" } else { "behaviour" },
        attack_type: type_name(attack.kind),
        application: Some(attack.application).filter(|application| *application != ALL_APPLICATIONS),
        host: escape(&attack.host),
        template: escape(&attack.template),
        point: escape(&attack.point),
        key: attack.alert().map(|alert| alert.to_json().key.value),
        first: time_text(attack.first_us),
        last: time_text(attack.last_us),
        count: attack.count,
        blocked: attack.blocked,
        statuses: attack.statuses.clone(),
        sources: attack.sources.top(SOURCES_MAX).iter().map(of_source).collect(),
        distinct_sources: attack.distinct_sources.estimate(),
        distinct_payloads: attack.distinct_payloads.estimate(),
        kept: attack.kept,
        suppressed: attack.suppressed,
        closed: attack.is_closed(now_us),
    }
}

fn sample(sample: &samples::Sample) -> Sample {
    let [high, low] = sample.request_id;
    Sample {
        request_id: format!("{high:016x}{low:016x}"),
        time: time_text(sample.time_us),
        source: if sample.source == 0 { String::new() } else { source_text(sample.source, false) },
        method: escape(&sample.method),
        status: sample.status,
        blocked: sample.is_blocked,
        payload: escape(&sample.payload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::alerts::Alert;
    use crate::analytics::fingerprint::Fingerprints;

    #[test]
    fn behaviour_of_a_network_is_found_by_every_source_in_it() {
        let mut table = AttackTable::default();
        let mut alert = Alert::default();
        alert.plan = Detector::Crawl.plan(0);
        (alert.source, alert.count, alert.is_network) = (0x2001_0db8_0001_0002, 1, true);
        table.take_alert(&alert, &Fingerprints::new(7), 10);
        (alert.source, alert.is_network) = (0x2001_0db8_0002_0002, false);
        table.take_alert(&alert, &Fingerprints::new(7), 10);
        let found = |source| find(&table, &AttackFilter { source: Some(source), limit: 9, ..AttackFilter::default() }, 10).len();
        assert_eq!([found(0x2001_0db8_0001_0002), found(0x2001_0db8_0001_0009), found(0x2001_0db8_0003_0002)], [1, 1, 0]);
        assert_eq!([found(0x2001_0db8_0002_0002), found(0x2001_0db8_0002_0009)], [1, 0]);
    }
}
