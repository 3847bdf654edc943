// SPDX-License-Identifier: Apache-2.0
//! From a mapped arena back to VMs, pools and an index.
//!
//! Each slot says whose page it is, so the index is rebuilt by reading all headers, and each page
//! is checked against its checksum. What does not check is never served: its key answers *lost*
//! until it is put or flushed, and as the header itself may be what broke, every persistent pool
//! is marked *damaged*, where a miss may be a lost page and is answered as one.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::alloc::RecoveredBlock;
use crate::classes::CLASSES;
use crate::codec::Encoding;
use crate::error::{Result, StoreError};
use crate::index::Stand;
use crate::keep::forget_kind;
use crate::layout::{BLOCK_SHIFT, BlockEntry, OS_PAGE, SlotHeader, seq_later};
use crate::ops::DENSE_OBJECT;
use crate::pool::{Pool, PoolId, Vm};
use crate::quota::Account;
use crate::recover_units::Large;
use crate::stats::bump;
use crate::store::Inner;
use crate::tables::{self, Place};

/// What opening an arena found.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// The arena was made just now.
    pub fresh: bool,
    /// Pages found and checked.
    pub pages: u64,
    /// Slots whose bytes do not check.
    pub lost_pages: u64,
    /// Blocks or slots that do not even say what they are.
    pub unreadable: u64,
    /// Slots that an interrupted put or destroy left over, now free.
    pub leftovers: u64,
    /// Table entries that do not check: a VM's or pool's creation that was cut short, or damage.
    pub broken_entries: u64,
    /// Seconds from open to ready.
    pub seconds: f64,
}

/// Findings of one thread.
#[derive(Default)]
struct Found {
    blocks: Vec<RecoveredBlock>,
    losers: Vec<u64>,
    large: Large,
    pages: u64,
    /// May be below zero: another thread counted what this one took back.
    lost: i64,
    unreadable: u64,
    leftovers: u64,
}

pub(crate) fn recover(inner: &Inner) -> Result<Recovery> {
    let (broken_entries, dying) = read_tables(inner)?;
    let next = AtomicU32::new(0);
    let all = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut found = Found::default();
                let end = inner.arena.present();
                loop {
                    let block = next.fetch_add(1, Ordering::Relaxed);
                    if block >= end {
                        break;
                    }
                    scan_block(inner, block, &dying, &mut found);
                }
                all.lock().push(found);
            });
        }
    });
    let missing = inner.arena.present()..inner.arena.grown();
    let mut r = Recovery { broken_entries, unreadable: missing.len() as u64, ..Recovery::default() };
    let mut losers = Vec::new();
    let mut large = Large::default();
    let mut lost = 0;
    for found in all.into_inner() {
        inner.alloc.adopt(found.blocks);
        losers.extend(found.losers);
        large.extend(found.large);
        r.pages += found.pages;
        lost += found.lost;
        r.unreadable += found.unreadable;
        r.leftovers += found.leftovers;
    }
    r.pages -= losers.len() as u64;
    r.leftovers += losers.len() as u64;
    losers.into_iter().for_each(|slot| inner.alloc.free(slot));
    let not_whole = large.claim(inner);
    r.pages -= not_whole;
    r.lost_pages = lost.max(0) as u64 + not_whole;
    let clean = r.lost_pages + r.unreadable + r.broken_entries == 0;
    large.settle(inner, clean, &mut r);
    for &id in &dying {
        tables::clear_pool(&inner.arena, id);
    }
    for pool in inner.pools.read().values() {
        let held = pool.holding.slots.load(Ordering::Relaxed);
        pool.account.charge_recovered(&inner.budget, held);
        if !pool.spec.persistent {
            pool.account.ephemeral.fetch_add(held, Ordering::Relaxed);
        }
        let suspect = r.lost_pages + r.unreadable + r.broken_entries > 0;
        if suspect && pool.spec.persistent && !pool.damaged() {
            pool.damaged.store(true, Ordering::Relaxed);
            inner.save_pool(pool);
        }
    }
    inner.arena.replace_missing()?;
    let entry = BlockEntry { class: None, populated: 0 };
    inner.alloc.adopt(missing.map(|block| RecoveredBlock { block, entry, used: vec![] }).collect());
    Ok(r)
}

/// Broken entries, and the pools that were being destroyed.
fn read_tables(inner: &Inner) -> Result<(u64, HashSet<PoolId>)> {
    let mut broken = 0;
    let mut dying = HashSet::new();
    for (id, place) in (0..).zip(tables::read_vms(&inner.arena)) {
        match place {
            Place::Free => {}
            Place::Broken => broken += 1,
            Place::Taken(r) => {
                let account = Account::recovered(&inner.budget, r.reservation, r.cap, r.weight);
                account.set_frozen(r.frozen);
                inner.vms.write().insert(id, Arc::new(Vm::new(id, r.name, account, r.authorised)));
            }
        }
    }
    for (id, place) in (0..).zip(tables::read_pools(&inner.arena)) {
        let record = match place {
            Place::Free => continue,
            Place::Broken => {
                broken += 1;
                continue;
            }
            Place::Taken(r) => r,
        };
        let owner = record.members.first().and_then(|m| inner.vms.read().get(m).cloned());
        if record.dying {
            dying.insert(id);
            continue;
        }
        let Some(owner) = owner else {
            broken += 1;
            continue;
        };
        let account = match record.spec.shared {
            Some(_) => {
                Arc::new(Account::recovered(&inner.budget, 0, crate::quota::NO_CAP, owner.account.weight()))
            }
            None => owner.account.clone(),
        };
        let pool = Pool::new(id, record.spec, record.members, account)
            .ok_or_else(|| StoreError::NoSpace("no address space for a pool's index".into()))?;
        pool.damaged.store(record.damaged, Ordering::Relaxed);
        inner.pools.write().insert(id, Arc::new(pool));
    }
    Ok((broken, dying))
}

fn scan_block(inner: &Inner, block: u32, dying: &HashSet<PoolId>, found: &mut Found) {
    let Some(entry) = inner.arena.block_entry(block) else {
        found.unreadable += 1;
        return;
    };
    let start = u64::from(block) << BLOCK_SHIFT;
    let mut used = Vec::new();
    if let Some(class) = entry.class {
        if usize::from(class) >= CLASSES.count() {
            found.unreadable += 1;
            return;
        }
        if inner.arena.map_existing(block, entry.populated).is_err() {
            found.unreadable += 1;
            return;
        }
        let size = CLASSES.size(class);
        let slots = (u64::from(entry.populated) * OS_PAGE / u64::from(size)) as u32;
        for n in 0..slots {
            let slot = start + u64::from(n * size);
            if inner.arena.header_word(slot) != 0 && scan_slot(inner, slot, class, dying, found) {
                used.push(n);
            }
        }
    } else if inner.arena.map_existing(block, entry.populated).is_err() {
        found.unreadable += 1;
        return;
    }
    found.blocks.push(RecoveredBlock { block, entry, used });
}

/// Looks at a slot that has a header. False: it is free now.
fn scan_slot(inner: &Inner, slot: u64, class: u8, dying: &HashSet<PoolId>, found: &mut Found) -> bool {
    let header = inner
        .arena
        .header(slot)
        .filter(|h| h.slot_len() <= CLASSES.size(class) as usize && CLASSES.of(h.slot_len()) == class);
    let Some(header) = header else {
        // Kept out of use, so that what is there can still be looked at.
        found.unreadable += 1;
        return true;
    };
    let object = header.sparse.then(|| inner.arena.object(slot));
    // SAFETY: nothing else uses the arena yet; the length was checked against the class.
    let data = unsafe { inner.arena.payload(slot, &header) };
    let good = inner.arena.checksum(&header, object.as_ref(), data) == header.checksum;
    let pool = inner.pools.read().get(&header.pool).cloned();
    let Some(pool) = pool.filter(|p| p.sparse() == header.sparse) else {
        if dying.contains(&header.pool) {
            inner.arena.clear_header(slot);
            found.leftovers += 1;
            return false;
        }
        // Good or not: its pool's entry is what is missing. Kept, like all that is not understood.
        found.unreadable += 1;
        return true;
    };
    if header.unit.is_some() {
        found.large.units.insert(slot, good);
        return true;
    }
    let is_head = header.encoding == Encoding::Units;
    let object = object.unwrap_or(DENSE_OBJECT);
    let placed = pool.index.with(&object, header.index, |e| {
        let standing = match e.stand {
            Stand::Page(other) => Some((other, true)),
            Stand::Lost(other) => Some((other, false)),
            Stand::Absent | Stand::Refused => None,
        };
        if let Some((other, other_good)) = standing {
            let other_header = inner.arena.header(other);
            let verdict = match other_header {
                Some(o) => {
                    resolve(good, other_good, seq_later(header.seq, o.seq), seq_later(o.seq, header.seq))
                }
                None => Verdict::Replace,
            };
            match verdict {
                // The standing page was replaced, by a put cut short before it cleared the old one.
                Verdict::Replace if other_good => {
                    inner.arena.clear_header(other);
                    found.losers.push(other);
                }
                // The standing one does not check, so it may never have been this key's.
                Verdict::Replace => found.unreadable += 1,
                Verdict::Drop | Verdict::Keep => return verdict,
            }
            if e.node != crate::lru::NIL {
                pool.lru.lock().remove(e.node);
                e.node = crate::lru::NIL;
            }
            if let Some(o) = other_header {
                account(&pool, &o, false);
            }
            if !other_good {
                found.lost -= 1;
            }
        }
        e.stand = if good { Stand::Page(slot) } else { Stand::Lost(slot) };
        if !pool.spec.persistent {
            let stamp = inner.stamp.fetch_add(1, Ordering::Relaxed);
            e.node = pool.lru.lock().push(slot, stamp);
        }
        account(&pool, &header, true);
        Verdict::Replace
    });
    match placed {
        Some(Verdict::Replace) if good => {
            found.pages += 1;
            if is_head {
                found.large.heads.push(slot);
            }
        }
        Some(Verdict::Replace) => found.lost += 1,
        Some(Verdict::Drop) => {
            inner.arena.clear_header(slot);
            found.leftovers += 1;
            return false;
        }
        // An index beyond the pool, too: only damage writes that.
        Some(Verdict::Keep) | None => found.unreadable += 1,
    }
    true
}

/// What becomes of a slot whose key has another one already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It takes the key.
    Replace,
    /// It is what an interrupted put left over: free it.
    Drop,
    /// It stays where it is and belongs to nobody: what it really was is not known.
    Keep,
}

/// `good`, `other_good`: the slot checks, and what stands. `later`, `earlier`: by its sequence.
/// What does not check may have a wrong key, so it frees nothing; but where it may be the successor
/// of a good page the key is lost: the older page must not be served. The outcome does not depend
/// on which of the two is found first.
fn resolve(good: bool, other_good: bool, later: bool, earlier: bool) -> Verdict {
    match (good, other_good) {
        (true, true) if later => Verdict::Replace,
        (true, true) => Verdict::Drop,
        (true, false) if earlier => Verdict::Drop,
        (true, false) => Verdict::Replace,
        (false, true) if later => Verdict::Replace,
        (false, _) => Verdict::Keep,
    }
}

/// Adds a slot to what its pool holds, or takes it away.
fn account(pool: &Pool, header: &SlotHeader, add: bool) {
    let h = &pool.holding;
    let size = u64::from(CLASSES.size(CLASSES.of(header.slot_len())));
    // Of a large page, its units are counted when it is known which these are.
    let data = if header.encoding == Encoding::Units { 0 } else { u64::from(header.len) };
    if add {
        bump(&h.pages);
        h.slots.fetch_add(size, Ordering::Relaxed);
        h.compressed.fetch_add(data, Ordering::Relaxed);
        match header.encoding {
            Encoding::Same => bump(&h.same_filled),
            Encoding::Raw => bump(&h.raw),
            Encoding::Lz4 | Encoding::Zstd | Encoding::Units => {}
        }
    } else {
        h.pages.fetch_sub(1, Ordering::Relaxed);
        h.slots.fetch_sub(size, Ordering::Relaxed);
        h.compressed.fetch_sub(data, Ordering::Relaxed);
        forget_kind(pool, header.encoding);
    }
}
