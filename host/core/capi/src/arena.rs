// SPDX-License-Identifier: Apache-2.0
//! Arenas that this process has open: of one device, or shared by several.
//!
//! Devices that share an arena and name one VM are channels of that VM; those that name others are its neighbours, which
//! a shared pool can be common to.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tmem_engine::{Engine, Options};
use tmem_store::{NO_CAP, Result, Store, StoreError, StoreOptions};

/// A new VM's share of what the arena has for ephemeral pages.
const WEIGHT: u32 = 100;

/// How a device has its arena.
#[derive(Debug, Clone, Copy)]
pub struct DeviceOptions {
    /// What the VMs of the arena may hold, bytes.
    pub limit: u64,
    /// What HELLO may agree on, of what there is.
    pub features: u64,
    /// Whether other devices of this process may have the arena too, and other VMs pages in it.
    pub share: bool,
}

/// An open arena, and the engines of the VMs that devices have in it.
pub struct Arena {
    store: Arc<Store>,
    engines: Mutex<HashMap<String, Weak<Engine>>>,
}

/// Those that are shared, by their files.
static SHARED: Mutex<Vec<(PathBuf, Weak<Arena>)>> = Mutex::new(Vec::new());

impl Arena {
    /// Opens the arena, or makes it, or finds it among those of this process.
    ///
    /// # Errors
    /// As [`Store::open`]; it is another VM's and is not to be shared; it is open with another limit.
    pub fn open(path: &Path, vm: &str, options: DeviceOptions) -> Result<Arc<Self>> {
        if !options.share {
            let arena = Self::make(path, options.limit)?;
            if let Some(other) = arena.store.vms().iter().find(|v| v.name != vm) {
                return Err(StoreError::Invalid(format!(
                    "the arena {} has pages of a VM named {}: share it, or give {vm} another",
                    path.display(),
                    other.name
                )));
            }
            return Ok(Arc::new(arena));
        }
        let file = file_of(path)?;
        // Held until it is open: who comes second finds it.
        let mut shared = SHARED.lock();
        shared.retain(|(_, arena)| arena.strong_count() > 0);
        let known = shared.iter().find(|(at, _)| *at == file).and_then(|(_, arena)| arena.upgrade());
        if let Some(arena) = known {
            let limit = arena.store.totals().limit;
            if limit != options.limit {
                return Err(StoreError::Invalid(format!(
                    "the arena {} is open with a limit of {limit} bytes, not {}",
                    path.display(),
                    options.limit
                )));
            }
            return Ok(arena);
        }
        let arena = Arc::new(Self::make(path, options.limit)?);
        shared.push((file, Arc::downgrade(&arena)));
        Ok(arena)
    }

    fn make(path: &Path, limit: u64) -> Result<Self> {
        let options = StoreOptions { limit, accept_loss: false, maintenance: true };
        let store = Arc::new(Store::open(path, options)?);
        Ok(Self { store, engines: Mutex::default() })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The VM's engine, one for all its devices, as its pools are the VM's; makes the VM if need be.
    ///
    /// # Errors
    /// The VM cannot be made; another device of it offers other features.
    pub fn engine(&self, vm: &str, features: u64) -> Result<Arc<Engine>> {
        let mut engines = self.engines.lock();
        let options = Options { features, ..Options::default() };
        if let Some(engine) = engines.get(vm).and_then(Weak::upgrade) {
            if engine.features() != options.offered() {
                return Err(StoreError::Invalid(format!(
                    "another device of the VM {vm} offers the features {:#x}, this one {:#x}",
                    engine.features(),
                    options.offered()
                )));
            }
            return Ok(engine);
        }
        if self.store.vm(vm).is_err() {
            self.store.vm_create(vm, 0, NO_CAP, WEIGHT)?;
        }
        let engine = Engine::new(self.store.clone(), vm, options)?;
        engines.insert(vm.into(), Arc::downgrade(&engine));
        Ok(engine)
    }
}

/// The file by the one name that all ways to its folder lead to; it need not be there yet.
fn file_of(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        StoreError::Invalid(format!("{} is no name of a file for an arena", path.display()))
    })?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match folder.canonicalize() {
        Ok(folder) => Ok(folder.join(name)),
        Err(e) => Err(StoreError::Invalid(format!("the folder {}: {e}", folder.display()))),
    }
}
