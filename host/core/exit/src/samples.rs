// SPDX-License-Identifier: Apache-2.0
//! How much is measured, and what comes of it.

use std::time::{Duration, Instant};

use crate::clock::ticks;

/// When a turn ends.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Requests before the first sample, if they take no longer than a quarter of `time`.
    pub warmup: usize,
    /// Samples wanted.
    pub samples: usize,
    /// The turn ends when this time is over; at least one sample is taken.
    pub time: Duration,
}

/// A sample this long (ticks; a good quarter of a millisecond) is slow enough to look at the clock.
const SLOW: u64 = 1_000_000;

/// Samples of one turn: ticks from one request to the next.
pub struct Samples {
    amount: Amount,
    started: Option<Instant>,
    last: u64,
    warm: bool,
    /// Requests seen, warm-up included.
    pub requests: u64,
    ticks: Vec<u64>,
    per: u32,
}

impl Samples {
    /// None yet. `per`: guest operations in one request.
    pub fn new(amount: Amount, per: u32) -> Self {
        let ticks = Vec::with_capacity(amount.samples.min(1 << 20));
        Self { amount, started: None, last: 0, warm: false, requests: 0, ticks, per }
    }

    /// A request is here: closes the sample that the one before began. False: that was the last.
    #[inline]
    pub fn mark(&mut self) -> bool {
        let now = ticks();
        let took = now - self.last;
        self.last = now;
        self.requests += 1;
        if self.warm {
            self.ticks.push(took);
            self.ticks.len() < self.amount.samples
                && !((self.ticks.len().is_multiple_of(16) || took > SLOW) && self.over(self.amount.time))
        } else {
            self.warm = self.requests > self.amount.warmup as u64
                || (self.requests > 1
                    && (self.requests.is_multiple_of(16) || took > SLOW)
                    && self.over(self.amount.time / 4));
            if self.requests == 1 {
                self.started = Some(Instant::now());
            }
            true
        }
    }

    fn over(&self, time: Duration) -> bool {
        self.started.is_some_and(|s| s.elapsed() > time)
    }

    /// Nanoseconds per operation.
    pub fn nanoseconds(&self, hz: f64) -> Vec<f64> {
        let scale = 1e9 / hz / f64::from(self.per);
        self.ticks.iter().map(|&t| t as f64 * scale).collect()
    }

    /// Guest operations seen, warm-up included.
    pub fn operations(&self) -> u64 {
        self.requests * u64::from(self.per)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(warmup: usize, samples: usize, ms: u64) -> Amount {
        Amount { warmup, samples, time: Duration::from_millis(ms) }
    }

    #[test]
    fn as_many_samples_as_asked_for_after_the_warm_up() {
        let mut s = Samples::new(amount(3, 5, 60_000), 2);
        let mut marks = 1;
        while s.mark() {
            marks += 1;
        }
        assert_eq!(marks, 3 + 1 + 5);
        assert_eq!(s.nanoseconds(1e9).len(), 5);
        assert_eq!(s.operations(), 18);
    }

    #[test]
    fn time_ends_it_with_at_least_one_sample() {
        let mut s = Samples::new(amount(1000, usize::MAX >> 8, 0), 1);
        let mut marks = 0;
        while s.mark() {
            marks += 1;
            assert!(marks < 1000);
        }
        assert!(!s.nanoseconds(1e9).is_empty());
    }
}
