// SPDX-License-Identifier: Apache-2.0
//! Making room: eviction of ephemeral pages, and compaction of blocks that hold little.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::classes::CLASSES;
use crate::index::{Entry, Stand};
use crate::layout::{SlotHeader, next_seq};
use crate::lru::NIL;
use crate::ops::DENSE_OBJECT;
use crate::pool::Pool;
use crate::quota::Account;
use crate::stats::bump;
use crate::store::Inner;

/// Pages evicted at most for one put, as Xen's "relinquish" does.
const EVICT_BATCH: u32 = 10;
/// Candidates looked at for one eviction, should others take them first.
const EVICT_SEARCH: u32 = 64;
/// Compaction starts in a class when more than 1/32 of its memory is in free slots, or 1/8 while
/// the store is busy: then free slots are about to be used again.
const SPARE_QUIET: u64 = 32;
const SPARE_BUSY: u64 = 8;
/// Puts and flushes since the last upkeep from which on the store counts as busy.
const BUSY_OPS: u64 = 2000;
/// Memory in blocks from which on full ones are put into huge pages: what the processor's second
/// level of address translation covers with small pages (some 3000 entries of 4 KiB) is far below.
const COLLAPSE_FROM: u64 = 256 << 20;
/// Blocks put into huge pages in one round of upkeep.
const COLLAPSE_BATCH: usize = 4;
/// Blocks compacted in one go: some 10 ms of work.
const COMPACT_BATCH: u32 = 16;

/// What came of moving a page.
#[derive(PartialEq, Eq)]
enum Move {
    Done,
    /// The slot is no page's any more, or changes under somebody's hands.
    NotOurs,
    NoRoom,
}

impl Inner {
    /// Makes room for a put of `bytes`: first grants that are not used, then ephemeral pages of
    /// VMs over their weight's share, oldest first. False: there is nothing left to take.
    /// No lock of a key is held.
    #[cold]
    pub fn make_room(&self, bytes: u64) -> bool {
        let before = self.budget.free();
        for account in self.accounts() {
            account.settle(&self.budget, 0);
        }
        if self.budget.free() > before && self.budget.free() >= bytes as i64 {
            return true;
        }
        let mut evicted = false;
        // A large page takes more than ten small ones to make room for.
        for _ in 0..EVICT_BATCH.max((bytes / 1024) as u32) {
            let Some(account) = self.evict_one() else { break };
            evicted = true;
            account.settle(&self.budget, 0);
            if self.budget.free() >= bytes as i64 {
                break;
            }
        }
        evicted
    }

    /// Accounts of all VMs and shared pools.
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        let mut all: Vec<_> = self.vms.read().values().map(|v| v.account.clone()).collect();
        let pools = self.pools.read();
        all.extend(pools.values().filter(|p| p.spec.shared.is_some()).map(|p| p.account.clone()));
        all
    }

    /// Evicts the oldest ephemeral page of the account that is furthest over its share.
    fn evict_one(&self) -> Option<Arc<Account>> {
        let pools: Vec<_> = self.pools.read().values().filter(|p| !p.spec.persistent).cloned().collect();
        // eph_i / w_i orders accounts as Xen's eph_i / sum(eph) > w_i / sum(w) does.
        let over = |p: &Arc<Pool>| {
            let held = p.account.ephemeral.load(Ordering::Relaxed);
            held as f64 / f64::from(p.account.weight())
        };
        for _ in 0..EVICT_SEARCH {
            let victim = pools
                .iter()
                .filter_map(|p| p.lru.lock().oldest().map(|(_, _, stamp)| (p, stamp)))
                .max_by(|(a, sa), (b, sb)| over(a).total_cmp(&over(b)).then(sb.cmp(sa)))
                .map(|(p, _)| p)?;
            // The slot is read under the list's lock: a page leaves the list before its slot is
            // freed, so what is on the list has a valid slot.
            let (node, object, index) = {
                let mut lru = victim.lru.lock();
                let Some((node, slot, _)) = lru.oldest() else { continue };
                let Some(header) = self.arena.header(slot) else {
                    // Memory went bad: it cannot be found under its key, so look at the others.
                    lru.refresh(node, self.stamp.fetch_add(1, Ordering::Relaxed));
                    continue;
                };
                (node, self.arena.object(slot), header.index)
            };
            let gone = victim
                .index
                .with(&object, index, |e| e.node == node && self.remove(victim, e))
                .unwrap_or(false);
            if gone {
                bump(&victim.counters.evicted);
                return Some(victim.account.clone());
            }
            // Somebody else took it meanwhile; that is progress too.
        }
        None
    }

    /// Moves pages out of blocks that hold little, so that the blocks become free.
    pub fn compact(&self, spare: u64, blocks: u32) {
        let mut closed = Vec::new();
        for _ in 0..blocks {
            let Some(block) = self.alloc.close_sparsest(spare) else { break };
            closed.push(block);
            let moved = self.alloc.used_slots(block).into_iter().all(|slot| {
                self.relocate(slot, |class| self.alloc.alloc_beside(slot, class)) != Move::NoRoom
            });
            if !moved {
                break;
            }
        }
        // What could not be moved, lost pages above all, must not keep the rest of a block unused.
        closed.into_iter().for_each(|block| self.alloc.reopen(block));
        for block in self.alloc.loose_blocks(spare).into_iter().take(blocks as usize) {
            self.squeeze(block);
        }
    }

    /// Moves a block's last pages into free slots before them and gives its end back.
    fn squeeze(&self, block: u32) {
        for slot in self.alloc.used_slots(block).into_iter().rev() {
            if self.relocate(slot, |_| self.alloc.alloc_below(slot)) == Move::NoRoom {
                break;
            }
        }
        self.alloc.trim_tail(block);
    }

    /// One round of the upkeep thread.
    pub fn upkeep(&self) {
        let ops = self.pools.read().values().map(|p| p.changes()).sum();
        let before = self.last_ops.swap(ops, Ordering::Relaxed);
        let busy = ops.abs_diff(before) > BUSY_OPS;
        // Half of what is warm goes each time: memory returns within a second of the last flush,
        // and a swap storm that reuses blocks does not pay for punching them.
        let keep = self.alloc.warm_blocks() / 2;
        self.tidy(if busy { SPARE_BUSY } else { SPARE_QUIET }, COMPACT_BATCH, keep);
        let flushes = self.pools.read().values().map(|p| p.counters.flushes.load(Ordering::Relaxed)).sum();
        if !busy && self.last_flushes.swap(flushes, Ordering::Relaxed) != flushes {
            self.release_indices();
        }
        if ops == before {
            self.collapse(COLLAPSE_BATCH);
        }
    }

    /// Puts full blocks into huge pages: a random get in a large store spends more on page tables
    /// than on the page. A block is not accessible for some milliseconds meanwhile, so this is for
    /// a store that rests, and only from a size on at which it pays.
    fn collapse(&self, blocks: usize) {
        if self.arena.populated_bytes() < COLLAPSE_FROM || !self.can_collapse.load(Ordering::Relaxed) {
            return;
        }
        for block in self.alloc.full_blocks(blocks) {
            if !self.arena.collapse(block) {
                self.can_collapse.store(false, Ordering::Relaxed);
                return;
            }
        }
    }

    fn release_indices(&self) {
        let pools: Vec<_> = self.pools.read().values().cloned().collect();
        pools.iter().for_each(|p| p.index.release_empty());
    }

    /// Compacts, then punches empty blocks down to `keep`. Bytes given back to the host.
    pub fn tidy(&self, spare: u64, blocks: u32, keep: usize) -> u64 {
        let _one = self.tidying.lock();
        self.compact(spare, blocks);
        let pools: Vec<_> = self.pools.read().values().cloned().collect();
        for pool in pools.iter().filter(|p| p.holding.pages.load(Ordering::Relaxed) == 0) {
            pool.index.release_empty();
        }
        self.alloc.trim(keep)
    }

    /// All that can be given back, now.
    pub fn tidy_fully(&self) -> u64 {
        self.release_indices();
        let bytes = self.tidy(SPARE_QUIET, u32::MAX, 0);
        self.collapse(usize::MAX);
        bytes
    }

    /// Moves one page to the slot that `room` gives for its class.
    fn relocate(&self, slot: u64, room: impl FnOnce(u8) -> Option<u64>) -> Move {
        let Some(header) = self.arena.header(slot) else {
            // Free by now, or being written.
            return Move::NotOurs;
        };
        let Some(pool) = self.pools.read().get(&header.pool).cloned() else { return Move::NotOurs };
        if header.sparse != pool.sparse() {
            return Move::NotOurs;
        }
        let object = if header.sparse { self.arena.object(slot) } else { DENSE_OBJECT };
        pool.index
            .with(&object, header.index, |e| match header.unit {
                None => self.relocate_locked(&pool, e, slot, room),
                Some(_) => self.relocate_unit(&pool, e, slot, room),
            })
            .unwrap_or(Move::NotOurs)
    }

    fn relocate_locked(
        &self,
        pool: &Pool,
        e: &mut Entry,
        slot: u64,
        room: impl FnOnce(u8) -> Option<u64>,
    ) -> Move {
        if e.stand != Stand::Page(slot) {
            return Move::NotOurs;
        }
        // Read again under the lock: the slot may have been reused since.
        let Some(header) = self.arena.header(slot).filter(|h| h.unit.is_none()) else {
            return Move::NotOurs;
        };
        if header.slot_len() > self.alloc.slot_size(slot) as usize {
            return Move::NotOurs;
        }
        let object = header.sparse.then(|| self.arena.object(slot));
        // SAFETY: the entry is locked and says this slot is its page; the length was checked.
        let data = unsafe { self.arena.payload(slot, &header) };
        if self.arena.checksum(&header, object.as_ref(), data) != header.checksum {
            // Moving would give wrong bytes a right checksum.
            e.stand = Stand::Lost(slot);
            return Move::NotOurs;
        }
        let Some(to) = room(CLASSES.of(header.slot_len())) else { return Move::NoRoom };
        let moved = SlotHeader { seq: next_seq(header.seq), ..header };
        // SAFETY: a fresh slot of the same class.
        unsafe { self.arena.write_slot(to, moved, object.as_ref(), data.as_ptr()) };
        self.arena.clear_header(slot);
        self.alloc.free(slot);
        e.stand = Stand::Page(to);
        if e.node != NIL {
            pool.lru.lock().moved(e.node, to);
        }
        bump(&pool.counters.moved);
        Move::Done
    }

    /// Moves one unit of a large page: it is whole in its new place before the head says so.
    fn relocate_unit(
        &self,
        pool: &Pool,
        e: &mut Entry,
        slot: u64,
        room: impl FnOnce(u8) -> Option<u64>,
    ) -> Move {
        let Stand::Page(of) = e.stand else { return Move::NotOurs };
        // SAFETY: the entry is locked, and has that slot.
        let Some(head) = (unsafe { self.head(pool, of) }) else { return Move::NotOurs };
        let Some((number, at)) = head.number_at(slot).and_then(|n| Some((n, self.unit(&head, n)?))) else {
            return Move::NotOurs;
        };
        // SAFETY: as above.
        let Some(data) = (unsafe { self.unit_data(&at) }) else {
            e.stand = Stand::Lost(of);
            return Move::NotOurs;
        };
        let Some(to) = room(CLASSES.of(at.header.slot_len())) else { return Move::NoRoom };
        let object = at.header.sparse.then(|| self.arena.object(slot));
        // SAFETY: a fresh slot of the same class, then the word of a head that stands.
        unsafe {
            self.arena.write_slot(to, at.header, object.as_ref(), data.as_ptr());
            self.unit_moved(&head, number, to);
        }
        self.arena.clear_header(slot);
        self.alloc.free(slot);
        bump(&pool.counters.moved);
        Move::Done
    }
}
