//! Chance, time and the trace of one simulated world. Everything random comes from here, so a seed tells all.
//!
//! Every seed has its own mixture of faults: each kind is left out, rare or frequent. A run in which everything fails all
//! the time reaches less than many runs that each fail in their own way.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

macro_rules! faults {
    ($($name:ident = $text:literal,)*) => {
        /// What can go wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the texts say what each is")]
        pub enum Fault { $($name,)* }

        impl Fault {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What it is, in words.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

faults! {
    ShortRead = "short read",
    LostMore = "completion with bytes and without F_MORE",
    NoBuffers = "receive ended by ENOBUFS",
    ReceiveRetry = "receive ended by EINTR or EAGAIN",
    ReceiveFailed = "receive ended by ENOMEM or ETIMEDOUT",
    BufferForNothing = "buffer picked for the end of the bytes",
    PartialSend = "send ended in the middle",
    SendRetry = "send ended by EINTR or EAGAIN",
    SendFailed = "send ended by ENOMEM or ENOBUFS",
    EnterBusy = "enter refused with EBUSY or EAGAIN",
    EnterInterrupted = "enter interrupted",
    LateCompletion = "late completion",
    ReorderedCompletions = "completions of two operations in another order",
    CancelRace = "shutdown while bytes or completions are on their way",
    WatchEnded = "wake-up poll ended",
    Reset = "connection reset",
    HalfClose = "peer closes its sending half",
    Refused = "connection refused",
    SlowNetwork = "bytes delayed",
    StalledPeer = "peer neither reads nor writes",
    StarvedShard = "shard gets no CPU",
    WallClockJump = "wall clock jumps",
    Suspend = "machine suspended",
    ControlQueueFull = "queue to a shard full",
    ClientQueueFull = "queue of a client full",
    SocketFull = "socket takes no more bytes",
    ServerKilled = "server killed",
    ServerDrained = "server drained and started again",
    SentTwice = "batch sent again although it was acknowledged",
    Partition = "one of two servers cut off from a node",
    Failover = "records of a server went to the other",
    AckWaited = "turn of a busy shard in which an Ack waited",
    Gathered = "busy shard slept on for more completions",
}

/// Number of kinds.
pub const KINDS: usize = Fault::ALL.len();

/// Chance, time, trace.
#[derive(Debug)]
pub struct Fate {
    /// Everything random.
    pub random: fastrand::Rng,
    /// Monotonic time, µs.
    pub now_us: u64,
    /// Unix time less monotonic time, µs; may jump.
    pub wall_ahead_us: i64,
    /// Off once the world is to calm down.
    pub hostile: bool,
    /// How often each fault struck.
    pub counts: [u64; KINDS],
    /// Of 65,536 chances, how many each fault takes.
    weights: [u16; KINDS],
    /// Of 8 looks at a shard's processor, at how many it was busy; and chance of its own for that, so that the worlds of seeds in which it
    /// never is stay as they were.
    busy: (u32, fastrand::Rng),
    trace: u64,
}

/// Shared by all parts of one world, which lives on one thread.
#[derive(Clone, Debug)]
pub struct SharedFate(Rc<RefCell<Fate>>);

impl SharedFate {
    /// The fate of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut weights = [0; KINDS];
        // Not of the youngest kinds: the worlds of the seeds before them stay as they were.
        for weight in &mut weights[..Fault::Partition as usize] {
            *weight = match random.u32(0..8) {
                0..3 => 0,
                3..6 => random.u16(200..2_500),
                6 => random.u16(2_500..12_000),
                _ => random.u16(50..200),
            };
        }
        weights[Fault::Partition as usize] = [0, 0, 300, 1_500][seed as usize / 4 % 4];
        let fate = Fate {
            random,
            now_us: 1_000_000_000,
            wall_ahead_us: 1_700_000_000_000_000,
            hostile: true,
            counts: [0; KINDS],
            weights,
            busy: ([0, 5, 0, 7][seed as usize / 9 % 4], fastrand::Rng::with_seed(seed)),
            trace: 0xcbf2_9ce4_8422_2325,
        };
        Self(Rc::new(RefCell::new(fate)))
    }

    /// The fate itself. Never held across a call into another part.
    pub fn get(&self) -> RefMut<'_, Fate> {
        self.0.borrow_mut()
    }

    /// Whether this fault strikes now. It is counted: the caller makes it happen.
    pub fn strikes(&self, fault: Fault) -> bool {
        self.strikes_rarely(fault, 1)
    }

    /// The same for what should be so many times rarer.
    pub fn strikes_rarely(&self, fault: Fault, rarer: u32) -> bool {
        let strikes = self.tries_rarely(fault, rarer);
        self.get().counts[fault as usize] += u64::from(strikes);
        strikes
    }

    /// Whether this fault is tried now, where there may be nothing that it can do. The caller counts it once it [`Self::happened`].
    pub fn tries(&self, fault: Fault) -> bool {
        self.tries_rarely(fault, 1)
    }

    /// The same for what should be so many times rarer.
    pub fn tries_rarely(&self, fault: Fault, rarer: u32) -> bool {
        self.get().tries(fault, rarer)
    }

    /// Whether a shard used all of its processor since it was asked last.
    pub fn is_busy(&self) -> bool {
        let mut fate = self.get();
        let (of_eight, random) = &mut fate.busy;
        random.u32(0..8) < *of_eight
    }

    /// A fault that came about, by itself or because it was tried.
    pub fn happened(&self, fault: Fault) {
        self.get().counts[fault as usize] += 1;
    }

    /// The time, µs.
    pub fn now_us(&self) -> u64 {
        self.get().now_us
    }

    /// Unix time, µs.
    pub fn wall_us(&self) -> u64 {
        let fate = self.get();
        fate.now_us.saturating_add_signed(fate.wall_ahead_us)
    }

    /// Any number but 0.
    pub fn number(&self) -> u64 {
        self.get().random.u64(1..)
    }

    /// Whether faults strike still.
    pub fn is_hostile(&self) -> bool {
        self.get().hostile
    }

    /// A number in a range, uniform.
    pub fn below(&self, limit: usize) -> usize {
        self.get().random.usize(0..limit.max(1))
    }

    /// True once in so many times.
    pub fn once_in(&self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Adds to the trace.
    pub fn note(&self, what: u64, value: u64) {
        self.get().note(what, value);
    }

    /// What everything noted so far comes to.
    pub fn trace(&self) -> u64 {
        self.get().trace
    }
}

impl Fate {
    fn tries(&mut self, fault: Fault, rarer: u32) -> bool {
        let weight = u32::from(self.weights[fault as usize]);
        self.hostile && weight > 0 && self.random.u32(0..65_536 * rarer) < weight
    }

    fn note(&mut self, what: u64, value: u64) {
        for word in [self.now_us, what, value] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }
}
