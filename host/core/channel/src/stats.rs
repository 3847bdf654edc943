// SPDX-License-Identifier: Apache-2.0
//! Counters: written by one worker each with relaxed atomics, read by anybody at any time.

use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::ops::{Op, Reason};
use crate::ring::Fault;

/// Buckets of a latency histogram: bucket `i` counts service times of `2^i ..= 2^(i+1) - 1` ns (bucket 0 also
/// those of 0 ns, the last everything longer).
pub const LATENCY_BUCKETS: usize = 40;

/// A counter with one writer: no locked instruction is needed to add to it.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why the store did not take or give a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum PageRefusal {
    /// The host has no memory left for this VM.
    NoRoom = 0,
    /// The VM has reached its cap.
    OverCap = 1,
    /// The VM is frozen.
    Frozen = 2,
    /// The store failed.
    Failed = 3,
    /// A page kept once is lost.
    Lost = 4,
}

impl PageRefusal {
    /// Number of reasons.
    pub const COUNT: usize = 5;
    /// All reasons, in the order of their counters.
    pub const ALL: [PageRefusal; PageRefusal::COUNT] = [
        PageRefusal::NoRoom,
        PageRefusal::OverCap,
        PageRefusal::Frozen,
        PageRefusal::Failed,
        PageRefusal::Lost,
    ];

    /// Name used in counters and metrics.
    pub fn name(self) -> &'static str {
        match self {
            PageRefusal::NoRoom => "no_room",
            PageRefusal::OverCap => "over_cap",
            PageRefusal::Frozen => "frozen",
            PageRefusal::Failed => "failed",
            PageRefusal::Lost => "lost",
        }
    }
}

/// State of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// Not set up, or stopped by the frontend.
    Stopped,
    /// Serving requests.
    Running,
    /// Stopped by the channel because its ring made no sense; see [`QueueStats::fault`].
    Broken,
}

/// State of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// Waiting for a frontend.
    Listening,
    /// A frontend is connected.
    Connected,
    /// A queue is broken, or a thread died.
    Broken,
}

/// Live counters of one queue, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub struct QueueCounters {
    state: AtomicU8,
    fault: AtomicU8,
    requests: [Counter; Op::COUNT],
    bytes: [Counter; Op::COUNT],
    malformed: [Counter; Reason::COUNT],
    refused: [Counter; PageRefusal::COUNT],
    pub(crate) direct_pages: Counter,
    pub(crate) bounced_pages: Counter,
    pub(crate) kicks: Counter,
    pub(crate) interrupts: Counter,
    pub(crate) batches: Counter,
    latency: [[Counter; LATENCY_BUCKETS]; Op::COUNT],
}

impl Default for QueueCounters {
    fn default() -> Self {
        QueueCounters {
            state: AtomicU8::new(0),
            fault: AtomicU8::new(0),
            requests: Default::default(),
            bytes: Default::default(),
            malformed: std::array::from_fn(|_| Counter::default()),
            refused: Default::default(),
            direct_pages: Counter::default(),
            bounced_pages: Counter::default(),
            kicks: Counter::default(),
            interrupts: Counter::default(),
            batches: Counter::default(),
            latency: std::array::from_fn(|_| std::array::from_fn(|_| Counter::default())),
        }
    }
}

impl QueueCounters {
    pub(crate) fn refuse_page(&self, why: PageRefusal) {
        self.refused[why as usize].add(1);
    }

    pub(crate) fn malformed(&self, why: Reason) {
        self.malformed[why as usize].add(1);
    }

    #[inline]
    pub(crate) fn served(&self, op: Op, bytes: u64, ns: u64) {
        self.requests[op as usize].add(1);
        self.bytes[op as usize].add(bytes);
        let bucket = (63 - (ns | 1).leading_zeros() as usize).min(LATENCY_BUCKETS - 1);
        self.latency[op as usize][bucket].add(1);
    }

    pub(crate) fn set_state(&self, state: QueueState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_broken(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Relaxed);
        self.set_state(QueueState::Broken);
    }

    pub(crate) fn snapshot(&self) -> QueueStats {
        let state = match self.state.load(Ordering::Relaxed) {
            s if s == QueueState::Running as u8 => QueueState::Running,
            s if s == QueueState::Broken as u8 => QueueState::Broken,
            _ => QueueState::Stopped,
        };
        let fault = self.fault.load(Ordering::Relaxed);
        QueueStats {
            state,
            fault: if state == QueueState::Broken { Fault::from_code(fault) } else { None },
            requests: std::array::from_fn(|i| self.requests[i].get()),
            bytes: std::array::from_fn(|i| self.bytes[i].get()),
            malformed: std::array::from_fn(|i| self.malformed[i].get()),
            refused: std::array::from_fn(|i| self.refused[i].get()),
            direct_pages: self.direct_pages.get(),
            bounced_pages: self.bounced_pages.get(),
            kicks: self.kicks.get(),
            interrupts: self.interrupts.get(),
            batches: self.batches.get(),
            latency: std::array::from_fn(|i| std::array::from_fn(|j| self.latency[i][j].get())),
        }
    }
}

/// Live counters of one worker thread.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct WorkerCounters {
    pub(crate) wakeups: Counter,
    pub(crate) spin_hits: Counter,
    pub(crate) spin_misses: Counter,
    pub(crate) panics: AtomicU32,
    clock: AtomicI32,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        WorkerCounters {
            wakeups: Counter::default(),
            spin_hits: Counter::default(),
            spin_misses: Counter::default(),
            panics: AtomicU32::new(0),
            clock: AtomicI32::new(0),
        }
    }
}

impl WorkerCounters {
    /// Remembers the CPU clock of the calling thread.
    pub(crate) fn adopt_thread(&self) {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: pthread_self() is the running thread; clock is a valid place for the answer.
        if unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) } == 0 {
            self.clock.store(clock, Ordering::Relaxed);
        }
    }

    /// CPU time of the worker, in ns; 0 when it is not running.
    pub(crate) fn cpu_ns(&self) -> u64 {
        let clock = self.clock.load(Ordering::Relaxed);
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: now is a valid place for the answer; an unknown clock is an error, not a fault.
        if clock == 0 || unsafe { libc::clock_gettime(clock, &mut now) } != 0 {
            return 0;
        }
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

/// Counters of one queue at one moment. Arrays are indexed by `Op as usize`, `Reason as usize`,
/// `PageRefusal as usize`; the `ALL` constants of these types give the order and `name()` the labels.
#[derive(Clone, Debug)]
pub struct QueueStats {
    /// State.
    pub state: QueueState,
    /// Why it is broken.
    pub fault: Option<Fault>,
    /// Requests carried out, by operation, with any status.
    pub requests: [u64; Op::COUNT],
    /// Bytes asked for, by operation.
    pub bytes: [u64; Op::COUNT],
    /// Chains refused by the parser, by reason.
    pub malformed: [u64; Reason::COUNT],
    /// Requests failed by the store, by reason.
    pub refused: [u64; PageRefusal::COUNT],
    /// Pages handed over in place.
    pub direct_pages: u64,
    /// Pages and parts of pages that went through the bounce buffer.
    pub bounced_pages: u64,
    /// Times the guest's kick woke the worker.
    pub kicks: u64,
    /// Interrupts sent.
    pub interrupts: u64,
    /// Runs of requests served without a pause.
    pub batches: u64,
    /// Service time, by operation: see [`LATENCY_BUCKETS`].
    pub latency: [[u64; LATENCY_BUCKETS]; Op::COUNT],
}

/// Counters of a server at one moment. All count from the start of the server, over all connections.
#[derive(Clone, Debug)]
pub struct ChannelStats {
    /// State.
    pub state: ChannelState,
    /// Frontends that connected so far.
    pub connections: u64,
    /// One entry per queue.
    pub queues: Vec<QueueStats>,
    /// Worker threads.
    pub workers: usize,
    /// Times a worker woke from sleep.
    pub wakeups: u64,
    /// Times a spin ended with a request.
    pub spin_hits: u64,
    /// Times a spin ended without one.
    pub spin_misses: u64,
    /// CPU time of all workers, in ns.
    pub cpu_ns: u64,
}

impl ChannelStats {
    /// Requests of one operation over all queues.
    pub fn requests(&self, op: Op) -> u64 {
        self.queues.iter().map(|queue| queue.requests[op as usize]).sum()
    }

    /// Chains refused for one reason over all queues.
    pub fn malformed(&self, reason: Reason) -> u64 {
        self.queues.iter().map(|queue| queue.malformed[reason as usize]).sum()
    }

    /// Requests failed by the store for one reason over all queues.
    pub fn refused(&self, why: PageRefusal) -> u64 {
        self.queues.iter().map(|queue| queue.refused[why as usize]).sum()
    }
}
