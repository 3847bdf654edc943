// SPDX-License-Identifier: Apache-2.0
//! `TmemClient`: our own driver of vhost-user-tmem, for tests and benches.

use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tmem_channel::client::{Client, DATA_MAX};

use crate::error::{core_error, from_io};
use crate::measure::{Carrier, Plan};

impl Carrier for Client {
    fn ask(&mut self, head: &[u8], data: &[u8], room: usize) -> io::Result<(u64, u32)> {
        self.timed(head, data, room)
    }
}

#[pyclass(name = "TmemClient", module = "tmem_host._core", frozen)]
pub struct PyTmemClient {
    client: Mutex<Option<Client>>,
}

impl PyTmemClient {
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut Client) -> io::Result<R> + Send,
    ) -> PyResult<R> {
        py.detach(|| match self.client.lock() {
            Ok(mut client) => match &mut *client {
                Some(client) => f(client).map_err(from_io),
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
        let client = py.detach(|| Client::connect(&socket, spins)).map_err(from_io)?;
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
    fn measure(&self, py: Python<'_>, pages: &[u8], plan: &Plan) -> PyResult<Vec<u64>> {
        plan.check(pages)?;
        self.with(py, |client| plan.run(pages, client))
    }

    fn close(&self) {
        if let Ok(mut client) = self.client.lock() {
            *client = None;
        }
    }
}
