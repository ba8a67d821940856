//! Searches that leave out slabs find just what searches through everything find, whatever happens to the log.

use super::*;
use crate::shard::messages::QueryPage;
use crate::shard::tests::World;
use postanalytics_protocol::{BatchBuilder, RecordFields, Source, shard_of};
use std::net::{IpAddr, Ipv4Addr};

/// As in the topology of [`World`].
const ROUTING_SEED: u64 = 4;
const SHARDS: u32 = 4;
const SLABS: u64 = 6;

/// What is compared of a record: its id, its source, its arrival.
type Found = (u128, Source, u64);

/// Sources of shard 0.
fn sources(count: usize) -> Vec<IpAddr> {
    let all = (0x0b00_0000_u32..).map(|number| IpAddr::from(Ipv4Addr::from(number)));
    all.filter(|address| shard_of(Source::of(*address), ROUTING_SEED, SHARDS) == 0).take(count).collect()
}

fn query(source: Option<Source>, since_us: Option<u64>, limit: usize) -> Box<Query> {
    Box::new(Query {
        id: 1,
        source,
        request_id: None,
        since_us,
        limit,
        until_us: None,
        explain: false,
        cursor: None,
        page: QueryPage::new(),
    })
}

/// A session that sends frames with ids that count up.
struct Sender {
    random: fastrand::Rng,
    sources: Vec<IpAddr>,
    link: u32,
    sequences: Vec<u64>,
    records: u128,
}

impl Sender {
    fn new(world: &mut World, seed: u64) -> Self {
        (0..3).for_each(|link| world.connect(link, link as u8 + 1, u64::from(link) + 1));
        world.turn(0);
        Self { random: fastrand::Rng::with_seed(seed), sources: sources(300), link: 3, sequences: vec![0; 3], records: 0 }
    }

    /// A frame of a few records of a few of the sources, which change slowly, as they do for a search to be worth while.
    fn frame(&mut self, session: usize) -> Vec<u8> {
        let mut batch = BatchBuilder::default();
        let path = vec![b'p'; self.random.usize(0..20_000)];
        for _ in 0..self.random.u32(0..12) {
            self.records += 1;
            let window = (self.records / 300) as usize % self.sources.len();
            let address = self.sources[(window + self.random.usize(0..10)) % self.sources.len()];
            let client_ip = postanalytics_protocol::routing::address_bytes(address);
            let fields =
                RecordFields { request_id: self.records.to_be_bytes(), client_ip, path: &path, ..RecordFields::default() };
            batch.push(&fields, 1 << 20).expect("fits");
        }
        let mut out = Vec::new();
        self.sequences[session] += 1;
        batch.encode_frame(session as u64 + 1, self.sequences[session], 0, &mut out);
        out
    }

    /// Something happens: mostly a frame, sometimes two in pieces side by side, one that is damaged, one that is given up.
    fn step(&mut self, world: &mut World) {
        match self.random.u32(0..20) {
            0 => {
                let (first, second) = (self.frame(0), self.frame(1));
                let (begin, end) = first.split_at(self.random.usize(0..first.len()));
                world.send(0, begin);
                world.send(1, &second);
                world.turn(0);
                world.send(0, end);
            }
            what @ 1..3 => {
                let link = self.link;
                self.link += 1;
                world.connect(link, 9, u64::from(link));
                let mut bytes = self.frame(2);
                self.sequences[2] -= 1;
                bytes[16..24].copy_from_slice(&u64::from(link).to_le_bytes());
                bytes[24..32].copy_from_slice(&1u64.to_le_bytes());
                let header_crc = crc32fast::hash(&bytes[..44]);
                bytes[44..48].copy_from_slice(&header_crc.to_le_bytes());
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                world.send(link, &bytes[..if what == 1 { bytes.len() } else { last }]);
                world.shard.broken(link);
            }
            _ => {
                let bytes = self.frame(2);
                world.send(2, &bytes);
            }
        }
        world.turn(2);
    }
}

/// Asks page by page; `between` comes after every slice and every page. Also the number of records looked at.
fn search(world: &mut World, mut asked: Box<Query>, mut between: impl FnMut(&mut World)) -> (Vec<Found>, u64) {
    let (mut found, mut scanned) = (Vec::new(), 0);
    loop {
        assert!(world.shard.begin_query(asked).is_none());
        let answer = loop {
            if let Some(answer) = world.shard.query_slice(Now::default()) {
                break answer;
            }
            between(world);
        };
        for (record, stored) in answer.page.records.records().iter().zip(&answer.page.stored) {
            found.push((u128::from_be_bytes(record.request_id), Source::of_bytes(&record.client_ip), stored.arrival_us));
        }
        scanned += answer.page.records_scanned;
        if answer.page.complete {
            return (found, scanned);
        }
        asked = Box::new(Query { page: QueryPage::new(), ..*answer });
        between(world);
    }
}

fn everything(world: &mut World) -> Vec<Found> {
    search(world, query(None, None, 1024), |_| {}).0
}

#[test]
fn a_search_finds_what_a_search_through_everything_finds() {
    let mut world = World::with_slabs(SHARDS, SLABS);
    let mut sender = Sender::new(&mut world, 11);
    let (mut scanned, mut unfiltered, mut matches) = (0, 0, 0);
    for step in 0..1_500 {
        sender.step(&mut world);
        if step % 25 != 0 {
            continue;
        }
        let all = everything(&mut world);
        assert_eq!(all.len() as u64, world.shard.stats().records_live);
        for _ in 0..8 {
            let source = Source::of(sender.sources[sender.random.usize(0..sender.sources.len())]);
            let of_any = all.get(sender.random.usize(0..all.len().max(1))).map(|(_, _, arrival_us)| *arrival_us);
            let since_us = of_any.filter(|_| sender.random.bool());
            let limit = sender.random.usize(1..40);
            let (found, looked_at) = search(&mut world, query(Some(source), since_us, limit), |_| {});
            let wanted = |(_, of, arrival_us): &&Found| *of == source && since_us.is_none_or(|since_us| *arrival_us >= since_us);
            assert_eq!(found, all.iter().filter(wanted).copied().collect::<Vec<_>>(), "step {step}, {source:?} {since_us:?}");
            scanned += looked_at;
            unfiltered += all.len() as u64;
            matches += found.len();
        }
        let since_us = all.get(all.len() / 2).map(|(_, _, arrival_us)| *arrival_us);
        let (found, _) = search(&mut world, query(None, since_us, 1024), |_| {});
        let young = |(_, _, arrival_us): &&Found| since_us.is_none_or(|since_us| *arrival_us >= since_us);
        assert_eq!(found, all.iter().filter(young).copied().collect::<Vec<_>>());
    }
    let stats = world.shard.stats();
    assert!(stats.records_evicted > 3 * stats.records_live && stats.places_void > 50, "{stats:?}");
    assert!(matches > 300 && scanned * 3 < unfiltered, "{matches} found, {scanned} of {unfiltered} looked at");
}

#[test]
fn a_search_misses_nothing_that_stays_while_records_come_and_go() {
    let mut world = World::with_slabs(SHARDS, SLABS);
    let mut sender = Sender::new(&mut world, 12);
    (0..200).for_each(|_| sender.step(&mut world));
    let mut grown = 0;
    for _ in 0..60 {
        let before = everything(&mut world);
        let source = before[sender.random.usize(0..before.len())].1;
        let (found, _) = search(&mut world, query(Some(source), None, 7), |world| sender.step(world));
        sender.step(&mut world);
        let after = everything(&mut world);
        grown += after.iter().filter(|record| !before.contains(record)).count();
        let stays = before.iter().filter(|record| record.1 == source && after.contains(record));
        assert!(stays.clone().all(|record| found.contains(record)), "{source:?}");
        assert!(found.iter().all(|record| record.1 == source));
        assert!(found.windows(2).all(|pair| pair[0].0 != pair[1].0), "none twice");
    }
    assert!(grown > 100, "{grown}");
}

#[test]
fn a_search_goes_on_where_frames_were_begun_and_given_up_meanwhile() {
    let mut world = World::with_slabs(1, 4);
    let mut batch = BatchBuilder::default();
    batch.push(&RecordFields { path: b"/first", ..RecordFields::default() }, 1 << 20).expect("fits");
    let mut bytes = Vec::new();
    batch.encode_frame(1, 1, 0, &mut bytes);
    world.connect(0, 1, 1);
    world.send(0, &bytes);
    // More than a slice looks at, all newer than the one that is there to be found.
    let links = 1..=300;
    for link in links.clone() {
        world.connect(link, 2, u64::from(link));
        let mut bytes = Vec::new();
        batch.encode_frame(u64::from(link), 1, 0, &mut bytes);
        world.send(link, &bytes[..64]);
    }
    world.turn(0);
    assert_eq!(world.shard.stats().open_places, 300);
    let mut slices = 0;
    let (found, _) = search(&mut world, query(None, None, 10), |world| {
        // The newest first, so that the room of each is given back.
        links.clone().rev().for_each(|link| world.shard.broken(link));
        slices += 1;
    });
    assert_eq!((found.len(), slices), (1, 1));
}

#[test]
fn a_page_does_not_grow_beyond_its_room() {
    let mut world = World::with_slabs(1, 4);
    world.connect(0, 1, 1);
    let path = vec![b'p'; 190_000];
    for sequence in 1..=6 {
        let mut batch = BatchBuilder::default();
        batch.push(&RecordFields { path: &path, ..RecordFields::default() }, 1 << 20).expect("fits");
        let mut bytes = Vec::new();
        batch.encode_frame(1, sequence, 0, &mut bytes);
        world.send(0, &bytes);
        world.turn(0);
    }
    assert!(world.shard.begin_query(query(None, None, 10)).is_none());
    let answer = std::iter::repeat_with(|| world.shard.query_slice(Now::default())).find_map(|answer| answer).expect("an answer");
    assert_eq!((answer.page.stored.len(), answer.page.complete), (5, false));
    assert!(answer.page.records.blob().len() <= QueryPage::BLOB_BYTES);
}

#[test]
fn old_and_foreign_slabs_cost_a_search_next_to_nothing() {
    let mut world = World::with_slabs(SHARDS, 40);
    let mut sender = Sender::new(&mut world, 13);
    while world.shard.stats().records_evicted == 0 {
        let bytes = sender.frame(2);
        world.send(2, &bytes);
        world.turn(2);
    }
    let absent = Source::of(IpAddr::from([198, 51, 100, 7]));
    for asked in [query(Some(absent), None, 10), query(None, Some(u64::MAX), 10)] {
        let mut slices = 1;
        assert_eq!(search(&mut world, asked, |_| slices += 1), (Vec::new(), 0));
        assert_eq!(slices, 1);
    }
}
