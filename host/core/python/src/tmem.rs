// SPDX-License-Identifier: Apache-2.0
//! `TmemServer`: a VM's requests on a vhost-user socket.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tmem_channel::ServerConfig;
use tmem_channel::tmem::TmemServer;

use crate::channel::{policy, put_counts, stats_dict};
use crate::engine::PyEngine;
use crate::error::from_channel;
use crate::held::Held;

#[pyclass(name = "TmemServer", module = "tmem_host._core", frozen)]
pub struct PyTmemServer {
    server: Held<TmemServer>,
}

#[pymethods]
impl PyTmemServer {
    #[new]
    #[pyo3(signature = (engine, socket, *, queues = 2, poll_us = 0))]
    fn new(py: Python<'_>, engine: &PyEngine, socket: PathBuf, queues: u16, poll_us: u32) -> PyResult<Self> {
        let config = ServerConfig { socket, queues, poll: policy(poll_us) };
        let session = engine.engine().session();
        let server = py.detach(|| TmemServer::start(config, session)).map_err(from_channel)?;
        Ok(Self { server: Held::new(server) })
    }

    fn set_poll(&self, py: Python<'_>, poll_us: u32) -> PyResult<()> {
        py.detach(|| self.server.with(|s| s.set_poll(policy(poll_us))))
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.server.take().map_or(Ok(()), TmemServer::stop)).map_err(from_channel)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, pages) = self
            .server
            .with(|server| (server.stats(), server.session().counters().pages().collect::<Vec<_>>()))?;
        let d = stats_dict(py, &stats)?;
        // Pages are the engine's to count: it knows which went in place.
        put_counts(&d, pages)?;
        Ok(d)
    }
}
