// SPDX-License-Identifier: Apache-2.0
//! `TmemClient`: our own driver of vhost-user-tmem, for tests and benches.

use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tmem_channel::PAGE_SIZE;
use tmem_channel::client::{BATCH_MAX, Client, DATA_MAX};

use crate::error::core_error;

#[pyclass(name = "TmemClient", module = "tmem_host._core", frozen)]
pub struct PyTmemClient {
    client: Mutex<Option<Client>>,
}

fn error(error: io::Error) -> PyErr {
    core_error("io", error.to_string())
}

impl PyTmemClient {
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut Client) -> io::Result<R> + Send,
    ) -> PyResult<R> {
        py.detach(|| match self.client.lock() {
            Ok(mut client) => match &mut *client {
                Some(client) => f(client).map_err(error),
                None => Err(core_error("invalid", "the client is closed".into())),
            },
            Err(_) => Err(core_error("io", "the client broke".into())),
        })
    }
}

#[pymethods]
impl PyTmemClient {
    #[new]
    #[pyo3(signature = (socket, *, spins = false))]
    fn new(py: Python<'_>, socket: PathBuf, spins: bool) -> PyResult<Self> {
        let client = py.detach(|| Client::connect(&socket, spins)).map_err(error)?;
        Ok(Self { client: Mutex::new(Some(client)) })
    }

    #[pyo3(signature = (message, room = None))]
    fn request<'py>(
        &self,
        py: Python<'py>,
        message: &[u8],
        room: Option<usize>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let room = room.unwrap_or(DATA_MAX as usize);
        let answer = self.with(py, |client| client.request(message, room))?;
        Ok(PyBytes::new(py, &answer))
    }

    /// Nanoseconds of each request.
    #[pyo3(signature = (pages, *, op, pool, batch, requests, start = 0))]
    #[allow(clippy::too_many_arguments)] // One keyword argument each, as Python callers see it.
    fn measure(
        &self,
        py: Python<'_>,
        pages: &[u8],
        op: &str,
        pool: u32,
        batch: u32,
        requests: u32,
        start: u32,
    ) -> PyResult<Vec<u64>> {
        let put = match op {
            "put" => true,
            "get" => false,
            _ => return Err(core_error("invalid", format!("op is put or get, not {op}"))),
        };
        let bytes = batch as usize * PAGE_SIZE;
        if !(1..=BATCH_MAX).contains(&batch) || pages.is_empty() || !pages.len().is_multiple_of(bytes) {
            return Err(core_error(
                "invalid",
                "batch is 1 to 128, and pages a multiple of so many pages".into(),
            ));
        }
        self.with(py, |client| {
            let mut times = Vec::with_capacity(requests as usize);
            let chunks = pages.len() / bytes;
            for i in 0..requests {
                let chunk = (start as usize + i as usize) % chunks;
                let index = chunk as u32 * batch;
                let ns = if put {
                    client.load(&pages[chunk * bytes..][..bytes]);
                    client.put(pool, index, batch)?
                } else {
                    client.get(pool, index, batch)?
                };
                times.push(ns);
            }
            Ok(times)
        })
    }

    fn close(&self) {
        if let Ok(mut client) = self.client.lock() {
            *client = None;
        }
    }
}
