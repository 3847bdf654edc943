// SPDX-License-Identifier: Apache-2.0
//! Micro-VMs for the benches `exit` and `density`.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tmem_exit::ExitError;
use tmem_exit::kinds::{self, Kind};
use tmem_exit::rig::Rig;
use tmem_exit::samples::Amount;
use tmem_exit::work::StoreSite;
use tmem_store::PoolId;

use crate::error::core_error;
use crate::store::{PyStore, codec};

pub fn from_exit(e: ExitError) -> PyErr {
    core_error(e.kind(), e.to_string())
}

/// Set-up of the exit bench.
#[pyclass(name = "ExitRig", module = "tmem_host._core", frozen)]
pub struct PyExitRig {
    rig: Mutex<Rig>,
}

impl PyExitRig {
    fn rig(&self) -> PyResult<MutexGuard<'_, Rig>> {
        self.rig.lock().map_err(|_| core_error("failed", "an earlier turn panicked".into()))
    }
}

#[pymethods]
impl PyExitRig {
    #[new]
    fn new(py: Python<'_>, pages: &[u8]) -> PyResult<Self> {
        let rig = py.detach(|| Rig::new(pages)).map_err(from_exit)?;
        Ok(Self { rig: Mutex::new(rig) })
    }

    fn no_kvm(&self) -> PyResult<Option<String>> {
        Ok(self.rig()?.no_kvm())
    }

    fn cpus(&self) -> PyResult<(usize, Option<usize>)> {
        Ok(self.rig()?.cpus())
    }

    fn calibration<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let rig = self.rig()?;
        let c = rig.calibration();
        let d = PyDict::new(py);
        d.set_item("hz", c.hz)?;
        d.set_item("drift_ppm", c.drift_ppm.clone())?;
        d.set_item("read_ns", c.read_ns.clone())?;
        d.set_item("loop_ns", c.loop_ns.clone())?;
        d.set_item("skew_ns", c.skew_ns)?;
        d.set_item("invariant", c.invariant)?;
        Ok(d)
    }

    fn set_store(&self, store: &PyStore, lz4: PoolId, zstd: PoolId) -> PyResult<()> {
        let site = StoreSite { lz4: store.handle(lz4)?, zstd: store.handle(zstd)? };
        if [&site.lz4, &site.zstd].iter().any(|h| h.pool().spec.pages.is_none()) {
            return Err(core_error("invalid", "the exit bench wants dense pools".into()));
        }
        self.rig()?.set_store(site);
        Ok(())
    }

    fn set_disk(&self, py: Python<'_>, path: PathBuf, pages: usize) -> PyResult<()> {
        if pages == 0 {
            return Err(core_error("invalid", "a disk file has at least one page".into()));
        }
        py.detach(|| self.rig()?.set_disk(&path, pages).map_err(from_exit))
    }

    #[pyo3(signature = (kind, work, *, n = 0, samples, warmup, seconds))]
    #[allow(clippy::too_many_arguments)] // One keyword argument each, as Python callers see it.
    fn turn<'py>(
        &self,
        py: Python<'py>,
        kind: &str,
        work: &str,
        n: u32,
        samples: usize,
        warmup: usize,
        seconds: f64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let kind = Kind::from_name(kind)
            .ok_or_else(|| core_error("invalid", format!("no kind of exit is named {kind:?}")))?;
        let time = Duration::try_from_secs_f64(seconds)
            .map_err(|_| core_error("invalid", format!("a turn cannot take {seconds} s")))?;
        if samples == 0 {
            return Err(core_error("invalid", "at least one sample must be wanted".into()));
        }
        let amount = Amount { warmup, samples, time };
        let (turn, hz) = py.detach(|| {
            let mut rig = self.rig()?;
            let turn = rig.turn(kind, work, n, amount).map_err(from_exit)?;
            Ok::<_, PyErr>((turn, rig.hz()))
        })?;
        let d = PyDict::new(py);
        d.set_item("ns", turn.samples.nanoseconds(hz))?;
        d.set_item("cpu_ns", turn.cpu_ns)?;
        d.set_item("backlog", turn.extra.backlog)?;
        Ok(d)
    }
}

/// The kinds of exit: a dict each.
#[pyfunction]
pub fn exit_kinds<'py>(py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for kind in kinds::ALL {
        let d = PyDict::new(py);
        d.set_item("name", kind.name())?;
        d.set_item("about", kind.about())?;
        d.set_item("path", kind.path().name())?;
        d.set_item("bits", kind.mode().map_or(0, |m| m.bits()))?;
        d.set_item("loops", kind.loops())?;
        d.set_item("served", kind.served())?;
        list.append(d)?;
    }
    Ok(list)
}

/// Compresses a page that changes meanwhile; counts what came of it.
#[pyfunction]
#[pyo3(signature = (pages, *, codec_name, seconds, seed))]
pub fn torn_pages<'py>(
    py: Python<'py>,
    pages: &[u8],
    codec_name: &str,
    seconds: f64,
    seed: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let codec = codec(codec_name)?;
    let time = Duration::try_from_secs_f64(seconds)
        .map_err(|_| core_error("invalid", format!("a trial cannot take {seconds} s")))?;
    let seen = py.detach(|| tmem_exit::torn::torn(codec, pages, time, seed)).map_err(from_exit)?;
    let d = PyDict::new(py);
    d.set_item("pages", seen.pages)?;
    d.set_item("undecodable", seen.undecodable)?;
    d.set_item("overruns", seen.overruns)?;
    Ok(d)
}
