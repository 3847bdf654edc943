// SPDX-License-Identifier: Apache-2.0
//! `StreamServer`: one VM's virtio-serial port.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tmem_engine::{Engine, Options, SUPPORTED};
use tmem_stream::StreamServer;

use crate::error::{core_error, from_store};
use crate::store::{PyStore, codec};

#[pyclass(name = "StreamServer", module = "tmem_host._core", frozen)]
pub struct PyStreamServer {
    server: Mutex<StreamServer>,
}

impl PyStreamServer {
    fn server(&self) -> PyResult<MutexGuard<'_, StreamServer>> {
        self.server.lock().map_err(|_| core_error("io", "the channel broke".into()))
    }
}

#[pymethods]
impl PyStreamServer {
    /// Takes `control` over, whatever comes.
    #[new]
    #[pyo3(signature = (store, vm, socket, control, *, features = SUPPORTED, codec = "lz4"))]
    fn new(
        store: &PyStore,
        vm: &str,
        socket: PathBuf,
        control: i32,
        features: u64,
        codec: &str,
    ) -> PyResult<Self> {
        if control < 0 {
            return Err(core_error("invalid", "the control side is no descriptor".into()));
        }
        // SAFETY: by the stub's contract the caller gives this descriptor away.
        let control = UnixStream::from(unsafe { OwnedFd::from_raw_fd(control) });
        let options = Options { features, codec: self::codec(codec)? };
        let engine = Engine::new(store.open()?, vm, options).map_err(from_store)?;
        let server = StreamServer::start(&engine, &socket, control)
            .map_err(|e| core_error("io", format!("cannot serve {}: {e}", socket.display())))?;
        Ok(Self { server: Mutex::new(server) })
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let server = self.server()?;
        let s = server.stats();
        let d = PyDict::new(py);
        d.set_item("state", s.state.name())?;
        d.set_item("connections", s.connections)?;
        d.set_item("requests", s.requests)?;
        d.set_item("bad_frames", s.bad_frames)?;
        d.set_item("control", s.control)?;
        d.set_item("control_dropped", s.control_dropped)?;
        d.set_item("received", s.received)?;
        d.set_item("sent", s.sent)?;
        let operations = PyDict::new(py);
        for (name, n) in server.operations() {
            operations.set_item(name, n)?;
        }
        d.set_item("operations", operations)?;
        Ok(d)
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            self.server()?.stop();
            Ok(())
        })
    }
}
