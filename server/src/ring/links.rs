//! The operations of every connection's socket, as pure state: completions go in, events and new operations come out.
//!
//! [`super::uring::Uring`] carries the operations to the kernel; a test can play the kernel as well.

use crate::seeded::{self, Bug};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// An operation for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Multishot receive into provided buffers.
    Receive(u32),
    /// Send what [`Links::sending`] gives.
    Send(u32),
    /// Shut down the sending half.
    ShutdownWrite(u32),
    /// Shut down both halves, which ends whatever is in flight.
    Shutdown(u32),
}

/// A completion, as the kernel gives it.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// What the operation was marked with.
    pub user_data: u64,
    /// Bytes, or a negated errno.
    pub result: i32,
    /// `IORING_CQE_F_…`.
    pub flags: u32,
}

/// What a completion means to the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes came; they lie in this buffer until it is given back.
    Received {
        /// Link.
        link: u32,
        /// Buffer.
        buffer: u16,
        /// Bytes in it.
        length: u32,
    },
    /// Bytes came on a link that is on its way out; give the buffer back.
    Discard {
        /// Buffer.
        buffer: u16,
    },
    /// Everything handed over for sending was sent.
    Sent {
        /// Link.
        link: u32,
    },
    /// The connection is over; close the link.
    Ended {
        /// Link.
        link: u32,
        /// Why.
        end: LinkEnd,
        /// A buffer that the kernel picked and did not use; give it back.
        buffer: Option<u16>,
    },
    /// The other threads have said something.
    Wake,
    /// Nothing for the shard.
    Nothing,
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEnd {
    /// The peer closed its sending half.
    PeerClosed,
    /// The kernel reported this errno.
    Failed(i32),
}

const KIND_RECEIVE: u64 = 1;
const KIND_SEND: u64 = 2;
/// Mark of the wake-up poll.
pub const WAKE_USER_DATA: u64 = 3 << 56;
const GENERATION_MASK: u32 = 0x00ff_ffff;

/// Memory for sending that a free slot keeps.
const SENDING_BYTES_KEPT: usize = 64 << 10;

const F_BUFFER: u32 = 1;
const F_MORE: u32 = 2;
const ENOBUFS: i32 = 105;
const EINTR: i32 = 4;
const EAGAIN: i32 = 11;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not in use.
    Free,
    /// Both ways open.
    Open,
    /// The last bytes are going out; what comes in is thrown away until the peer closes or the deadline passes. Closing
    /// at once would make the kernel reset the connection, and the peer would never read why.
    Finishing { deadline_us: u64, write_shut: bool },
    /// Waiting for final completions.
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receive {
    Idle,
    Armed,
    Starved,
}

#[derive(Debug)]
struct Link {
    socket: Option<OwnedFd>,
    generation: u32,
    phase: Phase,
    receive: Receive,
    /// Something came since the receive was armed.
    fed: bool,
    send_in_flight: bool,
    sending: Vec<u8>,
    sent: usize,
    /// Sent after `sending` when the link is finishing.
    last: Vec<u8>,
}

/// The links of one ring. A link's number is stable until [`Links::take_gone`] returned it.
#[derive(Debug, Default)]
pub struct Links {
    links: Vec<Link>,
    free: Vec<u32>,
    /// Links that wait for buffers, whoever had some the longest ago first. One that is armed takes every buffer that there is if its peer
    /// is busy, and waits again at once: it comes behind all others.
    starved: VecDeque<u32>,
    /// Those that had none since they were armed: they come first.
    starved_unfed: VecDeque<u32>,
    /// Those that had some since they were armed: they come last.
    starved_fed: VecDeque<u32>,
    operations: Vec<Operation>,
    gone: Vec<u32>,
    /// Links in [`Phase::Finishing`].
    finishing: usize,
    /// Completions for operations long over.
    pub completions_stale: u64,
    /// Times that a link had to wait for buffers.
    pub receive_starved: u64,
}

impl Links {
    /// Takes a socket and arms its receive.
    pub fn open(&mut self, socket: OwnedFd) -> u32 {
        let link = self.free.pop().unwrap_or_else(|| {
            self.links.push(Link {
                socket: None,
                generation: 0,
                phase: Phase::Free,
                receive: Receive::Idle,
                fed: false,
                send_in_flight: false,
                sending: Vec::new(),
                sent: 0,
                last: Vec::new(),
            });
            self.links.len() as u32 - 1
        });
        let slot = &mut self.links[link as usize];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.socket = Some(socket);
        slot.phase = Phase::Open;
        self.arm_receive(link);
        link
    }

    /// Links that are not free.
    pub fn in_use(&self) -> usize {
        self.links.len() - self.free.len()
    }

    /// Whether nothing is being sent, so that [`Self::send`] would take bytes.
    pub fn can_send(&self, link: u32) -> bool {
        let slot = &self.links[link as usize];
        slot.phase == Phase::Open && !slot.send_in_flight
    }

    /// Hands bytes over: swaps them against the (empty) buffer of the last send, so that no memory is allocated. Does
    /// nothing unless [`Self::can_send`].
    pub fn send(&mut self, link: u32, bytes: &mut Vec<u8>) {
        if !self.can_send(link) || bytes.is_empty() {
            return;
        }
        let slot = &mut self.links[link as usize];
        slot.sending.clear();
        std::mem::swap(&mut slot.sending, bytes);
        slot.sent = 0;
        slot.send_in_flight = true;
        self.operations.push(Operation::Send(link));
    }

    /// Sends `last` after what is under way, then closes politely, at the latest at `deadline_us` (monotonic).
    pub fn finish(&mut self, link: u32, mut last: Vec<u8>, deadline_us: u64) {
        if self.links[link as usize].phase != Phase::Open {
            return;
        }
        self.finishing += 1;
        self.send(link, &mut last);
        let slot = &mut self.links[link as usize];
        // Empty unless a send was in flight already: the kernel reads that one, it cannot be added to.
        slot.last = last;
        let write_shut = !slot.send_in_flight;
        slot.phase = Phase::Finishing { deadline_us, write_shut };
        if write_shut {
            self.operations.push(Operation::ShutdownWrite(link));
        }
        self.close_if_finished(link);
    }

    /// Closes a finishing link once both sides have said all they had to.
    fn close_if_finished(&mut self, link: u32) {
        let slot = &self.links[link as usize];
        let finishing = matches!(slot.phase, Phase::Finishing { .. });
        if finishing && !slot.send_in_flight && slot.last.is_empty() && slot.receive == Receive::Idle {
            self.close(link);
        }
    }

    /// Ends the link now; its number is free once [`Self::take_gone`] returns it.
    pub fn close(&mut self, link: u32) {
        let slot = &mut self.links[link as usize];
        match slot.phase {
            Phase::Closing | Phase::Free => return,
            Phase::Finishing { .. } => self.finishing -= 1,
            Phase::Open => {}
        }
        slot.phase = Phase::Closing;
        if slot.receive == Receive::Armed || slot.send_in_flight {
            self.operations.push(Operation::Shutdown(link));
        }
        if seeded::is(Bug::SlotFreedEarly) {
            (slot.receive, slot.send_in_flight) = (Receive::Idle, false);
        }
        self.reap(link);
    }

    /// Ends all links now.
    pub fn close_all(&mut self) {
        for link in 0..self.links.len() as u32 {
            self.close(link);
        }
    }

    /// Closes links whose deadline has passed.
    pub fn tick(&mut self, now_us: u64) {
        for link in 0..self.links.len() as u32 {
            if let Phase::Finishing { deadline_us, .. } = self.links[link as usize].phase
                && deadline_us <= now_us
            {
                self.close(link);
            }
        }
    }

    /// Whether some link waits for a deadline.
    pub fn has_deadlines(&self) -> bool {
        self.finishing > 0
    }

    /// Arms receives that wait for buffers, whoever had some the longest ago first. Call when buffers were given back; `buffers` is how
    /// many are free.
    pub fn rearm_starved(&mut self, buffers: usize) {
        while let Some(link) = self.starved_unfed.pop_back() {
            self.starved.push_front(link);
        }
        self.starved.append(&mut self.starved_fed);
        for _ in 0..buffers.min(self.starved.len()) {
            let Some(link) = self.starved.pop_front() else { return };
            let slot = &self.links[link as usize];
            // The slot may have been closed, and even be in use again, since it was put here.
            if slot.receive == Receive::Starved && slot.phase != Phase::Closing {
                self.arm_receive(link);
            }
        }
    }

    /// Whether links wait for buffers.
    pub fn has_starved(&self) -> bool {
        [&self.starved, &self.starved_unfed, &self.starved_fed].iter().any(|links| !links.is_empty())
    }

    /// What a completion means. Every completion goes through here, and nothing else ends an operation.
    pub fn complete(&mut self, completion: Completion) -> Event {
        if completion.user_data == WAKE_USER_DATA {
            return Event::Wake;
        }
        let link = completion.user_data as u32;
        let generation = (completion.user_data >> 32) as u32 & GENERATION_MASK;
        let known = self.links.get(link as usize).is_some_and(|slot| slot.generation == generation && slot.phase != Phase::Free);
        if !known {
            self.completions_stale += 1;
            return match buffer_of(completion) {
                Some((buffer, _)) => Event::Discard { buffer },
                None => Event::Nothing,
            };
        }
        match completion.user_data >> 56 {
            KIND_RECEIVE => self.complete_receive(link, completion),
            KIND_SEND => self.complete_send(link, completion.result),
            _ => {
                self.completions_stale += 1;
                Event::Nothing
            }
        }
    }

    /// The operations to submit, in order. Leaves the list empty.
    pub fn drain_operations(&mut self) -> std::vec::Drain<'_, Operation> {
        self.operations.drain(..)
    }

    /// Operations that wait to be submitted.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// A link that is gone for good since the last call, if there is one.
    pub fn take_gone(&mut self) -> Option<u32> {
        let link = self.gone.pop()?;
        self.free.push(link);
        Some(link)
    }

    /// The socket of a link.
    pub fn socket(&self, link: u32) -> Option<&OwnedFd> {
        self.links[link as usize].socket.as_ref()
    }

    /// The bytes to send, stable until the send's completion.
    pub fn sending(&self, link: u32) -> &[u8] {
        let slot = &self.links[link as usize];
        &slot.sending[slot.sent..]
    }

    /// What marks the receive of a link.
    pub fn receive_user_data(&self, link: u32) -> u64 {
        self.user_data(KIND_RECEIVE, link)
    }

    /// What marks the send of a link.
    pub fn send_user_data(&self, link: u32) -> u64 {
        self.user_data(KIND_SEND, link)
    }

    /// Panics if an invariant of the room is broken. For tests and simulation.
    pub fn invariants(&self) {
        for (index, slot) in self.links.iter().enumerate() {
            match slot.phase {
                Phase::Free => assert!(slot.socket.is_none() && !slot.send_in_flight && slot.receive != Receive::Armed),
                Phase::Closing => assert!(slot.send_in_flight || slot.receive == Receive::Armed, "link {index} should be gone"),
                Phase::Open | Phase::Finishing { .. } => assert!(slot.socket.is_some()),
            }
            let starved =
                self.starved.iter().chain(&self.starved_unfed).chain(&self.starved_fed).any(|link| *link as usize == index);
            let waits = slot.receive == Receive::Starved && !matches!(slot.phase, Phase::Free | Phase::Closing);
            assert!(!waits || starved, "link {index} is starved for ever");
        }
    }

    fn user_data(&self, kind: u64, link: u32) -> u64 {
        kind << 56 | u64::from(self.links[link as usize].generation) << 32 | u64::from(link)
    }

    fn arm_receive(&mut self, link: u32) {
        let slot = &mut self.links[link as usize];
        (slot.receive, slot.fed) = (Receive::Armed, false);
        self.operations.push(Operation::Receive(link));
    }

    fn complete_receive(&mut self, link: u32, completion: Completion) -> Event {
        let slot = &mut self.links[link as usize];
        let more = completion.flags & F_MORE != 0 || seeded::is(Bug::LostMoreIgnored) && completion.result > 0;
        if !more {
            slot.receive = Receive::Idle;
        }
        let phase = slot.phase;
        match (buffer_of(completion), completion.result) {
            (Some((buffer, length)), 1..) => {
                slot.fed = true;
                if !more && phase != Phase::Closing {
                    self.arm_receive(link);
                }
                self.reap(link);
                if phase == Phase::Open { Event::Received { link, buffer, length } } else { Event::Discard { buffer } }
            }
            // A buffer may be picked and then not used.
            (Some((buffer, _)), result) => match self.ended(link, more, result) {
                Event::Ended { link, end, .. } => Event::Ended { link, end, buffer: Some(buffer) },
                _ => Event::Discard { buffer },
            },
            (None, result) => self.ended(link, more, result),
        }
    }

    /// A receive completion without bytes.
    fn ended(&mut self, link: u32, more: bool, result: i32) -> Event {
        let phase = self.links[link as usize].phase;
        if more {
            return Event::Nothing;
        }
        match (phase, -result) {
            (Phase::Closing, _) => {
                self.reap(link);
                Event::Nothing
            }
            (_, ENOBUFS) => {
                let slot = &mut self.links[link as usize];
                slot.receive = Receive::Starved;
                let waiting = if slot.fed { &mut self.starved_fed } else { &mut self.starved_unfed };
                waiting.push_back(link);
                self.receive_starved += 1;
                Event::Nothing
            }
            (_, EINTR | EAGAIN) => {
                self.arm_receive(link);
                Event::Nothing
            }
            (Phase::Finishing { .. }, 0) => {
                // The peer has said all it had to; the last words may still be on their way to it.
                self.close_if_finished(link);
                Event::Nothing
            }
            (Phase::Finishing { .. }, _) => {
                self.close(link);
                Event::Nothing
            }
            (_, 0) => Event::Ended { link, end: LinkEnd::PeerClosed, buffer: None },
            (_, errno) => Event::Ended { link, end: LinkEnd::Failed(errno), buffer: None },
        }
    }

    fn complete_send(&mut self, link: u32, result: i32) -> Event {
        let slot = &mut self.links[link as usize];
        slot.send_in_flight = false;
        let again = matches!(-result, EINTR | EAGAIN);
        if result > 0 {
            slot.sent = slot.sending.len().min(slot.sent + result as usize + usize::from(seeded::is(Bug::PartialSendSkips)));
        }
        let left = slot.sent < slot.sending.len();
        match slot.phase {
            Phase::Closing | Phase::Free => {
                self.reap(link);
                Event::Nothing
            }
            Phase::Open | Phase::Finishing { write_shut: false, .. } if left && (result > 0 || again) => {
                slot.send_in_flight = true;
                self.operations.push(Operation::Send(link));
                Event::Nothing
            }
            // Closed at once: whatever else was sent would not follow on what the peer has.
            Phase::Open if left => {
                self.close(link);
                Event::Ended { link, end: LinkEnd::Failed(-result), buffer: None }
            }
            Phase::Open => {
                slot.sending.clear();
                slot.sent = 0;
                Event::Sent { link }
            }
            Phase::Finishing { deadline_us, write_shut } => {
                if left {
                    self.close(link);
                } else if !slot.last.is_empty() {
                    slot.sending.clear();
                    std::mem::swap(&mut slot.sending, &mut slot.last);
                    slot.sent = 0;
                    slot.send_in_flight = true;
                    self.operations.push(Operation::Send(link));
                } else if !write_shut {
                    slot.phase = Phase::Finishing { deadline_us, write_shut: true };
                    self.operations.push(Operation::ShutdownWrite(link));
                    self.close_if_finished(link);
                }
                Event::Nothing
            }
        }
    }

    /// Frees a closing link once nothing of it is in flight. The one place where a link ends.
    fn reap(&mut self, link: u32) {
        let slot = &mut self.links[link as usize];
        if slot.phase == Phase::Closing && !slot.send_in_flight && slot.receive != Receive::Armed {
            slot.phase = Phase::Free;
            slot.receive = Receive::Idle;
            slot.socket = None;
            slot.sending.clear();
            slot.sending.shrink_to(SENDING_BYTES_KEPT);
            slot.last = Vec::new();
            slot.sent = 0;
            // Operations of this link that the kernel has not seen must not reach another link's socket.
            self.operations.retain(|operation| {
                !matches!(operation, Operation::Receive(of) | Operation::Send(of)
                | Operation::Shutdown(of) | Operation::ShutdownWrite(of) if *of == link)
            });
            self.gone.push(link);
        }
    }
}

impl Drop for Links {
    /// The kernel may still read what is being sent: that memory is left to it, so that dropping links is always sound.
    fn drop(&mut self) {
        for slot in &mut self.links {
            if slot.send_in_flight {
                std::mem::forget(std::mem::take(&mut slot.sending));
            }
        }
    }
}

/// Buffer and length of a receive completion, if it carries a buffer.
fn buffer_of(completion: Completion) -> Option<(u16, u32)> {
    (completion.flags & F_BUFFER != 0).then_some(((completion.flags >> 16) as u16, completion.result.max(0) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::os::unix::net::UnixStream::pair().expect("a socket pair").0.into()
    }

    fn completion(user_data: u64, result: i32, flags: u32) -> Completion {
        Completion { user_data, result, flags }
    }

    fn operations(links: &mut Links) -> Vec<Operation> {
        links.drain_operations().collect()
    }

    #[test]
    fn a_receive_without_more_is_over_whatever_its_result() {
        let mut links = Links::default();
        let link = links.open(socket());
        assert_eq!(operations(&mut links), [Operation::Receive(link)]);
        let receive = links.receive_user_data(link);
        let bytes = |flags| completion(receive, 10, flags | F_BUFFER | 5 << 16);

        let received = Event::Received { link, buffer: 5, length: 10 };
        assert_eq!(links.complete(bytes(F_MORE)), received);
        assert_eq!(operations(&mut links), []);
        assert_eq!(links.complete(bytes(0)), received);
        assert_eq!(operations(&mut links), [Operation::Receive(link)], "bytes without F_MORE: arm again");
        assert_eq!(links.complete(completion(receive, -EINTR, 0)), Event::Nothing);
        assert_eq!(operations(&mut links), [Operation::Receive(link)]);
        assert_eq!(links.complete(completion(receive, -ENOBUFS, 0)), Event::Nothing);
        assert_eq!(operations(&mut links), [], "starved: waits for buffers");
        links.invariants();
        links.rearm_starved(1);
        assert_eq!(operations(&mut links), [Operation::Receive(link)]);
        let ended = Event::Ended { link, end: LinkEnd::PeerClosed, buffer: None };
        assert_eq!(links.complete(completion(receive, 0, 0)), ended);
        assert_eq!(links.receive_starved, 1);
    }

    /// The kernel as it is seen with fewer buffers than one busy peer fills: whoever is armed first takes them all and starves at
    /// once, those behind it get none.
    #[test]
    fn busy_links_take_turns_at_too_few_buffers() {
        let mut links = Links::default();
        let all: Vec<u32> = (0..4).map(|_| links.open(socket())).collect();
        let mut had = Vec::new();
        for turn in 0..9 {
            let mut armed = operations(&mut links).into_iter();
            let Some(Operation::Receive(first)) = armed.next() else { panic!("nobody is armed in turn {turn}") };
            had.push(first);
            let received = links.complete(completion(links.receive_user_data(first), 10, F_BUFFER | F_MORE | 1 << 16));
            assert_eq!(received, Event::Received { link: first, buffer: 1, length: 10 });
            links.complete(completion(links.receive_user_data(first), -ENOBUFS, 0));
            for operation in armed {
                let Operation::Receive(link) = operation else { panic!("{operation:?}") };
                links.complete(completion(links.receive_user_data(link), -ENOBUFS, 0));
            }
            links.invariants();
            // Fewer buffers than links wait in every other turn.
            links.rearm_starved(if turn % 2 == 0 { 2 } else { 4 });
        }
        for link in all {
            assert!(had.iter().filter(|had| **had == link).count() >= 2, "link {link}: {had:?}");
        }
    }

    #[test]
    fn an_end_that_comes_with_a_buffer_is_an_end() {
        let mut links = Links::default();
        let link = links.open(socket());
        operations(&mut links);
        let receive = links.receive_user_data(link);
        let closed = Event::Ended { link, end: LinkEnd::PeerClosed, buffer: Some(3) };
        assert_eq!(links.complete(completion(receive, 0, F_BUFFER | 3 << 16)), closed);

        let mut links = Links::default();
        let link = links.open(socket());
        let failed = Event::Ended { link, end: LinkEnd::Failed(104), buffer: Some(4) };
        let receive = links.receive_user_data(link);
        assert_eq!(links.complete(completion(receive, -104, F_BUFFER | 4 << 16)), failed);
    }

    #[test]
    fn a_link_is_gone_only_after_its_final_completions() {
        let mut links = Links::default();
        let link = links.open(socket());
        links.send(link, &mut vec![1, 2, 3]);
        operations(&mut links);
        let (receive, send) = (links.receive_user_data(link), links.send_user_data(link));
        links.close(link);
        assert_eq!(operations(&mut links), [Operation::Shutdown(link)]);
        assert_eq!(links.take_gone(), None);
        assert_eq!(links.complete(completion(receive, 4, F_BUFFER | F_MORE)), Event::Discard { buffer: 0 });
        links.complete(completion(receive, 0, 0));
        assert_eq!(links.take_gone(), None, "the kernel still reads the bytes to send");
        links.complete(completion(send, -32, 0));
        assert_eq!(links.take_gone(), Some(link));
        assert_eq!(links.open(socket()), link);
        assert_eq!(links.complete(completion(receive, 4, F_BUFFER | 7 << 16)), Event::Discard { buffer: 7 });
        assert_eq!(links.completions_stale, 1, "an old generation is counted and its buffer returned");
        links.invariants();
    }

    #[test]
    fn sends_go_on_where_the_kernel_stopped() {
        let mut links = Links::default();
        let link = links.open(socket());
        let mut bytes = vec![1, 2, 3, 4];
        links.send(link, &mut bytes);
        assert!(bytes.is_empty() && !links.can_send(link));
        operations(&mut links);
        let send = links.send_user_data(link);
        assert_eq!(links.complete(completion(send, 3, 0)), Event::Nothing);
        assert_eq!((operations(&mut links), links.sending(link)), (vec![Operation::Send(link)], &[4][..]));
        assert_eq!(links.complete(completion(send, 1, 0)), Event::Sent { link });
        assert!(links.can_send(link));
    }

    #[test]
    fn nothing_is_sent_after_a_send_that_failed_in_the_middle() {
        let mut links = Links::default();
        let link = links.open(socket());
        links.send(link, &mut vec![1, 2, 3, 4]);
        operations(&mut links);
        let send = links.send_user_data(link);
        links.complete(completion(send, 3, 0));
        operations(&mut links);
        let failed = Event::Ended { link, end: LinkEnd::Failed(12), buffer: None };
        assert_eq!(links.complete(completion(send, -12, 0)), failed);
        // The shard had something to say before it heard of the failure.
        links.finish(link, vec![9], 1_000);
        assert_eq!(operations(&mut links), [Operation::Shutdown(link)]);
        let receive = links.receive_user_data(link);
        assert_eq!(links.complete(completion(receive, 0, 0)), Event::Nothing);
        assert_eq!(links.take_gone(), Some(link));
        links.invariants();
    }

    #[test]
    fn finishing_sends_shuts_discards_and_closes() {
        let mut links = Links::default();
        let link = links.open(socket());
        operations(&mut links);
        let (receive, send) = (links.receive_user_data(link), links.send_user_data(link));
        links.send(link, &mut vec![8, 8]);
        links.finish(link, vec![9], 1_000);
        assert_eq!(operations(&mut links), [Operation::Send(link)]);
        links.complete(completion(send, 2, 0));
        assert_eq!(
            (operations(&mut links), links.sending(link)),
            (vec![Operation::Send(link)], &[9][..]),
            "the last words follow"
        );
        links.complete(completion(send, 1, 0));
        assert_eq!(operations(&mut links), [Operation::ShutdownWrite(link)]);
        assert_eq!(links.complete(completion(receive, 4, F_BUFFER | F_MORE)), Event::Discard { buffer: 0 });
        links.tick(999);
        assert!(links.has_deadlines());
        links.tick(1_000);
        assert_eq!(operations(&mut links), [Operation::Shutdown(link)]);
        links.complete(completion(receive, 0, 0));
        assert_eq!(links.take_gone(), Some(link));
        links.invariants();
    }

    #[test]
    fn a_starved_link_may_be_closed_and_its_slot_used_again() {
        let mut links = Links::default();
        let link = links.open(socket());
        let receive = links.receive_user_data(link);
        links.complete(completion(receive, -ENOBUFS, 0));
        links.close(link);
        assert_eq!(links.take_gone(), Some(link));
        assert_eq!(links.open(socket()), link);
        operations(&mut links);
        links.rearm_starved(10);
        assert_eq!(operations(&mut links), [], "one receive a link, never two");
    }
}
