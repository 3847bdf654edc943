// SPDX-License-Identifier: Apache-2.0
//! How much a guest may say to the control side, which is one for all guests: a bucket of bytes that fills at a rate.

use std::time::{Duration, Instant};

/// Bytes that may come at once.
const SIZE: u64 = 256 << 10;
/// Bytes that the bucket gains in a second.
const RATE: u64 = 64 << 10;
/// What a frame costs beyond its length: taking up a short one is work, too. So at most 64 a second come through in the
/// long run.
const FRAME: u64 = 1 << 10;

/// One guest's, over all its connections.
pub struct Bucket {
    left: u64,
    at: Instant,
}

impl Bucket {
    pub fn full(now: Instant) -> Self {
        Self { left: SIZE, at: now }
    }

    /// Takes a frame of `len` bytes out if it fits.
    pub fn take(&mut self, len: usize, now: Instant) -> bool {
        let gained = u128::from(RATE) * now.saturating_duration_since(self.at).as_nanos() / 1_000_000_000;
        if gained > 0 {
            // What was less than a byte's time is kept: it would be lost to a guest that asks all the time.
            let used = u64::try_from(gained * 1_000_000_000 / u128::from(RATE)).unwrap_or(u64::MAX);
            self.at += Duration::from_nanos(used);
            self.left = SIZE.min(self.left.saturating_add(u64::try_from(gained).unwrap_or(SIZE)));
        }
        let cost = FRAME + len as u64;
        let fits = cost <= self.left;
        if fits {
            self.left -= cost;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let burst = (0..10_000).filter(|_| bucket.take(0, start)).count() as u64;
        assert_eq!(burst, SIZE / FRAME);
        // A guest that tries ten thousand times a second, for ten seconds.
        let steps = (1..=100_000).filter(|i| bucket.take(0, start + Duration::from_micros(100 * i))).count();
        assert_eq!(steps as u64, 10 * RATE / FRAME);
    }

    #[test]
    fn the_longest_frame_fits_when_it_has_been_quiet() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        while bucket.take(65_536, start) {}
        assert!(!bucket.take(65_536, start));
        let later = start + Duration::from_secs(86_400 * 365);
        assert!((0..3).all(|_| bucket.take(65_536, later)));
        assert!(!bucket.take(65_536, later));
        assert!(!bucket.take(65_536, start));
    }
}
