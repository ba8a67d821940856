//! One ring: set up for a single pinned thread, fed with the operations of [`Links`].

#![expect(unsafe_code, reason = "submissions give the kernel addresses; see ARCHITECTURE.md, rooms with unsafe code")]

use super::buffers::{Buffers, GROUP};
use super::links::{Completion, Links, Operation, WAKE_USER_DATA};
use super::{Kernel, tolerate};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::net::Shutdown;
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SUBMISSIONS: u32 = 1024;
/// Most entries that the kernel allows a completion queue.
const COMPLETIONS_MAX: u32 = 65_536;

/// Size of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// Receive buffers, a power of two.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: u32,
    /// Most links at a time.
    pub links_max: u32,
}

impl UringConfig {
    /// Completions that can be outstanding: every buffer filled, for every link the ends of its receive and its send, and
    /// room to spare. More than the kernel allows if there are too many links.
    pub fn completions(&self) -> u64 {
        (u64::from(self.buffers) + 3 * u64::from(self.links_max) + 64).next_power_of_two()
    }

    /// Most links that a ring with these buffers can serve without its completion queue ever overflowing.
    pub fn links_max(buffers: u16) -> u32 {
        (COMPLETIONS_MAX - 64 - u32::from(buffers)) / 3
    }
}

/// See the module.
pub struct Uring {
    ring: IoUring,
    buffers: Buffers,
    retries: u64,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("buffers", &self.buffers).finish_non_exhaustive()
    }
}

impl Uring {
    /// Sets the ring up on this thread, which alone may use it. Errors: what the kernel says; [`super::probe()`] explains.
    pub fn new(config: UringConfig) -> io::Result<Self> {
        let completions = config.completions();
        if completions > u64::from(COMPLETIONS_MAX) {
            let most = UringConfig::links_max(config.buffers);
            let text = format!("{} connections a shard are too many, at most {most} can be served", config.links_max);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let completions = completions as u32;
        let ring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_submit_all()
            .setup_cqsize(completions.max(2 * SUBMISSIONS))
            .build(SUBMISSIONS)?;
        let buffers = Buffers::new(config.buffers, config.buffer_bytes)?;
        // SAFETY: the address holds `count` entries and stays mapped for good.
        unsafe { ring.submitter().register_buf_ring_with_flags(buffers.ring_address(), buffers.count(), GROUP, 0) }?;
        assert!(ring.params().cq_entries() >= completions, "the completion queue has the size asked for");
        Ok(Self { ring, buffers, retries: 0 })
    }

    /// Features that the kernel reports, of those that the data plane leans on: no completion is lost, receives wait by
    /// polling instead of in threads, a wait has a timeout, submissions are copied at once.
    pub fn features(&self) -> Vec<&'static str> {
        let of = self.ring.params();
        let all = [
            ("NODROP", of.is_feature_nodrop()),
            ("FAST_POLL", of.is_feature_fast_poll()),
            ("EXT_ARG", of.is_feature_ext_arg()),
            ("SUBMIT_STABLE", of.is_feature_submit_stable()),
        ];
        all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }

    /// Whether the wake-up must be watched again after this completion.
    pub const fn watch_ended(completion: &Completion) -> bool {
        completion.user_data == WAKE_USER_DATA && completion.flags & 2 == 0
    }

    fn submit_one(&mut self, links: &Links, operation: Operation) -> io::Result<()> {
        let (Operation::Receive(link) | Operation::Send(link) | Operation::Shutdown(link) | Operation::ShutdownWrite(link)) =
            operation;
        let Some(socket) = links.socket(link) else { return Ok(()) };
        let fd = Fd(socket.as_raw_fd());
        match operation {
            Operation::Receive(_) => {
                self.push(opcode::RecvMulti::new(fd, GROUP).build().user_data(links.receive_user_data(link)))
            }
            Operation::Send(_) => {
                let bytes = links.sending(link);
                // WAITALL makes the kernel go on after a partial send by itself.
                let flags = rustix::net::SendFlags::NOSIGNAL.bits() as i32 | rustix::net::RecvFlags::WAITALL.bits() as i32;
                let send = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32).flags(flags).build();
                self.push(send.user_data(links.send_user_data(link)))
            }
            // Not blocking: shutdown only marks the socket. An error means that the peer was faster.
            Operation::Shutdown(_) => {
                let _ = rustix::net::shutdown(socket, Shutdown::Both);
                Ok(())
            }
            Operation::ShutdownWrite(_) => {
                let _ = rustix::net::shutdown(socket, Shutdown::Write);
                Ok(())
            }
        }
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        for _ in 0..100 {
            // SAFETY: the only addresses in entries are those of `Links::sending`, which is neither changed nor freed
            // before the completion of the send, not even when `Links` is dropped.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            let submitted = self.ring.submit();
            tolerate(submitted, &mut self.retries)?;
        }
        Err(io::Error::other("the kernel does not take submissions"))
    }
}

impl Kernel for Uring {
    fn watch(&mut self, wake: &UnixStream) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(wake.as_raw_fd()), rustix::event::PollFlags::IN.bits().into()).multi(true).build();
        self.push(poll.user_data(WAKE_USER_DATA))
    }

    fn submit(&mut self, links: &mut Links) -> io::Result<()> {
        if links.operations().is_empty() {
            return Ok(());
        }
        for at in 0..links.operations().len() {
            let operation = links.operations()[at];
            self.submit_one(links, operation)?;
        }
        links.drain_operations();
        Ok(())
    }

    fn enter(&mut self, completions: usize, timeout: Duration) -> io::Result<()> {
        let timespec = Timespec::from(timeout);
        let args = SubmitArgs::new().timespec(&timespec);
        let entered = self.ring.submitter().submit_with_args(completions, &args);
        tolerate(entered, &mut self.retries)
    }

    fn completions(&mut self, into: &mut Vec<Completion>) -> io::Result<()> {
        for entry in self.ring.completion() {
            if let Some(buffer) = io_uring::cqueue::buffer_select(entry.flags())
                && !self.buffers.named(buffer)
            {
                return Err(io::Error::other(format!("the kernel filled buffer {buffer}, which it did not have")));
            }
            into.push(Completion { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() });
        }
        Ok(())
    }

    fn filled(&self, buffer: u16, length: u32) -> io::Result<&[u8]> {
        let impossible = || io::Error::other(format!("the kernel put {length} bytes into buffer {buffer}"));
        self.buffers.bytes(buffer, length).ok_or_else(impossible)
    }

    fn give_back(&mut self, buffer: u16) {
        self.buffers.give_back(buffer);
    }

    fn publish_buffers(&mut self) {
        self.buffers.publish();
    }

    fn buffers_free(&self) -> usize {
        self.buffers.free() as usize
    }

    fn retries(&self) -> u64 {
        self.retries
    }

    fn clock_us(&self, clock: ClockId) -> u64 {
        let time = clock_gettime(clock);
        time.tv_sec.cast_unsigned() * 1_000_000 + time.tv_nsec.cast_unsigned() / 1_000
    }
}
