// SPDX-License-Identifier: Apache-2.0
//! The store: VMs, pools, and what may be set on them. Pages are in [`crate::ops`].

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::alloc::Allocator;
use crate::arena::Arena;
use crate::classes::CLASSES;
use crate::codec::{PAGE_SIZE, UNIT_MAX};
use crate::error::{Result, StoreError};
use crate::layout::{BLOCK_SIZE, HEADER, HEADER_SPARSE};
use crate::pool::{Pool, PoolId, Vm, VmId};
use crate::quota::{Account, Budget};
use crate::recover::{self, Recovery};
use crate::stats;
use crate::tables::{self, VmRecord};
use crate::units;

/// How a store is opened.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// Bytes of slots that all VMs together may hold.
    pub limit: u64,
    /// Take a truncated arena as it is: its pages in the missing part are lost.
    pub accept_loss: bool,
    /// Run a thread that punches empty blocks and compacts sparse ones.
    pub maintenance: bool,
}

/// Quota of a VM, bytes of slots. `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuotaChange {
    /// Promised: a put below it never fails for room.
    pub reservation: Option<u64>,
    /// Added to the reservation, and never below 0: what a pool that comes or goes adds or takes. Unlike a new
    /// reservation it is right whoever else changes it at the same time.
    pub promise: i64,
    /// Never exceeded; [`NO_CAP`](crate::NO_CAP) for none.
    pub cap: Option<u64>,
    /// Share of ephemeral memory.
    pub weight: Option<u32>,
}

/// Memory of the whole store, in bytes but for `pages`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// What VMs may hold.
    pub limit: u64,
    /// What no VM was granted.
    pub free: i64,
    /// Memory behind blocks, by our count.
    pub arena: u64,
    /// Memory the file system holds for the arena, tables included: the kernel's count.
    pub file: u64,
    /// Memory of all indices.
    pub index: u64,
    /// Slots in use.
    pub slots: u64,
    /// Compressed data in them.
    pub compressed: u64,
    /// Bytes of slots that could be taken back: of ephemeral pages.
    pub freeable: u64,
    /// Pages.
    pub pages: u64,
    /// Promised.
    pub reserved: u64,
    /// Bytes the file system could still give.
    pub available: u64,
}

pub(crate) struct Inner {
    pub arena: Arc<Arena>,
    pub alloc: Allocator,
    pub budget: Budget,
    pub vms: RwLock<HashMap<VmId, Arc<Vm>>>,
    pub pools: RwLock<HashMap<PoolId, Arc<Pool>>>,
    /// Serialises changes of the tables.
    pub tables: Mutex<()>,
    /// One round of compaction and punching at a time.
    pub tidying: Mutex<()>,
    /// Puts and flushes at the last upkeep.
    pub last_ops: AtomicU64,
    /// Flushes when the indices last gave empty memory back.
    pub last_flushes: AtomicU64,
    /// False once the kernel refused to put a block into a huge page.
    pub can_collapse: AtomicBool,
    pub stamp: AtomicU64,
    recovery: Recovery,
    stop: Mutex<bool>,
    wake: Condvar,
}

/// A transcendent memory store over one arena. Dropping it stops its thread and unmaps the arena;
/// the pages stay in the file.
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

/// Bytes of slots that a dense pool of `pages` pages of 4096 bytes can need at worst: what a
/// reservation for it must count.
pub fn worst_case_bytes(pages: u64) -> u64 {
    worst_case_bytes_of(pages, PAGE_SIZE)
}

/// As [`worst_case_bytes`], for pages of `page_size` bytes. More than 64 bits hold: the most they do.
pub fn worst_case_bytes_of(pages: u64, page_size: usize) -> u64 {
    let slot = |len: usize| u64::from(CLASSES.size(CLASSES.of(HEADER + len)));
    let page = match units::count(page_size) {
        0 => slot(page_size),
        n => n as u64 * slot(UNIT_MAX) + slot(units::table_len(n)),
    };
    pages.saturating_mul(page)
}

impl Store {
    /// Opens the arena at `path`, or makes it; with pages in it, rebuilds the index.
    ///
    /// # Errors
    /// [`StoreError`] with nothing changed: not an arena, truncated, in use, no room, no permission.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Self> {
        if options.limit < BLOCK_SIZE {
            return Err(StoreError::Invalid(format!(
                "a limit of {} bytes is below one block of {BLOCK_SIZE}",
                options.limit
            )));
        }
        stats::calibrate();
        // Address space for twice the limit and a block of each class in each shard: what is
        // held is bounded by the quota, not by where in the file it lies.
        let spare = 16 * CLASSES.count() as u64;
        let arena =
            Arc::new(Arena::open(path, options.limit.div_ceil(BLOCK_SIZE) * 2 + spare, options.accept_loss)?);
        let started = Instant::now();
        let alloc = Allocator::new(arena.clone());
        let mut inner = Inner {
            alloc,
            budget: Budget::new(options.limit),
            vms: RwLock::default(),
            pools: RwLock::default(),
            tables: Mutex::new(()),
            tidying: Mutex::new(()),
            last_ops: AtomicU64::new(0),
            last_flushes: AtomicU64::new(0),
            can_collapse: AtomicBool::new(true),
            stamp: AtomicU64::new(0),
            recovery: Recovery { fresh: arena.fresh(), ..Recovery::default() },
            stop: Mutex::new(false),
            wake: Condvar::new(),
            arena,
        };
        if !inner.arena.fresh() {
            inner.recovery = recover::recover(&inner)?;
            inner.recovery.seconds = started.elapsed().as_secs_f64();
        }
        let inner = Arc::new(inner);
        let thread = options
            .maintenance
            .then(|| {
                let inner = inner.clone();
                std::thread::Builder::new()
                    .name("tmem-upkeep".into())
                    .spawn(move || inner.upkeep_loop())
                    .map_err(StoreError::io("cannot start the upkeep thread"))
            })
            .transpose()?;
        Ok(Self { inner, thread })
    }

    /// What opening found.
    pub fn recovery(&self) -> &Recovery {
        &self.inner.recovery
    }

    /// The arena's identity: a new file has a new one.
    pub fn uuid(&self) -> [u8; 16] {
        self.inner.arena.uuid()
    }

    /// The arena's file.
    pub fn path(&self) -> &Path {
        self.inner.arena.path()
    }

    /// Makes a VM.
    ///
    /// # Errors
    /// The name is taken or not 1 to 63 bytes; the limit or the file system cannot hold the
    /// reservation.
    pub fn vm_create(&self, name: &str, reservation: u64, cap: u64, weight: u32) -> Result<VmId> {
        let inner = &self.inner;
        let _guard = inner.tables.lock();
        if inner.vms.read().values().any(|v| v.name == name) {
            return Err(StoreError::Exists(format!("a VM named {name} exists already")));
        }
        check_quota(reservation, cap, weight)?;
        inner.check_room(reservation)?;
        let vms = inner.vms.read();
        let id = tables::vm_ids()
            .find(|&id| {
                !vms.contains_key(&id) && matches!(tables::read_vm(&inner.arena, id), tables::Place::Free)
            })
            .ok_or_else(|| StoreError::NoSpace("the arena's VM table is full".into()))?;
        drop(vms);
        let account = Account::new(&inner.budget, reservation, cap, weight)
            .ok_or_else(|| inner.no_reservation(reservation))?;
        let authorised = Vec::new();
        let record = VmRecord { name: name.into(), reservation, cap, weight, frozen: false, authorised };
        if let Err(e) = tables::write_vm(&inner.arena, id, &record) {
            account.close(&inner.budget);
            return Err(e);
        }
        let vm = Vm::new(id, name.into(), account, Vec::new());
        inner.vms.write().insert(id, Arc::new(vm));
        Ok(id)
    }

    /// The VM of that name.
    ///
    /// # Errors
    /// No such VM.
    pub fn vm(&self, name: &str) -> Result<Arc<Vm>> {
        let vms = self.inner.vms.read();
        vms.values()
            .find(|v| v.name == name)
            .cloned()
            .ok_or_else(|| StoreError::NotFound(format!("no VM is named {name}")))
    }

    /// All VMs, by number.
    pub fn vms(&self) -> Vec<Arc<Vm>> {
        let mut all: Vec<_> = self.inner.vms.read().values().cloned().collect();
        all.sort_by_key(|v| v.id);
        all
    }

    /// All pools, by number.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        let mut all: Vec<_> = self.inner.pools.read().values().cloned().collect();
        all.sort_by_key(|p| p.id);
        all
    }

    /// Changes a VM's quota.
    ///
    /// # Errors
    /// No such VM, values out of range, or no room for the reservation; then nothing changed.
    pub fn vm_set(&self, name: &str, change: QuotaChange) -> Result<()> {
        let inner = &self.inner;
        let vm = self.vm(name)?;
        let _guard = inner.tables.lock();
        let account = &vm.account;
        let reservation = change.reservation.unwrap_or(account.reservation());
        let reservation = reservation.saturating_add_signed(change.promise);
        let cap = change.cap.unwrap_or(account.cap());
        let weight = change.weight.unwrap_or(account.weight());
        check_quota(reservation, cap, weight)?;
        if reservation > account.reservation() {
            inner.check_room(reservation - account.reservation())?;
        }
        if !account.set_reservation(&inner.budget, reservation) {
            return Err(inner.no_reservation(reservation));
        }
        account.set_cap(cap);
        account.set_weight(weight);
        inner.save_vm(&vm);
        Ok(())
    }

    /// Freezes (puts are refused, flushes obeyed) or thaws a VM.
    ///
    /// # Errors
    /// No such VM.
    pub fn vm_freeze(&self, name: &str, frozen: bool) -> Result<()> {
        let vm = self.vm(name)?;
        let _guard = self.inner.tables.lock();
        vm.account.set_frozen(frozen);
        self.inner.save_vm(&vm);
        Ok(())
    }

    /// Forgets a VM: its private pools are destroyed, it leaves its shared ones.
    ///
    /// # Errors
    /// No such VM.
    pub fn vm_remove(&self, name: &str) -> Result<()> {
        let vm = self.vm(name)?;
        for pool in self.pools() {
            if pool.members.lock().contains(&vm.id) {
                self.pool_destroy(vm.id, pool.id)?;
            }
        }
        let _guard = self.inner.tables.lock();
        self.inner.vms.write().remove(&vm.id);
        tables::clear_vm(&self.inner.arena, vm.id);
        vm.account.close(&self.inner.budget);
        Ok(())
    }

    /// Memory of the whole store.
    pub fn totals(&self) -> Totals {
        let inner = &self.inner;
        let mut t = Totals {
            limit: inner.budget.limit(),
            free: inner.budget.free(),
            arena: inner.arena.populated_bytes(),
            file: inner.arena.file_bytes(),
            available: inner.arena.available_bytes(),
            ..Totals::default()
        };
        for pool in inner.pools.read().values() {
            t.index += pool.index_bytes();
            t.slots += pool.holding.slots.load(Ordering::Relaxed);
            t.compressed += pool.holding.compressed.load(Ordering::Relaxed);
            t.pages += pool.holding.pages.load(Ordering::Relaxed);
        }
        t.freeable = inner.accounts().iter().map(|a| a.freeable()).sum();
        t.reserved = inner.vms.read().values().map(|v| v.account.reservation()).sum();
        t
    }

    /// Punches empty blocks and compacts sparse ones, now. Bytes given back to the host.
    pub fn maintain(&self) -> u64 {
        self.inner.tidy_fully()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        *self.inner.stop.lock() = true;
        self.inner.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the upkeep thread was reported when it happened; nothing to add here.
            let _ = thread.join();
        }
    }
}

fn check_quota(reservation: u64, cap: u64, weight: u32) -> Result<()> {
    if reservation > cap {
        return Err(StoreError::Invalid(format!(
            "a reservation of {reservation} bytes is above the cap of {cap}"
        )));
    }
    if weight == 0 || weight > 1_000_000 {
        return Err(StoreError::Invalid(format!("a weight is 1 to 1000000, not {weight}")));
    }
    if cap < (HEADER_SPARSE + PAGE_SIZE) as u64 {
        return Err(StoreError::Invalid(format!("a cap of {cap} bytes holds no page")));
    }
    Ok(())
}

impl Inner {
    fn check_room(&self, reservation: u64) -> Result<()> {
        let free = self.arena.available_bytes();
        if reservation > free {
            return Err(StoreError::NoSpace(format!(
                "a reservation of {reservation} bytes is more than the {free} bytes free where \
                 arena {} lies",
                self.arena.path().display()
            )));
        }
        Ok(())
    }

    pub fn no_reservation(&self, bytes: u64) -> StoreError {
        StoreError::NoSpace(format!(
            "a reservation of {bytes} bytes does not fit: {} of the limit of {} bytes are free",
            self.budget.free().max(0),
            self.budget.limit()
        ))
    }

    fn save_vm(&self, vm: &Vm) {
        let a = &vm.account;
        let record = VmRecord {
            name: vm.name.clone(),
            reservation: a.reservation(),
            cap: a.cap(),
            weight: a.weight(),
            frozen: a.frozen(),
            authorised: vm.authorised(),
        };
        tables::update_vm(&self.arena, vm.id, &record);
    }

    fn upkeep_loop(&self) {
        let mut stop = self.stop.lock();
        while !*stop {
            self.wake.wait_for(&mut stop, Duration::from_millis(200));
            if *stop {
                return;
            }
            drop(stop);
            self.upkeep();
            stop = self.stop.lock();
        }
    }
}
