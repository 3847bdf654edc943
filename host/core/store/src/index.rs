// SPDX-License-Identifier: Apache-2.0
//! Key to slot: dense (swap pools, 8 bytes a page, array-like) and sparse (objects, trees).
//!
//! Both give out one *entry* at a time, locked. The lock of a dense entry is a bit of the entry
//! itself, so looking up and locking is one cache line; a sparse entry's is its stripe's.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::layout::ObjectId;
use crate::lru::{NIL, NodeId};

const LOCKED: u64 = 1;
const KIND: u64 = 0b110;
const KIND_PAGE: u64 = 0b010;
const KIND_LOST: u64 = 0b100;
const KIND_REFUSED: u64 = 0b110;
/// The entry of a destroyed pool.
const DEAD: u64 = !(LOCKED | KIND);

/// Dense entries in 4 KiB.
const ENTRIES: u32 = 4096 / 8;
/// Devices of so many pages (4 GiB) get their index in huge pages: there a walk of the page tables
/// costs more than the entry. Below it, 2 MiB at once would be more than all of the index.
const HUGE_FROM: u32 = 1 << 20;
const STRIPES: usize = 64;
/// Entries of a dense index that are looked at in one go.
const DENSE_KEYS: usize = 1 << 16;

/// What stands under a key. Slots are 8-aligned data offsets, so the low bits are free for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    Absent,
    /// A page, in that slot.
    Page(u64),
    /// A slot whose bytes do not check: the page is lost, and known to be.
    Lost(u64),
    /// A put failed and removed the old page: the key misses, and a block device must not read
    /// zeroes for it.
    Refused,
}

/// A locked entry. What is set here is what stands after the lock is released.
pub(crate) struct Entry {
    pub stand: Stand,
    pub node: NodeId,
}

impl Stand {
    fn unpack(word: u64) -> Self {
        let slot = word & !(KIND | LOCKED);
        match word & KIND {
            KIND_PAGE => Self::Page(slot),
            KIND_LOST => Self::Lost(slot),
            KIND_REFUSED => Self::Refused,
            _ => Self::Absent,
        }
    }

    fn pack(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Page(slot) => slot | KIND_PAGE,
            Self::Lost(slot) => slot | KIND_LOST,
            Self::Refused => KIND_REFUSED,
        }
    }
}

/// Asks the processor for a cache line without waiting for it.
#[inline]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it neither faults nor changes anything, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Array of entries in an anonymous mapping: memory comes with first use, in 4 KiB pages.
pub(crate) struct Dense {
    base: *mut AtomicU64,
    capacity: u32,
}

// SAFETY: the mapping is an array of atomics.
unsafe impl Send for Dense {}
// SAFETY: as above.
unsafe impl Sync for Dense {}

/// Releases a dense entry's lock, whatever happens in between.
struct Unlock<'a> {
    cell: &'a AtomicU64,
    word: u64,
}

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        self.cell.store(self.word, Ordering::Release);
    }
}

impl Dense {
    pub fn new(capacity: u32) -> Option<Self> {
        // SAFETY: a new private mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (capacity as usize * 8).max(8),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        if capacity >= HUGE_FROM {
            // SAFETY: our new mapping. Advice only: without it the index works as well.
            unsafe { libc::madvise(base, capacity as usize * 8, libc::MADV_HUGEPAGE) };
        }
        Some(Self { base: base.cast(), capacity })
    }

    #[inline]
    fn cell(&self, index: u32) -> Option<&AtomicU64> {
        // SAFETY: inside the mapping; anonymous memory starts as zero, a valid entry.
        (index < self.capacity).then(|| unsafe { &*self.base.add(index as usize) })
    }

    #[inline]
    fn lock(cell: &AtomicU64) -> u64 {
        let mut spins = 0u32;
        loop {
            let word = cell.load(Ordering::Relaxed);
            if word & LOCKED == 0
                && cell
                    .compare_exchange_weak(word, word | LOCKED, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return word;
            }
            spins += 1;
            // Only requests for the same page meet here, for the time of one page's copy.
            if spins.is_multiple_of(64) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// The slot of an entry's page, without its lock: a hint.
    #[inline]
    fn peek(&self, index: u32) -> Option<u64> {
        match Stand::unpack(self.cell(index)?.load(Ordering::Relaxed)) {
            Stand::Page(slot) => Some(slot),
            _ => None,
        }
    }

    #[inline]
    fn with<R>(&self, index: u32, f: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let cell = self.cell(index)?;
        let word = Self::lock(cell);
        let mut unlock = Unlock { cell, word };
        if word == DEAD {
            return None;
        }
        let mut entry = Entry { stand: Stand::unpack(word), node: NIL };
        let r = f(&mut entry);
        unlock.word = entry.stand.pack();
        Some(r)
    }

    /// Which of the mapping's 4 KiB pages have memory. `None`: the kernel does not say.
    fn resident(&self) -> Option<Vec<u8>> {
        let len = (self.capacity as usize * 8).max(8);
        let mut seen = vec![0u8; len.div_ceil(4096)];
        // SAFETY: our mapping, and one byte for each of its pages.
        (unsafe { libc::mincore(self.base.cast(), len, seen.as_mut_ptr()) } == 0).then_some(seen)
    }

    /// Bytes of memory the index holds now.
    pub fn resident_bytes(&self) -> u64 {
        self.resident().map_or(u64::from(self.capacity) * 8, |seen| {
            seen.iter().filter(|&&b| b & 1 != 0).count() as u64 * 4096
        })
    }

    /// Gives back the memory of entries that say nothing. Not for the path of a page.
    pub fn release_empty(&self) {
        for (page, _) in self.resident().into_iter().flatten().enumerate().filter(|(_, b)| b & 1 != 0) {
            self.release_page(page as u32);
        }
    }

    fn release_page(&self, page: u32) {
        let first = page * ENTRIES;
        let cells = || (first..self.capacity.min(first + ENTRIES)).filter_map(|i| self.cell(i));
        if cells().any(|c| c.load(Ordering::Relaxed) != 0) {
            return;
        }
        // All of them are locked, so nothing can come to stand in memory that is about to go.
        let lock =
            |c: &&AtomicU64| c.compare_exchange(0, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let locked = cells().take_while(lock).count();
        let all = locked == cells().count();
        let gone = all && {
            // SAFETY: one page of our mapping, every entry of which is locked by us and absent. It
            // reads as zero from now on: absent, and unlocked.
            let r = unsafe { libc::madvise(self.base.add(first as usize).cast(), 4096, libc::MADV_DONTNEED) };
            r == 0
        };
        if !gone {
            cells().take(locked).for_each(|c| c.store(0, Ordering::Release));
        }
    }
}

impl Drop for Dense {
    fn drop(&mut self) {
        // SAFETY: our mapping, unmapped once.
        unsafe { libc::munmap(self.base.cast(), (self.capacity as usize * 8).max(8)) };
    }
}

#[derive(Clone, Copy)]
struct SparseEntry {
    word: u64,
    node: NodeId,
}

#[derive(Default)]
struct Stripe {
    dead: bool,
    objects: HashMap<ObjectId, BTreeMap<u32, SparseEntry>>,
}

/// Objects of pages, spread over stripes by object.
pub(crate) struct Sparse {
    stripes: Box<[Mutex<Stripe>]>,
}

impl Sparse {
    pub fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    fn stripe(&self, object: &ObjectId) -> &Mutex<Stripe> {
        let h = object.iter().fold(0u64, |h, w| (h ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
        &self.stripes[h as usize % STRIPES]
    }

    fn with<R>(&self, object: &ObjectId, index: u32, f: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let mut stripe = self.stripe(object).lock();
        if stripe.dead {
            return None;
        }
        let old = stripe.objects.get(object).and_then(|o| o.get(&index)).copied();
        let mut entry = match old {
            Some(e) => Entry { stand: Stand::unpack(e.word), node: e.node },
            None => Entry { stand: Stand::Absent, node: NIL },
        };
        let r = f(&mut entry);
        if matches!(entry.stand, Stand::Absent | Stand::Refused) {
            if old.is_some()
                && let Some(o) = stripe.objects.get_mut(object)
            {
                o.remove(&index);
                if o.is_empty() {
                    stripe.objects.remove(object);
                }
            }
        } else {
            let e = SparseEntry { word: entry.stand.pack(), node: entry.node };
            stripe.objects.entry(*object).or_default().insert(index, e);
        }
        Some(r)
    }
}

/// The index of one pool.
pub(crate) enum Index {
    Dense(Dense),
    Sparse(Sparse),
}

impl Index {
    /// Runs `f` on the locked entry of a key. `None`: no such index, or the pool is destroyed.
    #[inline]
    pub fn with<R>(&self, object: &ObjectId, index: u32, f: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        match self {
            // A dense pool has one object, zero.
            Self::Dense(d) if *object == [0; 3] => d.with(index, f),
            Self::Dense(_) => None,
            Self::Sparse(s) => s.with(object, index, f),
        }
    }

    /// Brings the entry of a key nearer: its cache line is wanted soon.
    #[inline]
    pub fn prefetch(&self, index: u32) {
        if let Self::Dense(d) = self
            && let Some(cell) = d.cell(index)
        {
            prefetch(std::ptr::from_ref(cell).cast());
        }
    }

    /// The slot of a key's page in a dense pool, without its lock: a hint.
    #[inline]
    pub fn peek(&self, index: u32) -> Option<u64> {
        match self {
            Self::Dense(d) => d.peek(index),
            Self::Sparse(_) => None,
        }
    }

    /// Adds keys under which something stands, from a place in the index on; the place to go on from. What comes to
    /// stand meanwhile may be missed, what goes may be among them.
    pub fn keys(&self, from: usize, into: &mut Vec<(ObjectId, u32)>) -> Option<usize> {
        match self {
            Self::Dense(d) => {
                let end = (from + DENSE_KEYS).min(d.capacity as usize);
                let stands = |i: &u32| d.cell(*i).is_some_and(|c| c.load(Ordering::Relaxed) & !LOCKED != 0);
                into.extend((from as u32..end as u32).filter(stands).map(|i| ([0; 3], i)));
                (end < d.capacity as usize).then_some(end)
            }
            Self::Sparse(s) => {
                let stripe = s.stripes.get(from)?.lock();
                for (object, pages) in &stripe.objects {
                    into.extend(pages.keys().map(|&i| (*object, i)));
                }
                (from + 1 < STRIPES).then_some(from + 1)
            }
        }
    }

    /// Takes everything out under `object` (all objects with `None`), giving each entry to `f`.
    /// With `kill`, the index takes nothing any more.
    pub fn drain(&self, object: Option<&ObjectId>, kill: bool, mut f: impl FnMut(Entry)) {
        match self {
            Self::Dense(_) if object.is_some_and(|o| *o != [0; 3]) => {}
            Self::Dense(d) => {
                for cell in (0..d.capacity).filter_map(|i| d.cell(i)) {
                    if !kill && cell.load(Ordering::Relaxed) & !LOCKED == 0 {
                        continue;
                    }
                    let word = Dense::lock(cell);
                    let _unlock = Unlock { cell, word: if kill || word == DEAD { DEAD } else { 0 } };
                    if word != DEAD {
                        f(Entry { stand: Stand::unpack(word), node: NIL });
                    }
                }
            }
            Self::Sparse(s) => {
                let mut take = |stripe: &mut Stripe, o: &ObjectId| {
                    for e in stripe.objects.remove(o).into_iter().flatten() {
                        f(Entry { stand: Stand::unpack(e.1.word), node: e.1.node });
                    }
                };
                match object {
                    Some(o) => take(&mut s.stripe(o).lock(), o),
                    None => {
                        for stripe in &s.stripes {
                            let mut stripe = stripe.lock();
                            stripe.dead |= kill;
                            let all: Vec<_> = stripe.objects.keys().copied().collect();
                            all.iter().for_each(|o| take(&mut stripe, o));
                        }
                    }
                }
            }
        }
    }

    /// Gives memory back that says nothing.
    pub fn release_empty(&self) {
        if let Self::Dense(d) = self {
            d.release_empty();
        }
    }

    /// Bytes of host memory the index holds. For a sparse one an estimate from its entry counts.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(d) => d.resident_bytes(),
            Self::Sparse(s) => s
                .stripes
                .iter()
                .map(|stripe| {
                    let stripe = stripe.lock();
                    // A hash slot with its tree's root, and the tree's leaves at two thirds full.
                    let pages: usize = stripe.objects.values().map(BTreeMap::len).sum();
                    (stripe.objects.capacity() * 56 + pages * 36) as u64
                })
                .sum(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_dense_index_gives_its_memory_back() {
        let dense = Dense::new(2000).unwrap();
        for i in 0..2000 {
            dense.with(i, |e| e.stand = Stand::Page(u64::from(i + 1) * 8));
        }
        assert_eq!(dense.resident_bytes(), 4 * 4096);
        for i in (0..2000).filter(|i| *i != 700) {
            dense.with(i, |e| e.stand = Stand::Absent);
        }
        dense.release_empty();
        assert_eq!(dense.resident_bytes(), 4096);
        assert_eq!(dense.with(700, |e| e.stand), Some(Stand::Page(701 * 8)));
        assert_eq!(dense.with(1999, |e| e.stand), Some(Stand::Absent));
    }

    #[test]
    fn a_release_loses_nothing_that_is_written_meanwhile() {
        let dense = Dense::new(512).unwrap();
        std::thread::scope(|s| {
            let writer = s.spawn(|| {
                for round in 1..20_000u64 {
                    let i = (round % 512) as u32;
                    dense.with(i, |e| e.stand = Stand::Page(round * 8));
                    assert_eq!(dense.with(i, |e| e.stand), Some(Stand::Page(round * 8)));
                    dense.with(i, |e| e.stand = Stand::Absent);
                }
            });
            while !writer.is_finished() {
                dense.release_empty();
            }
        });
    }
}
