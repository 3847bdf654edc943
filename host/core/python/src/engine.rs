// SPDX-License-Identifier: Apache-2.0
//! `Engine`: requests of a VM as bytes, for tests and for channels that Python serves.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use tmem_engine::{Engine, Options, REPLY_MAX, REPLY_SIZE, SUPPORTED, Scratch, Session};
use tmem_store::PoolId;

use crate::error::{core_error, from_store};
use crate::store::{PyStore, codec};

struct Buffers {
    scratch: Scratch,
    reply: Vec<u8>,
}

/// One channel of a VM.
#[pyclass(name = "Engine", module = "tmem_host._core", frozen)]
pub struct PyEngine {
    session: Session,
    /// Requests of one channel are served one after the other.
    buffers: Mutex<Buffers>,
}

impl PyEngine {
    fn over(session: Session) -> Self {
        Self { session, buffers: Mutex::new(Buffers { scratch: Scratch::new(), reply: Vec::new() }) }
    }

    /// The VM.
    pub fn engine(&self) -> &Arc<Engine> {
        self.session.engine()
    }
}

#[pymethods]
impl PyEngine {
    #[new]
    #[pyo3(signature = (store, vm, *, features = SUPPORTED, codec = "lz4", hidden = None))]
    fn new(store: &PyStore, vm: &str, features: u64, codec: &str, hidden: Option<PoolId>) -> PyResult<Self> {
        let options = Options { features, codec: self::codec(codec)? };
        let engine = Engine::new(store.open()?, vm, options).map_err(from_store)?;
        if let Some(pool) = hidden {
            engine.hide(pool);
        }
        Ok(Self::over(engine.session()))
    }

    /// Another channel of the same VM.
    fn channel(&self) -> Self {
        Self::over(self.session.engine().session())
    }

    #[getter]
    fn features(&self) -> u64 {
        self.session.engine().features()
    }

    fn lose(&self, every: u32) {
        self.engine().faults().lose_every(every);
    }

    fn reset(&self) {
        self.session.reset();
    }

    #[pyo3(signature = (message, room = None))]
    fn request<'py>(
        &self,
        py: Python<'py>,
        message: &[u8],
        room: Option<usize>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let room = room.map_or(REPLY_MAX, |r| r.min(REPLY_MAX - REPLY_SIZE) + REPLY_SIZE);
        let mut guard = self.buffers.lock().map_err(|_| core_error("io", "the channel is broken".into()))?;
        let buffers = &mut *guard;
        if buffers.reply.len() < room {
            buffers.reply.resize(room, 0);
        }
        let Buffers { scratch, reply } = buffers;
        let n = py.detach(|| self.session.answer(message, &mut reply[..room], scratch));
        Ok(PyBytes::new(py, &buffers.reply[..n.unwrap_or(0)]))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let d = PyDict::new(py);
        for (name, value) in self.session.counters().snapshot() {
            d.set_item(name, value)?;
        }
        d.set_item("injected", self.engine().faults().injected())?;
        Ok(d)
    }
}
