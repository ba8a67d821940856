//! What the queue promises, one promise a test.

use super::*;
use postanalytics_protocol::Hit;

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
    ledger.send(records);
    ledger.ack(records, bytes);
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
fn a_forked_child_is_told() {
    let mut queue = queue(10_000);
    queue.owner += 1;
    // A fork takes longer than this, so the id is asked for again.
    std::thread::sleep(Duration::from_nanos(2 * OWNER_SEEN_NS));
    assert!(matches!(queue.try_send(&plain()), Err(SendError::Forked { .. })));
    assert_eq!(queue.counters(), Counters::default());
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
    queue.expire(queue.clock_us());
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
    queue.expire(cutoff_us);
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
