// SPDX-License-Identifier: Apache-2.0
//! One VM: the pools that its requests reach, made and destroyed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use tmem_abi::pool::Name;
use tmem_abi::wire::POOLS_MAX;
use tmem_abi::{NewPool, Packing, Shape, Status, feature};
use tmem_store::pool::Pool as StorePool;
use tmem_store::{
    Codec, Handle, PoolId, PoolSpec, QuotaChange, Result, Store, StoreError, VmId, worst_case_bytes_of,
};

use crate::faults::Faults;
use crate::session::Session;

/// Features that the store can serve.
pub const SUPPORTED: u64 = feature::ALL;

/// The number of no pool.
const NO_POOL: u32 = u32::MAX;

/// How requests of a VM are served.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Features that HELLO may agree on, of those that are [`SUPPORTED`].
    pub features: u64,
    /// How pages of new pools are compressed.
    pub codec: Codec,
}

impl Default for Options {
    fn default() -> Self {
        Self { features: SUPPORTED, codec: Codec::Lz4 }
    }
}

impl Options {
    /// The features that HELLO can agree on.
    pub fn offered(&self) -> u64 {
        self.features & SUPPORTED
    }
}

/// A pool as requests find it.
pub(crate) struct Pool {
    pub handle: Handle,
    pub shape: Shape,
}

/// A VM's requests. One for all channels of the VM, as pools are the VM's.
pub struct Engine {
    store: Arc<Store>,
    vm: VmId,
    name: String,
    options: Options,
    pools: RwLock<HashMap<u32, Arc<Pool>>>,
    /// Number of a pool that requests do not reach.
    hidden: AtomicU32,
    /// Serialises making and destroying.
    making: Mutex<()>,
    faults: Faults,
}

impl Engine {
    /// For the VM of that name.
    ///
    /// # Errors
    /// No such VM.
    pub fn new(store: Arc<Store>, vm: &str, options: Options) -> Result<Arc<Self>> {
        let id = store.vm(vm)?.id;
        let options = Options { features: options.offered(), ..options };
        let (pools, making) = (RwLock::default(), Mutex::default());
        let hidden = AtomicU32::new(NO_POOL);
        let (name, faults) = (vm.into(), Faults::default());
        Ok(Arc::new(Self { store, vm: id, name, options, pools, hidden, making, faults }))
    }

    /// Keeps requests away from a pool: a block device's, which is the host's to make and destroy.
    pub fn hide(&self, pool: PoolId) {
        self.hidden.store(u32::from(pool), Ordering::Relaxed);
    }

    /// What HELLO may agree on.
    pub fn features(&self) -> u64 {
        self.options.features
    }

    /// Pages lost on purpose.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Prepares memory for puts to come. For the moment after a request, when nobody waits.
    pub fn idle(&self) {
        // What is prepared is the store's: any pool will do.
        let pool = self.pools.read().values().next().cloned();
        if let Some(pool) = pool {
            pool.handle.idle();
        }
    }

    /// A channel of this VM, on which no HELLO was said yet.
    pub fn session(self: &Arc<Self>) -> Session {
        Session::new(self.clone())
    }

    /// The VM's pool of that number. A pool keeps its number for as long as it is there, across
    /// restarts too: it is the store's.
    pub(crate) fn pool(&self, number: u32) -> Option<Arc<Pool>> {
        if number == self.hidden.load(Ordering::Relaxed) {
            return None;
        }
        let known = self.pools.read().get(&number).cloned();
        if let Some(pool) = known {
            // A VM that left a shared pool, or was made to, has no business there.
            let of_ours = |p: &StorePool| p.spec.shared.is_none() || p.members.lock().contains(&self.vm);
            return of_ours(pool.handle.pool()).then_some(pool);
        }
        let handle = self.store.handle(self.vm, PoolId::try_from(number).ok()?).ok()?;
        let pool = Arc::new(Pool { shape: shape(handle.pool()), handle });
        self.pools.write().insert(number, pool.clone());
        Some(pool)
    }

    /// A pool that turned out to be destroyed is looked up anew the next time.
    pub(crate) fn forget(&self, gone: &Pool) {
        let number = u32::from(gone.handle.pool().id);
        let mut pools = self.pools.write();
        if pools.get(&number).is_some_and(|p| std::ptr::eq(&**p, gone)) {
            pools.remove(&number);
        }
    }

    /// Makes a pool, or finds the one that is there: its number, and whether it was there.
    pub(crate) fn make(&self, new: &NewPool) -> std::result::Result<(u32, bool), Status> {
        let _guard = self.making.lock();
        let all = self.store.pools();
        let mine = |p: &&Arc<StorePool>| p.members.lock().contains(&self.vm);
        let there = match new.name {
            Name::Private => None,
            Name::Attach(uuid) => all.iter().filter(mine).find(|p| p.spec.name == Some(uuid)),
            Name::Shared(uuid) => all.iter().find(|p| p.spec.shared == Some(uuid)),
        };
        if let Some(pool) = there
            && !same(pool, new)
        {
            return Err(Status::NotPermitted);
        }
        match there {
            Some(pool) if pool.spec.shared.is_none() => return Ok((u32::from(pool.id), true)),
            Some(pool) if mine(&pool) => {}
            _ if all.iter().filter(mine).count() >= POOLS_MAX as usize => return Err(Status::NotPermitted),
            _ => {}
        }
        let promise = promised(&new.shape());
        self.promise(promise)?;
        match self.store.pool_create(self.vm, self.spec(new)) {
            Ok(id) => {
                self.pools.write().remove(&u32::from(id));
                Ok((u32::from(id), there.is_some()))
            }
            Err(e) => {
                self.release(promise);
                Err(refusal(&e))
            }
        }
    }

    fn spec(&self, new: &NewPool) -> PoolSpec {
        PoolSpec {
            persistent: new.persistent,
            shared: match new.name {
                Name::Shared(uuid) => Some(uuid),
                Name::Private | Name::Attach(_) => None,
            },
            name: match new.name {
                Name::Attach(uuid) => Some(uuid),
                Name::Private | Name::Shared(_) => None,
            },
            pages: new.pages,
            // A page that comes compressed is kept as it comes.
            codec: match new.packing {
                None => self.options.codec,
                Some(Packing::Lz4) => Codec::Lz4,
                Some(Packing::Zstd) => Codec::Zstd,
            },
            page_size: new.shape().page_size,
            packed: new.packing.is_some(),
        }
    }

    /// Destroys a pool, or leaves it if it is shared.
    pub(crate) fn destroy(&self, pool: &Pool) -> std::result::Result<(), Status> {
        let _guard = self.making.lock();
        let id = pool.handle.pool().id;
        self.store.pool_destroy(self.vm, id).map_err(|e| match e {
            StoreError::NotFound(_) => Status::BadPool,
            e => refusal(&e),
        })?;
        self.pools.write().remove(&u32::from(id));
        self.release(promised(&pool.shape));
        Ok(())
    }

    /// Room for a swap pool: the VM's reservation grows by all that its pages can need.
    fn promise(&self, bytes: u64) -> std::result::Result<(), Status> {
        if bytes == 0 {
            return Ok(());
        }
        let promise = i64::try_from(bytes).map_err(|_| Status::NoRoom)?;
        let change = QuotaChange { promise, ..QuotaChange::default() };
        self.store.vm_set(&self.name, change).map_err(|e| match e {
            // The one value that can be out of range: a reservation above the cap.
            StoreError::Invalid(_) => Status::OverCap,
            e => refusal(&e),
        })
    }

    fn release(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        // What was promised is an i64.
        let promise = i64::try_from(bytes).map_or(i64::MIN, |bytes| -bytes);
        // A smaller reservation always fits; a VM that is gone has none.
        let _ = self.store.vm_set(&self.name, QuotaChange { promise, ..QuotaChange::default() });
    }
}

fn shape(pool: &StorePool) -> Shape {
    Shape { page_size: pool.spec.page_size, pages: pool.spec.pages, packed: pool.spec.packed }
}

/// What a pool reserves: all that the pages of a swap pool can need.
fn promised(shape: &Shape) -> u64 {
    shape.pages.map_or(0, |pages| worst_case_bytes_of(u64::from(pages), shape.page_size as usize))
}

/// True if the pool is what NEW_POOL asks for.
fn same(pool: &StorePool, new: &NewPool) -> bool {
    let codec = new.packing.is_none_or(|packing| match packing {
        Packing::Lz4 => pool.spec.codec == Codec::Lz4,
        Packing::Zstd => pool.spec.codec == Codec::Zstd,
    });
    codec && shape(pool) == new.shape() && pool.spec.persistent == new.persistent
}

fn refusal(e: &StoreError) -> Status {
    match e {
        StoreError::NoSpace(_) => Status::NoRoom,
        StoreError::Invalid(_) | StoreError::Exists(_) | StoreError::NotAuthorised(_) => Status::NotPermitted,
        _ => Status::HostError,
    }
}
