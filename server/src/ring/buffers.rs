//! The receive buffers of a ring: one provided-buffer group, from which the kernel picks a buffer when bytes are there.
//!
//! A buffer is the kernel's until a completion names it, ours until it is given back. All are given back in the turn that
//! got them, by one store of the ring's tail.

#![expect(unsafe_code, reason = "memory shared with the kernel; see ARCHITECTURE.md, rooms with unsafe code")]

use io_uring::types::BufRingEntry;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Group id of the buffers; a ring has one group.
pub const GROUP: u16 = 0;

/// See the module. The memory is never unmapped: a ring lives as long as its process but for the self-test's, and what the
/// kernel may still write to is best left alone.
#[derive(Debug)]
pub struct Buffers {
    /// `count` ring entries, then, from `data_offset`, `count` buffers of `bytes_each`.
    memory: NonNull<u8>,
    data_offset: usize,
    count: u16,
    bytes_each: u32,
    tail: u16,
    /// Which buffers completions have named that were not given back yet, and how many.
    ours: Box<[bool]>,
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
        let ours = vec![true; usize::from(count)].into_boxed_slice();
        let mut buffers = Self { memory, data_offset, count, bytes_each, tail: 0, ours, filled: count };
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

    /// Notes that a completion named a buffer: it is ours now. Only for what the kernel really said. `false`: it named what
    /// it cannot.
    pub(super) fn named(&mut self, buffer: u16) -> bool {
        match self.ours.get_mut(usize::from(buffer)) {
            Some(ours) if !*ours => {
                *ours = true;
                self.filled += 1;
                true
            }
            _ => false,
        }
    }

    /// The first `length` bytes of a buffer that is ours.
    pub fn bytes(&self, buffer: u16, length: u32) -> Option<&[u8]> {
        if !*self.ours.get(usize::from(buffer))? || length > self.bytes_each {
            return None;
        }
        // SAFETY: within the mapping (just checked) and initialised (zeroed by mmap). The buffer is ours: the kernel has
        // named it and writes to it again only after `give_back`, whose `&mut self` ends this borrow first.
        Some(unsafe { std::slice::from_raw_parts(self.data(buffer), length as usize) })
    }

    /// Gives a buffer back; the kernel sees it after the next [`Self::publish`].
    pub fn give_back(&mut self, buffer: u16) {
        assert!(self.ours.get(usize::from(buffer)) == Some(&true), "a buffer is given back once");
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
        self.ours[usize::from(buffer)] = false;
        self.filled -= 1;
    }

    fn data(&self, buffer: u16) -> *mut u8 {
        // SAFETY: callers pass a buffer below `count`, whose bytes lie within the mapping.
        unsafe { self.memory.as_ptr().add(self.data_offset + usize::from(buffer) * self.bytes_each as usize) }
    }
}
