// SPDX-License-Identifier: Apache-2.0
//! The time stamp counter: read, calibrated, and checked before anything is believed.

use std::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{ExitError, Result};
use crate::threads;

/// The counter. Not ordered against earlier loads: good to a few nanoseconds.
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: the instruction exists on every x86-64.
    unsafe { _rdtsc() }
}

/// The counter, after everything before it is done.
#[inline]
fn ordered_ticks() -> u64 {
    // SAFETY: SSE2, so on every x86-64.
    unsafe { _mm_lfence() };
    let t = ticks();
    // SAFETY: as above.
    unsafe { _mm_lfence() };
    t
}

/// What was found about the counter.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// Ticks in a second.
    pub hz: f64,
    /// The rates of the single trials against the mean, parts in a million.
    pub drift_ppm: Vec<f64>,
    /// Nanoseconds of one reading, the mean of 64 in a row, several times.
    pub read_ns: Vec<f64>,
    /// Nanoseconds of one turn of the measuring loop with no work in it, as `read_ns`.
    pub loop_ns: Vec<f64>,
    /// Bounds of what the counters of the first two CPUs differ by, nanoseconds: (least, most).
    /// `None` with one CPU.
    pub skew_ns: Option<(f64, f64)>,
    /// CPUID says that the rate never changes (leaf 0x80000007, EDX bit 8).
    pub invariant: bool,
}

/// CLOCK_MONOTONIC_RAW in nanoseconds: not slewed by NTP.
fn raw_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: t is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// One reading of both clocks as near to each other as several tries can bring them.
fn pair() -> (u64, u64) {
    (0..16)
        .map(|_| {
            let before = ordered_ticks();
            let ns = raw_ns();
            let after = ordered_ticks();
            (after - before, before + (after - before) / 2, ns)
        })
        .min()
        .map(|(_, t, ns)| (t, ns))
        .unwrap_or_default()
}

/// Calibrates the counter against CLOCK_MONOTONIC_RAW and looks at what could falsify a figure.
///
/// # Errors
/// The counter does not run steadily: its rate differs between trials by more than 1000 ppm.
pub fn calibrate(cpus: &[usize]) -> Result<Calibration> {
    let marks: Vec<_> = (0..9)
        .map(|i| {
            if i > 0 {
                std::thread::sleep(Duration::from_millis(8));
            }
            pair()
        })
        .collect();
    let rate = |a: (u64, u64), b: (u64, u64)| (b.0 - a.0) as f64 * 1e9 / (b.1 - a.1).max(1) as f64;
    let hz = rate(marks[0], marks[8]);
    let drift_ppm: Vec<f64> = marks.windows(2).map(|w| (rate(w[0], w[1]) / hz - 1.0) * 1e6).collect();
    if drift_ppm.iter().any(|d| d.abs() > 1000.0) {
        return Err(ExitError::Failed(format!(
            "the time stamp counter is not steady: its rate varied by {:.0} ppm within 64 ms",
            drift_ppm.iter().fold(0.0f64, |a, d| a.max(d.abs()))
        )));
    }
    let ns = |ticks: u64, n: u64| ticks as f64 * 1e9 / hz / n as f64;
    let read_ns = (0..200)
        .map(|_| {
            let t = ticks();
            for _ in 0..63 {
                std::hint::black_box(ticks());
            }
            ns(ticks() - t, 64)
        })
        .collect();
    let mut sink = Vec::with_capacity(64);
    let loop_ns = (0..200)
        .map(|_| {
            sink.clear();
            let t = ticks();
            let mut last = t;
            for _ in 0..64 {
                let now = ticks();
                sink.push(std::hint::black_box(now - last));
                last = now;
            }
            ns(ticks() - t, 64)
        })
        .collect();
    let skew_ns = match cpus {
        [a, b, ..] => Some(skew(*a, *b, hz)?),
        _ => None,
    };
    // CPUID: highest extended leaf, then "advanced power management".
    let invariant = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0;
    Ok(Calibration { hz, drift_ppm, read_ns, loop_ns, skew_ns, invariant })
}

/// Bounds of the difference of two CPUs' counters: a message there and back, as NTP does it. What
/// b reads lies between a's sending and a's receiving, so b - a is within the tightest bounds seen.
fn skew(a: usize, b: usize, hz: f64) -> Result<(f64, f64)> {
    const TRIPS: u32 = 2000;
    let turn = Arc::new(AtomicU32::new(0));
    let stamp = Arc::new(AtomicU64::new(0));
    let other = {
        let (turn, stamp) = (turn.clone(), stamp.clone());
        threads::spawn("tmem-skew", Some(b), move || {
            for i in 0..TRIPS {
                while turn.load(Ordering::Acquire) != 2 * i + 1 {
                    std::hint::spin_loop();
                }
                stamp.store(ordered_ticks(), Ordering::Relaxed);
                turn.store(2 * i + 2, Ordering::Release);
            }
        })?
    };
    let here = threads::spawn("tmem-skew", Some(a), move || {
        let (mut least, mut most) = (i64::MIN, i64::MAX);
        for i in 0..TRIPS {
            let sent = ordered_ticks();
            turn.store(2 * i + 1, Ordering::Release);
            while turn.load(Ordering::Acquire) != 2 * i + 2 {
                std::hint::spin_loop();
            }
            let received = ordered_ticks();
            let there = stamp.load(Ordering::Relaxed);
            // a's clock at that moment was between sent and received.
            least = least.max(there.wrapping_sub(received) as i64);
            most = most.min(there.wrapping_sub(sent) as i64);
        }
        (least as f64 * 1e9 / hz, most as f64 * 1e9 / hz)
    })?;
    let found = threads::join(here)?;
    threads::join(other)?;
    Ok(found)
}
