//! What the queue promises, one promise a test.

use super::*;
use crate::counters::Load;
use postanalytics_protocol::schema::v1::Record;
use postanalytics_protocol::{Extension, Hit};

fn queue(limit_bytes: usize) -> Queue {
    Queue::new(limit_bytes).expect("an eventfd")
}

const PLAIN: &[u8] = &[b'x'; 800];

fn plain() -> Request<'static> {
    Request { path: PLAIN, ..Request::default() }
}

#[test]
fn a_quarter_is_kept_for_hits() {
    let queue = queue(100_000);
    let hits = [Hit::default()];
    let attack = Request { hits: &hits, ..plain() };
    let mut plain_accepted = 0u64;
    while queue.try_send(&plain()).is_ok() {
        plain_accepted += 1;
    }
    let used = queue.counters().queue_bytes;
    assert!((74_000..=75_000).contains(&used), "{used}");
    assert!(matches!(queue.try_send(&plain()), Err(SendError::QueueFull { limit: 75_000, .. })));
    while queue.try_send(&attack).is_ok() {}
    let counters = queue.counters();
    assert!((98_000..=100_000).contains(&counters.queue_bytes), "{counters:?}");
    assert!(matches!(queue.try_send(&attack), Err(SendError::QueueFull { limit: 100_000, .. })));
    assert!(counters.laws_hold() && counters.accepted > plain_accepted && counters.refused_full == 3, "{counters:?}");
}

#[test]
fn what_the_thread_took_still_counts_until_it_is_settled() {
    let queue = queue(10_000);
    while queue.try_send(&plain()).is_ok() {}
    let full = queue.counters();
    let mut taken = VecDeque::new();
    queue.exchange(true, &mut taken, &mut Vec::new());
    let counters = queue.counters();
    assert!(counters.laws_hold());
    assert_eq!((counters.queue_bytes, counters.queued), (full.queue_bytes, full.queued));
    assert!(queue.try_send(&plain()).is_err(), "taking makes no room");

    let mut ledger = Ledger::default();
    let (records, bytes) = (taken[0].records(), taken[0].cost_bytes());
    ledger.take(records, bytes);
    let load = Load { records, marked: 0, bytes };
    ledger.send(load);
    ledger.ack(load);
    let notice = Notice { ledger: &ledger, verdicts_skipped: 0, oldest_us: None, stats: None, status: None };
    assert_eq!(queue.publish(notice, true, WakeOn::default()), Sleep::Nothing);
    let counters = queue.counters();
    assert!(counters.laws_hold() && counters.acked == full.accepted && counters.queue_bytes == 0, "{counters:?}");
    assert!(queue.try_send(&plain()).is_ok());
}

#[test]
fn closed_and_too_large_are_counted() {
    let queue = queue(10_000_000);
    let body = vec![0; crate::RECORD_BYTES_MAX];
    let large = Request { raw_body: &body, ..plain() };
    assert!(matches!(queue.try_send(&large), Err(SendError::TooLarge { .. })));
    let many = vec![Hit::default(); 100];
    assert!(matches!(queue.try_send(&Request { hits: &many, ..plain() }), Err(SendError::TooManyParts(_))));
    queue.try_send(&plain()).expect("room");
    queue.close(Duration::ZERO);
    assert_eq!(queue.try_send(&plain()), Err(SendError::Closed));
    queue.finish();
    let counters = queue.counters();
    assert_eq!((counters.offered, counters.refused_too_large, counters.refused_other, counters.lost), (4, 1, 2, 1));
    assert!(counters.laws_hold() && counters.tnt_errors() == 4);
}

#[test]
fn one_wake_up_per_sleep() {
    let queue = queue(10_000_000);
    let woken = || rustix::io::read(&queue.wake, &mut [0u8; 8]).is_ok();
    let sleep = |wake_on| {
        let ledger = Ledger::default();
        queue.exchange(false, &mut VecDeque::new(), &mut Vec::new());
        queue.publish(Notice { ledger: &ledger, verdicts_skipped: 0, oldest_us: None, stats: None, status: None }, false, wake_on)
    };
    sleep(WakeOn { any: true, urgent: true, bytes: true });
    queue.try_send(&plain()).expect("room");
    assert!(woken());
    queue.try_send(&plain()).expect("room");
    assert!(!woken());
    assert_eq!(sleep(WakeOn { any: true, ..WakeOn::default() }), Sleep::No);
    assert_eq!(sleep(WakeOn { urgent: true, ..WakeOn::default() }), Sleep::RecordsWait);
    queue.try_send(&plain()).expect("room");
    assert!(!woken());
    queue.try_send(&Request { status: 403, ..plain() }).expect("room");
    assert!(woken());
    sleep(WakeOn { bytes: true, ..WakeOn::default() });
    let mut sent = 0;
    while !woken() {
        queue.try_send(&plain()).expect("room");
        sent += 1;
    }
    assert!(sent > 100, "{sent}");
}

#[test]
fn records_that_cannot_be_routed_expire() {
    let queue = queue(1_000_000);
    for _ in 0..600 {
        queue.try_send(&plain()).expect("room");
    }
    assert_eq!(queue.expire(queue.clock_us()), 600);
    let counters = queue.counters();
    assert!(counters.laws_hold() && counters.lost == 600 && counters.queue_bytes == 0, "{counters:?}");
}

#[test]
fn only_a_few_chunks_of_ordinary_size_are_kept() {
    let queue = queue(100_000_000);
    for _ in 0..100 * CHUNK_RECORDS {
        queue.try_send(&plain()).expect("room");
    }
    let mut taken = VecDeque::new();
    let mut emptied = Vec::new();
    queue.exchange(true, &mut taken, &mut emptied);
    assert!(taken.len() > POOL_CHUNKS);
    taken.drain(..).for_each(|chunk| recycle(chunk, &mut emptied));
    assert_eq!(emptied.len(), POOL_CHUNKS);

    emptied.clear();
    let session = [b's'; CHUNK_STRING_BYTES];
    for _ in 0..10 {
        queue.try_send(&Request { session: &session, ..plain() }).expect("room");
    }
    queue.exchange(true, &mut taken, &mut emptied);
    assert_eq!(taken.len(), 10, "sessions count, too");
    taken.drain(..).for_each(|chunk| recycle(chunk, &mut emptied));
    assert!(emptied.is_empty(), "memory of long sessions is not kept");
}

#[test]
fn only_what_is_over_its_time_expires() {
    let queue = queue(1_000_000);
    for _ in 0..300 {
        queue.try_send(&plain()).expect("room");
    }
    let cutoff_us = queue.clock_us();
    while queue.clock_us() == cutoff_us {}
    for _ in 0..10 {
        queue.try_send(&plain()).expect("room");
    }
    assert_eq!(queue.expire(cutoff_us), 300);
    let counters = queue.counters();
    assert_eq!((counters.lost, counters.queued), (300, 10));
    assert!(counters.laws_hold(), "{counters:?}");
}

#[test]
fn any_time_may_be_waited_for() {
    let queue = queue(10_000);
    queue.close(Duration::MAX);
    let orders = queue.exchange(false, &mut VecDeque::new(), &mut Vec::new());
    assert!(orders.close_us.is_some_and(|until_us| until_us > 86_000_000_000));
}

/// Takes what waits, as the background thread does, calls `each` with the token and the path of every record, and
/// acknowledges them all in `ledger`.
fn take(queue: &Queue, ledger: &mut Ledger, mut each: impl FnMut(u64, &[u8])) {
    let mut taken = VecDeque::new();
    queue.exchange(true, &mut taken, &mut Vec::new());
    for bundle in taken {
        bundle.items().for_each(|item| each(item.meta.token, &item.blob[..item.record.path.length as usize]));
        ledger.take(bundle.records(), bundle.cost_bytes());
        ledger.send(bundle.load());
        ledger.ack(bundle.load());
    }
}

fn publish(queue: &Queue, ledger: &Ledger, wake_on: WakeOn) -> Sleep {
    queue.publish(Notice { ledger, verdicts_skipped: 0, oldest_us: None, stats: None, status: None }, true, wake_on)
}

#[test]
fn every_way_into_the_queue_keeps_order_and_bytes() {
    const THREADS: u64 = 4;
    const EACH: u64 = 20_000;
    let queue = queue(64_000_000);
    let path = |thread: u64, number: u64| {
        // Now and then one that is too long for the rings; lengths that make strings lie around the end of their ring.
        let bytes = if number.is_multiple_of(997) { 20_000 } else { number * 7 % 1500 };
        vec![b'a' + (thread + number) as u8 % 26; bytes as usize]
    };
    let mut next = [0u64; THREADS as usize];
    let mut ledger = Ledger::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let queue = &queue;
                scope.spawn(move || {
                    for number in 0..EACH {
                        let path = path(thread, number);
                        let status = if number.is_multiple_of(50) { 404 } else { 200 };
                        let request = Request { path: &path, token: thread << 32 | number, status, ..Request::default() };
                        while queue.try_send(&request).is_err() {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) || queue.counters().queued > 0 {
            take(&queue, &mut ledger, |token, bytes| {
                let (thread, number) = (token >> 32, token & 0xffff_ffff);
                assert_eq!(number, next[thread as usize], "of thread {thread}");
                assert!(bytes == path(thread, number), "record {number} of thread {thread}");
                next[thread as usize] += 1;
            });
            publish(&queue, &ledger, WakeOn::default());
            let counters = queue.counters();
            assert!(counters.laws_hold() && counters.queue_bytes <= 64_000_000, "{counters:?}");
        }
    });
    assert_eq!(next, [EACH; THREADS as usize]);
    assert_eq!(queue.counters().accepted, THREADS * EACH);
}

#[test]
fn hits_and_extensions_arrive_from_a_thread_that_has_a_ring() {
    let queue = queue(10_000_000);
    let (hits, extensions) = ([Hit::default()], [Extension { tag: 1, value: b"BREW" }]);
    let requests = [
        Request { hits: &hits, ..plain() },
        Request { extensions: &extensions, ..plain() },
        Request { hits: &hits, extensions: &extensions, ..plain() },
        plain(),
    ];
    (0..5).for_each(|_| queue.try_send(&plain()).expect("room"));
    assert!(queue.lock().fronts[0].records_and_cost().0 > 0, "this is about the ring");
    for (request, token) in requests.iter().zip(5..) {
        queue.try_send(&Request { token, ..request.clone() }).expect("room");
    }
    let (mut taken, mut parts) = (VecDeque::new(), Vec::new());
    queue.exchange(true, &mut taken, &mut Vec::new());
    for item in taken.iter().flat_map(Bundle::items).filter(|item| item.meta.token > 0) {
        let Record { hits, extensions, .. } = item.record;
        parts.push((item.meta.token, hits.length > 0, extensions.length > 0));
    }
    assert_eq!(parts, [(5, true, false), (6, false, true), (7, true, true), (8, false, false)]);
}

#[test]
fn threads_that_ended_leave_their_records_and_no_rings() {
    let queue = queue(10_000_000);
    for round in 1..=50 {
        let send = || (0..10).for_each(|_| queue.try_send(&plain()).expect("room"));
        std::thread::scope(|scope| scope.spawn(send).join()).expect("no panic");
        assert!(queue.lock().fronts.len() <= 1, "rings are gone with their thread");
        let mut taken = 0;
        take(&queue, &mut Ledger::default(), |_, _| taken += 1);
        assert_eq!((taken, queue.counters().accepted), (10, round * 10));
    }
}

#[test]
fn rings_leave_room_for_what_else_is_queued() {
    let small = queue(4 * FRONT_BYTES - 1);
    (0..10).for_each(|_| small.try_send(&plain()).expect("room"));
    assert!(small.lock().fronts.is_empty(), "a small budget has no rings");

    let queue = queue(4 * FRONT_BYTES);
    while queue.try_send(&plain()).is_ok() {}
    let counters = queue.counters();
    assert_eq!(queue.lock().fronts.len(), 1);
    assert!(!queue.gate.load(Ordering::Relaxed), "the rings are shut");
    let limit = (3 * FRONT_BYTES) as u64;
    assert!((limit - 2000..=limit).contains(&counters.queue_bytes), "{counters:?}");
    let mut ledger = Ledger::default();
    take(&queue, &mut ledger, |_, _| {});
    publish(&queue, &ledger, WakeOn::default());
    assert!(queue.gate.load(Ordering::Relaxed), "and open again");
}

#[test]
fn what_is_in_the_rings_when_all_ends_is_lost_and_counted() {
    let queue = queue(10_000_000);
    (0..20).for_each(|_| queue.try_send(&plain()).expect("room"));
    assert!(queue.lock().fronts[0].records_and_cost().0 > 0, "this is about the rings");
    queue.finish();
    let counters = queue.counters();
    assert!(counters.laws_hold() && counters.lost == 20 && counters.queue_bytes == 0, "{counters:?}");
    assert_eq!(queue.try_send(&plain()), Err(SendError::Closed));
}

#[test]
fn a_record_after_a_pause_wakes_the_thread_that_sleeps_for_long() {
    let queue = queue(10_000_000);
    (0..5).for_each(|_| queue.try_send(&plain()).expect("room"));
    let mut ledger = Ledger::default();
    take(&queue, &mut ledger, |_, _| {});
    std::thread::sleep(Duration::from_micros(front::PAUSE_US + 1000));
    assert_eq!(publish(&queue, &ledger, WakeOn { any: true, ..WakeOn::default() }), Sleep::Nothing);
    queue.try_send(&plain()).expect("room");
    assert!(rustix::io::read(&queue.wake, &mut [0u8; 8]).is_ok());
}

#[test]
fn a_refused_record_announces_nothing() {
    let queue = queue(10_000_000);
    (0..5).for_each(|_| queue.try_send(&plain()).expect("room"));
    let mut ledger = Ledger::default();
    take(&queue, &mut ledger, |_, _| {});
    std::thread::sleep(Duration::from_micros(2 * front::PAUSE_US + 1000));
    let all = WakeOn { any: true, urgent: true, bytes: true };
    assert_eq!(publish(&queue, &ledger, all), Sleep::Nothing);
    let body = vec![0; crate::RECORD_BYTES_MAX];
    assert!(queue.try_send(&Request { raw_body: &body, ..plain() }).is_err());
    // Whether that woke the thread or not: it finds nothing and sleeps again.
    let _ = rustix::io::read(&queue.wake, &mut [0u8; 8]);
    take(&queue, &mut ledger, |_, _| panic!("nothing was accepted"));
    assert_eq!(publish(&queue, &ledger, all), Sleep::Nothing);
    queue.try_send(&plain()).expect("room");
    assert!(rustix::io::read(&queue.wake, &mut [0u8; 8]).is_ok(), "the thread sleeps for long and has to be woken");
}

#[test]
fn what_lies_in_a_ring_keeps_the_thread_from_a_long_sleep() {
    let queue = queue(10_000_000);
    let mut ledger = Ledger::default();
    (0..5).for_each(|_| queue.try_send(&plain()).expect("room"));
    take(&queue, &mut ledger, |_, _| {});
    queue.try_send(&plain()).expect("room");
    assert_eq!(publish(&queue, &ledger, WakeOn { any: true, ..WakeOn::default() }), Sleep::No);
}

#[test]
fn an_urgent_record_of_a_ring_presses_until_it_is_taken() {
    let queue = queue(10_000_000);
    let mut ledger = Ledger::default();
    (0..5).for_each(|_| queue.try_send(&plain()).expect("room"));
    take(&queue, &mut ledger, |_, _| {});
    let (urgent, wake_on) = (Request { status: 403, ..plain() }, WakeOn { urgent: true, ..WakeOn::default() });
    queue.try_send(&urgent).expect("room");
    assert!(queue.lock().fronts[0].records_and_cost().0 > 0, "this is about the ring");
    assert_eq!(publish(&queue, &ledger, wake_on), Sleep::No);
    let mut taken = 0;
    take(&queue, &mut ledger, |_, _| taken += 1);
    assert_eq!((taken, publish(&queue, &ledger, wake_on)), (1, Sleep::Nothing), "no turn more for what is gone");
    // While nothing can be routed it goes on to press.
    queue.try_send(&urgent).expect("room");
    queue.exchange(false, &mut VecDeque::new(), &mut Vec::new());
    assert_eq!(publish(&queue, &ledger, wake_on), Sleep::No);
}

#[test]
fn when_the_thread_has_ended_nothing_is_connected() {
    let queue = queue(10_000_000);
    let server =
        crate::status::ServerStatus { connected: true, takes_records: true, lanes_open: 2, shards: 2, ..Default::default() };
    let status = ClientStatus { connected: true, lanes_open: 2, last_error: "no".into(), servers: vec![server] };
    let ledger = Ledger { connects: 5, disconnects: 3, ..Ledger::default() };
    let notice = Notice { ledger: &ledger, verdicts_skipped: 0, oldest_us: None, stats: None, status: Some((status, None)) };
    queue.publish(notice, true, WakeOn::default());
    queue.finish();
    let (status, counters) = (queue.status(), queue.counters());
    assert!(!status.connected && status.lanes_open == 0 && status.last_error == "no", "{status:?}");
    let server = &status.servers[0];
    assert!(!server.connected && !server.takes_records && server.lanes_open == 0 && server.shards == 2, "{server:?}");
    assert_eq!((counters.connects, counters.disconnects), (5, 5));
}

#[test]
fn a_thread_with_two_clients_gets_rings_for_both() {
    let (one, two) = (queue(100_000_000), queue(100_000_000));
    for _ in 0..100 {
        one.try_send(&plain()).expect("room");
        two.try_send(&plain()).expect("room");
    }
    assert_eq!((one.lock().fronts.len(), two.lock().fronts.len()), (1, 1));
}

#[test]
fn a_flush_waits_for_the_oldest_of_all_threads() {
    let queue = queue(100_000_000);
    let [rings, older, newer] = [0; 3].map(|_| std::sync::Barrier::new(2));
    let three = || (0..3).for_each(|_| queue.try_send(&plain()).expect("room"));
    std::thread::scope(|scope| {
        // The first rings, which are emptied first, hold what is newer, and enough of it to fill a chunk.
        three();
        scope.spawn(|| {
            three();
            rings.wait();
            older.wait();
            queue.try_send(&plain()).expect("room");
            newer.wait();
        });
        rings.wait();
        take(&queue, &mut Ledger::default(), |_, _| {});
        older.wait();
        newer.wait();
        let until_us = queue.clock_us();
        while queue.clock_us() == until_us {}
        (0..256).for_each(|_| queue.try_send(&Request { path: b"/", ..plain() }).expect("room"));
        let mut ledger = Ledger::default();
        ledger.take(6, 0);
        let notice = Notice { ledger: &ledger, verdicts_skipped: 0, oldest_us: Some(u64::MAX), stats: None, status: None };
        queue.publish(notice, true, WakeOn::default());
        let state = queue.lock();
        assert!(!state.chunks.is_empty(), "more than one chunk");
        assert!(state.settled_until_us <= until_us, "{} is not settled: {until_us} waits", state.settled_until_us);
    });
}
