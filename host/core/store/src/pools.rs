// SPDX-License-Identifier: Apache-2.0
//! The store's pools: made, joined, destroyed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::codec::Codec;
use crate::error::{Result, StoreError};
use crate::ops::Handle;
use crate::pool::{Pool, PoolId, PoolSpec, VmId};
use crate::quota::{Account, NO_CAP};
use crate::stats::bump;
use crate::store::{Inner, Store};
use crate::tables::{self, AUTHORISED_MAX, MEMBERS_MAX, PoolRecord};

impl Store {
    /// Makes a pool for a VM, or joins it to the shared one of that uuid.
    ///
    /// # Errors
    /// No such VM; it is not authorised for that uuid; a shared pool of that uuid differs or is
    /// full; the tables are full.
    pub fn pool_create(&self, vm: VmId, spec: PoolSpec) -> Result<PoolId> {
        let inner = &self.inner;
        spec.check().map_err(StoreError::Invalid)?;
        let _guard = inner.tables.lock();
        let vms = inner.vms.read();
        let owner = vms.get(&vm).ok_or_else(|| StoreError::NotFound(format!("no VM has number {vm}")))?;
        if let Some(uuid) = spec.shared
            && !owner.authorised.lock().contains(&uuid)
        {
            return Err(StoreError::NotAuthorised(format!(
                "VM {} is not authorised for the shared pool {}",
                owner.name,
                Hex(&uuid)
            )));
        }
        if let Some(uuid) = spec.shared
            && let Some(pool) = inner.pools.read().values().find(|p| p.spec.shared == Some(uuid))
        {
            return inner.join(vm, pool, spec);
        }
        let account = if spec.shared.is_some() {
            Arc::new(
                Account::new(&inner.budget, 0, NO_CAP, owner.account.weight())
                    .ok_or_else(|| inner.no_reservation(0))?,
            )
        } else {
            owner.account.clone()
        };
        drop(vms);
        let mut pools = inner.pools.write();
        let id = tables::pool_ids()
            .find(|&id| {
                !pools.contains_key(&id) && matches!(tables::read_pool(&inner.arena, id), tables::Place::Free)
            })
            .ok_or_else(|| StoreError::NoSpace("the arena's pool table is full".into()))?;
        let pool = Pool::new(id, spec, vec![vm], account)
            .ok_or_else(|| StoreError::NoSpace("no address space for the pool's index".into()))?;
        let record = PoolRecord { spec, members: vec![vm], damaged: false, dying: false };
        tables::write_pool(&inner.arena, id, &record)?;
        pools.insert(id, Arc::new(pool));
        Ok(id)
    }

    /// Allows a VM to make or join the shared pool of that uuid, or no longer. At first it may use
    /// none. What it joined before stays joined: see [`Self::pool_destroy`]. Kept in the arena.
    ///
    /// # Errors
    /// No such VM, or it is authorised for 16 already.
    pub fn shared_authorise(&self, name: &str, uuid: [u8; 16], allow: bool) -> Result<()> {
        let inner = &self.inner;
        let vm = self.vm(name)?;
        let _guard = inner.tables.lock();
        // Removed meanwhile: its place in the table may be another's by now.
        if !inner.vms.read().get(&vm.id).is_some_and(|now| Arc::ptr_eq(now, &vm)) {
            return Err(StoreError::NotFound(format!("no VM is named {name}")));
        }
        if !tables::authorise(&inner.arena, vm.id, &uuid, allow) {
            return Err(StoreError::NoSpace(format!(
                "VM {name} is authorised for {AUTHORISED_MAX} shared pools already"
            )));
        }
        let mut authorised = vm.authorised.lock();
        authorised.retain(|u| *u != uuid);
        if allow {
            authorised.push(uuid);
        }
        Ok(())
    }

    /// The pool of that number.
    ///
    /// # Errors
    /// No such pool.
    pub fn pool(&self, id: PoolId) -> Result<Arc<Pool>> {
        self.inner
            .pools
            .read()
            .get(&id)
            .cloned()
            .ok_or_else(|| StoreError::NotFound(format!("no pool has number {id}")))
    }

    /// A VM's way to the pages of a pool.
    ///
    /// # Errors
    /// No such pool, or the VM is not one of its members.
    pub fn handle(&self, vm: VmId, pool: PoolId) -> Result<Handle> {
        let pool = self.pool(pool)?;
        if !pool.members.lock().contains(&vm) {
            return Err(StoreError::NotFound(format!("pool {} is not of VM {vm}", pool.id)));
        }
        let vm = self
            .inner
            .vms
            .read()
            .get(&vm)
            .cloned()
            .ok_or_else(|| StoreError::NotFound(format!("no VM has number {vm}")))?;
        Ok(Handle { inner: self.inner.clone(), vm, pool })
    }

    /// Sets how puts into a pool are compressed from now on.
    ///
    /// # Errors
    /// No such pool, or its pages come compressed.
    pub fn pool_set_codec(&self, id: PoolId, codec: Codec) -> Result<()> {
        let pool = self.pool(id)?;
        if pool.spec.packed {
            return Err(StoreError::Invalid("a pool whose pages come compressed keeps its codec".into()));
        }
        let _guard = self.inner.tables.lock();
        pool.set_codec(codec);
        self.inner.save_pool(&pool);
        Ok(())
    }

    /// Removes all pages of a pool, which stays; how many there were. Pages that are put meanwhile may stay.
    ///
    /// # Errors
    /// No such pool.
    pub fn pool_flush(&self, id: PoolId) -> Result<u64> {
        let pool = self.pool(id)?;
        bump(&pool.counters.flushes);
        let n = self.inner.drain(&pool, None, false);
        pool.counters.flushed.fetch_add(n, Ordering::Relaxed);
        Ok(n)
    }

    /// Destroys a pool with its pages; from a shared pool the VM leaves, and the last takes it along.
    ///
    /// # Errors
    /// No such pool, or the VM is not one of its members.
    pub fn pool_destroy(&self, vm: VmId, id: PoolId) -> Result<()> {
        let inner = &self.inner;
        let pool = self.pool(id)?;
        let _guard = inner.tables.lock();
        let last = {
            let mut members = pool.members.lock();
            let Some(at) = members.iter().position(|&m| m == vm) else {
                return Err(StoreError::NotFound(format!("pool {id} is not of VM {vm}")));
            };
            members.remove(at);
            members.is_empty()
        };
        if !last {
            inner.save_pool(&pool);
            return Ok(());
        }
        // From here on the pool is gone, also if this process dies before the last page is.
        tables::mark_dying(&inner.arena, id);
        inner.pools.write().remove(&id);
        inner.drain(&pool, None, true);
        tables::clear_pool(&inner.arena, id);
        if pool.spec.shared.is_some() {
            pool.account.close(&inner.budget);
        } else if let Some(vm) = inner.vms.read().get(&vm) {
            vm.retired.add(&pool.counters);
        }
        Ok(())
    }
}

/// Bytes as people write a uuid without dashes.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl Inner {
    pub fn save_pool(&self, pool: &Pool) {
        let record = PoolRecord {
            spec: PoolSpec { codec: pool.codec(), ..pool.spec },
            members: pool.members.lock().clone(),
            damaged: pool.damaged(),
            dying: false,
        };
        tables::update_pool(&self.arena, pool.id, &record);
    }

    fn join(&self, vm: VmId, pool: &Arc<Pool>, spec: PoolSpec) -> Result<PoolId> {
        let same = |a: &PoolSpec, b: &PoolSpec| {
            (a.persistent, a.page_size, a.packed) == (b.persistent, b.page_size, b.packed)
                && (!a.packed || a.codec == b.codec)
        };
        if !same(&pool.spec, &spec) {
            return Err(StoreError::Invalid("the shared pool of that uuid is not of that kind".into()));
        }
        let mut members = pool.members.lock();
        if !members.contains(&vm) {
            if members.len() >= MEMBERS_MAX {
                return Err(StoreError::NoSpace(format!("a shared pool has at most {MEMBERS_MAX} members")));
            }
            members.push(vm);
        }
        drop(members);
        self.save_pool(pool);
        Ok(pool.id)
    }
}
