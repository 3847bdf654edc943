// SPDX-License-Identifier: Apache-2.0
//! put, get, flush: the six rules of design section 5.
//!
//! A refusal is a value. The key's lock is held from the decision to the end of the copy, and
//! compression happens before it is taken.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::classes::CLASSES;
use crate::codec::{self, Encoding, PAGE_SIZE, Scratch};
use crate::index::{Entry, Stand, prefetch};
use crate::layout::{ObjectId, SlotHeader, next_seq};
use crate::lru::NIL;
use crate::pool::{Pool, Vm};
use crate::quota::Short;
use crate::stats::{Tick, bump};
use crate::store::Inner;

/// The object of every page of a dense pool.
pub const DENSE_OBJECT: ObjectId = [0; 3];

/// Answer to a put.
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
    /// A part of a page that is not there whole cannot be replaced.
    Lost,
}

/// Answer to a get.
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
}

/// A VM's way to the pages of one pool.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
    pub(crate) vm: Arc<Vm>,
    pub(crate) pool: Arc<Pool>,
}

/// A page ready to be kept.
struct Prepared<'a> {
    encoding: Encoding,
    data: &'a [u8],
}

/// What came of trying to keep a page, under the key's lock.
enum Kept {
    Done(Put),
    /// No room: evict something and come back. Nothing was changed.
    Short,
}

/// Cache lines of a slot asked for at once in a get.
const AHEAD_LINES: usize = 6;

/// One in so many operations of a thread is timed: the two clock readings cost as much as a tenth
/// of the fastest get.
const TIMED: u32 = 8;

/// How often a put evicts and tries again before it is refused.
const EVICT_TRIES: u32 = 8;

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
    /// `src` is valid for reads of 4096 bytes for the whole call; the bytes may change meanwhile.
    pub unsafe fn put(&self, object: &ObjectId, index: u32, src: *const u8) -> Put {
        bump(&self.pool.counters.puts);
        codec::with_scratch(|s| {
            let t = s.one_in(TIMED).then(Tick::now);
            // SAFETY: by the caller.
            let answer = unsafe { self.put_with(s, object, index, src) };
            if let Some(t) = t {
                self.pool.latencies.put.record(t.ns());
            }
            answer
        })
    }

    // SAFETY contract: as `put`.
    unsafe fn put_with(&self, scratch: &mut Scratch, object: &ObjectId, index: u32, src: *const u8) -> Put {
        if self.vm.account.frozen() {
            bump(&self.pool.counters.refused_frozen);
            return self.refuse(object, index, Put::Frozen);
        }
        self.pool.index.prefetch(index);
        let word;
        // SAFETY: src by the caller.
        let prepared = if let Some(w) = unsafe { codec::same_filled(src) } {
            word = w.to_ne_bytes();
            Prepared { encoding: Encoding::Same, data: &word }
        } else {
            // What a replaced page needs, its header, comes in while this one is compressed.
            if let Some(old) = self.pool.index.peek(index) {
                prefetch(self.inner.arena.data(old));
            }
            // SAFETY: as above.
            match unsafe { scratch.compress(self.pool.codec(), src) } {
                Some((encoding, data)) => Prepared { encoding, data },
                None => {
                    // SAFETY: the bytes may change while the slice lives; it is only copied from,
                    // and what was copied is what is checksummed.
                    let data = unsafe { std::slice::from_raw_parts(src, PAGE_SIZE) };
                    Prepared { encoding: Encoding::Raw, data }
                }
            }
        };
        for _ in 0..EVICT_TRIES {
            let kept = self.pool.index.with(object, index, |e| self.keep(e, object, index, &prepared));
            match kept {
                None => return Put::NoPool,
                Some(Kept::Done(answer)) => return answer,
                Some(Kept::Short) => {
                    let size = CLASSES.size(CLASSES.of(self.slot_len(&prepared)));
                    if !self.inner.make_room(u64::from(size)) {
                        break;
                    }
                }
            }
        }
        bump(&self.pool.counters.refused_room);
        self.refuse(object, index, Put::NoRoom)
    }

    fn slot_len(&self, p: &Prepared<'_>) -> usize {
        let header = if self.pool.sparse() { crate::layout::HEADER_SPARSE } else { crate::layout::HEADER };
        header + p.data.len()
    }

    /// Rule 1: a put that fails removes the old data.
    #[cold]
    fn refuse(&self, object: &ObjectId, index: u32, answer: Put) -> Put {
        let done = self.pool.index.with(object, index, |e| self.remove_failed(e));
        if done.is_none() { Put::NoPool } else { answer }
    }

    fn remove_failed(&self, e: &mut Entry) {
        if self.inner.remove(&self.pool, e) {
            bump(&self.pool.counters.failed_replaces);
        }
        if self.pool.spec.persistent && !self.pool.sparse() {
            e.stand = Stand::Refused;
        }
    }

    fn keep(&self, e: &mut Entry, object: &ObjectId, index: u32, p: &Prepared<'_>) -> Kept {
        let (inner, pool) = (&*self.inner, &*self.pool);
        let sparse = pool.sparse();
        let class = CLASSES.of(self.slot_len(p));
        let size = u64::from(CLASSES.size(class));
        let old = inner.standing(e);
        let old_size = old.map_or(0, |(_, _, size)| size);
        match pool.account.charge(&inner.budget, old_size, size) {
            Ok(()) => {}
            Err(Short::Cap) => {
                bump(&pool.counters.refused_cap);
                self.remove_failed(e);
                return Kept::Done(Put::OverCap);
            }
            Err(Short::Room) => return Kept::Short,
        }
        let Some(slot) = inner.alloc.alloc(class) else {
            // Undo without asking for room again: the old size was held a moment ago.
            if size >= old_size {
                pool.account.uncharge(&inner.budget, size - old_size);
            } else {
                pool.account.charge_recovered(&inner.budget, old_size - size);
            }
            return Kept::Short;
        };
        let header = SlotHeader {
            pool: pool.id,
            index,
            len: p.data.len() as u32,
            encoding: p.encoding,
            sparse,
            seq: old.map_or(0, |(_, h, _)| h.map_or(0, |h| next_seq(h.seq))),
            checksum: 0,
        };
        // SAFETY: the slot is ours and of the class for this length; data is valid (guest pages by
        // the caller of `put`).
        unsafe {
            inner.arena.write_slot(slot, header, sparse.then_some(object), p.data.as_ptr());
        }
        let h = &pool.holding;
        let (add, relaxed) = (p.data.len() as u64, Ordering::Relaxed);
        if let Some((old_slot, old_header, _)) = old {
            inner.arena.clear_header(old_slot);
            inner.alloc.free(old_slot);
            bump(&pool.counters.replaced);
            h.slots.fetch_add(size.wrapping_sub(old_size), relaxed);
            let was = old_header.map_or(0, |h| u64::from(h.len));
            h.compressed.fetch_add(add.wrapping_sub(was), relaxed);
            if let Some(old_header) = old_header {
                forget_kind(pool, old_header.encoding);
            }
        } else {
            h.pages.fetch_add(1, relaxed);
            h.slots.fetch_add(size, relaxed);
            h.compressed.fetch_add(add, relaxed);
        }
        match p.encoding {
            Encoding::Same => bump(&h.same_filled),
            Encoding::Raw => bump(&h.raw),
            Encoding::Lz4 | Encoding::Zstd => {}
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

    /// Writes the page under a key to `dst`.
    ///
    /// # Safety
    /// `dst` is valid for reads and writes of 4096 bytes for the whole call; others may access it.
    pub unsafe fn get(&self, object: &ObjectId, index: u32, dst: *mut u8) -> Get {
        let answer = codec::with_scratch(|s| {
            let t = s.one_in(TIMED).then(Tick::now);
            let answer = self.pool.index.with(object, index, |e| {
                // SAFETY: dst by the caller.
                unsafe { self.fetch(s, e, dst) }
            });
            if let Some(t) = t {
                self.pool.latencies.get.record(t.ns());
            }
            answer.unwrap_or(Get::NoPool)
        });
        let c = &self.pool.counters;
        bump(match answer {
            Get::Hit => &c.hits,
            Get::Lost => &c.lost,
            Get::Miss | Get::Refused | Get::NoPool => &c.misses,
        });
        answer
    }

    // SAFETY contract: as `get`.
    unsafe fn fetch(&self, scratch: &mut Scratch, e: &mut Entry, dst: *mut u8) -> Get {
        let pool = &*self.pool;
        let slot = match e.stand {
            Stand::Page(slot) => slot,
            Stand::Refused => return Get::Refused,
            Stand::Lost(_) if !pool.spec.persistent => {
                self.inner.remove(pool, e);
                return Get::Miss;
            }
            Stand::Lost(_) => return Get::Lost,
            // Its slot may be the one that could not be read.
            Stand::Absent if pool.spec.persistent && pool.damaged() => return Get::Lost,
            Stand::Absent => return Get::Miss,
        };
        // SAFETY: the entry is locked and says the slot is its page; dst by the caller.
        if !unsafe { self.inner.read_slot(scratch, slot, dst) } {
            e.stand = Stand::Lost(slot);
            return Get::Lost;
        }
        if !pool.spec.persistent {
            if pool.spec.shared.is_some() {
                let stamp = self.inner.stamp.fetch_add(1, Ordering::Relaxed);
                pool.lru.lock().refresh(e.node, stamp);
            } else {
                self.inner.remove(pool, e);
                bump(&pool.counters.flushed);
            }
        }
        Get::Hit
    }

    /// Replaces `data.len()` bytes at `offset` of a page; a missing page counts as zeroes.
    pub fn write_part(&self, object: &ObjectId, index: u32, offset: usize, data: &[u8]) -> Put {
        debug_assert!(offset + data.len() <= PAGE_SIZE);
        bump(&self.pool.counters.puts);
        let mut page = [0u8; PAGE_SIZE];
        for _ in 0..EVICT_TRIES {
            let kept = codec::with_scratch(|scratch| {
                self.pool.index.with(object, index, |e| {
                    if self.vm.account.frozen() {
                        bump(&self.pool.counters.refused_frozen);
                        self.remove_failed(e);
                        return Kept::Done(Put::Frozen);
                    }
                    match e.stand {
                        Stand::Absent if !self.pool.damaged() => page.fill(0),
                        Stand::Page(slot) => {
                            // SAFETY: the entry is locked; `page` is ours.
                            if !unsafe { self.inner.read_slot(scratch, slot, page.as_mut_ptr()) } {
                                return Kept::Done(Put::Lost);
                            }
                        }
                        _ => return Kept::Done(Put::Lost),
                    }
                    page[offset..offset + data.len()].copy_from_slice(data);
                    let word;
                    // SAFETY: `page` is a page of ours.
                    let p = match unsafe { codec::same_filled(page.as_ptr()) } {
                        Some(w) => {
                            word = w.to_ne_bytes();
                            Prepared { encoding: Encoding::Same, data: &word }
                        }
                        // SAFETY: as above.
                        None => match unsafe { scratch.compress(self.pool.codec(), page.as_ptr()) } {
                            Some((encoding, data)) => Prepared { encoding, data },
                            None => Prepared { encoding: Encoding::Raw, data: &page },
                        },
                    };
                    self.keep(e, object, index, &p)
                })
            });
            match kept {
                None => return Put::NoPool,
                Some(Kept::Done(answer)) => return answer,
                Some(Kept::Short) => {
                    if !self.inner.make_room(crate::classes::MAX_SLOT as u64) {
                        break;
                    }
                }
            }
        }
        bump(&self.pool.counters.refused_room);
        self.refuse(object, index, Put::NoRoom)
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

pub(crate) fn forget_kind(pool: &Pool, encoding: Encoding) {
    match encoding {
        Encoding::Same => pool.holding.same_filled.fetch_sub(1, Ordering::Relaxed),
        Encoding::Raw => pool.holding.raw.fetch_sub(1, Ordering::Relaxed),
        Encoding::Lz4 | Encoding::Zstd => 0,
    };
}

impl Inner {
    /// The slot an entry has, its header if readable, and the slot's size.
    #[inline]
    pub fn standing(&self, e: &Entry) -> Option<(u64, Option<SlotHeader>, u64)> {
        let (Stand::Page(slot) | Stand::Lost(slot)) = e.stand else { return None };
        let header = self.arena.header(slot);
        let size = u64::from(self.alloc.slot_size(slot));
        Some((slot, header, size))
    }

    /// Reads a slot into `dst`, checked. False: the bytes are not what was kept.
    ///
    /// # Safety
    /// The key's entry is locked and `slot` is its page's; `dst` as for [`Handle::get`].
    #[inline]
    pub unsafe fn read_slot(&self, scratch: &mut Scratch, slot: u64, dst: *mut u8) -> bool {
        let at = self.arena.data(slot);
        // The processor's own prefetcher needs two misses to see the run; most pages take more lines.
        for line in 1..AHEAD_LINES {
            prefetch(at.wrapping_add(line * 64));
        }
        let Some(header) = self.arena.header(slot) else { return false };
        if header.slot_len() > self.alloc.slot_size(slot) as usize {
            return false;
        }
        let object = header.sparse.then(|| self.arena.object(slot));
        // SAFETY: locked by the caller; the length was checked against the slot's class.
        let data = unsafe { self.arena.payload(slot, &header) };
        self.arena.checksum(&header, object.as_ref(), data) == header.checksum
            // SAFETY: dst by the caller.
            && unsafe { scratch.decompress(header.encoding, data, dst) }
    }

    /// Takes the page out of a locked entry. True if there was one.
    pub fn remove(&self, pool: &Pool, e: &mut Entry) -> bool {
        let Some((slot, header, size)) = self.standing(e) else {
            return false;
        };
        if e.node != NIL {
            pool.lru.lock().remove(e.node);
            e.node = NIL;
        }
        self.arena.clear_header(slot);
        self.alloc.free(slot);
        pool.account.uncharge(&self.budget, size);
        let relaxed = Ordering::Relaxed;
        if !pool.spec.persistent {
            pool.account.ephemeral.fetch_sub(size, relaxed);
        }
        let h = &pool.holding;
        h.pages.fetch_sub(1, relaxed);
        h.slots.fetch_sub(size, relaxed);
        if let Some(header) = header {
            h.compressed.fetch_sub(u64::from(header.len), relaxed);
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
