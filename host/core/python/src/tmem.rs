// SPDX-License-Identifier: Apache-2.0
//! `TmemServer`: a VM's requests on a vhost-user socket.

use std::path::PathBuf;
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tmem_channel::ServerConfig;
use tmem_channel::tmem::TmemServer;

use crate::channel::{policy, stats_dict};
use crate::engine::PyEngine;
use crate::error::{core_error, from_channel};

#[pyclass(name = "TmemServer", module = "tmem_host._core", frozen)]
pub struct PyTmemServer {
    server: Mutex<Option<TmemServer>>,
}

impl PyTmemServer {
    fn with<R>(&self, f: impl FnOnce(&TmemServer) -> R) -> PyResult<R> {
        match self.server.lock() {
            Ok(server) => match &*server {
                Some(server) => Ok(f(server)),
                None => Err(core_error("invalid", "the channel is stopped".into())),
            },
            Err(_) => Err(core_error("io", "the channel broke".into())),
        }
    }
}

#[pymethods]
impl PyTmemServer {
    #[new]
    #[pyo3(signature = (engine, socket, *, queues = 2, poll_us = 0))]
    fn new(py: Python<'_>, engine: &PyEngine, socket: PathBuf, queues: u16, poll_us: u32) -> PyResult<Self> {
        let config = ServerConfig { socket, queues, poll: policy(poll_us) };
        let session = engine.engine().session();
        let server = py.detach(|| TmemServer::start(config, session)).map_err(from_channel)?;
        Ok(Self { server: Mutex::new(Some(server)) })
    }

    fn set_poll(&self, py: Python<'_>, poll_us: u32) -> PyResult<()> {
        py.detach(|| self.with(|s| s.set_poll(policy(poll_us))))
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let server = self.server.lock().ok().and_then(|mut s| s.take());
            server.map_or(Ok(()), TmemServer::stop)
        })
        .map_err(from_channel)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, pages) = self.with(|server| {
            let pages: Vec<_> =
                server.session().counters().snapshot().filter(|(name, _)| name.ends_with("pages")).collect();
            (server.stats(), pages)
        })?;
        let d = stats_dict(py, &stats)?;
        // Pages are the engine's to count: it knows which went in place.
        for (name, count) in pages {
            d.set_item(name.replace('-', "_"), count)?;
        }
        Ok(d)
    }
}
