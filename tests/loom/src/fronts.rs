//! Models of the rings of a site's thread: the thread hands records over and ends, the holder of the queue's lock moves them on.
//!
//! The thread that the model begins with is the site's; what `Queue` does with the other end under its lock, a second one
//! does here. The lock itself needs no model.

use crate::bundle::RECORD_COST_BYTES;
use crate::front::{self, Back};
use crate::request::Request;
use std::sync::atomic::{AtomicU64, Ordering};

const QUEUE: u64 = 1;
/// Strings of the records; the second record goes round the end of a ring.
const PATHS: [&[u8]; 3] = [b"/a", b"/bc", b"/d"];

/// Orders that came to what a model is about; a model where none does shows nothing.
static REACHED: AtomicU64 = AtomicU64::new(0);
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Whether, since the last call, there was an order that came to what was asked, or nothing was asked.
pub(crate) fn came_to_the_end() -> bool {
    let reached = REACHED.swap(0, Ordering::Relaxed);
    ASKED.swap(0, Ordering::Relaxed) == 0 || reached > 0
}

fn reached(is: bool) {
    ASKED.store(1, Ordering::Relaxed);
    REACHED.fetch_add(u64::from(is), Ordering::Relaxed);
}

/// Rings for this thread, as its second record opens them.
fn open() -> Back {
    assert!(!front::took_the_locked_way(QUEUE, 1));
    assert!(front::took_the_locked_way(QUEUE, 2));
    front::open(QUEUE).expect("the thread has a place for them")
}

/// Hands the record of that number over.
fn push(number: usize) -> bool {
    let request = Request { path: PATHS[number], event_us: number as u64, ..Request::default() };
    front::push(QUEUE, &request, 3, false, PATHS[number].len())
}

/// Takes out what is there: the next records in order, each with its strings.
fn drain(back: &mut Back, next: &mut usize) {
    back.drain(|item| {
        let record = item.record.event_us as usize;
        assert!(record >= *next, "record {record} after {next}");
        assert_eq!((item.blob, item.meta.string_bytes()), (PATHS[record], PATHS[record].len()));
        *next = record + 1;
    });
}

pub(crate) fn done_is_empty() {
    let mut back = open();
    let queue = loom::thread::spawn(move || {
        // As `Queue::exchange` does: records may come between the two steps.
        let mut next = 0;
        for _ in 0..2 {
            drain(&mut back, &mut next);
            let is_done = back.is_done();
            reached(is_done);
            assert!(!is_done || next == 1, "rings are forgotten with a record in them");
        }
    });
    assert!(push(0));
    // The thread ends, and its rings with it.
    drop(queue);
}

pub(crate) fn strings_come_with_their_record() {
    let mut back = open();
    let queue = loom::thread::spawn(move || {
        let mut next = 0;
        (0..3).for_each(|_| drain(&mut back, &mut next));
        reached(next == 3);
    });
    for number in 0..3 {
        // Full: the record would take the locked way, which is not of this model.
        push(number);
    }
    drop(queue);
}

pub(crate) fn full_rings_refuse_whole_records() {
    let mut back = open();
    assert!(push(0));
    // There is room for a part of it.
    let (records, cost) = back.records_and_cost();
    assert!(records == 1 && cost <= back.cost_bytes_max() && !push(1));
    let queue = loom::thread::spawn(move || {
        let mut next = 0;
        drain(&mut back, &mut next);
        (back, next)
    });
    let second = push(1);
    reached(second);
    let (mut back, mut next) = queue.join().expect("the queue's thread ends");
    drain(&mut back, &mut next);
    assert_eq!((next, back.records_and_cost()), (1 + usize::from(second), (0, 0)));
}

pub(crate) fn counts_have_all_strings() {
    let mut back = open();
    let queue = loom::thread::spawn(move || {
        let (records, bytes) = back.records_and_cost();
        let of_all: usize = PATHS.iter().take(records as usize).map(|path| RECORD_COST_BYTES + path.len()).sum();
        reached(records == 1);
        assert_eq!(bytes, of_all, "of {records} records");
    });
    assert!(push(0));
    drop(queue);
}
