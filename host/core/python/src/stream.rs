// SPDX-License-Identifier: Apache-2.0
//! `StreamServer`: one VM's virtio-serial port.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tmem_stream::StreamServer;

use crate::channel::put_counts;
use crate::engine::PyEngine;
use crate::error::core_error;
use crate::held::Held;

#[pyclass(name = "StreamServer", module = "tmem_host._core", frozen)]
pub struct PyStreamServer {
    server: Held<StreamServer>,
}

#[pymethods]
impl PyStreamServer {
    /// Takes `control` over, whatever comes.
    #[new]
    fn new(engine: &PyEngine, socket: PathBuf, control: i32) -> PyResult<Self> {
        if control < 0 {
            return Err(core_error("invalid", "the control side is no descriptor".into()));
        }
        // SAFETY: by the stub's contract the caller gives this descriptor away.
        let control = UnixStream::from(unsafe { OwnedFd::from_raw_fd(control) });
        let server = StreamServer::start(engine.engine(), &socket, control)
            .map_err(|e| core_error("io", format!("cannot serve {}: {e}", socket.display())))?;
        Ok(Self { server: Held::new(server) })
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = |counts: Vec<_>| {
            let d = PyDict::new(py);
            put_counts(&d, counts).map(|()| d)
        };
        self.server.with(|server| {
            let (s, counters) = (server.stats(), server.session().counters());
            let d = PyDict::new(py);
            d.set_item("state", s.state.name())?;
            d.set_item("requests", dict(counters.operations().collect())?)?;
            let refused = counters.answers().filter(|(name, _)| *name != "ok").collect();
            d.set_item("refused", dict(refused)?)?;
            let malformed = (s.bad_frames > 0).then_some(("no-frame", s.bad_frames));
            d.set_item("malformed", dict(malformed.into_iter().collect())?)?;
            put_counts(&d, counters.pages())?;
            d.set_item("connections", s.connections)?;
            d.set_item("control", s.control)?;
            d.set_item("control_dropped", s.control_dropped)?;
            d.set_item("received", s.received)?;
            d.set_item("sent", s.sent)?;
            Ok(d)
        })?
    }

    fn stop(&self, py: Python<'_>) {
        // Dropping it waits for the request that is being served.
        py.detach(|| drop(self.server.take()));
    }
}
