// SPDX-License-Identifier: Apache-2.0
//! `Store`: control operations, and single-page ones for tests and small tools.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use tmem_store::pool::{Pool, Vm};
use tmem_store::stats::{BUCKETS, Counters, Histogram};
use tmem_store::{
    Codec, Get, Handle, NO_CAP, ObjectId, PAGE_MAX, PAGE_SIZE, PoolId, PoolSpec, Put, QuotaChange, Saved,
    Store, StoreError, StoreOptions,
};

use crate::error::{core_error, from_store};

/// The store, until it is closed.
#[pyclass(name = "Store", module = "tmem_host._core", frozen)]
pub struct PyStore {
    store: RwLock<Option<Arc<Store>>>,
}

/// Bytes of slots that a dense pool of `pages` pages can need at worst.
#[pyfunction]
#[pyo3(signature = (pages, page_size = PAGE_SIZE))]
pub fn worst_case_bytes(pages: u64, page_size: usize) -> PyResult<u64> {
    if !page_size.is_power_of_two() || !(PAGE_SIZE..=PAGE_MAX).contains(&page_size) {
        return Err(core_error("invalid", format!("no pool has pages of {page_size} bytes")));
    }
    Ok(tmem_store::worst_case_bytes_of(pages, page_size))
}

pub fn codec(name: &str) -> PyResult<Codec> {
    Codec::from_name(name)
        .ok_or_else(|| core_error("invalid", format!("no codec is named {name:?}: lz4, zstd, none")))
}

fn object(bytes: &[u8]) -> PyResult<ObjectId> {
    let bytes: &[u8; 24] = bytes
        .try_into()
        .map_err(|_| core_error("invalid", format!("an object id has 24 bytes, not {}", bytes.len())))?;
    let mut o = [0; 3];
    for (word, chunk) in o.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut w = [0; 8];
        w.copy_from_slice(chunk);
        *word = u64::from_le_bytes(w);
    }
    Ok(o)
}

impl PyStore {
    /// The open store.
    pub fn open(&self) -> PyResult<Arc<Store>> {
        self.store
            .read()
            .ok()
            .and_then(|s| s.clone())
            .ok_or_else(|| core_error("invalid", "the store is closed".into()))
    }

    /// The handle of a pool for the first VM that uses it.
    pub fn handle(&self, pool: PoolId) -> PyResult<Handle> {
        let store = self.open()?;
        let vm = store.pool(pool).map_err(from_store)?.members.lock().first().copied();
        let vm = vm.ok_or_else(|| core_error("not-found", format!("pool {pool} has no VM")))?;
        store.handle(vm, pool).map_err(from_store)
    }
}

#[pymethods]
impl PyStore {
    #[new]
    #[pyo3(signature = (path, *, limit_bytes, accept_loss = false))]
    fn new(py: Python<'_>, path: PathBuf, limit_bytes: u64, accept_loss: bool) -> PyResult<Self> {
        let options = StoreOptions { limit: limit_bytes, accept_loss, maintenance: true };
        let store = py.detach(|| Store::open(&path, options)).map_err(from_store)?;
        Ok(Self { store: RwLock::new(Some(Arc::new(store))) })
    }

    fn recovery<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let store = self.open()?;
        let r = store.recovery();
        let d = PyDict::new(py);
        d.set_item("fresh", r.fresh)?;
        d.set_item("pages", r.pages)?;
        d.set_item("lost_pages", r.lost_pages)?;
        d.set_item("unreadable", r.unreadable)?;
        d.set_item("leftovers", r.leftovers)?;
        d.set_item("broken_entries", r.broken_entries)?;
        let damaged: Vec<_> = store.pools().iter().filter(|p| p.damaged()).map(|p| p.id).collect();
        d.set_item("damaged_pools", damaged)?;
        d.set_item("seconds", r.seconds)?;
        Ok(d)
    }

    #[pyo3(signature = (name, *, reservation = 0, cap = None, weight = 100))]
    fn vm_create(&self, name: &str, reservation: u64, cap: Option<u64>, weight: u32) -> PyResult<()> {
        self.open()?.vm_create(name, reservation, cap.unwrap_or(NO_CAP), weight).map(drop).map_err(from_store)
    }

    /// `cap`: 0 takes it away. `promise`: added to the reservation.
    #[pyo3(signature = (name, *, reservation = None, cap = None, weight = None, promise = 0))]
    fn vm_set(
        &self,
        name: &str,
        reservation: Option<u64>,
        cap: Option<u64>,
        weight: Option<u32>,
        promise: i64,
    ) -> PyResult<()> {
        let cap = cap.map(|c| if c == 0 { NO_CAP } else { c });
        self.open()?.vm_set(name, QuotaChange { reservation, promise, cap, weight }).map_err(from_store)
    }

    fn vm_remove(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let store = self.open()?;
        py.detach(|| store.vm_remove(name)).map_err(from_store)
    }

    fn vms<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let store = self.open()?;
        let list = PyList::empty(py);
        let pools = store.pools();
        for vm in store.vms() {
            list.append(vm_dict(py, &vm, &pools)?)?;
        }
        Ok(list)
    }

    fn freeze(&self, name: &str) -> PyResult<()> {
        self.open()?.vm_freeze(name, true).map_err(from_store)
    }

    fn thaw(&self, name: &str) -> PyResult<()> {
        self.open()?.vm_freeze(name, false).map_err(from_store)
    }

    /// Allows a VM to make or join the shared pool of that uuid (16 bytes), or no longer.
    fn shared_authorise(&self, name: &str, uuid: &[u8], allow: bool) -> PyResult<()> {
        let uuid = <[u8; 16]>::try_from(uuid)
            .map_err(|_| core_error("invalid", format!("a uuid has 16 bytes, not {}", uuid.len())))?;
        self.open()?.shared_authorise(name, uuid, allow).map_err(from_store)
    }

    #[pyo3(signature = (
        vm, *, persistent, shared = false, uuid = None, pages = None, codec = "lz4", page_size = PAGE_SIZE as u32,
        packed = false,
    ))]
    #[allow(clippy::too_many_arguments)] // One keyword argument each, as Python callers see it.
    fn pool_create(
        &self,
        vm: &str,
        persistent: bool,
        shared: bool,
        uuid: Option<&[u8]>,
        pages: Option<u32>,
        codec: &str,
        page_size: u32,
        packed: bool,
    ) -> PyResult<PoolId> {
        let shared = match (shared, uuid.map(<[u8; 16]>::try_from)) {
            (false, None) => None,
            (true, Some(Ok(uuid))) => Some(uuid),
            _ => {
                return Err(core_error(
                    "invalid",
                    "a shared pool has a uuid of 16 bytes, a private one has none".into(),
                ));
            }
        };
        let codec = crate::store::codec(codec)?;
        let store = self.open()?;
        let vm = store.vm(vm).map_err(from_store)?;
        let spec = PoolSpec { shared, pages, codec, page_size, packed, ..PoolSpec::sparse(persistent) };
        store.pool_create(vm.id, spec).map_err(from_store)
    }

    /// A shared pool loses a member, the first unless one is named, and goes with its last.
    #[pyo3(signature = (pool, *, vm = None))]
    fn pool_destroy(&self, py: Python<'_>, pool: PoolId, vm: Option<&str>) -> PyResult<()> {
        let store = self.open()?;
        let vm = match vm {
            Some(name) => Some(store.vm(name).map_err(from_store)?.id),
            None => store.pool(pool).map_err(from_store)?.members.lock().first().copied(),
        };
        let vm = vm.ok_or_else(|| core_error("not-found", format!("pool {pool} has no VM")))?;
        py.detach(|| store.pool_destroy(vm, pool)).map_err(from_store)
    }

    fn pool_flush(&self, py: Python<'_>, pool: PoolId) -> PyResult<u64> {
        let store = self.open()?;
        py.detach(|| store.pool_flush(pool)).map_err(from_store)
    }

    /// Writes a pool to a new file, durably. With `freeze` its VM is frozen while the last changes are written.
    #[pyo3(signature = (pool, path, *, passes = 4, freeze = false))]
    fn pool_save<'py>(
        &self,
        py: Python<'py>,
        pool: PoolId,
        path: PathBuf,
        passes: u32,
        freeze: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (store, handle) = (self.open()?, self.handle(pool)?);
        let saved = py.detach(|| save_to(&store, &handle, &path, passes, freeze)).map_err(from_store)?;
        saved_dict(py, &saved)
    }

    /// Puts what [`Self::pool_save`] wrote into an empty pool: all of it, or nothing.
    fn pool_restore<'py>(
        &self,
        py: Python<'py>,
        pool: PoolId,
        path: PathBuf,
    ) -> PyResult<Bound<'py, PyDict>> {
        let handle = self.handle(pool)?;
        let io = |source| StoreError::Io { what: format!("{} cannot be read", path.display()), source };
        let saved = py.detach(|| {
            let file = File::open(&path).map_err(io)?;
            handle.restore(&mut BufReader::with_capacity(1 << 20, file))
        });
        saved_dict(py, &saved.map_err(from_store)?)
    }

    fn pool_set_codec(&self, pool: PoolId, codec: &str) -> PyResult<()> {
        let codec = crate::store::codec(codec)?;
        self.open()?.pool_set_codec(pool, codec).map_err(from_store)
    }

    fn pools<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let store = self.open()?;
        let vms = store.vms();
        let list = PyList::empty(py);
        for pool in store.pools() {
            list.append(pool_dict(py, &pool, &vms)?)?;
        }
        Ok(list)
    }

    fn put(&self, py: Python<'_>, pool: PoolId, obj: &[u8], index: u32, page: &[u8]) -> PyResult<&str> {
        let (handle, object) = (self.handle(pool)?, object(obj)?);
        let size = handle.pool().page_size();
        if page.len() != size {
            return Err(core_error("invalid", format!("a page has {size} bytes, not {}", page.len())));
        }
        let src = page.as_ptr() as usize;
        // SAFETY: `page` is borrowed for the whole call and is as long as a page of the pool.
        match py.detach(|| unsafe { handle.put(&object, index, src as *const u8) }) {
            Put::Stored => Ok("stored"),
            Put::NoRoom => Ok("no-room"),
            Put::OverCap => Ok("over-cap"),
            Put::Frozen => Ok("frozen"),
            Put::NoPool | Put::Missing | Put::BadRange | Put::BadData => Err(no_index(pool, index)),
            Put::Lost => Err(core_error("lost", "the page is lost".into())),
        }
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        pool: PoolId,
        obj: &[u8],
        index: u32,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let (handle, object) = (self.handle(pool)?, object(obj)?);
        let mut page = vec![0u8; handle.pool().page_size()];
        let dst = page.as_mut_ptr() as usize;
        // SAFETY: `page` is ours and as long as a page of the pool.
        match py.detach(|| unsafe { handle.get(&object, index, dst as *mut u8) }) {
            Get::Hit => Ok(Some(PyBytes::new(py, &page))),
            Get::Miss | Get::Refused => Ok(None),
            Get::NoPool | Get::BadRange => Err(no_index(pool, index)),
            Get::Lost => Err(core_error("lost", format!("page {index} of pool {pool} is lost"))),
        }
    }

    fn flush_page(&self, pool: PoolId, obj: &[u8], index: u32) -> PyResult<bool> {
        Ok(self.handle(pool)?.flush_page(&object(obj)?, index))
    }

    fn flush_object(&self, py: Python<'_>, pool: PoolId, obj: &[u8]) -> PyResult<u64> {
        let (handle, object) = (self.handle(pool)?, object(obj)?);
        Ok(py.detach(|| handle.flush_object(&object)))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let store = self.open()?;
        let t = py.detach(|| store.totals());
        let d = PyDict::new(py);
        d.set_item("path", store.path())?;
        d.set_item("uuid", hex(&store.uuid()))?;
        d.set_item("limit_bytes", t.limit)?;
        d.set_item("free_bytes", t.free)?;
        d.set_item("held_bytes", t.file + t.index)?;
        d.set_item("arena_bytes", t.arena)?;
        d.set_item("file_bytes", t.file)?;
        d.set_item("index_bytes", t.index)?;
        d.set_item("metadata_bytes", t.file.saturating_sub(t.arena))?;
        d.set_item("slot_bytes", t.slots)?;
        d.set_item("compressed_bytes", t.compressed)?;
        d.set_item("freeable_bytes", t.freeable)?;
        d.set_item("pages", t.pages)?;
        d.set_item("reserved_bytes", t.reserved)?;
        d.set_item("available_bytes", t.available)?;
        Ok(d)
    }

    fn maintain(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.open()?;
        py.detach(|| store.maintain());
        Ok(())
    }

    fn close(&self, py: Python<'_>) {
        let store = self.store.write().ok().and_then(|mut s| s.take());
        py.detach(|| drop(store));
    }
}

fn no_index(pool: PoolId, index: u32) -> PyErr {
    core_error("not-found", format!("pool {pool} is gone or has no index {index}"))
}

fn save_to(
    store: &Store,
    handle: &Handle,
    path: &Path,
    passes: u32,
    freeze: bool,
) -> tmem_store::Result<Saved> {
    let io = |source| StoreError::Io { what: format!("{} cannot be written", path.display()), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let vm = handle.vm();
    let freeze = freeze && !vm.account.frozen();
    let last = || if freeze { store.vm_freeze(&vm.name, true) } else { Ok(()) };
    let saved = handle.save(&mut out, passes, last);
    if freeze {
        store.vm_freeze(&vm.name, false)?;
    }
    let saved = saved?;
    out.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
    Ok(saved)
}

fn saved_dict<'py>(py: Python<'py>, saved: &Saved) -> PyResult<Bound<'py, PyDict>> {
    let d = PyDict::new(py);
    d.set_item("pages", saved.left)?;
    d.set_item("records", saved.pages + saved.gone)?;
    d.set_item("passes", saved.passes)?;
    Ok(d)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn counters_dict<'py>(py: Python<'py>, pools: &[&Pool], retired: &Counters) -> PyResult<Bound<'py, PyDict>> {
    let sum = Counters::default();
    sum.add(retired);
    for pool in pools {
        sum.add(&pool.counters);
    }
    let d = PyDict::new(py);
    let relaxed = Ordering::Relaxed;
    let gets = [&sum.hits, &sum.misses, &sum.lost].map(|c| c.load(relaxed));
    d.set_item("gets", gets.iter().sum::<u64>())?;
    for (name, value) in sum.snapshot() {
        d.set_item(name, value)?;
    }
    Ok(d)
}

fn vm_dict<'py>(py: Python<'py>, vm: &Vm, pools: &[Arc<Pool>]) -> PyResult<Bound<'py, PyDict>> {
    let mine: Vec<&Pool> = pools.iter().filter(|p| p.members.lock().contains(&vm.id)).map(|p| &**p).collect();
    let private = || mine.iter().filter(|p| p.spec.shared.is_none());
    let sum = |f: fn(&Pool) -> u64| private().map(|p| f(p)).sum::<u64>();
    let d = PyDict::new(py);
    d.set_item("name", &vm.name)?;
    d.set_item("reservation", vm.account.reservation())?;
    let cap = vm.account.cap();
    d.set_item("cap", (cap != NO_CAP).then_some(cap))?;
    d.set_item("weight", vm.account.weight())?;
    d.set_item("frozen", vm.account.frozen())?;
    d.set_item("held_bytes", vm.account.held())?;
    d.set_item("freeable_bytes", vm.account.freeable())?;
    d.set_item("authorised", vm.authorised().iter().map(|u| hex(u)).collect::<Vec<_>>())?;
    d.set_item("compressed_bytes", sum(|p| p.holding.compressed.load(Ordering::Relaxed)))?;
    d.set_item("pages", sum(|p| p.holding.pages.load(Ordering::Relaxed)))?;
    d.set_item("pools", mine.iter().map(|p| p.id).collect::<Vec<_>>())?;
    d.set_item("counters", counters_dict(py, &mine, &vm.retired)?)?;
    Ok(d)
}

fn pool_dict<'py>(py: Python<'py>, pool: &Pool, vms: &[Arc<Vm>]) -> PyResult<Bound<'py, PyDict>> {
    let members = pool.members.lock().clone();
    let names: Vec<_> = vms.iter().filter(|v| members.contains(&v.id)).map(|v| v.name.as_str()).collect();
    let h = &pool.holding;
    let d = PyDict::new(py);
    d.set_item("id", pool.id)?;
    d.set_item("vm", names.first().copied().unwrap_or(""))?;
    d.set_item("members", names)?;
    d.set_item("persistent", pool.spec.persistent)?;
    d.set_item("shared", pool.spec.shared.is_some())?;
    d.set_item("uuid", pool.spec.shared.map(|u| hex(&u)))?;
    d.set_item("name", pool.spec.name.map(|u| hex(&u)))?;
    d.set_item("pages_capacity", pool.spec.pages)?;
    d.set_item("codec", pool.codec().name())?;
    d.set_item("page_size", pool.page_size())?;
    d.set_item("packed", pool.spec.packed)?;
    d.set_item("damaged", pool.damaged())?;
    d.set_item("pages", h.pages.load(Ordering::Relaxed))?;
    d.set_item("compressed_bytes", h.compressed.load(Ordering::Relaxed))?;
    d.set_item("held_bytes", h.slots.load(Ordering::Relaxed))?;
    d.set_item("same_filled", h.same_filled.load(Ordering::Relaxed))?;
    d.set_item("raw", h.raw.load(Ordering::Relaxed))?;
    d.set_item("index_bytes", pool.index_bytes())?;
    d.set_item("counters", counters_dict(py, &[pool], &Counters::default())?)?;
    let latency = PyDict::new(py);
    for (name, histogram) in
        [("put", &pool.latencies.put), ("get", &pool.latencies.get), ("flush", &pool.latencies.flush)]
    {
        latency.set_item(name, histogram_dict(py, histogram)?)?;
    }
    d.set_item("latency", latency)?;
    Ok(d)
}

fn histogram_dict<'py>(py: Python<'py>, h: &Histogram) -> PyResult<Bound<'py, PyDict>> {
    let d = PyDict::new(py);
    d.set_item("bucket_ns", (0..BUCKETS).map(|i| 1u64 << i).collect::<Vec<_>>())?;
    d.set_item("count", h.snapshot().to_vec())?;
    d.set_item("sum_ns", h.sum())?;
    Ok(d)
}
