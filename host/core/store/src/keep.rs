// SPDX-License-Identifier: Apache-2.0
//! A page into its slot and out of it: the part of put, write and flush under the key's lock.

use std::sync::atomic::Ordering;

use crate::classes::CLASSES;
use crate::codec::{self, Encoded, Encoding, Scratch, UNIT_MAX};
use crate::index::{Entry, Stand, prefetch};
use crate::layout::{HEADER, HEADER_SPARSE, ObjectId, SlotHeader, next_seq};
use crate::lru::NIL;
use crate::ops::{Handle, Put};
use crate::pool::Pool;
use crate::quota::Short;
use crate::stats::bump;
use crate::store::Inner;
use crate::units::{self, Draft};

/// How often a put evicts and tries again before it is refused.
const EVICT_TRIES: u32 = 8;

/// What came of trying to keep a page, under the key's lock.
pub(crate) enum Kept {
    Done(Put),
    /// No room for so many bytes: evict something and come back. Nothing was changed.
    Short(u64),
}

impl Handle {
    /// What is to be kept of the `len` bytes at `src`. What a replaced page needs, its header,
    /// comes in meanwhile.
    ///
    /// # Safety
    /// As [`Scratch::encode`].
    #[inline]
    pub(crate) unsafe fn encode(
        &self,
        scratch: &mut Scratch,
        index: u32,
        src: *const u8,
        len: usize,
    ) -> Encoded {
        // SAFETY: by the caller.
        if let Some(word) = unsafe { codec::same_filled(src, len) } {
            return scratch.same(word);
        }
        self.prefetch_slot(index);
        // SAFETY: by the caller.
        unsafe { scratch.encode(self.pool.codec(), src, len) }
    }

    /// Puts a page that takes several slots: the units first, without a lock.
    ///
    /// # Safety
    /// `src` is valid for reads of a page, which may change meanwhile.
    #[cold]
    pub(crate) unsafe fn put_units(
        &self,
        scratch: &mut Scratch,
        object: &ObjectId,
        index: u32,
        src: *const u8,
    ) -> Put {
        let page = self.pool.page_size();
        // SAFETY: by the caller.
        if let Some(word) = unsafe { codec::same_filled(src, page) } {
            let encoded = scratch.same(word);
            // SAFETY: the word lies in the scratch, which stays as it is.
            return self
                .keep_or_refuse(object, index, |e| unsafe { self.keep(e, object, index, &encoded, None) });
        }
        let mut draft = Draft::new(&self.inner);
        for number in 0..units::count(page) {
            // SAFETY: inside the page; the scratch stays as it is until the unit is written.
            let encoded = unsafe { self.encode(scratch, index, src.add(number * UNIT_MAX), UNIT_MAX) };
            let mut tries = EVICT_TRIES;
            // SAFETY: as above.
            while !unsafe { draft.write(&self.pool, object, index, &encoded) } {
                tries -= 1;
                if tries == 0 || !self.inner.make_room(UNIT_MAX as u64) {
                    drop(draft);
                    bump(&self.pool.counters.refused_room);
                    return self.refuse(object, index, Put::NoRoom);
                }
            }
        }
        let head = draft.head();
        self.keep_or_refuse(object, index, |e| {
            // SAFETY: the table lies in the draft, which stays where it is.
            unsafe { self.keep(e, object, index, &head, Some(&mut draft)) }
        })
    }

    /// Asks for the first cache line of a key's slot: its header.
    #[inline]
    pub(crate) fn prefetch_slot(&self, index: u32) {
        if let Some(slot) = self.pool.index.peek(index) {
            prefetch(self.inner.arena.data(slot));
        }
    }

    /// Tries under the key's lock until the page is kept or refused, and makes room in between.
    #[inline]
    pub(crate) fn keep_or_refuse(
        &self,
        object: &ObjectId,
        index: u32,
        mut attempt: impl FnMut(&mut Entry) -> Kept,
    ) -> Put {
        for _ in 0..EVICT_TRIES {
            match self.pool.index.with(object, index, &mut attempt) {
                None => return Put::NoPool,
                Some(Kept::Done(answer)) => return answer,
                Some(Kept::Short(bytes)) => {
                    if !self.inner.make_room(bytes) {
                        break;
                    }
                }
            }
        }
        bump(&self.pool.counters.refused_room);
        self.refuse(object, index, Put::NoRoom)
    }

    /// Rule 1: a put that fails removes the old data.
    #[cold]
    pub(crate) fn refuse(&self, object: &ObjectId, index: u32, answer: Put) -> Put {
        let done = self.pool.index.with(object, index, |e| self.remove_failed(e));
        if done.is_none() { Put::NoPool } else { answer }
    }

    pub(crate) fn remove_failed(&self, e: &mut Entry) {
        if self.inner.remove(&self.pool, e) {
            bump(&self.pool.counters.failed_replaces);
        }
        if self.pool.spec.persistent && !self.pool.sparse() {
            e.stand = Stand::Refused;
        }
    }

    /// Keeps a page under a locked key, in place of what stands there. Of a page in several slots
    /// this is the head, and the draft has the rest.
    ///
    /// # Safety
    /// `page.data` is valid for reads of `page.len` bytes, which may change meanwhile.
    pub(crate) unsafe fn keep(
        &self,
        e: &mut Entry,
        object: &ObjectId,
        index: u32,
        page: &Encoded,
        draft: Option<&mut Draft<'_>>,
    ) -> Kept {
        let (inner, pool) = (&*self.inner, &*self.pool);
        let sparse = pool.sparse();
        let header_len = if sparse { HEADER_SPARSE } else { HEADER };
        let class = CLASSES.of(header_len + page.len);
        let (more, compressed) = draft.as_ref().map_or((0, page.len as u64), |d| (d.size, d.compressed));
        let size = u64::from(CLASSES.size(class)) + more;
        let old = inner.standing(pool, e);
        let old_size = old.as_ref().map_or(0, |old| old.size);
        match pool.account.charge(&inner.budget, old_size, size) {
            Ok(()) => {}
            Err(Short::Cap) => {
                bump(&pool.counters.refused_cap);
                self.remove_failed(e);
                return Kept::Done(Put::OverCap);
            }
            Err(Short::Room) => return Kept::Short(size),
        }
        let Some(slot) = inner.alloc.alloc(class) else {
            // Undo without asking for room again: the old size was held a moment ago.
            if size >= old_size {
                pool.account.uncharge(&inner.budget, size - old_size);
            } else {
                pool.account.charge_recovered(&inner.budget, old_size - size);
            }
            return Kept::Short(size);
        };
        let header = SlotHeader {
            pool: pool.id,
            index,
            len: page.len as u32,
            encoding: page.encoding,
            sparse,
            unit: None,
            seq: old.as_ref().and_then(|old| old.header).map_or(0, |h| next_seq(h.seq)),
            checksum: 0,
        };
        if let Some(draft) = &draft {
            draft.publish();
        }
        // SAFETY: the slot is ours and of the class for this length; data by the caller.
        unsafe {
            inner.arena.write_slot(slot, header, sparse.then_some(object), page.data);
        }
        let (h, relaxed) = (&pool.holding, Ordering::Relaxed);
        if let Some(old) = old {
            inner.clear(pool, &old, draft.as_deref());
            bump(&pool.counters.replaced);
            h.slots.fetch_add(size.wrapping_sub(old_size), relaxed);
            h.compressed.fetch_add(compressed.wrapping_sub(old.compressed), relaxed);
            if let Some(old_header) = old.header {
                forget_kind(pool, old_header.encoding);
            }
        } else {
            h.pages.fetch_add(1, relaxed);
            h.slots.fetch_add(size, relaxed);
            h.compressed.fetch_add(compressed, relaxed);
        }
        if let Some(draft) = draft {
            draft.done = true;
        }
        match page.encoding {
            Encoding::Same => bump(&h.same_filled),
            Encoding::Raw => bump(&h.raw),
            Encoding::Lz4 | Encoding::Zstd | Encoding::Units => {}
        }
        e.stand = Stand::Page(slot);
        if !pool.spec.persistent {
            pool.account.ephemeral.fetch_add(size.wrapping_sub(old_size), relaxed);
            let stamp = inner.stamp.fetch_add(1, relaxed);
            let mut lru = pool.lru.lock();
            if e.node != NIL {
                lru.remove(e.node);
            }
            e.node = lru.push(slot, stamp);
        }
        Kept::Done(Put::Stored)
    }
}

pub(crate) fn forget_kind(pool: &Pool, encoding: Encoding) {
    match encoding {
        Encoding::Same => pool.holding.same_filled.fetch_sub(1, Ordering::Relaxed),
        Encoding::Raw => pool.holding.raw.fetch_sub(1, Ordering::Relaxed),
        Encoding::Lz4 | Encoding::Zstd | Encoding::Units => 0,
    };
}

/// What a locked entry has, as far as it can be read.
pub(crate) struct Standing {
    pub slot: u64,
    pub header: Option<SlotHeader>,
    /// Bytes of slots, units included.
    pub size: u64,
    /// Bytes of data in them.
    pub compressed: u64,
}

impl Inner {
    /// What an entry has.
    #[inline]
    pub fn standing(&self, pool: &Pool, e: &Entry) -> Option<Standing> {
        let (Stand::Page(slot) | Stand::Lost(slot)) = e.stand else { return None };
        let header = self.arena.header(slot);
        let size = u64::from(self.alloc.slot_size(slot));
        let compressed = header.map_or(0, |h| u64::from(h.len));
        if header.is_some_and(|h| h.encoding == Encoding::Units) {
            return Some(self.standing_units(pool, Standing { slot, header, size, compressed: 0 }));
        }
        Some(Standing { slot, header, size, compressed })
    }

    #[cold]
    fn standing_units(&self, pool: &Pool, mut standing: Standing) -> Standing {
        // SAFETY: the entry is locked, and has that slot.
        for at in unsafe { self.head(pool, standing.slot) }.iter().flat_map(|head| self.units(head)) {
            standing.size += at.size;
            standing.compressed += u64::from(at.header.len);
        }
        standing
    }

    /// Frees what a locked entry has: the head first, so that its page is whole or not there. What
    /// is not understood is not freed. Units that a new head took over stay.
    #[inline]
    fn clear(&self, pool: &Pool, old: &Standing, but: Option<&Draft<'_>>) {
        if old.header.is_some_and(|h| h.encoding == Encoding::Units) {
            return self.clear_units(pool, old.slot, but);
        }
        self.arena.clear_header(old.slot);
        self.alloc.free(old.slot);
    }

    #[cold]
    fn clear_units(&self, pool: &Pool, slot: u64, but: Option<&Draft<'_>>) {
        // SAFETY: the entry is locked, and has that slot.
        let head = unsafe { self.head(pool, slot) };
        self.arena.clear_header(slot);
        self.alloc.free(slot);
        if let Some(head) = head {
            self.free_units(&head, but);
        }
    }

    /// Takes the page out of a locked entry. True if there was one.
    pub fn remove(&self, pool: &Pool, e: &mut Entry) -> bool {
        let Some(standing) = self.standing(pool, e) else {
            return false;
        };
        let size = standing.size;
        if e.node != NIL {
            pool.lru.lock().remove(e.node);
            e.node = NIL;
        }
        self.clear(pool, &standing, None);
        pool.account.uncharge(&self.budget, size);
        let relaxed = Ordering::Relaxed;
        if !pool.spec.persistent {
            pool.account.ephemeral.fetch_sub(size, relaxed);
        }
        let h = &pool.holding;
        h.pages.fetch_sub(1, relaxed);
        h.slots.fetch_sub(size, relaxed);
        h.compressed.fetch_sub(standing.compressed, relaxed);
        if let Some(header) = standing.header {
            forget_kind(pool, header.encoding);
        }
        e.stand = Stand::Absent;
        true
    }

    /// Takes all pages of an object (or of the pool) out; how many.
    pub fn drain(&self, pool: &Pool, object: Option<&ObjectId>, kill: bool) -> u64 {
        let mut n = 0;
        pool.index.drain(object, kill, |mut e| n += u64::from(self.remove(pool, &mut e)));
        n
    }
}
