// SPDX-License-Identifier: Apache-2.0
//! One VM with an arena of its own: what is behind a handle, in safe terms where that can be.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tmem_abi::wire::{REPLY_SIZE, REQUEST_SIZE};
use tmem_abi::{Header, Reply, Status};
use tmem_engine::{Engine, Options, Scratch, Segment, Session};
use tmem_store::pool::Vm;
use tmem_store::{NO_CAP, QuotaChange, Result, Store, StoreError, StoreOptions};

/// A new VM's share; alone in its arena, it has all.
const WEIGHT: u32 = 100;

thread_local! {
    /// Requests of a thread are served one after the other.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// An arena, its one VM, and the channel of that VM's device.
pub struct Device {
    store: Arc<Store>,
    session: Session,
    vm: String,
}

/// What the VM holds, and how it may change.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Pages.
    pub pages: u64,
    /// Bytes of compressed data in them.
    pub compressed: u64,
}

impl Device {
    /// Opens the arena, or makes it, and the VM in it.
    ///
    /// # Errors
    /// As [`Store::open`], or the arena has other VMs.
    pub fn open(path: &Path, limit: u64, vm: &str) -> Result<Self> {
        let options = StoreOptions { limit, accept_loss: false, maintenance: true };
        let store = Arc::new(Store::open(path, options)?);
        if let Some(other) = store.vms().iter().find(|v| v.name != vm) {
            return Err(StoreError::Invalid(format!(
                "the arena {} has pages of a VM named {}: an inline device has one of its own",
                path.display(),
                other.name
            )));
        }
        if store.vm(vm).is_err() {
            store.vm_create(vm, 0, NO_CAP, WEIGHT)?;
        }
        let session = Engine::new(store.clone(), vm, Options::default())?.session();
        Ok(Self { store, session, vm: vm.into() })
    }

    /// The channel.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The VM.
    ///
    /// # Errors
    /// Nobody but this process could have removed it.
    pub fn vm(&self) -> Result<Arc<Vm>> {
        self.store.vm(&self.vm)
    }

    /// Sums over the VM's pools.
    pub fn holding(&self, vm: &Vm) -> Holding {
        let mut sum = Holding::default();
        for pool in self.store.pools().iter().filter(|p| p.members.lock().contains(&vm.id)) {
            sum.pages += pool.holding.pages.load(Ordering::Relaxed);
            sum.compressed += pool.holding.compressed.load(Ordering::Relaxed);
        }
        sum
    }

    /// Changes what the VM may hold.
    ///
    /// # Errors
    /// As [`Store::vm_set`]; nothing changed then.
    pub fn set(&self, change: QuotaChange, frozen: Option<bool>) -> Result<()> {
        self.store.vm_set(&self.vm, change)?;
        frozen.map_or(Ok(()), |frozen| self.store.vm_freeze(&self.vm, frozen))
    }

    /// Serves one request. Bytes of the reply and its data; `None`: it has no room, nothing was done.
    ///
    /// # Safety
    /// As [`Session::serve`].
    pub unsafe fn execute(&self, readable: &[Segment], writable: &[Segment]) -> Option<usize> {
        let serve = || {
            SCRATCH.with_borrow_mut(|scratch| {
                // SAFETY: by the caller.
                unsafe { self.session.serve(readable, writable, scratch) }
            })
        };
        // What a panic leaves behind is the store's to stand: it recovers from being killed anywhere.
        catch_unwind(AssertUnwindSafe(serve)).unwrap_or_else(|_| {
            let mut raw = [0; REQUEST_SIZE];
            // SAFETY: (both) by the caller.
            unsafe { gather(readable, &mut raw) };
            let reply = Reply::refusal(Status::HostError, Header::decode(&raw).cookie).encode();
            // SAFETY: as above.
            unsafe { scatter(writable, &reply) }.then_some(REPLY_SIZE)
        })
    }
}

/// Copies the first bytes out of pieces.
///
/// # Safety
/// The pieces are valid for reads.
unsafe fn gather(pieces: &[Segment], out: &mut [u8]) {
    let mut done = 0;
    for piece in pieces {
        let n = piece.len.min(out.len() - done);
        // SAFETY: by the caller; `done + n` is within `out`.
        unsafe { std::ptr::copy_nonoverlapping(piece.ptr.cast_const(), out.as_mut_ptr().add(done), n) };
        done += n;
    }
}

/// Copies bytes into pieces; whether all had room.
///
/// # Safety
/// The pieces are valid for writes.
unsafe fn scatter(pieces: &[Segment], data: &[u8]) -> bool {
    let mut done = 0;
    for piece in pieces {
        let n = piece.len.min(data.len() - done);
        // SAFETY: by the caller; `done + n` is within `data`.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().add(done), piece.ptr, n) };
        done += n;
    }
    done == data.len()
}
