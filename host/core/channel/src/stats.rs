// SPDX-License-Identifier: Apache-2.0
//! Counters: written by one worker each with relaxed atomics, read by anybody at any time.

use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::device::{Names, Work};
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

/// Live counters of one operation, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
struct OpCounters {
    requests: Counter,
    bytes: Counter,
    latency: [Counter; LATENCY_BUCKETS],
    latency_ns: Counter,
}

/// Live counters of one queue, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub struct QueueCounters {
    state: AtomicU8,
    fault: AtomicU8,
    ops: Box<[OpCounters]>,
    malformed: Box<[Counter]>,
    refused: Box<[Counter]>,
    pub(crate) direct_pages: Counter,
    pub(crate) bounced_pages: Counter,
    pub(crate) kicks: Counter,
    pub(crate) interrupts: Counter,
    pub(crate) late_kicks: Counter,
    pub(crate) late_interrupts: Counter,
    pub(crate) batches: Counter,
}

impl QueueCounters {
    /// Counters of a queue of the device with these names, all 0.
    pub fn new(names: &Names) -> QueueCounters {
        let op = || OpCounters {
            requests: Counter::default(),
            bytes: Counter::default(),
            latency: std::array::from_fn(|_| Counter::default()),
            latency_ns: Counter::default(),
        };
        QueueCounters {
            state: AtomicU8::new(0),
            fault: AtomicU8::new(0),
            ops: names.ops.iter().map(|_| op()).collect(),
            malformed: names.malformed.iter().map(|_| Counter::default()).collect(),
            refused: names.refused.iter().map(|_| Counter::default()).collect(),
            direct_pages: Counter::default(),
            bounced_pages: Counter::default(),
            kicks: Counter::default(),
            interrupts: Counter::default(),
            late_kicks: Counter::default(),
            late_interrupts: Counter::default(),
            batches: Counter::default(),
        }
    }

    /// Counts a page that the store did not take or give.
    pub(crate) fn refuse(&self, why: impl Into<usize>) {
        if let Some(counter) = self.refused.get(why.into()) {
            counter.add(1);
        }
    }

    /// Counts a malformed chain.
    pub(crate) fn malformed(&self, why: impl Into<usize>) {
        if let Some(counter) = self.malformed.get(why.into()) {
            counter.add(1);
        }
    }

    #[inline]
    pub(crate) fn served(&self, work: Work, ns: u64) {
        let Some(op) = self.ops.get(work.op) else { return };
        op.requests.add(1);
        op.bytes.add(work.bytes);
        let bucket = (63 - (ns | 1).leading_zeros() as usize).min(LATENCY_BUCKETS - 1);
        op.latency[bucket].add(1);
        op.latency_ns.add(ns);
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
            requests: self.ops.iter().map(|op| op.requests.get()).collect(),
            bytes: self.ops.iter().map(|op| op.bytes.get()).collect(),
            latency: self.ops.iter().map(|op| op.latency.each_ref().map(Counter::get)).collect(),
            latency_ns: self.ops.iter().map(|op| op.latency_ns.get()).collect(),
            malformed: self.malformed.iter().map(Counter::get).collect(),
            refused: self.refused.iter().map(Counter::get).collect(),
            direct_pages: self.direct_pages.get(),
            bounced_pages: self.bounced_pages.get(),
            kicks: self.kicks.get(),
            interrupts: self.interrupts.get(),
            late_kicks: self.late_kicks.get(),
            late_interrupts: self.late_interrupts.get(),
            batches: self.batches.get(),
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

/// Counters of one queue at one moment. Lists are in the order of the device's [`Names`].
#[derive(Clone, Debug)]
pub struct QueueStats {
    /// State.
    pub state: QueueState,
    /// Why it is broken.
    pub fault: Option<Fault>,
    /// Requests carried out, by operation, with any status.
    pub requests: Vec<u64>,
    /// Bytes asked for, by operation.
    pub bytes: Vec<u64>,
    /// Service time, by operation: see [`LATENCY_BUCKETS`].
    pub latency: Vec<[u64; LATENCY_BUCKETS]>,
    /// Sum of the service times, in ns, by operation.
    pub latency_ns: Vec<u64>,
    /// Malformed chains, by reason.
    pub malformed: Vec<u64>,
    /// Pages, or for a block device requests, that the store did not serve, by reason.
    pub refused: Vec<u64>,
    /// Pages handed over in place.
    pub direct_pages: u64,
    /// Pages and parts of pages that went through the bounce buffer.
    pub bounced_pages: u64,
    /// Times the guest's kick woke the worker.
    pub kicks: u64,
    /// Interrupts sent.
    pub interrupts: u64,
    /// Requests that were found without a kick, though the guest had been asked for one.
    pub late_kicks: u64,
    /// Interrupts, of those above, sent a while after the answer: the guest had asked for one that it did not get.
    pub late_interrupts: u64,
    /// Runs of requests served without a pause.
    pub batches: u64,
}

/// Counters of a server at one moment. All count from the start of the server, over all connections.
#[derive(Clone, Debug)]
pub struct ChannelStats {
    /// Names of what is counted by operation and by reason.
    pub names: &'static Names,
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
    pub fn requests(&self, op: impl Into<usize>) -> u64 {
        self.sum(op.into(), |queue| &queue.requests)
    }

    /// Bytes asked for by one operation over all queues.
    pub fn bytes(&self, op: impl Into<usize>) -> u64 {
        self.sum(op.into(), |queue| &queue.bytes)
    }

    /// Sum of the service times of one operation over all queues, in ns.
    pub fn latency_ns(&self, op: impl Into<usize>) -> u64 {
        self.sum(op.into(), |queue| &queue.latency_ns)
    }

    /// Chains refused for one reason over all queues.
    pub fn malformed(&self, reason: impl Into<usize>) -> u64 {
        self.sum(reason.into(), |queue| &queue.malformed)
    }

    /// Pages or requests that the store did not serve for one reason over all queues.
    pub fn refused(&self, why: impl Into<usize>) -> u64 {
        self.sum(why.into(), |queue| &queue.refused)
    }

    fn sum(&self, index: usize, list: fn(&QueueStats) -> &Vec<u64>) -> u64 {
        self.queues.iter().filter_map(|queue| list(queue).get(index)).sum()
    }
}
