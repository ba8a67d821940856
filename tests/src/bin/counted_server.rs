//! The whole server with an allocator that counts, per thread. Asked by a line on standard input, it answers with one line on
//! standard output: the allocations so far of the threads whose name begins with `pa-shard`.
//!
//! A thread finds its counter through a thread-local slot, so that counting neither locks nor allocates.

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait; it only counts and passes on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

/// Most threads that are told apart. The server has far fewer; one more would end the process.
const THREADS_MAX: usize = 1024;

static THREADS: AtomicUsize = AtomicUsize::new(0);
static THREAD_IDS: [AtomicI32; THREADS_MAX] = [const { AtomicI32::new(0) }; THREADS_MAX];
static ALLOCATIONS: [AtomicU64; THREADS_MAX] = [const { AtomicU64::new(0) }; THREADS_MAX];

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every method passes its arguments on to the system's allocator unchanged and returns what that returns.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of this method, which is that of the method called.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count() {
    let mut slot = SLOT.get();
    if slot == usize::MAX {
        slot = THREADS.fetch_add(1, Ordering::Relaxed);
        if slot >= THREADS_MAX {
            // A panic would allocate.
            std::process::abort();
        }
        SLOT.set(slot);
        THREAD_IDS[slot].store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }
    ALLOCATIONS[slot].fetch_add(1, Ordering::Relaxed);
}

/// Allocations of the shards' threads.
fn of_shards() -> u64 {
    let threads = THREADS.load(Ordering::Relaxed).min(THREADS_MAX);
    let is_shard = |id: i32| {
        let name = std::fs::read_to_string(format!("/proc/self/task/{id}/comm")).unwrap_or_default();
        name.starts_with("pa-shard")
    };
    let counted = THREAD_IDS.iter().zip(&ALLOCATIONS).take(threads);
    counted.filter(|(id, _)| is_shard(id.load(Ordering::Relaxed))).map(|(_, count)| count.load(Ordering::Relaxed)).sum()
}

fn answer() {
    for line in std::io::stdin().lock().lines() {
        if line.is_err() || writeln!(std::io::stdout(), "{}", of_shards()).is_err() {
            return;
        }
    }
}

fn main() -> std::process::ExitCode {
    std::thread::spawn(answer);
    postanalytics_server::run(std::env::args_os())
}
