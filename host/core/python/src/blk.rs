// SPDX-License-Identifier: Apache-2.0
//! `BlkServer`: a dense pool as a vhost-user-blk device.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tmem_channel::{BlkConfig, BlkServer, GetResult, PageBackend, PutResult};
use tmem_store::{DENSE_OBJECT, Get, Handle, PAGE_SIZE, PoolId, Put};

use crate::channel::{policy, stats_dict};
use crate::error::{core_error, from_channel};
use crate::held::Held;
use crate::store::PyStore;

/// A swap pool as a block device sees it.
struct SwapPool {
    handle: Handle,
    pages: u32,
}

fn put_result(p: Put) -> PutResult {
    match p {
        Put::Stored => PutResult::Stored,
        Put::NoRoom => PutResult::NoRoom,
        Put::OverCap => PutResult::OverCap,
        Put::Frozen => PutResult::Frozen,
        Put::NoPool | Put::Lost | Put::Missing | Put::BadRange | Put::BadData => PutResult::Failed,
    }
}

impl PageBackend for SwapPool {
    fn pages(&self) -> u64 {
        u64::from(self.pages)
    }

    unsafe fn put(&self, index: u64, src: *const u8) -> PutResult {
        let Ok(index) = u32::try_from(index) else { return PutResult::Failed };
        // SAFETY: by the trait's contract.
        put_result(unsafe { self.handle.put(&DENSE_OBJECT, index, src) })
    }

    unsafe fn get(&self, index: u64, dst: *mut u8) -> GetResult {
        let Ok(index) = u32::try_from(index) else { return GetResult::Lost };
        // SAFETY: by the trait's contract.
        match unsafe { self.handle.get(&DENSE_OBJECT, index, dst) } {
            Get::Hit => GetResult::Hit,
            Get::Miss => GetResult::Miss,
            // A write of it failed, so what a disk would hold there is undefined: no zeroes.
            Get::Refused | Get::Lost | Get::NoPool | Get::BadRange => GetResult::Lost,
        }
    }

    fn write_part(&self, index: u64, offset: usize, data: &[u8]) -> PutResult {
        let Ok(index) = u32::try_from(index) else { return PutResult::Failed };
        put_result(self.handle.write_part(&DENSE_OBJECT, index, offset, data))
    }

    fn flush(&self, index: u64, count: u64) {
        let end = index.saturating_add(count).min(u64::from(self.pages));
        // The bound fits: a dense pool's indices are 32 bits.
        for index in index..end {
            self.handle.flush_page(&DENSE_OBJECT, index as u32);
        }
    }

    fn idle(&self) {
        self.handle.idle();
    }
}

#[pyclass(name = "BlkServer", module = "tmem_host._core", frozen)]
pub struct PyBlkServer {
    server: Held<BlkServer>,
}

#[pymethods]
impl PyBlkServer {
    #[new]
    #[pyo3(signature = (store, pool, socket, *, queues = 2, queue_size = 256, poll_us = 0, serial = ""))]
    #[allow(clippy::too_many_arguments)] // One keyword argument each, as Python callers see it.
    fn new(
        py: Python<'_>,
        store: &PyStore,
        pool: PoolId,
        socket: PathBuf,
        queues: u16,
        queue_size: u16,
        poll_us: u32,
        serial: &str,
    ) -> PyResult<Self> {
        let handle = store.handle(pool)?;
        let Some(pages) = handle.pool().spec.pages else {
            return Err(core_error("invalid", format!("pool {pool} is sparse: no block device")));
        };
        if handle.pool().page_size() != PAGE_SIZE {
            let message = format!("pool {pool} has no pages of {PAGE_SIZE} bytes: no block device");
            return Err(core_error("invalid", message));
        }
        let config = BlkConfig {
            socket,
            queues,
            queue_size,
            poll: policy(poll_us),
            serial: serial.into(),
            read_only: false,
        };
        let backend = Arc::new(SwapPool { handle, pages });
        let server = py.detach(|| BlkServer::start(config, backend)).map_err(from_channel)?;
        Ok(Self { server: Held::new(server) })
    }

    fn set_poll(&self, py: Python<'_>, poll_us: u32) -> PyResult<()> {
        py.detach(|| self.server.with(|s| s.set_poll(policy(poll_us))))
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.server.take().map_or(Ok(()), BlkServer::stop)).map_err(from_channel)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.server.with(|server| server.stats())?;
        stats_dict(py, &stats)
    }
}
