// SPDX-License-Identifier: Apache-2.0
//! `tmem_host._core`: the data plane for Python. No logic lives here; every call that can take
//! longer than a lookup releases the GIL. The stub `_core.pyi` is its documentation.

mod bench;
mod blk;
mod channel;
mod client;
mod engine;
mod error;
mod exit;
mod fleet;
mod held;
mod journal;
mod measure;
mod store;
mod stream;
mod stream_client;
mod tmem;

use pyo3::prelude::*;

#[pymodule]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    journal::install();
    m.add_function(wrap_pyfunction!(journal::journal, m)?)?;
    m.add_function(wrap_pyfunction!(journal::journal_call, m)?)?;
    m.add("CoreError", m.py().get_type::<error::CoreError>())?;
    m.add_class::<store::PyStore>()?;
    m.add_class::<blk::PyBlkServer>()?;
    m.add_class::<engine::PyEngine>()?;
    m.add_class::<tmem::PyTmemServer>()?;
    m.add_class::<client::PyTmemClient>()?;
    m.add_class::<stream_client::PyStreamClient>()?;
    m.add_class::<measure::Plan>()?;
    m.add_function(wrap_pyfunction!(measure::measure_engine, m)?)?;
    m.add_function(wrap_pyfunction!(bench::bench_store, m)?)?;
    m.add_function(wrap_pyfunction!(bench::bench_codec, m)?)?;
    m.add_function(wrap_pyfunction!(bench::bench_block, m)?)?;
    m.add_class::<stream::PyStreamServer>()?;
    m.add_class::<exit::PyExitRig>()?;
    m.add_function(wrap_pyfunction!(exit::exit_kinds, m)?)?;
    m.add_function(wrap_pyfunction!(exit::torn_pages, m)?)?;
    m.add_function(wrap_pyfunction!(fleet::run_fleet, m)?)?;
    m.add_function(wrap_pyfunction!(store::worst_case_bytes, m)?)?;
    Ok(())
}
