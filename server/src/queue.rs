//! The bounded single-producer single-consumer queues between threads: `rtrb` with a wake-up that is an eventfd.
//!
//! Never blocks. A full queue gives the message back; who sends decides what that means.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The sending end.
#[derive(Debug)]
pub struct Sender<T> {
    queue: rtrb::Producer<T>,
    wake: Arc<OwnedFd>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: rtrb::Consumer<T>,
    wake: Arc<OwnedFd>,
}

/// A queue for `capacity` messages. Errors: no eventfd could be made (too many open files).
pub fn queue<T>(capacity: usize) -> std::io::Result<(Sender<T>, Receiver<T>)> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let wake = Arc::new(rustix::event::eventfd(0, flags)?);
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    Ok((Sender { queue: producer, wake: Arc::clone(&wake) }, Receiver { queue: consumer, wake }))
}

impl<T> Sender<T> {
    /// Puts a message in and wakes the receiver; gives it back when the queue is full.
    pub fn send(&mut self, message: T) -> Result<(), T> {
        self.queue.push(message).map_err(|rtrb::PushError::Full(message)| message)?;
        // The counter of an eventfd cannot overflow by one a message; EAGAIN would mean that it is awake anyway.
        let _ = rustix::io::write(self.wake.as_fd(), &1u64.to_ne_bytes());
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The next message, if there is one.
    pub fn receive(&mut self) -> Option<T> {
        self.queue.pop().ok()
    }

    /// Becomes readable when a message came. Read its 8 bytes before draining the queue, never after.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_the_message_back_and_the_wake_up_counts() {
        let (mut sender, mut receiver) = queue(2).expect("eventfd");
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Ok(()));
        assert_eq!(sender.send(3), Err(3));
        let mut count = [0; 8];
        rustix::io::read(receiver.wake(), &mut count).expect("readable");
        assert_eq!(u64::from_ne_bytes(count), 2);
        assert_eq!((receiver.receive(), receiver.receive(), receiver.receive()), (Some(1), Some(2), None));
    }
}
