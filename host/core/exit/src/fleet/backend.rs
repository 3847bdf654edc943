// SPDX-License-Identifier: Apache-2.0
//! Where a guest's page goes, and where it comes from.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tmem_store::pool::{Pool, Vm};
use tmem_store::{DENSE_OBJECT, Get, Handle, NO_CAP, PoolSpec, Put, Store};

use crate::error::{ExitError, Result};
use crate::work::transfer;

/// VMs of one kind in a fleet: how the store treats them.
#[derive(Debug, Clone)]
pub struct Class {
    /// For results.
    pub name: String,
    /// How many.
    pub vms: usize,
    /// Pages stay until flushed; else they may vanish.
    pub persistent: bool,
    /// Bytes promised to each.
    pub reservation: u64,
    /// Bytes none of them ever holds more than.
    pub cap: Option<u64>,
    /// Share of ephemeral memory.
    pub weight: u32,
}

/// Where the pages of a fleet go.
pub enum BackendSpec {
    /// One store, a VM and a pool in it for each guest.
    Store(Arc<Store>),
    /// One file on a disk, opened with O_DIRECT, a region of it for each guest.
    Disk(PathBuf),
}

/// Where the pages of one guest go.
pub enum Backend {
    /// Its pool.
    Store(Handle),
    /// Its region: the file, and the first page of it.
    Disk(Arc<File>, usize),
}

/// What came of a page-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is there.
    Yes,
    /// The VM holds all that it may.
    OverCap,
    /// There is no room for it.
    NoRoom,
}

impl Backend {
    /// # Safety
    /// `page` is valid for reads of a page.
    pub unsafe fn put(&self, index: u32, page: *mut u8) -> std::result::Result<Kept, String> {
        match self {
            // SAFETY: by the caller.
            Self::Store(handle) => match unsafe { handle.put(&DENSE_OBJECT, index, page) } {
                Put::Stored => Ok(Kept::Yes),
                Put::OverCap => Ok(Kept::OverCap),
                Put::NoRoom => Ok(Kept::NoRoom),
                other => Err(format!("put of page {index} answered {other:?}")),
            },
            Self::Disk(file, first) => {
                transfer(file, page, first + index as usize, true)
                    .map_err(|e| format!("the disk file: {e}"))?;
                Ok(Kept::Yes)
            }
        }
    }

    /// False: it is not there.
    ///
    /// # Safety
    /// `frame` is valid for writes of a page.
    pub unsafe fn get(&self, index: u32, frame: *mut u8) -> std::result::Result<bool, String> {
        match self {
            // SAFETY: by the caller.
            Self::Store(handle) => match unsafe { handle.get(&DENSE_OBJECT, index, frame) } {
                Get::Hit => Ok(true),
                Get::Miss | Get::Refused => Ok(false),
                other => Err(format!("get of page {index} answered {other:?}")),
            },
            Self::Disk(file, first) => {
                transfer(file, frame, first + index as usize, false)
                    .map_err(|e| format!("the disk file: {e}"))?;
                Ok(true)
            }
        }
    }

    /// The VM and the pool of the store, if it is one.
    pub fn of_store(&self) -> Option<(&Arc<Vm>, &Arc<Pool>)> {
        match self {
            Self::Store(handle) => Some((handle.vm(), handle.pool())),
            Self::Disk(..) => None,
        }
    }
}

/// A backend for each guest, in the order of the classes.
///
/// # Errors
/// The store is too small for the promises, or the file cannot be opened.
pub fn backends(spec: &BackendSpec, classes: &[Class], pages: u32) -> Result<Vec<Backend>> {
    let all = classes.iter().flat_map(|c| std::iter::repeat_n(c, c.vms)).enumerate();
    match spec {
        BackendSpec::Store(store) => all.map(|(i, class)| pool(store, i, class, pages)).collect(),
        BackendSpec::Disk(path) => {
            let file = Arc::new(open(path)?);
            Ok(all.map(|(i, _)| Backend::Disk(file.clone(), i * pages as usize)).collect())
        }
    }
}

fn pool(store: &Store, i: usize, class: &Class, pages: u32) -> Result<Backend> {
    let failed = |e: tmem_store::StoreError| ExitError::Failed(format!("the store: {e}"));
    let vm = store
        .vm_create(&format!("micro-{i}"), class.reservation, class.cap.unwrap_or(NO_CAP), class.weight)
        .map_err(failed)?;
    // A swap disk's pool is dense; what may vanish is a cache, and its pool sparse.
    let spec = if class.persistent { PoolSpec::dense(pages) } else { PoolSpec::sparse(false) };
    let pool = store.pool_create(vm, spec).map_err(failed)?;
    store.handle(vm, pool).map(Backend::Store).map_err(failed)
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(ExitError::io(format!("cannot open {}", path.display())))
}
