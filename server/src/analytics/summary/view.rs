//! Timelines and top lists as asked for, and as shown of the pages of all shards.

use super::latency::quantile_us;
use super::page::SummaryPage;
use super::timeline::{Cell, MINUTE_US, TYPES};
use crate::analytics::alerts::{source_text, time_text};
use crate::escape::escape;
use postanalytics_protocol::schema::v1::AttackType;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Of what the most frequent are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TopOf {
    /// Sources.
    Sources,
    /// Normalised paths.
    Paths,
    /// User agents.
    UserAgents,
    /// Types of hits.
    Types,
}

/// Which top list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopFilter {
    /// Of what.
    pub of: TopOf,
    /// Application id, `None` for all together.
    pub application: Option<i32>,
    /// Most rows.
    pub limit: usize,
}

/// A top list as shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TopView {
    /// Of what.
    pub what: TopOf,
    /// Since when it counts.
    pub since: String,
    /// All that was counted: of types in the application that is asked for, else in every application.
    pub total: u64,
    /// Those seen most for certain first.
    pub rows: Vec<TopRow>,
}

/// A row of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TopRow {
    /// Of what.
    pub value: String,
    /// Application, `null` for all together.
    pub application: Option<i32>,
    /// How often, at most; of all applications together, of those in which it is among the values that are kept.
    pub count: u64,
    /// It may be less by this.
    pub error: u64,
}

/// Which timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimelineFilter {
    /// Application id, `None` for all together.
    pub application: Option<i32>,
    /// From this time on, Unix µs.
    pub since_us: Option<u64>,
}

/// A timeline as shown, oldest first, minutes without requests left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TimelineView {
    /// Minutes.
    pub minutes: Vec<MinuteView>,
}

/// A minute of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct MinuteView {
    /// When it began.
    pub time: String,
    pub requests: u64,
    /// Requests with hits.
    pub attacks: u64,
    pub blocked: u64,
    /// Hits by type.
    pub hits: BTreeMap<String, u64>,
    /// Requests by class of status: `2xx`; `other` if it is none.
    pub statuses: BTreeMap<&'static str, u64>,
    /// Quantiles of the response time, ms, within 12.5 %.
    pub response_p50_ms: f64,
    pub response_p90_ms: f64,
    pub response_p99_ms: f64,
}

/// A value with its application, and how it is counted: at most, and less by at most.
type Counts<'a, Application = i32> = BTreeMap<(Application, u64, &'a [u8]), (u64, u64)>;

/// A top list of the pages of all shards.
pub fn top(filter: &TopFilter, pages: &[SummaryPage]) -> TopView {
    if filter.of == TopOf::Types {
        return types(filter, pages);
    }
    let mut counts = Counts::new();
    for entry in pages.iter().flat_map(|page| page.entries.iter().map(move |entry| (page, entry))) {
        let (page, entry) = entry;
        counts.entry((entry.application, entry.number, page.texts.get(entry.text))).or_default();
    }
    for page in pages {
        add_page(filter, page, &mut counts);
    }
    let mut rows: Vec<_> = together(filter, counts).into_iter().collect();
    rows.sort_by_key(|(key, (count, error))| (Reverse(count - error), Reverse(*count), *key));
    let since = pages.iter().flat_map(|page| &page.generations).map(|one| one.since_us).filter(|since_us| *since_us > 0).min();
    TopView {
        what: filter.of,
        since: since.map(time_text).unwrap_or_default(),
        total: pages.iter().flat_map(|page| &page.generations).map(|one| one.total).sum(),
        rows: rows.into_iter().take(filter.limit).map(|(key, counts)| row(filter.of, key, counts)).collect(),
    }
}

/// Adds what a shard counted of each value; of one that is no candidate there, what it may have been at most.
fn add_page<'a>(filter: &TopFilter, page: &'a SummaryPage, counts: &mut Counts<'a>) {
    let mut here = [Counts::new(), Counts::new()];
    for entry in &page.entries {
        let key = (entry.application, entry.number, page.texts.get(entry.text));
        // Texts that differ only beyond where they were cut are one row.
        let sum = here[entry.generation].entry(key).or_default();
        *sum = (sum.0 + u64::from(entry.count), sum.1 + u64::from(entry.error));
    }
    for (key, sum) in counts {
        // A source has one shard: where it is in neither generation, it never was.
        if filter.of == TopOf::Sources && here.iter().all(|generation| !generation.contains_key(key)) {
            continue;
        }
        for (generation, known) in here.iter().zip(&page.generations) {
            let floor = u64::from(known.floor);
            let (count, error) = generation.get(key).copied().unwrap_or((floor, floor));
            *sum = (sum.0 + count, sum.1 + error);
        }
    }
}

/// By the application that is asked for, or all applications together.
fn together<'a>(filter: &TopFilter, counts: Counts<'a>) -> Counts<'a, Option<i32>> {
    let mut all = Counts::new();
    for ((_, number, text), (count, error)) in counts {
        let sum = all.entry((filter.application, number, text)).or_default();
        *sum = (sum.0 + count, sum.1 + error);
    }
    all
}

fn row(of: TopOf, (application, number, text): (Option<i32>, u64, &[u8]), (count, error): (u64, u64)) -> TopRow {
    let value = if of == TopOf::Sources { source_text(number, false) } else { escape(text) };
    TopRow { value, application, count, error }
}

/// Types of hits are few: they are counted exactly, by the timeline.
fn types(filter: &TopFilter, pages: &[SummaryPage]) -> TopView {
    let mut counts = [0; TYPES];
    for (_, _, cell) in pages.iter().flat_map(|page| &page.cells) {
        counts.iter_mut().zip(cell.types).for_each(|(count, more)| *count += u64::from(more));
    }
    let total = counts.iter().sum();
    let mut rows: Vec<_> = counts.into_iter().enumerate().filter(|(_, count)| *count > 0).collect();
    rows.sort_by_key(|(attack_type, count)| (Reverse(*count), *attack_type));
    let shown = |(attack_type, count)| TopRow {
        value: type_name(attack_type).to_owned(),
        application: filter.application,
        count,
        error: 0,
    };
    let since = pages.iter().flat_map(|page| &page.cells).map(|(minute, ..)| *minute).min();
    TopView {
        what: filter.of,
        since: since.map(|minute| time_text(minute * MINUTE_US)).unwrap_or_default(),
        total,
        rows: rows.into_iter().take(filter.limit).map(shown).collect(),
    }
}

fn type_name(attack_type: usize) -> &'static str {
    AttackType::ALL.get(attack_type).map_or("other", |known| known.name())
}

/// A timeline of the pages of all shards.
pub fn timeline(pages: &[SummaryPage]) -> TimelineView {
    let mut minutes = BTreeMap::<u64, Cell>::new();
    for (minute, _, cell) in pages.iter().flat_map(|page| &page.cells) {
        minutes.entry(*minute).or_insert(Cell::EMPTY).merge(cell);
    }
    TimelineView { minutes: minutes.iter().map(|(minute, cell)| minute_view(*minute, cell)).collect() }
}

fn minute_view(minute: u64, cell: &Cell) -> MinuteView {
    const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
    let classes = CLASSES.iter().zip(cell.classes).filter(|(_, count)| *count > 0);
    let types = (0..TYPES).zip(cell.types).filter(|(_, count)| *count > 0);
    let quantile = |share| quantile_us(&cell.latencies, share) / 1000.0;
    MinuteView {
        time: time_text(minute * MINUTE_US),
        requests: cell.requests.into(),
        attacks: cell.attacks.into(),
        blocked: cell.blocked.into(),
        hits: types.map(|(attack_type, count)| (type_name(attack_type).to_owned(), count.into())).collect(),
        statuses: classes.map(|(class, count)| (*class, count.into())).collect(),
        response_p50_ms: quantile(0.5),
        response_p90_ms: quantile(0.9),
        response_p99_ms: quantile(0.99),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Summary;
    use super::super::page::SummaryAsk;
    use super::super::timeline::Counted;
    use super::*;
    use crate::analytics::fingerprint::mix;

    const START_US: u64 = 1_700_000_040_000_000;

    fn page(summary: &Summary, ask: SummaryAsk) -> SummaryPage {
        page_at(START_US + MINUTE_US, summary, ask)
    }

    fn page_at(now_us: u64, summary: &Summary, ask: SummaryAsk) -> SummaryPage {
        let mut page = SummaryPage::new(0, ask, now_us);
        page.fill(summary);
        page
    }

    #[test]
    fn what_is_older_than_its_span_is_left_out_without_traffic_too() {
        let mut summary = Summary::new();
        summary.begin(START_US);
        summary.timeline.count(Counted { has_hits: true, ..Counted::default() });
        summary.timeline.count_hit(1);
        summary.count_path(1, b"/a");
        let filter = |of| TopFilter { of, application: None, limit: 9 };
        let shown = |summary: &Summary, minute: u64| {
            let page = |ask| page_at(START_US + minute * MINUTE_US, summary, ask);
            let tops = [TopOf::Types, TopOf::Paths].map(|of| top(&filter(of), &[page(SummaryAsk::Top(filter(of)))]));
            let minutes = timeline(&[page(SummaryAsk::Timeline(TimelineFilter::default()))]).minutes.len();
            (minutes, tops.map(|view| (view.rows.len(), view.total, view.since.is_empty())))
        };
        let here = (1, 1, false);
        let gone = (0, 0, true);
        assert_eq!(shown(&summary, 29), (1, [here, here]));
        assert_eq!(shown(&summary, 30), (1, [here, gone]));
        assert_eq!(shown(&summary, 59), (1, [here, gone]));
        assert_eq!(shown(&summary, 60), (0, [gone, gone]));
        // Other traffic, but none in the same minute of an hour; the generation before is an hour old.
        summary.begin(START_US + 61 * MINUTE_US);
        summary.timeline.count(Counted::default());
        summary.count_path(2, b"/b");
        assert_eq!(shown(&summary, 61), (1, [(0, 0, false), here]));
    }

    #[test]
    fn shards_add_up_and_what_one_cannot_exclude_is_error() {
        let (mut one, mut other) = (Summary::new(), Summary::new());
        for (summary, paths) in [(&mut one, &[("/a", 9), ("/b", 2)][..]), (&mut other, &[("/a", 4), ("/c", 7)])] {
            summary.begin(START_US);
            for (path, count) in paths {
                (0..*count)
                    .for_each(|_| summary.count_path(mix(path.len() as u64 + u64::from(path.as_bytes()[1])), path.as_bytes()));
            }
        }
        let filter = TopFilter { of: TopOf::Paths, application: None, limit: 2 };
        let pages = [&one, &other].map(|summary| page(summary, SummaryAsk::Top(filter)));
        let view = top(&filter, &pages);
        assert_eq!((view.total, view.since.as_str()), (22, "2023-11-14T22:14:00.000000Z"));
        let rows: Vec<_> = view.rows.iter().map(|row| (row.value.as_str(), row.count, row.error)).collect();
        assert_eq!(rows, [("/a", 13, 0), ("/c", 7, 0)]);
        let nobody = TopFilter { application: Some(8), ..filter };
        assert!(top(&nobody, &[page(&one, SummaryAsk::Top(nobody))]).rows.is_empty());
    }

    #[test]
    fn applications_are_together_unless_one_is_asked_for() {
        let mut summary = Summary::new();
        summary.begin(START_US);
        let counts = [(1i32, "/a", 3, 1), (2, "/a", 4, 1), (1, "/b", 5, 2), (3, "/c", 6, 2)];
        for (application, path, count, attack_type) in counts {
            for _ in 0..count {
                summary.timeline.count(Counted { application, ..Counted::default() });
                summary.timeline.count_hit(attack_type);
                let fingerprint = mix(u64::from(application.cast_unsigned()) << 8 | u64::from(path.as_bytes()[1]));
                summary.count_path_of(application, fingerprint, path.as_bytes());
            }
        }
        let rows = |of, application| {
            let filter = TopFilter { of, application, limit: 2 };
            let view = top(&filter, &[page(&summary, SummaryAsk::Top(filter))]);
            let rows = view.rows.into_iter().map(|row| (row.value, row.application, row.count, row.error));
            rows.collect::<Vec<_>>()
        };
        let row = |value: &str, application, count| (value.to_owned(), application, count, 0);
        assert_eq!(rows(TopOf::Paths, None), [row("/a", None, 7), row("/c", None, 6)]);
        assert_eq!(rows(TopOf::Paths, Some(1)), [row("/b", Some(1), 5), row("/a", Some(1), 3)]);
        let [one, two] = [1, 2].map(type_name);
        assert_eq!(rows(TopOf::Types, None), [row(two, None, 11), row(one, None, 7)]);
        assert_eq!(rows(TopOf::Types, Some(2)), [row(one, Some(2), 4)]);
    }

    #[test]
    fn a_timeline_is_that_of_all_shards() {
        let (mut one, mut other) = (Summary::new(), Summary::new());
        for (summary, attack_type) in [(&mut one, 1), (&mut other, 99)] {
            for minute in 0..2 {
                summary.begin(START_US + minute * MINUTE_US);
                let counted = Counted { application: -1, status: 403, is_blocked: true, has_hits: true, response_us: 1000 };
                summary.timeline.count(counted);
                summary.timeline.count_hit(attack_type);
            }
        }
        let filter = TimelineFilter { application: None, since_us: Some(START_US + MINUTE_US) };
        let view = timeline(&[&one, &other].map(|summary| page(summary, SummaryAsk::Timeline(filter))));
        let [minute] = &view.minutes[..] else { panic!("one minute") };
        assert_eq!((minute.requests, minute.attacks, minute.blocked), (2, 2, 2));
        assert_eq!(minute.hits, [("other".to_owned(), 1), ("sqli".to_owned(), 1)].into());
        assert_eq!((minute.statuses["4xx"], minute.time.as_str()), (2, "2023-11-14T22:15:00.000000Z"));
        assert!((minute.response_p50_ms - 1.0).abs() < 0.13);
        let filter = TopFilter { of: TopOf::Types, application: Some(-1), limit: 9 };
        let view = top(&filter, &[&one, &other].map(|summary| page(summary, SummaryAsk::Top(filter))));
        assert_eq!(view.rows.iter().map(|row| (row.value.as_str(), row.count)).collect::<Vec<_>>(), [("sqli", 2), ("other", 2)]);
    }
}
