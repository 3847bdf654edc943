// SPDX-License-Identifier: Apache-2.0
//! What happened on one channel.

use std::sync::atomic::{AtomicU64, Ordering};

use tmem_abi::{Op, Status};

/// Counters of one session. Relaxed: each is exact, together they are of about one moment.
#[derive(Default)]
pub struct Counters {
    ops: [AtomicU64; Op::ALL.len()],
    statuses: [AtomicU64; Status::ALL.len()],
    direct_pages: AtomicU64,
    bounced_pages: AtomicU64,
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn request(&self, op: u16, status: Status) {
        if let Some(at) = Op::ALL.iter().position(|&o| o as u16 == op) {
            bump(&self.ops[at], 1);
        }
        if let Some(at) = Status::ALL.iter().position(|&s| s == status) {
            bump(&self.statuses[at], 1);
        }
    }

    /// A page went to or from the store where it lay, or by way of the bounce buffer.
    pub(crate) fn page(&self, direct: bool) {
        bump(if direct { &self.direct_pages } else { &self.bounced_pages }, 1);
    }

    /// Requests by operation; unknown ones are in none.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        read(Op::ALL.iter().map(|op| op.name()).zip(&self.ops))
    }

    /// Answers by status.
    pub fn answers(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        read(Status::ALL.iter().map(|s| s.name()).zip(&self.statuses))
    }

    /// Pages that went where they lay, and that were copied.
    pub fn pages(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        read([("direct-pages", &self.direct_pages), ("bounced-pages", &self.bounced_pages)].into_iter())
    }

    /// All of them: name and number.
    pub fn snapshot(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.operations().chain(self.answers()).chain(self.pages())
    }
}

fn read<'a>(
    counters: impl Iterator<Item = (&'static str, &'a AtomicU64)>,
) -> impl Iterator<Item = (&'static str, u64)> {
    counters.map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
}
