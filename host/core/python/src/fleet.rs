// SPDX-License-Identifier: Apache-2.0
//! Fleets of micro-VMs for the density bench.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tmem_exit::clock::calibrate;
use tmem_exit::fleet::trace::{MAX_FRAMES, MAX_PAGES, Shape};
use tmem_exit::fleet::{BackendSpec, Channel, Class, FleetSpec, Report, run};
use tmem_exit::machine::open_kvm;
use tmem_exit::threads::usable_cpus;
use tmem_store::PAGE_SIZE;

use crate::error::core_error;
use crate::exit::from_exit;
use crate::store::PyStore;

fn invalid(message: impl Into<String>) -> PyErr {
    core_error("invalid", message.into())
}

fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| invalid(format!("a time cannot be {value} s")))
}

/// Runs a fleet of micro-VMs once: the stub says with what and what comes back.
#[pyfunction]
#[pyo3(signature = (classes, corpus, *, store = None, disk = None, frames, pages, zipf, trace, channel, workers,
    cpus, time, compute, quantum = None, seed))]
#[allow(clippy::too_many_arguments)] // One keyword argument each, as Python callers see it.
pub fn run_fleet<'py>(
    py: Python<'py>,
    classes: Vec<(String, usize, bool, u64, Option<u64>, u32)>,
    corpus: Vec<u8>,
    store: Option<&PyStore>,
    disk: Option<PathBuf>,
    frames: u32,
    pages: u32,
    zipf: f64,
    trace: usize,
    channel: &str,
    workers: usize,
    cpus: usize,
    time: f64,
    compute: f64,
    quantum: Option<f64>,
    seed: u64,
) -> PyResult<Bound<'py, PyDict>> {
    if corpus.is_empty() || !corpus.len().is_multiple_of(PAGE_SIZE) {
        return Err(invalid("pages must be one or more of 4096 bytes"));
    }
    if frames == 0 || frames >= pages || frames > MAX_FRAMES || pages > MAX_PAGES || trace == 0 {
        return Err(invalid(format!(
            "a guest has 1 to {MAX_FRAMES} frames, more pages than frames (at most {MAX_PAGES}), and a trace"
        )));
    }
    if !zipf.is_finite() || trace > 1 << 20 {
        return Err(invalid("the exponent must be finite, a trace at most 1048576 requests long"));
    }
    let channel = match channel {
        "sync" => Channel::Sync,
        "async" => Channel::Async,
        _ => return Err(invalid("channel is sync or async")),
    };
    let backend = match (store, disk) {
        (Some(store), None) => BackendSpec::Store(store.open()?),
        (None, Some(path)) => BackendSpec::Disk(path),
        _ => return Err(invalid("give a store or a disk file")),
    };
    let usable = usable_cpus();
    if cpus == 0 || cpus > usable.len() {
        return Err(invalid(format!("this process may use {} CPUs, not {cpus}", usable.len())));
    }
    let classes = classes
        .into_iter()
        .map(|(name, vms, persistent, reservation, cap, weight)| Class {
            name,
            vms,
            persistent,
            reservation,
            cap,
            weight,
        })
        .collect();
    let mut spec = FleetSpec {
        shape: Shape { frames, pages, zipf, length: trace },
        classes,
        compute: seconds(compute)?,
        channel,
        quantum: quantum.map(seconds).transpose()?,
        workers,
        cpus: usable[..cpus].to_vec(),
        time: seconds(time)?,
        seed,
        corpus: Arc::new(corpus),
        hz: 0.0,
    };
    let report = py
        .detach(|| {
            let kvm = open_kvm()?;
            spec.hz = calibrate(&[])?.hz;
            run(&kvm, &spec, &backend)
        })
        .map_err(from_exit)?;
    told(py, report)
}

fn told(py: Python<'_>, r: Report) -> PyResult<Bound<'_, PyDict>> {
    let d = PyDict::new(py);
    d.set_item("creation", r.creation)?;
    d.set_item("vm_memory", r.vm_memory)?;
    d.set_item("seconds", r.seconds)?;
    d.set_item("ops", r.ops)?;
    d.set_item("cpu_ns", r.cpu_ns)?;
    d.set_item("loops", r.loops)?;
    d.set_item("latency_ns", r.latency_ns)?;
    d.set_item("interval_ns", r.interval_ns)?;
    d.set_item("verified", r.verified)?;
    d.set_item("stored_pages", r.stored.0)?;
    d.set_item("stored_slots", r.stored.1)?;
    d.set_item("stored_compressed", r.stored.2)?;
    let list = PyList::empty(py);
    for c in r.classes {
        let d = PyDict::new(py);
        d.set_item("name", c.name)?;
        d.set_item("vms", c.vms)?;
        d.set_item("held", c.held)?;
        d.set_item("over_cap_bytes", c.over_cap_bytes)?;
        d.set_item("over_cap", c.over_cap)?;
        d.set_item("no_room", c.no_room)?;
        d.set_item("missed", c.missed)?;
        d.set_item("evicted", c.evicted)?;
        d.set_item("bad", c.bad)?;
        list.append(d)?;
    }
    d.set_item("classes", list)?;
    Ok(d)
}
