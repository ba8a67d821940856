//! A fork of a program that has a client: a test binary of its own, so that only this test's threads are there when it forks.
#![expect(unsafe_code, reason = "a test of fork() has to fork")]

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use postanalytics_client::{Client, Counters, Request, SendError};
use std::time::Duration;

#[test]
fn a_forked_child_is_told_at_once_and_the_parent_goes_on() {
    let client = Client::builder().server("127.0.0.1:1").build().expect("built");
    let parent = std::process::id();
    client.try_send(&Request::default()).expect("room");
    // SAFETY: the child only calls what neither allocates nor locks, and ends by `_exit`.
    match unsafe { fork() }.expect("forked") {
        ForkResult::Child => {
            let told = client.try_send(&Request::default()) == Err(SendError::Forked { owner: parent });
            let again = client.try_send(&Request::default()) == Err(SendError::Forked { owner: parent });
            let nothing = client.counters() == Counters::default();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { nix::libc::_exit(if told && again && nothing { 0 } else { 1 }) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            client.try_send(&Request::default()).expect("the parent is no fork");
            let counters = client.close(Duration::ZERO);
            assert!(counters.laws_hold() && counters.accepted == 2, "{counters:?}");
        }
    }
}
