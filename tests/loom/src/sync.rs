//! What `server/src/sync.rs` and `client/src/sync.rs` name, for the model checker.
//!
//! The ring has the guarantees that rtrb's documentation gives and no more: a push is seen by a pop that sees its tail, by
//! release and acquire; whether the other end is gone is told without ordering anything. The socket
//! is the kernel's: bytes under a lock, a buffer that may be full (here after one byte, so that it often is), and somebody who
//! waits for it to be readable.

pub(crate) use loom::sync::Mutex;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
/// Orders nothing for loom, which lets one thread run at a time: less than the real one does.
pub(crate) use std::sync::OnceLock;

use loom::sync::{Arc, Condvar};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, ErrorKind, Read, Write};

/// loom's own takes no `const` block.
macro_rules! thread_local_of_loom {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = const $value:block;) => {
        loom::thread_local! { $(#[$attribute])* static $name: $type = $value; }
    };
}

pub(crate) use thread_local_of_loom as thread_local;

/// So small that a table is soon built anew.
pub(crate) const LINES_BITS_MIN: u32 = 1;

/// The same hash in each order that is tried, and one that a model can choose.
pub(crate) type RandomState = BuildHasherDefault<Identity>;

#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only numbers are hashed");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// One record of a model fits: the next one is refused until it has been taken out, and lies around the end.
pub(crate) const RING_BYTES: usize = 200;

/// A thread that spins lets others run.
pub(crate) fn spin_loop() {
    loom::thread::yield_now();
}

/// Bytes of a socket's buffer.
const SOCKET_BYTES: usize = 1;

pub(crate) mod rtrb {
    use super::{Arc, AtomicBool, AtomicU64, Ordering};
    use loom::cell::UnsafeCell;
    use std::cell::{Cell, RefCell};

    #[derive(Debug)]
    struct Slot<T> {
        value: RefCell<Option<T>>,
        /// Touched with the value: loom says if two threads do so with nothing that orders them.
        touched: UnsafeCell<()>,
    }

    #[derive(Debug)]
    struct Shared<T> {
        slots: Vec<Slot<T>>,
        head: AtomicU64,
        tail: AtomicU64,
        abandoned: AtomicBool,
    }

    impl<T> Shared<T> {
        fn put(&self, number: u64, value: T) {
            let slot = &self.slots[number as usize % self.slots.len()];
            slot.touched.with_mut(|_| *slot.value.borrow_mut() = Some(value));
        }

        fn take(&self, number: u64) -> T {
            let slot = &self.slots[number as usize % self.slots.len()];
            slot.touched.with_mut(|_| slot.value.borrow_mut().take()).expect("what is before the tail was put there")
        }

        fn read(&self, number: u64) -> T
        where
            T: Copy,
        {
            let slot = &self.slots[number as usize % self.slots.len()];
            slot.touched.with(|_| *slot.value.borrow()).expect("what is before the tail was put there")
        }

        /// How many of `count` slots from `number` on lie before the end of the memory.
        fn before_wrap(&self, number: u64, count: usize) -> usize {
            count.min(self.slots.len() - number as usize % self.slots.len())
        }
    }

    /// An end knows its own index, as with rtrb. To load it would also hide orders: loom remembers the last access to an
    /// atomic only, and looks for another order with that one.
    #[derive(Debug)]
    pub(crate) struct Producer<T> {
        shared: Arc<Shared<T>>,
        tail: u64,
        head_seen: Cell<u64>,
    }
    #[derive(Debug)]
    pub(crate) struct Consumer<T> {
        shared: Arc<Shared<T>>,
        head: u64,
    }
    pub(crate) struct RingBuffer;
    #[derive(Debug)]
    pub(crate) enum PushError<T> {
        Full(T),
    }

    impl RingBuffer {
        pub(crate) fn new<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
            let slot = |_| Slot { value: RefCell::new(None), touched: UnsafeCell::new(()) };
            let slots = (0..capacity).map(slot).collect();
            let (head, tail, abandoned) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
            let shared = Arc::new(Shared { slots, head, tail, abandoned });
            (Producer { shared: Arc::clone(&shared), tail: 0, head_seen: Cell::new(0) }, Consumer { shared, head: 0 })
        }
    }

    impl<T> Producer<T> {
        pub(crate) fn push(&mut self, value: T) -> Result<(), PushError<T>> {
            if self.slots() == 0 {
                return Err(PushError::Full(value));
            }
            self.shared.put(self.tail, value);
            self.tail += 1;
            self.shared.tail.store(self.tail, Ordering::Release);
            Ok(())
        }

        pub(crate) fn slots(&self) -> usize {
            self.head_seen.set(self.shared.head.load(Ordering::Acquire));
            self.cached_slots()
        }

        pub(crate) fn cached_slots(&self) -> usize {
            self.shared.slots.len() - (self.tail - self.head_seen.get()) as usize
        }

        /// Whether the other end is gone. Never here: a model's queue outlives its threads' work.
        pub(crate) fn is_abandoned(&self) -> bool {
            false
        }
    }

    impl<T: Copy + Default> Producer<T> {
        pub(crate) fn write_chunk(&mut self, count: usize) -> Result<WriteChunk<'_, T>, ()> {
            if self.slots() < count { Err(()) } else { Ok(WriteChunk { values: vec![T::default(); count], producer: self }) }
        }
    }

    impl<T> Drop for Producer<T> {
        fn drop(&mut self) {
            self.shared.abandoned.store(true, Ordering::Release);
        }
    }

    /// Slots that are written and not yet seen.
    pub(crate) struct WriteChunk<'a, T> {
        values: Vec<T>,
        producer: &'a mut Producer<T>,
    }

    impl<T: Copy> WriteChunk<'_, T> {
        pub(crate) fn as_mut_slices(&mut self) -> (&mut [T], &mut [T]) {
            let before = self.producer.shared.before_wrap(self.producer.tail, self.values.len());
            self.values.split_at_mut(before)
        }

        pub(crate) fn commit_all(self) {
            let Producer { shared, tail, .. } = self.producer;
            (*tail..).zip(&self.values).for_each(|(number, value)| shared.put(number, *value));
            *tail += self.values.len() as u64;
            shared.tail.store(*tail, Ordering::Release);
        }
    }

    impl<T> Consumer<T> {
        pub(crate) fn pop(&mut self) -> Result<T, ()> {
            if self.is_empty() {
                return Err(());
            }
            let value = self.shared.take(self.head);
            self.head += 1;
            self.shared.head.store(self.head, Ordering::Release);
            Ok(value)
        }

        pub(crate) fn slots(&self) -> usize {
            (self.shared.tail.load(Ordering::Acquire) - self.head) as usize
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.slots() == 0
        }

        /// Whether the other end is gone: what is said of it promises no more than that.
        pub(crate) fn is_abandoned(&self) -> bool {
            self.shared.abandoned.load(Ordering::Relaxed)
        }
    }

    impl<T: Copy> Consumer<T> {
        pub(crate) fn read_chunk(&mut self, count: usize) -> Result<ReadChunk<'_, T>, ()> {
            if self.slots() < count {
                return Err(());
            }
            let values = (self.head..).take(count).map(|number| self.shared.read(number)).collect();
            Ok(ReadChunk { values, consumer: self })
        }
    }

    /// Slots that are read and not yet given back.
    pub(crate) struct ReadChunk<'a, T> {
        values: Vec<T>,
        consumer: &'a mut Consumer<T>,
    }

    impl<T> ReadChunk<'_, T> {
        pub(crate) fn as_slices(&self) -> (&[T], &[T]) {
            self.values.split_at(self.consumer.shared.before_wrap(self.consumer.head, self.values.len()))
        }

        pub(crate) fn len(&self) -> usize {
            self.values.len()
        }

        pub(crate) fn commit(self, count: usize) {
            let Consumer { shared, head } = self.consumer;
            *head += count as u64;
            shared.head.store(*head, Ordering::Release);
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
