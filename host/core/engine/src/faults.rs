// SPDX-License-Identifier: Apache-2.0
//! Gets that find their page lost on purpose, for tests of whoever asks. Off, they cost one load of a
//! line that nobody writes to.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How often, and how many there were.
#[derive(Default)]
pub struct Faults {
    every: AtomicU32,
    asked: AtomicU64,
    injected: AtomicU64,
}

impl Faults {
    /// From now on each `every`-th page asked for is answered as lost, and stays where it is; 0: none.
    pub fn lose_every(&self, every: u32) {
        self.every.store(every, Ordering::Relaxed);
    }

    /// Pages that were answered as lost though they were not.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::Relaxed)
    }

    /// True while any page may be.
    pub(crate) fn armed(&self) -> bool {
        self.every.load(Ordering::Relaxed) != 0
    }

    /// True if the page that is asked for now is to be lost.
    pub(crate) fn strikes(&self) -> bool {
        match self.every.load(Ordering::Relaxed) {
            0 => false,
            every => self.counted(every),
        }
    }

    #[cold]
    fn counted(&self, every: u32) -> bool {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let lost = asked.is_multiple_of(u64::from(every));
        if lost {
            self.injected.fetch_add(1, Ordering::Relaxed);
        }
        lost
    }
}
