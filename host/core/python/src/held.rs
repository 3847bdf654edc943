// SPDX-License-Identifier: Apache-2.0
//! A server that Python holds, and may have stopped.

use std::sync::Mutex;

use pyo3::prelude::*;

use crate::error::core_error;

/// A server, until [`Held::take`].
pub struct Held<S>(Mutex<Option<S>>);

impl<S> Held<S> {
    pub fn new(server: S) -> Self {
        Self(Mutex::new(Some(server)))
    }

    /// What `f` makes of it; an error when it is stopped.
    pub fn with<R>(&self, f: impl FnOnce(&S) -> R) -> PyResult<R> {
        match self.0.lock() {
            Ok(server) => match &*server {
                Some(server) => Ok(f(server)),
                None => Err(core_error("invalid", "the channel is stopped".into())),
            },
            Err(_) => Err(core_error("io", "the channel broke".into())),
        }
    }

    /// Takes it away, to be stopped where nobody waits for the lock; `None` when somebody did.
    pub fn take(&self) -> Option<S> {
        self.0.lock().ok().and_then(|mut server| server.take())
    }
}
