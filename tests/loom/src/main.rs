//! Every order in which two threads can meet in the files of server and client that share memory between threads without a
//! lock: the statistics page, the wake-up of the queues, the rings of a site's thread, and the denylist's table; and what processes
//! share, the slots of the NGINX module's zone.
//!
//! The files are those of server, client and module, compiled here once more; what they take from `crate::sync` is loom's here, or a
//! stand-in with no more guarantees than the original gives. A model that fails panics with the order that it found.

#[path = "../../../client/src/bundle.rs"]
#[allow(dead_code)]
mod bundle;
#[path = "../../../client/src/counters.rs"]
#[allow(dead_code)]
mod counters;
#[path = "../../../client/src/front.rs"]
#[allow(dead_code)]
mod front;
mod fronts;
#[path = "../../../server/src/shard/histogram.rs"]
#[allow(dead_code)]
mod histogram;
#[path = "../../../server/src/shard/page.rs"]
#[allow(dead_code)]
mod page;
mod queue;
#[path = "../../../client/src/request.rs"]
#[allow(dead_code)]
mod request;
#[path = "../../../server/src/queue.rs"]
#[allow(dead_code)]
mod server_queue;
mod sync;
#[path = "../../../client/src/verdict_table.rs"]
#[allow(dead_code)]
mod verdict_table;
mod verdicts;
mod zone;

use loom::sync::Arc;
use page::SequenceLock;
use std::io::Read;

fn main() {
    let models: [(&str, fn()); 18] = [
        ("statistics page: a reading is of one instant", page_is_of_one_instant),
        ("statistics page: no reading is older than the one before", page_never_goes_back),
        ("statistics page: what was published before is in a reading", page_keeps_what_was_announced),
        ("queue: every message wakes the receiver, or it is awake", queue_wakes),
        ("queue: a full queue gives back, and nothing is lost or changes its place", queue_keeps_order_when_full),
        ("rings of a thread: nobody forgets rings that hold a record", fronts::done_is_empty),
        ("rings of a thread: with a record come its strings, in order and whole", fronts::strings_come_with_their_record),
        ("rings of a thread: full rings give no part of a record", fronts::full_rings_refuse_whole_records),
        ("rings of a thread: a count has the strings of all its records", fronts::counts_have_all_strings),
        ("denylist: who is listed is found while tables are built", verdicts::listed_is_found),
        ("denylist: who is not listed is not found, in memory that others were in", verdicts::others_are_not_found),
        ("denylist: who moves from one list to the other is on one of them", verdicts::moved_is_on_one_list),
        ("zone of NGINX: two that bury at once bury once, and before anybody moves in", zone::buried_once),
        ("zone of NGINX: a burial that was broken off at its beginning counts once", zone::broken_off_before_it_counted),
        ("zone of NGINX: a burial that was broken off at its end counts once", zone::broken_off_after_it_counted),
        ("zone of NGINX: who moves in sees what the former owner had settled", zone::next_sees_what_was_settled),
        ("zone of NGINX: a worker that ends as it should is not counted as killed", zone::an_end_is_no_death),
        ("zone of NGINX: an application has one place, whoever sees it first", zone::a_place_each),
    ];
    // An argument takes the models that have it in their names.
    let wanted = std::env::args().nth(1).unwrap_or_default();
    for (what, model) in models.into_iter().filter(|(what, _)| what.contains(&wanted)) {
        let mut builder = loom::model::Builder::new();
        builder.max_branches = 50_000;
        // So many switches of thread that nothing asked for: more take hours, and known errors of this kind need no more.
        builder.preemption_bound = Some(2);
        let orders = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let count = std::sync::Arc::clone(&orders);
        builder.check(move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            model();
        });
        assert!(fronts::came_to_the_end(), "{what}: no order came to what is asked");
        println!("{what}: holds in {} orders", orders.load(std::sync::atomic::Ordering::Relaxed));
    }
}

fn page_is_of_one_instant() {
    let page = Arc::new(SequenceLock::<2>::default());
    let writer = loom::thread::spawn({
        let page = Arc::clone(&page);
        move || (1..=2).for_each(|n| page.publish([n, n]))
    });
    let values = page.read();
    assert!(values[0] == values[1], "torn: {values:?}");
    writer.join().expect("the writer ends");
    assert_eq!(page.read(), [2, 2]);
}

fn page_never_goes_back() {
    let page = Arc::new(SequenceLock::<1>::default());
    let writer = loom::thread::spawn({
        let page = Arc::clone(&page);
        move || page.publish([1])
    });
    let (first, second) = (page.read(), page.read());
    assert!(first <= second, "back in time: {first:?} {second:?}");
    writer.join().expect("the writer ends");
}

fn page_keeps_what_was_announced() {
    let (page, flag) = (Arc::new(SequenceLock::<2>::default()), Arc::new(loom::sync::atomic::AtomicU64::new(0)));
    let writer = loom::thread::spawn({
        let (page, flag) = (Arc::clone(&page), Arc::clone(&flag));
        move || {
            page.publish([1, 1]);
            flag.store(1, loom::sync::atomic::Ordering::Release);
        }
    });
    let announced = flag.load(loom::sync::atomic::Ordering::Acquire);
    let values = page.read();
    assert!(values[0] == values[1] && values[0] >= announced, "{values:?} after {announced}");
    writer.join().expect("the writer ends");
}

/// The receiver does as the shard does: sleeps until the wake-up is readable, reads it empty, then drains the queue.
fn receive_all(mut receiver: server_queue::Receiver<u64>, messages: u64) {
    let mut next = 0;
    while next < messages {
        receiver.wake().wait_readable();
        let mut bytes = [0; 2];
        while matches!(receiver.wake().read(&mut bytes), Ok(count) if count == bytes.len()) {}
        while let Some(message) = receiver.receive() {
            assert_eq!(message, next, "in order, each once");
            next += 1;
        }
    }
}

fn queue_wakes() {
    let (mut sender, receiver) = server_queue::queue::<u64>(2).expect("a stand-in");
    let thread = loom::thread::spawn(move || receive_all(receiver, 2));
    for message in 0..2 {
        sender.send(message).expect("room for both");
    }
    thread.join().expect("the receiver ends");
}

fn queue_keeps_order_when_full() {
    let (mut sender, receiver) = server_queue::queue::<u64>(1).expect("a stand-in");
    let thread = loom::thread::spawn(move || receive_all(receiver, 2));
    for message in 0..2 {
        while let Err(back) = sender.send(message) {
            assert_eq!(back, message);
            sync::spin_loop();
        }
    }
    thread.join().expect("the receiver ends");
}
