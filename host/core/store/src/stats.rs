// SPDX-License-Identifier: Apache-2.0
//! Counters and latency histograms. All are relaxed: they inform, nothing is decided by them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Buckets of a histogram: bucket `i` counts latencies of `[2^i, 2^(i+1))` ns, the first also 0.
pub const BUCKETS: usize = 40;

/// A log2 histogram of latencies in nanoseconds, and their sum.
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts one latency.
    #[inline]
    pub fn record(&self, ns: u64) {
        let bucket = (63 - (ns | 1).leading_zeros() as usize).min(BUCKETS - 1);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(ns, Ordering::Relaxed);
    }

    /// The counts, by bucket.
    pub fn snapshot(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed))
    }

    /// The sum of all latencies, in nanoseconds.
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    /// How many latencies were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }
}

/// A cheap clock: the time-stamp counter where it is constant, else the monotonic clock.
#[derive(Clone, Copy)]
pub struct Tick(u64);

impl Tick {
    /// Now.
    #[inline]
    pub fn now() -> Self {
        Self(raw())
    }

    /// Nanoseconds since then.
    #[inline]
    pub fn ns(self) -> u64 {
        let ticks = raw().saturating_sub(self.0);
        ((u128::from(ticks) * u128::from(scale())) >> 32) as u64
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn raw() -> u64 {
    // SAFETY: rdtsc exists on every x86-64 and has no effect on memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn raw() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Nanoseconds a tick, as a 32.32 fixed-point number, measured once against the monotonic clock.
#[inline]
fn scale() -> u64 {
    static SCALE: OnceLock<u64> = OnceLock::new();
    *SCALE.get_or_init(|| {
        let (t0, r0) = (Instant::now(), raw());
        // Long enough that the two clocks' read times (tens of ns) are below 0.01 %.
        while t0.elapsed().as_micros() < 1000 {
            std::hint::spin_loop();
        }
        let ns = t0.elapsed().as_nanos();
        let ticks = u128::from(raw().saturating_sub(r0)).max(1);
        ((ns << 32) / ticks) as u64
    })
}

/// Measures the clock now rather than in the first request.
pub fn calibrate() {
    scale();
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of one pool.
        #[derive(Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64,)+ }

        impl Counters {
            /// Names and values, in a fixed order.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)+]
            }

            /// Adds another pool's counters.
            pub fn add(&self, other: &Self) {
                $(self.$name.fetch_add(other.$name.load(Ordering::Relaxed), Ordering::Relaxed);)+
            }
        }
    };
}

counters! {
    /// Puts, whatever their answer.
    puts,
    /// Flushes of pages and objects.
    flushes,
    /// Puts that replaced a page.
    replaced,
    /// Puts that failed and removed the old page (rule 1).
    failed_replaces,
    /// Puts refused because the VM is over its cap.
    refused_cap,
    /// Puts refused because the store or the file system has no room.
    refused_room,
    /// Puts refused because the VM is frozen.
    refused_frozen,
    /// Gets that found a page.
    hits,
    /// Gets that found none.
    misses,
    /// Gets of a page that was lost: its slot's checksum is wrong.
    lost,
    /// Pages removed by flush page, flush object or an exclusive get.
    flushed,
    /// Ephemeral pages evicted for room.
    evicted,
    /// Pages moved by compaction.
    moved,
}

/// Adds one to a counter.
#[inline]
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Latencies by operation, of one operation in eight: a thread's 1st, 9th and so on.
#[derive(Default)]
pub struct Latencies {
    /// put, from entry to stored or refused.
    pub put: Histogram,
    /// get, from entry to page written or miss.
    pub get: Histogram,
    /// flush page or object.
    pub flush: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        let h = Histogram::default();
        for ns in [0, 1, 2, 3, 1023, 1024] {
            h.record(ns);
        }
        assert_eq!(h.sum(), 2053);
        h.record(u64::MAX);
        let s = h.snapshot();
        assert_eq!((s[0], s[1], s[9], s[10], s[BUCKETS - 1]), (2, 2, 1, 1, 1));
        assert_eq!(h.count(), 7);
    }

    #[test]
    fn clock_runs_at_the_right_speed() {
        calibrate();
        // The thread may lose its CPU between two readings: one undisturbed attempt is enough.
        let close = || {
            let (t, i) = (Tick::now(), Instant::now());
            while i.elapsed().as_millis() < 5 {}
            let (a, b) = (t.ns() as f64, i.elapsed().as_nanos() as f64);
            (a / b - 1.0).abs() < 0.05
        };
        assert!((0..50).any(|_| close()));
    }
}
