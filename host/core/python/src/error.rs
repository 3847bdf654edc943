// SPDX-License-Identifier: Apache-2.0
//! One exception, with a `kind` for programs.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use tmem_channel::ChannelError;
use tmem_store::StoreError;

pyo3::create_exception!(_core, CoreError, PyException, "One line, and `kind`: see the stub.");

/// The exception of that kind.
pub fn core_error(kind: &str, message: String) -> PyErr {
    Python::attach(|py| {
        let e = CoreError::new_err(message);
        match e.value(py).setattr("kind", kind) {
            Ok(()) => e,
            Err(other) => other,
        }
    })
}

pub fn from_io(e: std::io::Error) -> PyErr {
    core_error("io", e.to_string())
}

pub fn from_store(e: StoreError) -> PyErr {
    core_error(e.kind(), e.to_string())
}

pub fn from_channel(e: ChannelError) -> PyErr {
    let kind = match &e {
        ChannelError::SocketInUse(_) => "socket-in-use",
        ChannelError::NotASocket(_) => "exists",
        ChannelError::PathTooLong(_) | ChannelError::Invalid(_) => "invalid",
        ChannelError::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::PermissionDenied => "permission",
            std::io::ErrorKind::NotFound => "not-found",
            std::io::ErrorKind::StorageFull => "no-space",
            _ => "io",
        },
        ChannelError::Panicked => "io",
    };
    core_error(kind, e.to_string())
}
