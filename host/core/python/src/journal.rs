// SPDX-License-Identifier: Apache-2.0
//! What the core's crates log, kept until Python takes it: no thread of the data plane waits for Python's lock in order
//! to say something, and a guest that makes it say much is cut short.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

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
}

struct Journal {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

static JOURNAL: Journal =
    Journal { waiting: Mutex::new(Waiting { lines: VecDeque::new(), dropped: 0 }), arrived: Condvar::new() };

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let Ok(mut waiting) = self.waiting.lock() else { return };
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
        self.arrived.notify_one();
    }

    fn flush(&self) {}
}

/// Takes the place of a logger, once for the process.
pub fn install() {
    if log::set_logger(&JOURNAL).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Lines that came, and how many had no room: waits up to `timeout_ms` for the first.
#[pyfunction]
pub fn journal(py: Python<'_>, timeout_ms: u64) -> (Vec<(&'static str, String)>, u64) {
    py.detach(|| {
        let Ok(waiting) = JOURNAL.waiting.lock() else { return (Vec::new(), 0) };
        let found = JOURNAL
            .arrived
            .wait_timeout_while(waiting, Duration::from_millis(timeout_ms), |w| w.lines.is_empty());
        let Ok((mut waiting, _)) = found else { return (Vec::new(), 0) };
        let lines = waiting.lines.drain(..).map(|(level, line)| (level.as_str(), line)).collect();
        (lines, std::mem::take(&mut waiting.dropped))
    })
}
