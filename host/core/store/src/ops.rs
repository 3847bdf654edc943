// SPDX-License-Identifier: Apache-2.0
//! put, get, flush: the six rules of design section 5. Byte ranges are in [`crate::parts`],
//! several pages at once in [`crate::batch`].
//!
//! A refusal is a value. The key's lock is held from the decision to the end of the copy, and
//! compression happens before it is taken.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::codec::{self, Scratch};
use crate::index::Stand;
use crate::layout::ObjectId;
use crate::pool::{Pool, Vm};
use crate::stats::{Tick, bump};
use crate::store::Inner;
use crate::units;

/// The object of every page of a dense pool.
pub const DENSE_OBJECT: ObjectId = [0; 3];

/// Answer to a put, or to a write of a part of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Kept. A persistent page can be got until it is flushed.
    Stored,
    /// No room in the store or the file system; what stood under the key is gone.
    NoRoom,
    /// The VM is over its cap; what stood under the key is gone.
    OverCap,
    /// The VM is frozen; what stood under the key is gone.
    Frozen,
    /// The pool is destroyed or has no such index.
    NoPool,
    /// The page to be changed in part is lost, and known to be.
    Lost,
    /// The page to be changed in part is not there.
    Missing,
    /// The range is not inside the page. Nothing was changed: this was no operation.
    BadRange,
    /// The compressed bytes are not exactly one page; what stood under the key is gone.
    BadData,
}

/// Answer to a get, or to a read of a part of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Get {
    /// The page was written to the destination.
    Hit,
    /// Nothing stands under the key; the destination is untouched.
    Miss,
    /// A miss since the last put was refused: whoever put it was told.
    Refused,
    /// The page is lost, and known to be; the destination may be changed.
    Lost,
    /// The pool is destroyed or has no such index.
    NoPool,
    /// The range is not inside the page; the destination is untouched.
    BadRange,
}

/// A VM's way to the pages of one pool.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
    pub(crate) vm: Arc<Vm>,
    pub(crate) pool: Arc<Pool>,
}

/// One in so many operations of a thread is timed: the two clock readings cost as much as a tenth
/// of the fastest get.
const TIMED: u32 = 8;

impl Handle {
    /// The pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Keeps the page at `src` under a key.
    ///
    /// # Safety
    /// `src` is valid for reads of a page of the pool (4096 bytes, unless it was made with another
    /// size) for the whole call; the bytes may change meanwhile.
    pub unsafe fn put(&self, object: &ObjectId, index: u32, src: *const u8) -> Put {
        self.pool.index.prefetch(index);
        // SAFETY: by the caller.
        codec::with_scratch(|s| unsafe { self.put_with(s, object, index, src, || ()) })
    }

    /// A put with this thread's scratch. `ahead` runs when the page is compressed and not kept yet:
    /// what it asks the processor for arrives while this page is being kept.
    ///
    /// # Safety
    /// As [`Self::put`].
    #[inline]
    pub(crate) unsafe fn put_with(
        &self,
        scratch: &mut Scratch,
        object: &ObjectId,
        index: u32,
        src: *const u8,
        ahead: impl FnOnce(),
    ) -> Put {
        bump(&self.pool.counters.puts);
        let t = scratch.one_in(TIMED).then(Tick::now);
        let answer = if self.vm.account.frozen() {
            bump(&self.pool.counters.refused_frozen);
            self.refuse(object, index, Put::Frozen)
        } else if units::count(self.pool.page_size()) > 0 {
            // SAFETY: by the caller.
            unsafe { self.put_units(scratch, object, index, src) }
        } else {
            // SAFETY: by the caller.
            let encoded = unsafe { self.encode(scratch, index, src, self.pool.page_size()) };
            ahead();
            // SAFETY: as above, and the scratch stays as it is.
            self.keep_or_refuse(object, index, |e| unsafe { self.keep(e, object, index, &encoded, None) })
        };
        if let Some(t) = t {
            self.pool.latencies.put.record(t.ns());
        }
        answer
    }

    /// Keeps a page of zeroes under a key: a put that reads no memory of the guest.
    pub fn new_page(&self, object: &ObjectId, index: u32) -> Put {
        bump(&self.pool.counters.puts);
        if self.vm.account.frozen() {
            bump(&self.pool.counters.refused_frozen);
            return self.refuse(object, index, Put::Frozen);
        }
        codec::with_scratch(|s| {
            let encoded = s.same(0);
            // SAFETY: the encoded word lies in the scratch, which stays as it is.
            self.keep_or_refuse(object, index, |e| unsafe { self.keep(e, object, index, &encoded, None) })
        })
    }

    /// Writes the page under a key to `dst`.
    ///
    /// # Safety
    /// `dst` is valid for reads and writes of a page of the pool for the whole call; others may
    /// access it.
    pub unsafe fn get(&self, object: &ObjectId, index: u32, dst: *mut u8) -> Get {
        // SAFETY: by the caller.
        codec::with_scratch(|s| unsafe { self.get_with(s, object, index, dst) })
    }

    /// A get with this thread's scratch.
    ///
    /// # Safety
    /// As [`Self::get`].
    #[inline]
    pub(crate) unsafe fn get_with(
        &self,
        scratch: &mut Scratch,
        object: &ObjectId,
        index: u32,
        dst: *mut u8,
    ) -> Get {
        let t = scratch.one_in(TIMED).then(Tick::now);
        let answer = self.pool.index.with(object, index, |e| {
            // SAFETY: dst by the caller.
            unsafe { self.fetch(scratch, e, dst) }
        });
        if let Some(t) = t {
            self.pool.latencies.get.record(t.ns());
        }
        self.count_get(answer.unwrap_or(Get::NoPool))
    }

    /// Prepares memory for the puts to come. For the moment after a request, when nobody waits.
    pub fn idle(&self) {
        self.inner.alloc.ahead();
    }

    /// Removes the page under a key. True if there was one.
    pub fn flush_page(&self, object: &ObjectId, index: u32) -> bool {
        bump(&self.pool.counters.flushes);
        let t = codec::with_scratch(|s| s.one_in(TIMED).then(Tick::now));
        let was = self
            .pool
            .index
            .with(object, index, |e| {
                let was = self.inner.remove(&self.pool, e);
                e.stand = Stand::Absent;
                was
            })
            .unwrap_or(false);
        if let Some(t) = t {
            self.pool.latencies.flush.record(t.ns());
        }
        if was {
            bump(&self.pool.counters.flushed);
        }
        was
    }

    /// Removes all pages of an object; how many there were.
    pub fn flush_object(&self, object: &ObjectId) -> u64 {
        bump(&self.pool.counters.flushes);
        let n = self.inner.drain(&self.pool, Some(object), false);
        self.pool.counters.flushed.fetch_add(n, Ordering::Relaxed);
        n
    }
}
