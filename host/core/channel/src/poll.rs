// SPDX-License-Identifier: Apache-2.0
//! How long a worker spins after its last request before it sleeps.
//!
//! Spinning pays when the next request comes within the bound, and is worse than sleeping when the CPU it takes
//! is the one the guest needs in order to send that request. So the share of spins that end with a request
//! decides, not the time between requests: while it is good, spins have the full length; while it is not, they
//! are short, and now and then a few full ones look whether that has changed.

/// Weight of one spin in the share: 1/8.
const WEIGHT: u16 = 8;
/// Share that means "always", and the one from which on full spins are worth it: half. A hit saves a wake-up, a miss
/// costs about as much of somebody's CPU.
const ALWAYS: u16 = 1024;
const WORTH_IT: u16 = ALWAYS / 2;
/// A spin that is not worth it has this part of the full length.
const SHORT: u64 = 16;
/// Of each `PERIOD` spins, the first `PROBES` are full ones: six hits in a row are enough to pass `WORTH_IT`.
const PERIOD: u16 = 128;
const PROBES: u16 = 8;

/// Length of the next spin, between a sixteenth of the bound and the bound.
#[derive(Debug, Default)]
pub(crate) struct Window {
    max_ns: u64,
    share: u16,
    spins: u16,
}

impl Window {
    /// Takes over a changed bound; what was learnt with the last one is forgotten.
    pub(crate) fn set_max(&mut self, max_us: u32) {
        let max_ns = u64::from(max_us) * 1000;
        if max_ns != self.max_ns {
            *self = Window { max_ns, ..Window::default() };
        }
    }

    /// Length of the next spin, in ns; 0 without polling.
    pub(crate) fn length(&self) -> u64 {
        if self.share >= WORTH_IT || self.spins < PROBES { self.max_ns } else { self.max_ns / SHORT }
    }

    /// The spin ended with a request.
    pub(crate) fn hit(&mut self) {
        self.share += (ALWAYS - self.share) / WEIGHT;
        self.count();
    }

    /// The spin ended without one.
    pub(crate) fn miss(&mut self) {
        self.share -= self.share.div_ceil(WEIGHT);
        self.count();
    }

    fn count(&mut self) {
        self.spins = (self.spins + 1) % PERIOD;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        let mut window = Window::default();
        window.set_max(80);
        window
    }

    #[test]
    fn spins_that_pay_stay_long() {
        let mut window = window();
        for _ in 0..1000 {
            assert_eq!(window.length(), 80_000);
            window.hit();
        }
        window.set_max(0);
        assert_eq!(window.length(), 0);
        window.hit();
        assert_eq!(window.length(), 0);
    }

    #[test]
    fn spins_that_do_not_pay_become_short_and_are_tried_again() {
        let mut window = window();
        for _ in 0..100 {
            window.hit();
        }
        let mut long = 0;
        for _ in 0..640 {
            long += u32::from(window.length() == 80_000);
            window.miss();
        }
        assert!(long < 80, "{long} of 640 misses were long");
        // Now only full spins would end with a request: the probes find out.
        let found = (0..2 * PERIOD).position(|_| {
            if window.length() == 80_000 {
                window.hit()
            } else {
                window.miss()
            }
            window.share >= WORTH_IT
        });
        assert!(found.is_some());
        for _ in 0..200 {
            window.hit();
            assert_eq!(window.length(), 80_000);
        }
    }
}
