// SPDX-License-Identifier: Apache-2.0
//! A device: a channel of one VM in an arena. What is behind a handle, in safe terms where that can be.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tmem_abi::wire::{REPLY_SIZE, REQUEST_SIZE};
use tmem_abi::{Header, Reply, Status};
use tmem_engine::{Scratch, Segment, Session};
use tmem_store::pool::Vm;
use tmem_store::{QuotaChange, Result, Store};

use crate::arena::{Arena, DeviceOptions};

thread_local! {
    /// Requests of a thread are served one after the other.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// A channel of a VM.
pub struct Device {
    session: Session,
    vm: String,
    /// The last of its devices closes it.
    arena: Arc<Arena>,
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
    /// As [`Arena::open`] and [`Arena::engine`].
    pub fn open(path: &Path, vm: &str, options: DeviceOptions) -> Result<Self> {
        let arena = Arena::open(path, vm, options)?;
        let session = arena.engine(vm, options.features)?.session();
        Ok(Self { session, vm: vm.into(), arena })
    }

    /// The channel.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The store.
    pub fn store(&self) -> &Store {
        self.arena.store()
    }

    /// The VM.
    ///
    /// # Errors
    /// Nobody but this process could have removed it.
    pub fn vm(&self) -> Result<Arc<Vm>> {
        self.store().vm(&self.vm)
    }

    /// Sums over the VM's pools.
    pub fn holding(&self, vm: &Vm) -> Holding {
        let mut sum = Holding::default();
        for pool in self.store().pools().iter().filter(|p| p.members.lock().contains(&vm.id)) {
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
        self.store().vm_set(&self.vm, change)?;
        frozen.map_or(Ok(()), |frozen| self.store().vm_freeze(&self.vm, frozen))
    }

    /// Lets the VM into the shared pool of that uuid, or no longer.
    ///
    /// # Errors
    /// As [`Store::shared_authorise`].
    pub fn authorise(&self, uuid: [u8; 16], allow: bool) -> Result<()> {
        self.store().shared_authorise(&self.vm, uuid, allow)
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
