// SPDX-License-Identifier: Apache-2.0
//! What the core's crates log, kept until Python takes it: no thread of the data plane waits for Python's lock in order
//! to say something, and a guest that makes it say much is cut short.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;

/// Lines that wait; more are counted only.
const KEPT: usize = 256;
/// Bytes of a line.
const LONGEST: usize = 1000;

#[derive(Default)]
struct Waiting {
    lines: VecDeque<(Level, String)>,
    dropped: u64,
    /// Who waits is to come back, lines or not.
    called: bool,
}

struct Journal {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

static JOURNAL: Journal = Journal {
    waiting: Mutex::new(Waiting { lines: VecDeque::new(), dropped: 0, called: false }),
    arrived: Condvar::new(),
};

/// Whoever panicked with it, in formatting a line, left whole ones.
fn lock() -> MutexGuard<'static, Waiting> {
    JOURNAL.waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut waiting = lock();
        if waiting.lines.len() >= KEPT {
            waiting.dropped += 1;
            return;
        }
        let mut line = format!("{}: {}", record.target(), record.args());
        if line.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
            line.truncate(end);
        }
        waiting.lines.push_back((record.level(), line));
        JOURNAL.arrived.notify_one();
    }

    fn flush(&self) {}
}

/// Takes the place of a logger, once for the process.
pub fn install() {
    if log::set_logger(&JOURNAL).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Lines that came, and how many had no room: waits for the first, or for [`journal_call`].
#[pyfunction]
pub fn journal(py: Python<'_>) -> (Vec<(&'static str, String)>, u64) {
    py.detach(|| {
        let mut waiting = JOURNAL
            .arrived
            .wait_while(lock(), |w| w.lines.is_empty() && !w.called)
            .unwrap_or_else(PoisonError::into_inner);
        waiting.called = false;
        let lines = waiting.lines.drain(..).map(|(level, line)| (level.as_str(), line)).collect();
        (lines, std::mem::take(&mut waiting.dropped))
    })
}

/// Calls back who waits in [`journal`], or will.
#[pyfunction]
pub fn journal_call() {
    lock().called = true;
    JOURNAL.arrived.notify_one();
}
