//! Models of a slot of the NGINX module's zone, which processes share: threads stand for processes here.

pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}
#[path = "../../../client/nginx/src/zone/owner.rs"]
mod owner;

use atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use loom::sync::Arc;
use owner::{Owner, place_of};

/// A slot whose owner 7 was killed with one record of two; those from `first_alive` on live.
fn of_a_killed_worker() -> Arc<Owner> {
    let owner = Owner::default();
    assert!(owner.claim(7));
    owner.accepted.store(2, Relaxed);
    owner.acked.store(1, Relaxed);
    Arc::new(owner)
}

fn lost_and_killed(owner: &Owner) -> (u64, u64) {
    (owner.lost.load(Relaxed), owner.killed())
}

/// Two bury at once, and one of them moves in and has a record on its way while the other may still be at it.
pub(crate) fn buried_once() {
    let owner = of_a_killed_worker();
    let other = loom::thread::spawn({
        let owner = Arc::clone(&owner);
        move || owner.bury(8, |pid| pid != 7)
    });
    owner.bury(9, |pid| pid != 7);
    let moved_in = owner.claim(9);
    if moved_in {
        owner.accepted.fetch_add(1, Relaxed);
    }
    other.join().expect("it buries");
    assert_eq!(lost_and_killed(&owner), (1, 1));
    assert!(moved_in == owner.is_there(), "nobody moves in before it is free, and it is free in the end");
    assert!(moved_in || owner.claim(9));
}

/// Whoever buried was killed, too, before or after he had counted the records.
fn broken_off(has_counted: bool) {
    let owner = of_a_killed_worker();
    assert!(owner.begin_burial(6, |pid| pid != 7).is_some());
    if has_counted {
        owner.count_lost();
    }
    let other = loom::thread::spawn({
        let owner = Arc::clone(&owner);
        move || owner.bury(8, |pid| pid > 7)
    });
    owner.bury(9, |pid| pid > 7);
    other.join().expect("it buries");
    assert_eq!(lost_and_killed(&owner), (1, 1));
    assert!(owner.claim(9));
}

pub(crate) fn broken_off_before_it_counted() {
    broken_off(false);
}

pub(crate) fn broken_off_after_it_counted() {
    broken_off(true);
}

/// Who moves in sees all that the former owner had settled: nothing of it is counted as lost if the new one is killed.
pub(crate) fn next_sees_what_was_settled() {
    let owner = Arc::new(Owner::default());
    assert!(owner.claim(7));
    let former = loom::thread::spawn({
        let owner = Arc::clone(&owner);
        move || {
            owner.accepted.fetch_add(1, Relaxed);
            owner.acked.fetch_add(1, Relaxed);
            owner.release();
        }
    });
    let moved_in = owner.claim(8);
    if moved_in {
        // As if 8 had been killed at once.
        owner.bury(9, |pid| pid != 8);
    }
    former.join().expect("it ends");
    assert_eq!(lost_and_killed(&owner), (0, u64::from(moved_in)));
}

/// A worker that ends as it should gives its slot back while it lives: whoever looks meanwhile counts no death, and the next one may
/// move in.
pub(crate) fn an_end_is_no_death() {
    let owner = Arc::new(Owner::default());
    let lives = Arc::new(AtomicU64::new(1));
    assert!(owner.claim(7));
    let ending = loom::thread::spawn({
        let (owner, lives) = (Arc::clone(&owner), Arc::clone(&lives));
        move || {
            owner.release();
            // The kernel orders the end of a process before the answer that there is none.
            lives.store(0, Release);
        }
    });
    owner.bury(9, |_| lives.load(Acquire) == 1);
    ending.join().expect("it ends");
    assert_eq!(lost_and_killed(&owner), (0, 0));
    assert!(owner.claim(9));
}

/// Two that come for the first time have a place each, and who comes twice has one.
pub(crate) fn a_place_each() {
    let places = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
    let other = loom::thread::spawn({
        let places = Arc::clone(&places);
        move || [5, 6].map(|wanted| place_of(&*places, wanted))
    });
    let found = [6, 5].map(|wanted| place_of(&*places, wanted));
    let [five, six] = other.join().expect("it finds them");
    assert_eq!(found, [six, five]);
    assert!(five.is_some() && six.is_some() && five != six);
    assert_eq!(places[2].load(Relaxed), 0, "no place is taken twice");
}
