//! The background thread: sleeps in `poll`, moves bytes between sockets and [`Core`], records from [`Queue`] to it.
//!
//! ```text
//!   poll ─▶ read sockets ─▶ take records from the queue ─▶ core: timers, batches ─▶ write sockets ─▶ publish counters ─▶ poll
//! ```
//!
//! While there was traffic within the last second it wakes by itself often enough for the linger, so that `try_send` need not
//! wake it; after that it sleeps until the first record, a socket or a timer wakes it. All signals are blocked in it.

use crate::bundle::Bundle;
use crate::config::Config;
use crate::connection::Break;
use crate::core::{Core, Now, server_of};
use crate::link::{Addresses, Link};
use crate::queue::{Notice, Queue, Sleep, WakeOn, recycle};
use crate::server::given_up;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Time without records after which the thread no longer wakes by itself, µs.
const QUIET_US: u64 = 1_000_000;
/// Longest sleep between two looks at the queue while there is traffic, µs.
const TICK_US_MAX: u64 = 20_000;
/// Bytes read at once, and how often per turn and socket, so that no lane starves the others.
const READ_BYTES: usize = 64 * 1024;
const READS_PER_TURN: usize = 8;
/// Rounds of encoding and writing per turn.
const WRITES_PER_TURN: usize = 16;

/// Runs until the client is closed.
pub(crate) fn run(queue: Arc<Queue>, core: Core, config: Config) {
    // Whatever ends the thread, a panic in the site's callback included: nobody waits for it in vain, and the laws hold.
    struct Finish(Arc<Queue>);
    impl Drop for Finish {
        fn drop(&mut self) {
            self.0.finish();
        }
    }
    let _finish = Finish(Arc::clone(&queue));
    // The default slack of 50 µs is a quarter of the shortest linger. Without it all works, a little later.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    Driver::new(queue, core, config).run();
}

pub(crate) struct Driver {
    pub(crate) queue: Arc<Queue>,
    pub(crate) core: Core,
    config: Config,
    links: Vec<Link>,
    /// Of each server.
    addresses: Vec<Addresses>,
    buffer: Vec<u8>,
    taken: VecDeque<Bundle>,
    emptied: Vec<Bundle>,
    /// When records last came.
    traffic_us: u64,
    tick_us: u64,
    close_us: Option<u64>,
    /// Somebody waits for a flush.
    flushing: bool,
    /// It was logged that records are given up for want of any server so far.
    told_given_up: bool,
}

impl Driver {
    pub(crate) fn new(queue: Arc<Queue>, core: Core, config: Config) -> Self {
        Self {
            queue,
            core,
            addresses: config.servers.iter().cloned().map(Addresses::new).collect(),
            config,
            links: Vec::new(),
            buffer: vec![0; READ_BYTES],
            taken: VecDeque::new(),
            emptied: Vec::new(),
            traffic_us: 0,
            tick_us: TICK_US_MAX,
            close_us: None,
            flushing: false,
            told_given_up: false,
        }
    }

    fn run(mut self) {
        let mut timeout_us = 0;
        loop {
            let asleep_us = self.queue.clock_us();
            let ready = self.sleep(timeout_us);
            let now = self.now();
            for (number, flags) in ready {
                self.serve(number, flags, now);
            }
            self.take_records(now.clock_us - asleep_us, now);
            self.core.advance(now);
            self.open_and_close(now);
            self.write(now);
            timeout_us = self.publish(now);
            if self.core.hook_panicked() {
                return;
            }
            if self.close_us.is_some_and(|until_us| self.is_finished() || now.clock_us >= until_us) {
                // From here on no batch is encoded; what was, is in flight and is published so.
                self.core.say_goodbye(now);
                self.write(now);
                self.publish(now);
                return;
            }
        }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = clock_gettime(ClockId::Boottime);
        let boot_us = boot.tv_sec.cast_unsigned() * 1_000_000 + boot.tv_nsec.cast_unsigned() / 1000;
        Now { clock_us: self.queue.clock_us(), boot_us, unix_us: unix.as_micros() as u64 }
    }

    /// Polls; returns the sockets that have something.
    fn sleep(&self, timeout_us: u64) -> Vec<(u64, PollFlags)> {
        let mut fds = Vec::with_capacity(self.links.len() + 1);
        fds.push(PollFd::from_borrowed_fd(self.queue.wake_fd(), PollFlags::IN));
        for link in &self.links {
            let out = link.connecting || !self.core.unwritten(link.number).is_empty();
            let flags = if out { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(&link.stream, flags));
        }
        let timeout = Timespec { tv_sec: (timeout_us / 1_000_000) as i64, tv_nsec: (timeout_us % 1_000_000 * 1000) as i64 };
        // An interrupted or failed poll is like one that timed out: everything is looked at again.
        if poll(&mut fds, Some(&timeout)).unwrap_or(0) == 0 {
            return Vec::new();
        }
        if !fds[0].revents().is_empty() {
            self.queue.drain_wake();
        }
        let links = self.links.iter().zip(&fds[1..]);
        links.map(|(link, fd)| (link.number, fd.revents())).filter(|(_, flags)| !flags.is_empty()).collect()
    }

    fn serve(&mut self, number: u64, flags: PollFlags, now: Now) {
        let Some(link) = self.links.iter_mut().find(|link| link.number == number) else { return };
        if link.connecting {
            match link.finish_connect() {
                Ok(()) => self.core.connected(number, now),
                // The address counts as failed when the link is closed, connecting still.
                Err(error) => self.core.broken(number, Break::Connect(error.to_string()), now),
            }
        } else if flags != PollFlags::OUT {
            read(link, &mut self.core, &mut self.buffer, now);
        }
    }

    pub(crate) fn take_records(&mut self, slept_us: u64, now: Now) {
        let routes = self.core.routes();
        let orders = self.queue.exchange(routes, &mut self.taken, &mut self.emptied);
        self.emptied.clear();
        if !routes && let Some(cutoff_us) = now.clock_us.checked_sub(self.config.record_time_limit_us) {
            let records = self.queue.expire(cutoff_us);
            if records > 0 && !std::mem::replace(&mut self.told_given_up, true) {
                tracing::error!("{}", given_up(records, self.config.record_time_limit_us));
            }
        }
        if self.taken.is_empty() {
            // Nothing came in all that time: look less often. If a socket woke us early, that says nothing.
            if slept_us >= self.tick_us {
                self.tick_us = (self.tick_us * 2).min(TICK_US_MAX);
            }
        } else {
            self.traffic_us = now.clock_us;
            self.tick_us = self.core.linger_us().min(TICK_US_MAX);
        }
        for bundle in self.taken.drain(..) {
            self.core.take(&bundle, now);
            recycle(bundle, &mut self.emptied);
        }
        self.flushing = orders.flush_us.is_some();
        self.core.flush(orders.flush_us);
        self.core.ask_stats(orders.stats_token);
        if let Some(until_us) = orders.close_us {
            self.close_us = Some(until_us);
            self.core.close();
            self.core.flush(Some(u64::MAX));
        }
    }

    /// Closes the sockets that the core no longer wants, and opens those that it newly wants.
    fn open_and_close(&mut self, now: Now) {
        let wanted: Vec<u64> = self.core.wanted_links().collect();
        for link in self.links.extract_if(.., |link| !wanted.contains(&link.number)) {
            if link.connecting {
                self.addresses[server_of(link.number)].failed(link.address);
            }
        }
        for number in wanted {
            if self.links.iter().any(|link| link.number == number) {
                continue;
            }
            match self.addresses[server_of(number)].connect(number, &self.config) {
                Ok(link) => {
                    self.links.push(link);
                    self.core.connecting(number, self.now());
                }
                Err(error) => self.core.broken(number, Break::Connect(error.to_string()), now),
            }
        }
    }

    fn write(&mut self, now: Now) {
        for _ in 0..WRITES_PER_TURN {
            for link in self.links.iter_mut().filter(|link| !link.connecting) {
                let number = link.number;
                while !self.core.unwritten(number).is_empty() {
                    match link.write(self.core.unwritten(number)) {
                        Ok(None | Some(0)) => break,
                        Ok(Some(bytes)) => self.core.wrote(number, bytes),
                        Err(error) => {
                            // An Error that says why may be there to be read.
                            read(link, &mut self.core, &mut self.buffer, now);
                            self.core.broken(number, Break::Broken(error.to_string()), now);
                        }
                    }
                }
            }
            if !self.core.fill(now) {
                return;
            }
        }
    }

    /// Publishes the counters and returns how long to sleep.
    pub(crate) fn publish(&mut self, now: Now) -> u64 {
        let (stats, status) = (self.core.take_stats(), self.core.take_status());
        let notice = Notice {
            ledger: self.core.ledger(),
            verdicts_skipped: self.core.verdicts_skipped(),
            oldest_us: self.flushing.then(|| self.core.oldest_us().unwrap_or(u64::MAX)),
            stats,
            status,
        };
        let (routes, sends) = (self.core.routes(), self.core.sends());
        let quiet = now.clock_us.saturating_sub(self.traffic_us) >= QUIET_US;
        // Before the first Welcome a record need not wake us: there is nothing to do with it.
        let wake_on = WakeOn { any: routes && quiet, urgent: sends, bytes: sends };
        let sleep = self.queue.publish(notice, routes, wake_on);
        let now_us = self.queue.clock_us();
        let mut until_us = self.core.deadline_us().min(self.close_us.unwrap_or(u64::MAX));
        if routes && (!quiet || sleep == Sleep::RecordsWait) {
            until_us = until_us.min(now_us + self.tick_us);
        }
        // Records that cannot be routed must expire in time, too.
        until_us = until_us.min(now_us + 1_000_000 * if sleep == Sleep::RecordsWait { 1 } else { 3600 });
        if sleep == Sleep::No { 0 } else { until_us.saturating_sub(now_us) }
    }

    fn is_finished(&self) -> bool {
        self.core.is_settled() && (self.core.routes() || self.queue.counters().queued == 0)
    }
}

/// Reads what is there, up to a limit, and tells the core.
fn read(link: &mut Link, core: &mut Core, buffer: &mut [u8], now: Now) {
    for _ in 0..READS_PER_TURN {
        match link.read(buffer) {
            Ok(None) => return,
            Ok(Some(0)) => return core.broken(link.number, Break::Closed, now),
            Ok(Some(bytes)) => {
                core.received(link.number, &buffer[..bytes], now);
                if bytes < buffer.len() {
                    return;
                }
            }
            Err(error) => return core.broken(link.number, Break::Broken(error.to_string()), now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denylist::Denylist;
    use std::net::TcpListener;
    use std::time::Duration;

    #[test]
    fn the_second_address_of_a_host_is_tried() {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = |listener: &TcpListener| listener.local_addr().expect("bound");
        let live = listen();
        let dead = address(&listen());
        live.set_nonblocking(true).expect("set");
        let queue = Arc::new(Queue::new(100_000).expect("an eventfd"));
        let config = crate::simulation::config();
        let core = Core::new(config.clone(), 1, None, Arc::new(Denylist::new(queue.started())));
        let mut driver = Driver::new(Arc::clone(&queue), core, config);
        driver.addresses = vec![Addresses::of(vec![dead, address(&live)])];
        let thread = std::thread::spawn(move || driver.run());
        let accepted = (0..3000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            live.accept().is_ok()
        });
        queue.close(Duration::ZERO);
        thread.join().expect("no panic");
        assert!(accepted);
    }
}
