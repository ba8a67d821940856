//! A well-behaved connection beside a test that misbehaves: it sends and gets its acks all the time, in a thread of its own.

use crate::{RawConnection, eventually};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// See the module. Anything but an ack panics its thread, which the next call here notices.
#[derive(Debug)]
pub struct Witness {
    acked: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Connects and goes to work: batches of one record.
    pub fn start(server: SocketAddr) -> Self {
        let (acked, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut connection = RawConnection::open(server, 250, 250);
        let thread = std::thread::spawn({
            let (acked, stop) = (Arc::clone(&acked), Arc::clone(&stop));
            move || {
                for sequence in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    connection.send_batch(sequence, 1);
                    connection.expect_ack(sequence);
                    acked.store(sequence, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self { acked, stop, thread: Some(thread) }
    }

    /// Asserts that it still gets acks: for a batch that it sends from now on, so the second from now.
    pub fn assert_served(&self) {
        let before = self.acked.load(Ordering::Relaxed);
        eventually("the other connection still gets acks", Duration::from_secs(15), || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended, "the other connection was harmed");
            self.acked.load(Ordering::Relaxed) >= before + 2
        });
    }

    /// Ends it; the records that were stored for it.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.thread.take().is_some_and(|thread| thread.join().is_ok()), "the other connection was harmed");
        self.acked.load(Ordering::Relaxed)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
