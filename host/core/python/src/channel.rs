// SPDX-License-Identifier: Apache-2.0
//! What all channels have in common for Python: the polling policy, and their counters as a dict.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use tmem_channel::{ChannelState, ChannelStats, LATENCY_BUCKETS, PollPolicy, QueueState, QueueStats};

/// The policy for a bound in microseconds; 0 is sleeping at once.
pub fn policy(poll_us: u32) -> PollPolicy {
    match poll_us {
        0 => PollPolicy::Events,
        max_us => PollPolicy::Adaptive { max_us },
    }
}

/// Counters by name, written as Python does.
pub fn put_counts(
    d: &Bound<'_, PyDict>,
    counts: impl IntoIterator<Item = (&'static str, u64)>,
) -> PyResult<()> {
    counts.into_iter().try_for_each(|(name, count)| d.set_item(name.replace('-', "_"), count))
}

/// Counters over all queues, as the stub describes them.
pub fn stats_dict<'py>(py: Python<'py>, s: &ChannelStats) -> PyResult<Bound<'py, PyDict>> {
    let d = PyDict::new(py);
    d.set_item(
        "state",
        match s.state {
            ChannelState::Listening => "listening",
            ChannelState::Connected => "connected",
            ChannelState::Broken => "broken",
        },
    )?;
    d.set_item("connections", s.connections)?;
    d.set_item("workers", s.workers)?;
    d.set_item("wakeups", s.wakeups)?;
    d.set_item("spin_hits", s.spin_hits)?;
    d.set_item("spin_misses", s.spin_misses)?;
    d.set_item("cpu_ns", s.cpu_ns)?;
    let sum = |f: fn(&QueueStats) -> u64| s.queues.iter().map(f).sum::<u64>();
    d.set_item("kicks", sum(|q| q.kicks))?;
    d.set_item("late_kicks", sum(|q| q.late_kicks))?;
    d.set_item("late_interrupts", sum(|q| q.late_interrupts))?;
    d.set_item("interrupts", sum(|q| q.interrupts))?;
    d.set_item("batches", sum(|q| q.batches))?;
    d.set_item("direct_pages", sum(|q| q.direct_pages))?;
    d.set_item("bounced_pages", sum(|q| q.bounced_pages))?;
    let (requests, bytes, latency) = (PyDict::new(py), PyDict::new(py), PyDict::new(py));
    // One object for all operations that nothing was asked of: most are, in most channels.
    let bounds = PyTuple::new(py, (0..LATENCY_BUCKETS).map(|b| 1u64 << b))?;
    let nothing = PyTuple::new(py, [0u64; LATENCY_BUCKETS])?;
    for (op, name) in s.names.ops.iter().enumerate() {
        let asked = s.requests(op);
        requests.set_item(name, asked)?;
        bytes.set_item(name, s.bytes(op))?;
        let bucket = |b: usize| s.queues.iter().filter_map(|q| q.latency.get(op)).map(|l| l[b]).sum::<u64>();
        let h = PyDict::new(py);
        h.set_item("bucket_ns", &bounds)?;
        if asked == 0 {
            h.set_item("count", &nothing)?;
        } else {
            h.set_item("count", PyTuple::new(py, (0..LATENCY_BUCKETS).map(bucket))?)?;
        }
        h.set_item("sum_ns", s.latency_ns(op))?;
        latency.set_item(name, h)?;
    }
    d.set_item("requests", requests)?;
    d.set_item("bytes", bytes)?;
    d.set_item("latency", latency)?;
    let refused = PyDict::new(py);
    for (why, name) in s.names.refused.iter().enumerate() {
        refused.set_item(name, s.refused(why))?;
    }
    d.set_item("refused", refused)?;
    let malformed = PyDict::new(py);
    for (reason, name) in s.names.malformed.iter().enumerate() {
        let n = s.malformed(reason);
        if n > 0 {
            malformed.set_item(name, n)?;
        }
    }
    d.set_item("malformed", malformed)?;
    let queues: Vec<_> = s
        .queues
        .iter()
        .map(|q| match (q.state, q.fault) {
            (QueueState::Stopped, _) => "stopped".to_string(),
            (QueueState::Running, _) => "running".to_string(),
            (QueueState::Broken, Some(f)) => format!("broken: {}", f.name()),
            (QueueState::Broken, None) => "broken".to_string(),
        })
        .collect();
    d.set_item("queues", queues)?;
    Ok(d)
}
