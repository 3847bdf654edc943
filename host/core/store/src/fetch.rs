// SPDX-License-Identifier: Apache-2.0
//! A page out of its slot: the part of get and read under the key's lock.

use std::sync::atomic::Ordering;

use crate::codec::{Encoding, Scratch};
use crate::index::{Entry, Stand, prefetch};
use crate::layout::SlotHeader;
use crate::ops::{Get, Handle};
use crate::pool::Pool;
use crate::stats::bump;
use crate::store::Inner;

/// Cache lines of a slot asked for at once in a get.
const AHEAD_LINES: usize = 6;

/// Asks for the start of a slot.
#[inline]
pub(crate) fn prefetch_lines(at: *const u8) {
    for line in 0..AHEAD_LINES {
        prefetch(at.wrapping_add(line * 64));
    }
}

impl Handle {
    /// Counts a get by its answer.
    #[inline]
    pub(crate) fn count_get(&self, answer: Get) -> Get {
        let c = &self.pool.counters;
        bump(match answer {
            Get::Hit => &c.hits,
            Get::Lost => &c.lost,
            Get::Miss | Get::Refused | Get::NoPool | Get::BadRange => &c.misses,
        });
        answer
    }

    /// The slot of a locked entry's page, or what a get answers instead.
    #[inline]
    pub(crate) fn slot_of(&self, e: &mut Entry) -> Result<u64, Get> {
        let pool = &*self.pool;
        match e.stand {
            Stand::Page(slot) => Ok(slot),
            Stand::Refused => Err(Get::Refused),
            Stand::Lost(_) if !pool.spec.persistent => {
                self.inner.remove(pool, e);
                Err(Get::Miss)
            }
            Stand::Lost(_) => Err(Get::Lost),
            // Its slot may be the one that could not be read.
            Stand::Absent if pool.spec.persistent && pool.damaged() => Err(Get::Lost),
            Stand::Absent => Err(Get::Miss),
        }
    }

    /// A get under the key's lock.
    ///
    /// # Safety
    /// As [`Self::get`].
    #[inline]
    pub(crate) unsafe fn fetch(&self, scratch: &mut Scratch, e: &mut Entry, dst: *mut u8) -> Get {
        let slot = match self.slot_of(e) {
            Ok(slot) => slot,
            Err(answer) => return answer,
        };
        // SAFETY: the entry is locked and says the slot is its page; dst by the caller.
        if !unsafe { self.inner.read_slot(scratch, &self.pool, slot, dst) } {
            e.stand = Stand::Lost(slot);
            return Get::Lost;
        }
        if !self.pool.spec.persistent {
            if self.pool.spec.shared.is_some() {
                self.refresh(e);
            } else {
                self.inner.remove(&self.pool, e);
                bump(&self.pool.counters.flushed);
            }
        }
        Get::Hit
    }

    /// Makes an ephemeral page the last to be evicted.
    pub(crate) fn refresh(&self, e: &Entry) {
        let stamp = self.inner.stamp.fetch_add(1, Ordering::Relaxed);
        self.pool.lru.lock().refresh(e.node, stamp);
    }
}

impl Inner {
    /// Reads the page in a slot into `dst`, checked. False: the bytes are not what was kept.
    ///
    /// # Safety
    /// The key's entry is locked and `slot` is its page's; `dst` as for [`Handle::get`].
    #[inline]
    pub unsafe fn read_slot(&self, scratch: &mut Scratch, pool: &Pool, slot: u64, dst: *mut u8) -> bool {
        // The processor's own prefetcher needs two misses to see the run; most pages take more lines.
        prefetch_lines(self.arena.data(slot));
        // SAFETY: locked by the caller.
        let Some((header, data)) = (unsafe { self.checked(slot) }) else { return false };
        if header.encoding == Encoding::Units {
            // SAFETY: by the caller.
            return unsafe { self.read_units(scratch, pool, slot, dst) };
        }
        // SAFETY: dst by the caller.
        unsafe { scratch.decompress_unit(header.encoding, data, dst, pool.page_size()) }
    }

    /// Header and data of a slot, if they check.
    ///
    /// # Safety
    /// The key's entry is locked for as long as the data is used, and `slot` is its page's.
    #[inline(always)]
    pub unsafe fn checked<'a>(&self, slot: u64) -> Option<(SlotHeader, &'a [u8])> {
        let header = self.arena.header(slot)?;
        if header.slot_len() > self.alloc.slot_size(slot) as usize {
            return None;
        }
        let object = header.sparse.then(|| self.arena.object(slot));
        // SAFETY: locked by the caller; the length was checked against the slot's class.
        let data = unsafe { self.arena.payload(slot, &header) };
        (self.arena.checksum(&header, object.as_ref(), data) == header.checksum).then_some((header, data))
    }
}
