//! A shard's slab memory: one anonymous private mapping, aligned to 2 MiB. Beside it [`on_huge_pages`] and
//! [`prefetch`], for tables.
//!
//! Made and prefaulted on the shard's own pinned thread, so that it lies on the local NUMA node. Explicit huge pages are
//! tried first, then transparent ones; core dumps leave it out (it holds other people's requests).

#![expect(unsafe_code, reason = "maps memory and hands it out as slices; see ARCHITECTURE.md, rooms with unsafe code")]

use super::SLAB_BYTES;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// What kind of pages was asked for with success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    /// Reserved 2 MiB pages (`vm.nr_hugepages`).
    Huge,
    /// Transparent huge pages were asked for.
    TransparentHuge,
    /// Ordinary pages: no huge page support.
    Ordinary,
}

/// Memory for a whole number of slabs. Dereferences to its bytes.
#[derive(Debug)]
pub struct Mapping {
    mapped: NonNull<u8>,
    mapped_bytes: usize,
    start: NonNull<u8>,
    bytes: usize,
    pages: Pages,
}

impl Mapping {
    /// Maps `slabs` slabs. Errors: the kernel has no such range of addresses to give.
    pub fn new(slabs: u64) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = usize::try_from(slabs.checked_mul(SLAB_BYTES).ok_or_else(too_large)?).map_err(|_| too_large())?;
        if let Ok(mapped) = map(bytes, MapFlags::HUGETLB | MapFlags::HUGE_2MB) {
            let mapping = Self { mapped, mapped_bytes: bytes, start: mapped, bytes, pages: Pages::Huge };
            mapping.keep_out_of_core_dumps();
            return Ok(mapping);
        }
        // One slab more, so that an aligned start can be chosen within: only aligned ranges become huge pages.
        let mapped_bytes = bytes.checked_add(SLAB_BYTES as usize).ok_or_else(too_large)?;
        let mapped = map(mapped_bytes, MapFlags::empty())?;
        let skip = mapped.as_ptr().align_offset(SLAB_BYTES as usize);
        // SAFETY: `skip` is less than a slab, and the mapping is a slab longer than `bytes`.
        let start = unsafe { mapped.add(skip) };
        let mut mapping = Self { mapped, mapped_bytes, start, bytes, pages: Pages::Ordinary };
        mapping.keep_out_of_core_dumps();
        // SAFETY: the range is ours; the advice changes no content.
        if unsafe { madvise(start.as_ptr().cast(), bytes, Advice::LinuxHugepage) }.is_ok() {
            mapping.pages = Pages::TransparentHuge;
        }
        Ok(mapping)
    }

    /// Touches every page now, so that no request pays for it later. Errors: not enough memory.
    pub fn prefault(&mut self) -> io::Result<()> {
        // SAFETY: the range is ours; populating writes nothing.
        match unsafe { madvise(self.start.as_ptr().cast(), self.bytes, Advice::LinuxPopulateWrite) } {
            Ok(()) => Ok(()),
            // Before Linux 5.14, or forbidden by a sandbox: write to every page.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {
                for page in self.chunks_mut(4096) {
                    page[0] = 0;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Bytes that really lie on huge pages, as the kernel tells (0 if it does not). Call after [`Self::prefault`].
    pub fn huge_page_bytes(&self) -> u64 {
        if self.pages == Pages::Huge {
            return self.bytes as u64;
        }
        std::fs::read_to_string("/proc/self/smaps").map_or(0, |text| huge_bytes_of(&text, self.start.as_ptr() as u64))
    }

    /// Stores a number that other eyes may read (a recovering process, later): everything that was written before through the caches is
    /// visible before it, and for who reads when this process is no more also what went past them. `at` must be a multiple of 4 within the
    /// mapping.
    pub fn store_release(&mut self, at: usize, value: u32) {
        assert!(at.is_multiple_of(4) && at + 4 <= self.bytes, "an aligned number within the mapping");
        // SAFETY: aligned and within the mapping (asserted); `&mut self` excludes every other access from this process.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }.store(value, Ordering::Release);
    }

    /// Writes bytes that will not be read soon: whole lines of 64 bytes go to memory past the caches, which then neither fetch what is
    /// overwritten nor give up what is still needed.
    ///
    /// No fence follows, which a frame would have to wait for. For other processors such stores have no order; but for its own accesses to one place a
    /// processor is consistent with itself: what this thread reads there later it has stored last, and what it stores later, into room
    /// given back, stays (Intel's manual, volume 3, memory ordering: reads are reordered "not with older writes to the same location"). Nobody else
    /// sees this memory: it is private and, neither `Send` nor `Sync`, stays with its thread, and no slice of it leaves that.
    pub fn write_past_caches(&mut self, at: usize, bytes: &[u8]) {
        let (head, bytes) = bytes.split_at((at.next_multiple_of(64) - at).min(bytes.len()));
        let (lines, tail) = bytes.as_chunks();
        let target = &mut self[at..at + head.len() + bytes.len()];
        let (target_head, target) = target.split_at_mut(head.len());
        let (target_lines, target_tail) = target.as_chunks_mut();
        target_head.copy_from_slice(head);
        for (target, line) in target_lines.iter_mut().zip(lines) {
            // SAFETY: the mapping's start is aligned to 2 MiB, and the lines begin at a multiple of 64 from it.
            unsafe { store_past_caches(target, line) };
        }
        target_tail.copy_from_slice(tail);
    }

    fn keep_out_of_core_dumps(&self) {
        // SAFETY: the range is ours; the advice changes no content. Failure only makes core dumps larger.
        let _ = unsafe { madvise(self.mapped.as_ptr().cast(), self.mapped_bytes, Advice::LinuxDontDump) };
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + bytes` is mapped, readable, zeroed by the kernel, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, writable, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and no slice of it outlives `self`.
        let _ = unsafe { munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// `count` copies of a value in memory for which transparent huge pages were asked for before it was touched: what is looked up
/// at random in a large table would else miss the translation cache with every look-up. All of it is touched now.
pub fn on_huge_pages<T: Clone>(count: usize, value: T) -> Vec<T> {
    let mut memory = Vec::<T>::with_capacity(count);
    let room = memory.spare_capacity_mut();
    let (start, bytes) = (room.as_mut_ptr().cast::<u8>(), size_of_val(room));
    let skip = start.align_offset(SLAB_BYTES as usize);
    let bytes = bytes.saturating_sub(skip) / SLAB_BYTES as usize * SLAB_BYTES as usize;
    if bytes > 0 {
        // SAFETY: `skip + bytes` lies within the allocation, which is ours; the advice changes no content. Failure only makes
        // look-ups slower.
        let _ = unsafe { madvise(start.add(skip).cast(), bytes, Advice::LinuxHugepage) };
    }
    memory.resize(count, value);
    memory
}

/// Asks for the line of the cache in which a value begins, and goes on: so that waits for many of them overlap.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the address is that of a live value; a prefetch reads nothing that anybody sees, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Which of sixteen numbers that lie side by side are the wanted one: bit n for number n. How tags are searched for.
#[inline]
pub fn equal_numbers(row: &[u16; 16], wanted: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_cmpeq_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16};
        let (halves, _) = row.as_chunks::<8>();
        // SAFETY: every processor of this architecture has SSE2; each load reads the sixteen bytes of eight numbers.
        unsafe {
            let wanted = _mm_set1_epi16(wanted.cast_signed());
            let [low, high] = [&halves[0], &halves[1]].map(|half| _mm_cmpeq_epi16(_mm_loadu_si128(half.as_ptr().cast()), wanted));
            _mm_movemask_epi8(_mm_packs_epi16(low, high)).cast_unsigned()
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    row.iter().rev().fold(0, |bits, number| bits << 1 | u32::from(*number == wanted))
}

/// Stores a line past the caches. Safety: `target` lies at a multiple of 16 (best of 64).
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
unsafe fn store_past_caches(target: &mut [u8; 64], line: &[u8; 64]) {
    // SAFETY: every processor of this architecture has SSE2; all bytes read and written belong to the two arrays, and the stores are aligned, as the
    // caller promises. Not by the intrinsic, after which the compiler may expect a fence before any other access;
    // to this block, a full clobber of memory, the stores are ordinary ones. See [`Mapping::write_past_caches`] for why they look so from this thread.
    unsafe {
        std::arch::asm!(
            "movdqu {a}, [{line}]",
            "movdqu {b}, [{line} + 16]",
            "movdqu {c}, [{line} + 32]",
            "movdqu {d}, [{line} + 48]",
            "movntdq [{target}], {a}",
            "movntdq [{target} + 16], {b}",
            "movntdq [{target} + 32], {c}",
            "movntdq [{target} + 48], {d}",
            line = in(reg) line.as_ptr(),
            target = in(reg) target.as_mut_ptr(),
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack, preserves_flags),
        );
    }
}

/// As above where no such stores are known: by ordinary ones.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const unsafe fn store_past_caches(target: &mut [u8; 64], line: &[u8; 64]) {
    *target = *line;
}

fn map(bytes: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // Not NORESERVE: huge pages that turn out not to be there would end the process at the first touch.
    let flags = flags | MapFlags::PRIVATE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory in use.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }?;
    NonNull::new(start.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

/// `AnonHugePages` of the mappings in `smaps` text that begin at or hold `address`.
fn huge_bytes_of(smaps: &str, address: u64) -> u64 {
    let mut inside = false;
    for line in smaps.lines() {
        if let Some((range, _)) = line.split_once(' ')
            && let Some((low, high)) = range.split_once('-')
            && let (Ok(low), Ok(high)) = (u64::from_str_radix(low, 16), u64::from_str_radix(high, 16))
        {
            inside = (low..high).contains(&address);
        } else if inside && let Some(rest) = line.strip_prefix("AnonHugePages:") {
            return rest.trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |kilobytes| kilobytes * 1024);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_that_is_the_wanted_one_has_its_bit() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let row: [u16; 16] = std::array::from_fn(|_| [0, 1, 0x0100, 0x8000, 0xffff][random.usize(..5)]);
            for wanted in [0, 1, 0x0100, 0x8000, 0xffff, 2] {
                let bits: u32 = row.iter().enumerate().map(|(place, number)| u32::from(*number == wanted) << place).sum();
                assert_eq!(equal_numbers(&row, wanted), bits, "{wanted} in {row:?}");
            }
        }
    }

    #[test]
    fn memory_is_zero_aligned_and_writable() {
        let mut mapping = Mapping::new(2).expect("4 MiB");
        mapping.prefault().expect("4 MiB of memory");
        assert_eq!(mapping.len(), 4 << 20);
        assert_eq!(mapping.as_ptr() as usize % (2 << 20), 0);
        assert!(mapping.iter().all(|byte| *byte == 0));
        mapping[4 << 19] = 7;
        mapping.store_release(8, 0x0403_0201);
        assert_eq!(mapping[8..12], [1, 2, 3, 4]);
        assert_eq!(mapping[4 << 19], 7);
    }

    /// Wherever a piece begins and ends, within a line or across many, just its bytes are changed.
    #[test]
    fn what_is_written_past_the_caches_is_there() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut mapping = Mapping::new(1).expect("2 MiB");
        let mut expected = vec![0; mapping.len()];
        for _ in 0..2_000 {
            let longest = [40, 300, 4096][random.usize(..3)];
            let length = random.usize(..longest);
            let at = if random.u8(..8) == 0 { mapping.len() - length } else { random.usize(..4096) };
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            mapping.write_past_caches(at, &bytes);
            expected[at..at + length].copy_from_slice(&bytes);
            if random.bool() {
                let near = at.saturating_sub(100)..(at + length + 100).min(mapping.len());
                assert!(mapping[near.clone()] == expected[near], "{length} bytes at {at}");
            }
        }
        assert!(*mapping == *expected);
    }

    #[test]
    #[should_panic = "out of range"]
    fn nothing_is_written_behind_the_end() {
        let mut mapping = Mapping::new(1).expect("2 MiB");
        let end = mapping.len();
        mapping.write_past_caches(end - 64, &[0; 65]);
    }

    #[test]
    fn huge_page_bytes_are_read_from_smaps() {
        let text = "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \nSize: 4096 kB\nAnonHugePages:      2048 kB\n\
                    7f1000000000-7f1000400000 rw-p 00000000 00:00 0 \nAnonHugePages:      4096 kB\n";
        assert_eq!(huge_bytes_of(text, 0x7f00_0020_0000), 2 << 20);
        assert_eq!(huge_bytes_of(text, 0x7f10_0000_0000), 4 << 20);
        assert_eq!(huge_bytes_of(text, 0x1000), 0);
    }
}
