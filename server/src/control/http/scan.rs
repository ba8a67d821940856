//! Reading records out of the shards: pages of each, merged by arrival, newest first.
//!
//! One scan at a time, and each in bounded slices on the shards, so that reading does not disturb storing. A scan ends with
//! what it has when it took too long, grew too large, or a shard did not answer; then it says that it is partial. In any case it
//! says where it goes on in each shard, in the order of that shard's log: so pages leave nothing out and show nothing twice.

use super::cursor::GoOn;
use super::record::{Show, to_json};
use crate::analytics::explain::Standings;
use crate::control::state::{ScanSlot, ShardPort, State};
use crate::shard::messages::{Cursor, Query, QueryPage, StoredRecord, ToShard};
use glommio::timer::timeout;
use postanalytics_protocol::schema::v1::SCHEMA;
use postanalytics_protocol::{Source, ValidBatch};
use std::time::{Duration, Instant};

/// Longest scan.
const SCAN_TIME_MAX: Duration = Duration::from_secs(4);
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Records merged between two looks at what else is to be done.
const MERGE_RECORDS: usize = 32;
/// Bytes of JSON after which the same.
const MERGE_BYTES: usize = 256 << 10;

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::control) struct Wanted {
    pub(in crate::control) source: Option<Source>,
    pub(in crate::control) request_id: Option<[u8; 16]>,
    pub(in crate::control) since_us: Option<u64>,
    pub(in crate::control) until_us: Option<u64>,
    pub(in crate::control) limit: usize,
    /// Where it goes on in each shard; empty: from the newest.
    pub(in crate::control) from: Vec<GoOn>,
    /// Also what the detectors make of each record.
    pub(in crate::control) explain: bool,
}

/// What was found, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::control) struct Found {
    /// Arrival of each record, Unix µs, and its JSON.
    pub(in crate::control) records: Vec<(u64, String)>,
    pub(in crate::control) partial: bool,
    /// Where it goes on in each shard; `None`: nothing older is left.
    pub(in crate::control) next: Option<Vec<GoOn>>,
}

/// One shard's part of a scan.
pub(super) struct Lane {
    shard: u32,
    pub(super) body: Vec<u8>,
    pub(super) stored: Vec<StoredRecord>,
    pub(super) standings: Vec<Standings>,
    /// Records of the page that were taken.
    taken: usize,
    cursor: Option<Cursor>,
    /// A page was asked for and is not here yet.
    waiting: bool,
    pub(super) complete: bool,
    /// The shard could not be asked: its part ends here, though there may be more.
    unasked: bool,
}

/// How far records of a source were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// All of them.
    AtAll,
    /// The newest, as many as were wanted.
    AtTheNewest,
    /// Those for which there was time.
    InPart,
}

/// All records of one source, with what the detectors make of them: page by page, each given to `take`, newest first, which
/// says whether it wants another.
pub(super) async fn explain(
    state: &State,
    _slot: &ScanSlot<'_>,
    index: usize,
    source: Source,
    mut take: impl FnMut(&Lane) -> bool,
) -> Looked {
    state.scan_id.set(state.scan_id.get() + 1);
    let deadline = Instant::now() + SCAN_TIME_MAX;
    let wanted = Wanted { source: Some(source), limit: QueryPage::RECORDS, explain: true, ..Wanted::default() };
    let Some(port) = state.shards().get(index) else { return Looked::InPart };
    let mut wants_more = true;
    // One for every shard, as answers come with the index of theirs; only that of the source is asked.
    let mut lanes: Vec<Lane> = state.shards().iter().map(|port| Lane::new(port.shard)).collect();
    while lanes[index].ask(state, port, &wanted) {
        while lanes[index].waiting {
            let left = deadline.saturating_duration_since(Instant::now());
            let receive = async { Ok(state.answers.1.recv().await) };
            let Ok(Some((from, query))) = timeout(left.max(Duration::from_millis(1)), receive).await else {
                state.scan_id.set(state.scan_id.get() + 1);
                return Looked::InPart;
            };
            take_answer(state, &mut lanes, from, query);
        }
        wants_more = take(&lanes[index]);
        if lanes[index].complete || !wants_more || Instant::now() >= deadline {
            break;
        }
    }
    state.scan_id.set(state.scan_id.get() + 1);
    looked(lanes[index].complete, wants_more)
}

/// How far, by whether the shard has no more, and whether more was wanted.
const fn looked(is_complete: bool, wants_more: bool) -> Looked {
    match (is_complete, wants_more) {
        (true, _) => Looked::AtAll,
        (false, false) => Looked::AtTheNewest,
        (false, true) => Looked::InPart,
    }
}

/// Runs a scan. The slot stays with the caller until the answer is written.
pub(in crate::control) async fn scan(state: &State, _slot: &ScanSlot<'_>, wanted: &Wanted, show: Show) -> Found {
    state.scan_id.set(state.scan_id.get() + 1);
    let from = |index: usize| wanted.from.get(index).copied().unwrap_or(GoOn::Newest);
    let mut lanes: Vec<Lane> =
        state.shards().iter().enumerate().map(|(index, port)| Lane::from(port.shard, from(index))).collect();
    let mut found = run(state, &mut lanes, wanted, show).await;
    let next: Vec<GoOn> = lanes.iter().map(Lane::go_on).collect();
    found.next = next.iter().any(|shard| *shard != GoOn::Over).then_some(next);
    // A shard's log is in the order in which frames began; within a moment that is not the order of arrival.
    found.records.sort_by_key(|(arrival_us, _)| std::cmp::Reverse(*arrival_us));
    // Answers that are still under way belong to no scan any more.
    state.scan_id.set(state.scan_id.get() + 1);
    found
}

async fn run(state: &State, lanes: &mut [Lane], wanted: &Wanted, show: Show) -> Found {
    let deadline = Instant::now() + SCAN_TIME_MAX;
    let mut found = Found::default();
    let mut answer_bytes = 0;
    loop {
        for (lane, port) in lanes.iter_mut().zip(state.shards()) {
            if lane.taken == lane.stored.len() && !lane.complete && !lane.waiting && !lane.ask(state, port, wanted) {
                found.partial = true;
                (lane.complete, lane.unasked) = (true, true);
            }
        }
        while lanes.iter().any(|lane| lane.waiting) {
            let left = deadline.saturating_duration_since(Instant::now());
            let receive = async { Ok(state.answers.1.recv().await) };
            let Ok(Some((index, query))) = timeout(left.max(Duration::from_millis(1)), receive).await else {
                found.partial = true;
                return found;
            };
            take_answer(state, lanes, index, query);
        }
        if lanes.iter().all(|lane| lane.taken == lane.stored.len() && lane.complete) {
            return found;
        }
        if !merge(lanes, wanted, show, &mut found, &mut answer_bytes) {
            return found;
        }
        if Instant::now() >= deadline {
            found.partial = true;
            return found;
        }
        glommio::executor().yield_task_queue_now().await;
    }
}

fn take_answer(state: &State, lanes: &mut [Lane], index: usize, query: Box<Query>) {
    let Some(port) = state.shards().get(index) else { return };
    if let Some(lane) = lanes.get_mut(index).filter(|lane| lane.waiting && query.id == state.scan_id.get()) {
        lane.fill(&query);
    }
    port.idle_query.replace(Some(query));
}

impl Lane {
    fn new(shard: u32) -> Self {
        let body = Vec::new();
        let (stored, standings) = (Vec::new(), Vec::new());
        Self { shard, body, stored, standings, taken: 0, cursor: None, waiting: false, complete: false, unasked: false }
    }

    fn from(shard: u32, from: GoOn) -> Self {
        let cursor = if let GoOn::Older(cursor) = from { Some(cursor) } else { None };
        Self { cursor, complete: from == GoOn::Over, ..Self::new(shard) }
    }

    /// Where the next search goes on: with the first record that this one did not take.
    fn go_on(&self) -> GoOn {
        match (self.stored.get(self.taken), self.cursor) {
            (Some(stored), _) => GoOn::Older(stored.place),
            (None, _) if self.complete && !self.unasked => GoOn::Over,
            (None, Some(cursor)) => GoOn::Older(cursor),
            (None, None) => GoOn::Newest,
        }
    }

    /// Asks the shard for the next page; `false` if it cannot be asked now.
    fn ask(&mut self, state: &State, port: &ShardPort, wanted: &Wanted) -> bool {
        let Some(mut query) = port.idle_query.take() else { return false };
        query.id = state.scan_id.get();
        query.source = wanted.source;
        query.request_id = wanted.request_id;
        query.since_us = wanted.since_us;
        query.until_us = wanted.until_us;
        query.limit = wanted.limit.min(QueryPage::RECORDS);
        query.cursor = self.cursor;
        query.page.records.clear();
        query.page.stored.clear();
        query.page.standings.clear();
        query.explain = wanted.explain;
        if wanted.explain {
            query.page.standings.reserve(QueryPage::RECORDS);
        }
        query.page.records_scanned = 0;
        query.page.complete = false;
        let sent = port.messages.borrow_mut().send(ToShard::Query(query));
        match sent {
            Ok(()) => self.waiting = true,
            Err(ToShard::Query(query)) => drop(port.idle_query.replace(Some(query))),
            Err(_) => {}
        }
        self.waiting
    }

    /// Takes a page over. The query is free again afterwards.
    fn fill(&mut self, query: &Query) {
        self.waiting = false;
        self.taken = 0;
        self.stored.clone_from(&query.page.stored);
        self.standings.clone_from(&query.page.standings);
        self.body.clear();
        self.body.resize(query.page.records.body_bytes(), 0);
        query.page.records.encode_body(&mut self.body);
        // A page that found nothing, moved nowhere and is not complete would be asked for again for ever.
        let stuck = self.stored.is_empty() && query.cursor == self.cursor;
        self.complete = query.page.complete || stuck || query.cursor.is_none();
        self.cursor = query.cursor;
    }
}

/// Takes the newest records of all lanes until one that has more to come runs dry, or for as long as a task should run in one
/// go; `false` when the scan is over.
fn merge(lanes: &mut [Lane], wanted: &Wanted, show: Show, found: &mut Found, answer_bytes: &mut usize) -> bool {
    let mut taken: Vec<usize> = lanes.iter().map(|lane| lane.taken).collect();
    let goes_on = take_newest(lanes, &mut taken, wanted, show, found, answer_bytes);
    for (lane, taken) in lanes.iter_mut().zip(taken) {
        lane.taken = taken;
    }
    goes_on && found.records.len() < wanted.limit
}

/// The loop of [`merge`]; a record counts as taken only once it is in the answer.
fn take_newest(
    lanes: &[Lane],
    taken: &mut [usize],
    wanted: &Wanted,
    show: Show,
    found: &mut Found,
    answer_bytes: &mut usize,
) -> bool {
    let (records_end, bytes_end) = (found.records.len() + MERGE_RECORDS, *answer_bytes + MERGE_BYTES);
    let batches: Vec<Option<ValidBatch<'_>>> =
        lanes.iter().map(|lane| ValidBatch::parse(SCHEMA, lane.stored.len() as u32, &lane.body).ok()).collect();
    while found.records.len() < records_end && *answer_bytes < bytes_end {
        if lanes.iter().zip(&*taken).any(|(lane, taken)| *taken == lane.stored.len() && !lane.complete) {
            break;
        }
        let heads = lanes.iter().zip(&*taken).enumerate();
        let newest = heads.filter_map(|(index, (lane, taken))| {
            lane.stored.get(*taken).map(|stored| ((stored.arrival_us, stored.commit_index), index))
        });
        let Some((_, index)) = newest.max_by_key(|(key, _)| *key) else { break };
        let (lane, position) = (&lanes[index], taken[index]);
        let Some(record) = batches[index].and_then(|batch| batch.record(position)) else {
            found.partial = true;
            taken[index] += 1;
            continue;
        };
        if found.records.len() == wanted.limit {
            return false;
        }
        let json = to_json(&record, &lane.stored[position], lane.shard, show);
        if *answer_bytes + json.len() > ANSWER_BYTES_MAX {
            found.partial = true;
            return false;
        }
        *answer_bytes += json.len() + 1;
        taken[index] += 1;
        found.records.push((lane.stored[position].arrival_us, json));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::{BatchBuilder, RecordFields};

    /// A place of its own for each arrival.
    fn place(arrival_us: u64) -> Cursor {
        Cursor { slab: 0, generation: 1, offset: arrival_us as u32, records_left: 1 }
    }

    fn lane(shard: u32, arrivals: &[u64], complete: bool) -> Lane {
        let mut batch = BatchBuilder::default();
        let mut stored = Vec::new();
        for (index, arrival_us) in arrivals.iter().enumerate() {
            batch.push(&RecordFields { event_us: *arrival_us, ..RecordFields::default() }, 1 << 20).expect("fits");
            let commit_index = 100 - index as u64;
            let place = place(*arrival_us);
            let (node, session, sent_us, is_replay) = ([0; 16], 0, 0, false);
            stored.push(StoredRecord { arrival_us: *arrival_us, commit_index, node, session, sent_us, is_replay, place });
        }
        let mut body = vec![0; batch.body_bytes()];
        batch.encode_body(&mut body);
        Lane { body, stored, complete, ..Lane::new(shard) }
    }

    fn arrivals(found: &Found) -> Vec<u64> {
        let of = |json: &str| serde_json::from_str::<serde_json::Value>(json).expect("JSON")["arrival_us"].as_u64();
        assert!(found.records.iter().all(|(arrival_us, json)| of(json) == Some(*arrival_us)));
        found.records.iter().map(|(arrival_us, _)| *arrival_us).collect()
    }

    #[test]
    fn lanes_are_merged_newest_first_until_one_runs_dry() {
        let mut lanes = [lane(0, &[9, 7, 3], true), lane(1, &[8, 4], false)];
        let wanted = Wanted { limit: 10, ..Wanted::default() };
        let (mut found, mut bytes) = (Found::default(), 0);
        assert!(merge(&mut lanes, &wanted, Show::Everything, &mut found, &mut bytes));
        assert_eq!(arrivals(&found), [9, 8, 7, 4], "3 waits: lane 1 may have a newer one still");
        lanes[1] = lane(1, &[3, 2], true);
        assert!(merge(&mut lanes, &wanted, Show::Everything, &mut found, &mut bytes));
        assert_eq!(arrivals(&found), [9, 8, 7, 4, 3, 3, 2]);
        assert!(!found.partial);
    }

    #[test]
    fn enough_is_told_from_no_time() {
        let looked = [(true, true), (true, false), (false, false), (false, true)].map(|(whole, more)| looked(whole, more));
        assert_eq!(looked, [Looked::AtAll, Looked::AtAll, Looked::AtTheNewest, Looked::InPart]);
    }

    #[test]
    fn the_limit_ends_a_scan() {
        let mut lanes = [lane(0, &[9, 7, 3], true)];
        let wanted = Wanted { limit: 2, ..Wanted::default() };
        let (mut found, mut bytes) = (Found::default(), 0);
        assert!(!merge(&mut lanes, &wanted, Show::Everything, &mut found, &mut bytes));
        assert_eq!((arrivals(&found), found.partial), (vec![9, 7], false));
        assert_eq!(lanes[0].go_on(), GoOn::Older(place(3)));
    }

    #[test]
    fn a_shard_that_has_no_more_is_over_and_one_that_was_not_asked_is_not() {
        let mut over = Lane::from(0, GoOn::Over);
        assert_eq!(over.go_on(), GoOn::Over);
        (over.complete, over.unasked) = (true, true);
        assert_eq!(over.go_on(), GoOn::Newest);
        let lane = Lane { complete: true, unasked: true, ..Lane::from(0, GoOn::Older(place(5))) };
        assert_eq!(lane.go_on(), GoOn::Older(place(5)));
    }

    #[test]
    fn a_merge_stops_for_others_and_goes_on() {
        let newest_first: Vec<u64> = (1..=100).rev().collect();
        let mut lanes = [lane(0, &newest_first, true)];
        let wanted = Wanted { limit: 1000, ..Wanted::default() };
        let (mut found, mut bytes) = (Found::default(), 0);
        for whole in [32, 64, 96, 100] {
            assert!(merge(&mut lanes, &wanted, Show::Everything, &mut found, &mut bytes));
            assert_eq!(found.records.len(), whole);
        }
        assert_eq!(arrivals(&found), newest_first);
    }

    #[test]
    fn a_large_answer_is_cut() {
        let mut lanes = [lane(0, &[9, 7, 3], true)];
        let wanted = Wanted { limit: 9, ..Wanted::default() };
        let (mut found, mut bytes) = (Found::default(), ANSWER_BYTES_MAX - 1000);
        assert!(!merge(&mut lanes, &wanted, Show::Everything, &mut found, &mut bytes));
        assert!(found.partial && found.records.len() < 3);
        assert_eq!(lanes[0].go_on(), GoOn::Older(place([9, 7, 3][found.records.len()])));
    }
}
