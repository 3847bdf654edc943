// SPDX-License-Identifier: Apache-2.0
//! How long a worker spins after its last request before it sleeps.

/// A wake-up costs up to about this much, in ns: a request that comes back within the bound plus this after a
/// sleep would probably have been caught by a spin.
const WAKE_ALLOWANCE: u64 = 100_000;

/// Spin window between an eighth of the bound and the bound, all in ns.
#[derive(Debug, Default)]
pub(crate) struct Window {
    max: u64,
    now: u64,
}

impl Window {
    /// Takes over a changed bound; starts wide, so that the first requests show what the guest is like.
    pub(crate) fn set_max(&mut self, max_us: u32) {
        let max = u64::from(max_us) * 1000;
        if max != self.max {
            self.max = max;
            self.now = max;
        }
    }

    /// Length of the next spin.
    pub(crate) fn length(&self) -> u64 {
        self.now
    }

    /// A request came while spinning.
    pub(crate) fn hit(&mut self) {
        self.now = (self.now * 2).min(self.max);
    }

    /// A request came after a sleep, `idle` after the one before it.
    pub(crate) fn missed(&mut self, idle: u64) {
        self.now = if idle <= self.max + WAKE_ALLOWANCE {
            (self.now * 2).min(self.max)
        } else {
            (self.now / 2).max(self.max / 8)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::Window;

    #[test]
    fn a_busy_guest_keeps_the_window_wide_and_an_idle_one_narrows_it() {
        let mut window = Window::default();
        window.set_max(80);
        assert_eq!(window.length(), 80_000);
        for _ in 0..10 {
            window.missed(1_000_000);
        }
        assert_eq!(window.length(), 10_000);
        window.hit();
        assert_eq!(window.length(), 20_000);
        window.missed(120_000);
        assert_eq!(window.length(), 40_000);
        window.set_max(0);
        assert_eq!(window.length(), 0);
        window.hit();
        assert_eq!(window.length(), 0);
    }
}
