//! What `server/src/sync.rs` names, for the model checker.
//!
//! The ring has rtrb's guarantees and no more: a push is seen by a pop that sees its tail, by release and acquire. The socket
//! is the kernel's: bytes under a lock, a buffer that may be full (here after one byte, so that it often is), and somebody who
//! waits for it to be readable.

pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};

use loom::sync::{Arc, Condvar, Mutex};
use std::io::{self, ErrorKind, Read, Write};

/// A thread that spins lets others run.
pub(crate) fn spin_loop() {
    loom::thread::yield_now();
}

/// Bytes of a socket's buffer.
const SOCKET_BYTES: usize = 1;

pub(crate) mod rtrb {
    use super::{Arc, AtomicU64, Mutex, Ordering};

    #[derive(Debug)]
    struct Shared<T> {
        slots: Vec<Mutex<Option<T>>>,
        head: AtomicU64,
        tail: AtomicU64,
    }

    #[derive(Debug)]
    pub(crate) struct Producer<T>(Arc<Shared<T>>);
    #[derive(Debug)]
    pub(crate) struct Consumer<T>(Arc<Shared<T>>);
    pub(crate) struct RingBuffer;
    #[derive(Debug)]
    pub(crate) enum PushError<T> {
        Full(T),
    }

    impl RingBuffer {
        pub(crate) fn new<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
            let slots = (0..capacity).map(|_| Mutex::new(None)).collect();
            let shared = Arc::new(Shared { slots, head: AtomicU64::new(0), tail: AtomicU64::new(0) });
            (Producer(Arc::clone(&shared)), Consumer(shared))
        }
    }

    impl<T> Producer<T> {
        pub(crate) fn push(&mut self, value: T) -> Result<(), PushError<T>> {
            let tail = self.0.tail.load(Ordering::Relaxed);
            if tail - self.0.head.load(Ordering::Acquire) == self.0.slots.len() as u64 {
                return Err(PushError::Full(value));
            }
            *self.0.slots[tail as usize % self.0.slots.len()].try_lock().expect("the slot is ours") = Some(value);
            self.0.tail.store(tail + 1, Ordering::Release);
            Ok(())
        }
    }

    impl<T> Consumer<T> {
        pub(crate) fn pop(&mut self) -> Result<T, ()> {
            let head = self.0.head.load(Ordering::Relaxed);
            if head == self.0.tail.load(Ordering::Acquire) {
                return Err(());
            }
            let value = self.0.slots[head as usize % self.0.slots.len()].try_lock().expect("the slot is ours").take();
            self.0.head.store(head + 1, Ordering::Release);
            value.ok_or(())
        }
    }
}

#[derive(Debug)]
struct Pipe {
    bytes: Mutex<usize>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct UnixStream {
    read: Arc<Pipe>,
    write: Arc<Pipe>,
}

impl UnixStream {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let pipe = || Arc::new(Pipe { bytes: Mutex::new(0), changed: Condvar::new() });
        let (one, other) = (pipe(), pipe());
        let near = Self { read: Arc::clone(&one), write: Arc::clone(&other) };
        Ok((near, Self { read: other, write: one }))
    }

    pub(crate) fn set_nonblocking(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    /// What poll does.
    pub(crate) fn wait_readable(&self) {
        let mut bytes = self.read.bytes.lock().expect("nobody panics");
        while *bytes == 0 {
            bytes = self.read.changed.wait(bytes).expect("nobody panics");
        }
    }
}

impl Write for UnixStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let mut bytes = self.write.bytes.lock().expect("nobody panics");
        if *bytes >= SOCKET_BYTES {
            return Err(ErrorKind::WouldBlock.into());
        }
        *bytes += from.len();
        self.write.changed.notify_one();
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for &UnixStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.read.bytes.lock().expect("nobody panics");
        let count = (*bytes).min(into.len());
        *bytes -= count;
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }
}
