//! Our receive path beside glommio's: the same frames over real loopback TCP, into the same shard, on the same pinned CPU.
//!
//! What criterion shows as time is **CPU time of the receiving thread**, so its elements a second are records per
//! server-CPU-second. A sender on another CPU writes pre-built frames as fast as they are taken and reads the Acks; a batch of
//! frames is over when the shard has stored the last of them. Both receivers run the same `Shard` (check, store, analyse, ack):
//! - *ours*: the server's ring, links and buffers (multishot receive into 16 buffers of 256 KiB as by default, and into 128 of 64 KiB),
//!   turned as its thread does, without waiting for several messages;
//! - *glommio*: `TcpStream::read` into one buffer, of 64 KiB and of 1 MiB, then the shard, then `write_all` of what it answers.
//!
//! Beside each the frames stored a turn are told, for waking up often and finding little is what a turn costs most by.
//!
//! On loopback the kernel's receive work runs on the sender's core, for both alike. Needs two CPUs and says SKIPPED without.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "the bench that compares with glommio")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on says so by a panic")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::{LocalExecutorBuilder, Placement};
use postanalytics_benches::{RECORDS, frame, shard, stamp};
use postanalytics_protocol::HEADER_BYTES;
use postanalytics_server::ring::{Event, Kernel, Links, Uring, UringConfig};
use postanalytics_server::shard::{Now, Shard, Usage};
use rustix::time::{ClockId, clock_gettime};
use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Different frames in a lap, together larger than the caches of a core.
const POOL: usize = 256;
/// Frames of one write.
const FRAMES_PER_WRITE: u64 = 16;

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

fn now() -> Now {
    Now { monotonic_us: nanoseconds(ClockId::Boottime) / 1000, wall_us: nanoseconds(ClockId::Realtime) / 1000 }
}

fn pin(cpu: usize) {
    assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu }), "CPU {cpu} is allowed");
}

/// The far side: accepts one connection, then writes as many frames as it is told.
struct Sending {
    address: SocketAddr,
    orders: Sender<u64>,
}

fn start_sender(cpu: usize) -> Sending {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (orders, inbox) = channel::<u64>();
    std::thread::spawn(move || {
        pin(cpu);
        let (mut stream, _) = listener.accept().unwrap();
        let socket = socket2::SockRef::from(&stream);
        // The pacing of bbr throttles loopback.
        let _ = socket.set_tcp_congestion(b"cubic");
        stream.set_nodelay(true).unwrap();
        let mut acks = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while acks.read(&mut bytes).is_ok_and(|count| count > 0) {}
        });
        let mut frames: Vec<Vec<u8>> = (0..POOL as u64).map(|number| frame(1, number + 1, RECORDS)).collect();
        let mut sequence = 0;
        for count in inbox {
            let last = sequence + count;
            while sequence < last {
                let first = sequence as usize % POOL;
                let these = (last - sequence).min(FRAMES_PER_WRITE).min((POOL - first) as u64);
                for frame in &mut frames[first..first + these as usize] {
                    sequence += 1;
                    stamp(&mut frame[..HEADER_BYTES], sequence);
                }
                write_all(&mut stream, &frames[first..first + these as usize]);
            }
        }
    });
    Sending { address, orders }
}

fn write_all(stream: &mut TcpStream, frames: &[Vec<u8>]) {
    let mut slices: Vec<IoSlice<'_>> = frames.iter().map(|frame| IoSlice::new(frame)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        let written = stream.write_vectored(left).unwrap();
        assert!(written > 0, "the receiver is there");
        IoSlice::advance_slices(&mut left, written);
    }
}

/// What a receiver says when it has stored what it was told to.
struct Took {
    cpu: Duration,
    turns: u64,
}

/// A receiver at work: it is told how many frames are to be stored in all.
struct Receiving {
    targets: Sender<u64>,
    took: Receiver<Took>,
    frames: u64,
    turns: u64,
    sending: Sending,
}

impl Receiving {
    fn start(cpus: [usize; 2], body: impl FnOnce(SocketAddr, Receiver<u64>, Sender<Took>) + Send + 'static) -> Self {
        let sending = start_sender(cpus[0]);
        let (targets, inbox) = channel();
        let (answers, took) = channel();
        let address = sending.address;
        std::thread::spawn(move || {
            pin(cpus[1]);
            body(address, inbox, answers);
        });
        Self { targets, took, frames: 0, turns: 0, sending }
    }

    fn transfer(&mut self, frames: u64) -> Duration {
        self.frames += frames;
        self.targets.send(self.frames).unwrap();
        self.sending.orders.send(frames).unwrap();
        let took = self.took.recv().expect("the receiver has stored everything");
        self.turns += took.turns;
        took.cpu
    }
}

fn took(start_ns: u64, turns: u64) -> Took {
    Took { cpu: Duration::from_nanos(nanoseconds(ClockId::ThreadCPUTime) - start_ns), turns }
}

/// The server's own ring, turned as the thread of a shard does.
fn ours(buffers: u16, buffer_bytes: u32, address: SocketAddr, targets: Receiver<u64>, answers: Sender<Took>) {
    let mut shard = shard(now()).expect("memory for a shard");
    let mut ring = Uring::new(UringConfig { buffers, buffer_bytes, links_max: 64 }).unwrap();
    let mut links = Links::default();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let link = links.open(stream.into());
    assert_eq!(link, 0, "the shard adopted link 0");
    let mut completions = Vec::new();
    for target in targets {
        let (start_ns, mut turns) = (nanoseconds(ClockId::ThreadCPUTime), 0);
        while shard.stats().frames_stored < target {
            turns += 1;
            ring.submit(&mut links).unwrap();
            ring.enter(1, Duration::from_millis(100)).unwrap();
            let now = now();
            ring.completions(&mut completions).unwrap();
            for completion in completions.drain(..) {
                match links.complete(completion) {
                    Event::Received { link, buffer, length } => {
                        shard.received(link, ring.filled(buffer, length).unwrap(), now);
                        ring.give_back(buffer);
                    }
                    Event::Discard { buffer } => ring.give_back(buffer),
                    Event::Sent { link } => shard.sent(link),
                    Event::Ended { .. } => panic!("the connection broke"),
                    Event::Wake | Event::Nothing => {}
                }
            }
            end_turn(&mut shard, now);
            while let Some(link) = shard.take_dirty() {
                if links.can_send(link)
                    && let Some(bytes) = shard.outbox(link)
                {
                    links.send(link, bytes);
                }
            }
            ring.publish_buffers();
            if links.has_starved() {
                links.rearm_starved(ring.buffers_free());
            }
        }
        let _ = answers.send(took(start_ns, turns));
    }
}

fn end_turn(shard: &mut Shard, began: Now) {
    let acks = shard.end_turn(Usage::default(), began);
    if acks > 0 {
        shard.acked(acks, began.monotonic_us, now().monotonic_us);
    }
}

/// The same with a stream of glommio's.
fn glommio(read_bytes: usize) -> impl FnOnce(SocketAddr, Receiver<u64>, Sender<Took>) + Send + 'static {
    move |address, targets, answers| {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).name("bench").make().expect("glommio starts");
        executor.run(async move {
            let mut shard = shard(now()).expect("memory for a shard");
            let mut stream = glommio::net::TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut bytes = vec![0; read_bytes];
            // Nothing else runs on this executor, so waiting for the next order may block it.
            for target in targets {
                let (start_ns, mut turns) = (nanoseconds(ClockId::ThreadCPUTime), 0);
                while shard.stats().frames_stored < target {
                    turns += 1;
                    let count = stream.read(&mut bytes).await.unwrap();
                    assert!(count > 0, "the connection broke");
                    let now = now();
                    shard.received(0, &bytes[..count], now);
                    end_turn(&mut shard, now);
                    while let Some(link) = shard.take_dirty() {
                        if let Some(outbox) = shard.outbox(link) {
                            stream.write_all(outbox).await.unwrap();
                            outbox.clear();
                            shard.sent(link);
                        }
                    }
                }
                let _ = answers.send(took(start_ns, turns));
            }
        });
    }
}

fn receive(criterion: &mut Criterion) {
    let cpus: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    let [first, .., last] = cpus.as_slice() else {
        eprintln!("SKIPPED receive: a sender and a receiver need a CPU each, and {} is allowed", cpus.len());
        return;
    };
    if let Err(error) = postanalytics_server::ring::probe() {
        eprintln!("SKIPPED receive: {error}");
        return;
    }
    let cpus = [*first, *last];
    let mut group = criterion.benchmark_group("receive, check, store, ack (server CPU time)");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    let mut bench = |name: &str, mut receiving: Receiving| {
        group.bench_function(name, |bencher| bencher.iter_custom(|frames| receiving.transfer(frames)));
        let (frames, turns) = (receiving.frames as f64, receiving.turns.max(1) as f64);
        eprintln!("{name}: {:.1} frames a turn\n", frames / turns);
    };
    let ours_with = |buffers, bytes| move |address, targets, answers| ours(buffers, bytes, address, targets, answers);
    for round in ["first", "second"] {
        bench(&format!("{round}: ours, 16 buffers of 256 KiB"), Receiving::start(cpus, ours_with(16, 256 << 10)));
        bench(&format!("{round}: ours, 128 buffers of 64 KiB"), Receiving::start(cpus, ours_with(128, 64 << 10)));
        bench(&format!("{round}: glommio, reads of 64 KiB"), Receiving::start(cpus, glommio(64 << 10)));
        bench(&format!("{round}: glommio, reads of 1 MiB"), Receiving::start(cpus, glommio(1 << 20)));
    }
    group.finish();
}

criterion_group!(benches, receive);
criterion_main!(benches);
