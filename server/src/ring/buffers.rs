//! The receive buffers of a ring: one provided-buffer group, from which the kernel picks a buffer when bytes are there.
//!
//! A buffer is the kernel's until a completion names it, ours until it is given back. All are given back in the turn that
//! got them, by one store of the ring's tail.

#![expect(unsafe_code, reason = "memory shared with the kernel; see ARCHITECTURE.md, rooms with unsafe code")]

use io_uring::types::BufRingEntry;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Group id of the buffers; a ring has one group.
pub const GROUP: u16 = 0;

/// See the module. Must be dropped after the ring that it is registered with.
#[derive(Debug)]
pub struct Buffers {
    /// `count` ring entries, then, from `data_offset`, `count` buffers of `bytes_each`.
    memory: NonNull<u8>,
    memory_bytes: usize,
    data_offset: usize,
    count: u16,
    bytes_each: u32,
    tail: u16,
    /// Buffers that completions named and that were not given back yet.
    filled: u16,
}

impl Buffers {
    /// `count` buffers (a power of two up to 32,768) of `bytes_each`, all of them the kernel's. Errors: no memory.
    pub fn new(count: u16, bytes_each: u32) -> io::Result<Self> {
        let valid = count.is_power_of_two() && count <= 32_768 && bytes_each >= 64;
        if !valid {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the number of receive buffers must be a power of two"));
        }
        let data_offset = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(4096);
        let memory_bytes = data_offset + usize::from(count) * bytes_each as usize;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::POPULATE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory in use.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), memory_bytes, protection, flags) }?;
        let memory = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the range is ours; the advice changes no content. It holds requests: keep it out of core dumps.
        let _ = unsafe { madvise(start, memory_bytes, Advice::LinuxDontDump) };
        let mut buffers = Self { memory, memory_bytes, data_offset, count, bytes_each, tail: 0, filled: count };
        for buffer in 0..count {
            buffers.put(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Address of the ring entries, for registration.
    pub fn ring_address(&self) -> u64 {
        self.memory.as_ptr() as u64
    }

    /// How many buffers there are.
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// Notes that a completion named a buffer, and returns the bytes in it. `None`: the kernel named what it cannot.
    pub fn filled(&mut self, buffer: u16, length: u32) -> Option<&[u8]> {
        self.filled += 1;
        self.bytes(buffer, length)
    }

    /// The first `length` bytes of a buffer that a completion named and that was not given back yet.
    fn bytes(&self, buffer: u16, length: u32) -> Option<&[u8]> {
        if buffer >= self.count || length > self.bytes_each {
            return None;
        }
        // SAFETY: within the mapping (just checked) and initialised (zeroed by mmap). The kernel writes to a buffer only
        // between `publish` and the completion that names it, and `&mut self` of `give_back` ends this borrow first.
        Some(unsafe { std::slice::from_raw_parts(self.data(buffer), length as usize) })
    }

    /// Gives a buffer back; the kernel sees it after the next [`Self::publish`].
    pub fn give_back(&mut self, buffer: u16) {
        assert!(buffer < self.count && self.filled > 0, "a buffer is given back once");
        self.put(buffer);
    }

    /// Shows the kernel what was given back: one store.
    pub fn publish(&self) {
        // SAFETY: the tail is an aligned u16 in the first ring entry, shared with the kernel, which reads it with acquire.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.memory.as_ptr().cast()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Buffers that are the kernel's, or will be at the next [`Self::publish`].
    pub const fn free(&self) -> u16 {
        self.count - self.filled
    }

    fn put(&mut self, buffer: u16) {
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the entry lies within the ring; the kernel reads entries only up to the published tail, and this one is
        // beyond it, for at most `count` buffers are in the ring.
        let entry = unsafe { &mut *self.memory.as_ptr().cast::<BufRingEntry>().add(index) };
        entry.set_addr(self.data(buffer) as u64);
        entry.set_len(self.bytes_each);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.filled -= 1;
    }

    fn data(&self, buffer: u16) -> *mut u8 {
        // SAFETY: callers pass a buffer below `count`, whose bytes lie within the mapping.
        unsafe { self.memory.as_ptr().add(self.data_offset + usize::from(buffer) * self.bytes_each as usize) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the ring is gone (see the type), so the kernel writes here no more.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.memory_bytes) };
    }
}
