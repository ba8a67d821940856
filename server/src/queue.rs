//! The bounded single-producer single-consumer queues between threads: `rtrb`, with a socket pair as the wake-up.
//!
//! A socket rather than an eventfd, because both an io_uring and a glommio executor can wait for one. Nothing here blocks:
//! a full queue gives the message back, and who sends decides what that means.

use crate::sync::{UnixStream, rtrb};
use std::io::Write;

/// The sending end.
#[derive(Debug)]
pub struct Sender<T> {
    queue: rtrb::Producer<T>,
    wake: UnixStream,
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: rtrb::Consumer<T>,
    wake: UnixStream,
}

/// A queue for `capacity` messages. Errors: no socket pair could be made (too many open files).
pub fn queue<T>(capacity: usize) -> std::io::Result<(Sender<T>, Receiver<T>)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    Ok((Sender { queue: producer, wake: near }, Receiver { queue: consumer, wake: far }))
}

impl<T> Sender<T> {
    /// Puts a message in and wakes the receiver; gives it back when the queue is full.
    pub fn send(&mut self, message: T) -> Result<(), T> {
        self.queue.push(message).map_err(|rtrb::PushError::Full(message)| message)?;
        // An error means that the receiver is gone, or so many wake-ups behind that it is awake anyway.
        let _ = self.wake.write(&[1]);
        Ok(())
    }

    /// Whether the next message will find room: only this end puts any in.
    pub fn has_room(&self) -> bool {
        self.queue.slots() > 0
    }

    /// Whether the receiver is gone.
    pub fn is_abandoned(&self) -> bool {
        self.queue.is_abandoned()
    }
}

impl<T> Receiver<T> {
    /// The next message, if there is one.
    pub fn receive(&mut self) -> Option<T> {
        self.queue.pop().ok()
    }

    /// Becomes readable when messages came. Read it empty before draining the queue, never after.
    pub fn wake(&self) -> &UnixStream {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_full_queue_gives_the_message_back_and_the_wake_up_is_readable() {
        let (mut sender, mut receiver) = queue(2).expect("a socket pair");
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Ok(()));
        assert!(!sender.has_room());
        assert_eq!(sender.send(3), Err(3));
        let mut bytes = [0; 8];
        assert_eq!(receiver.wake().read(&mut bytes).expect("readable"), 2);
        assert_eq!((receiver.receive(), receiver.receive(), receiver.receive()), (Some(1), Some(2), None));
        assert!(sender.has_room());
    }
}
