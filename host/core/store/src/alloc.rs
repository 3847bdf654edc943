// SPDX-License-Identifier: Apache-2.0
//! Slots out of blocks.
//!
//! Threads are spread over shards; a block belongs to one shard and one size class while it holds
//! anything. Inside a block the lowest free slot is taken first and memory is faulted in just
//! ahead of it, so what the host holds follows what is stored. A block that empties is *warm*
//! (reused first) until [`Allocator::trim`] punches it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::arena::Arena;
use crate::block::Block;
use crate::classes::CLASSES;
use crate::layout::{BLOCK_SHIFT, BLOCK_SIZE, BlockEntry, OS_PAGE};

pub(crate) const BLOCK_PAGES: u16 = (BLOCK_SIZE / OS_PAGE) as u16;
/// Memory is faulted in ahead of use by 1/64 of what the class holds, within these bounds (pages).
const AHEAD_MIN: u64 = 1;
const AHEAD_MAX: u64 = 64;

#[derive(Default)]
pub(crate) struct Class {
    pub current: Option<u32>,
    /// Other blocks with free slots, lowest first so that high blocks drain.
    pub partial: BTreeSet<u32>,
    pub pages: u64,
    pub used: u64,
    pub blocks: u32,
    /// Listed in [`Shard::hungry`].
    pub hungry: bool,
}

impl Class {
    /// Pages to fault in at a time.
    fn ahead(&self) -> u64 {
        (self.pages / 64).clamp(AHEAD_MIN, AHEAD_MAX)
    }
}

#[derive(Default)]
pub(crate) struct Shard {
    pub classes: Vec<Class>,
    /// Classes whose current block soon needs more memory: served by [`Allocator::ahead`].
    pub hungry: Vec<u8>,
    pub blocks: std::collections::HashMap<u32, Block, BuildBlockHasher>,
}

/// Block numbers are dense small integers: a multiplication spreads them enough.
#[derive(Default, Clone)]
pub(crate) struct BuildBlockHasher;
pub(crate) struct BlockHasher(u64);
impl std::hash::BuildHasher for BuildBlockHasher {
    type Hasher = BlockHasher;
    fn build_hasher(&self) -> BlockHasher {
        BlockHasher(0)
    }
}
impl std::hash::Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[derive(Default)]
pub(crate) struct FreeBlocks {
    /// Empty, memory still behind them (pages).
    pub warm: Vec<(u32, u16)>,
    /// Empty, punched.
    pub cold: BTreeSet<u32>,
}

/// The allocator of one arena.
pub(crate) struct Allocator {
    pub arena: Arc<Arena>,
    pub shards: Box<[Mutex<Shard>]>,
    pub owner: Box<[AtomicU8]>,
    /// Size class by block, for slots that their key's lock keeps in place.
    pub class: Box<[AtomicU8]>,
    pub free: Mutex<FreeBlocks>,
    pub warm_blocks: AtomicUsize,
}

thread_local! {
    static HOME: Cell<usize> = const { Cell::new(usize::MAX) };
}
static NEXT_HOME: AtomicUsize = AtomicUsize::new(0);

fn home() -> usize {
    HOME.with(|h| {
        if h.get() == usize::MAX {
            h.set(NEXT_HOME.fetch_add(1, Ordering::Relaxed));
        }
        h.get()
    })
}

/// A block as recovery found it: class, populated pages, and the slots in use.
pub(crate) struct RecoveredBlock {
    pub block: u32,
    pub entry: BlockEntry,
    pub used: Vec<u32>,
}

impl Allocator {
    pub fn new(arena: Arc<Arena>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        let shards = cpus.next_power_of_two().min(16);
        let bytes = || (0..arena.max_blocks()).map(|_| AtomicU8::new(0)).collect();
        let (owner, class) = (bytes(), bytes());
        let shards = (0..shards)
            .map(|_| {
                let mut s = Shard::default();
                s.classes.resize_with(CLASSES.count(), Class::default);
                Mutex::new(s)
            })
            .collect();
        Self { arena, shards, owner, class, free: Mutex::default(), warm_blocks: AtomicUsize::new(0) }
    }

    /// Takes over the blocks that recovery scanned.
    pub fn adopt(&self, found: Vec<RecoveredBlock>) {
        for RecoveredBlock { block, entry, used } in found {
            let Some(class) = entry.class.filter(|_| !used.is_empty()) else {
                // Whatever is behind it goes: a stale header must not survive a change of class.
                if entry.class.is_some() {
                    self.arena.set_block_entry(block, BlockEntry { class: None, populated: entry.populated });
                }
                let mut free = self.free.lock();
                if entry.populated == 0 {
                    free.cold.insert(block);
                } else {
                    free.warm.push((block, entry.populated));
                    self.warm_blocks.fetch_add(1, Ordering::Relaxed);
                }
                continue;
            };
            let index = block as usize % self.shards.len();
            self.owner[block as usize].store(index as u8, Ordering::Relaxed);
            self.class[block as usize].store(class, Ordering::Relaxed);
            let mut shard = self.shards[index].lock();
            let mut b = Block::new(class, entry.populated);
            for slot in used {
                b.take(slot);
            }
            let state = &mut shard.classes[class as usize];
            state.blocks += 1;
            state.used += u64::from(b.slots - b.free);
            state.pages += u64::from(entry.populated);
            if b.free > 0 {
                state.partial.insert(block);
            }
            shard.blocks.insert(block, b);
        }
    }

    /// A slot of that class, as a data offset. `None`: no memory or no address space left.
    #[inline]
    pub fn alloc(&self, class: u8) -> Option<u64> {
        self.alloc_in(home() & (self.shards.len() - 1), class)
    }

    /// A slot of that class in the shard that has this one: for a page that moves, so that pages
    /// do not spread over the shards of whoever moves them.
    pub fn alloc_beside(&self, offset: u64, class: u8) -> Option<u64> {
        let block = (offset >> BLOCK_SHIFT) as usize;
        self.alloc_in(usize::from(self.owner[block].load(Ordering::Relaxed)), class)
    }

    fn alloc_in(&self, home: usize, class: u8) -> Option<u64> {
        let mut guard = self.shards[home].lock();
        let shard = &mut *guard;
        let state = &mut shard.classes[class as usize];
        loop {
            let block = match state.current {
                Some(b) => b,
                None => match state.partial.pop_first() {
                    Some(b) => *state.current.insert(b),
                    None => {
                        let (b, populated) = self.take_block(class)?;
                        self.owner[b as usize].store(home as u8, Ordering::Relaxed);
                        self.class[b as usize].store(class, Ordering::Relaxed);
                        shard.blocks.insert(b, Block::new(class, populated));
                        state.blocks += 1;
                        state.pages += u64::from(populated);
                        *state.current.insert(b)
                    }
                },
            };
            let b = shard.blocks.get_mut(&block)?;
            let Some(slot) = b.lowest_free() else {
                state.current = None;
                continue;
            };
            let size = CLASSES.size(class);
            let end = u64::from(slot + 1) * u64::from(size);
            if end > u64::from(b.populated) * OS_PAGE && !self.extend(block, b, state, end) {
                return None;
            }
            b.take(slot);
            state.used += 1;
            let near = end + state.ahead() * OS_PAGE / 2;
            if near > u64::from(b.populated) * OS_PAGE && b.populated < b.pages && !state.hungry {
                state.hungry = true;
                shard.hungry.push(class);
            }
            return Some((u64::from(block) << BLOCK_SHIFT) + u64::from(slot * size));
        }
    }

    /// Puts memory behind a block up to `end` bytes and some more.
    #[cold]
    fn extend(&self, block: u32, b: &mut Block, state: &mut Class, end: u64) -> bool {
        let need = end.div_ceil(OS_PAGE) as u16;
        let ahead = state.ahead() as u16;
        let wanted = (need + ahead - 1).min(b.pages);
        for to in [wanted, need] {
            if self.arena.populate(block, b.populated, to).is_ok() {
                state.pages += u64::from(to - b.populated);
                b.populated = to;
                self.arena.set_block_entry(block, BlockEntry { class: Some(b.class), populated: to });
                return true;
            }
        }
        false
    }

    /// Faults memory in where the calling thread's puts will need it next: off the path of a put.
    pub fn ahead(&self) {
        let home = home() & (self.shards.len() - 1);
        let mut guard = self.shards[home].lock();
        let shard = &mut *guard;
        while let Some(class) = shard.hungry.pop() {
            let state = &mut shard.classes[class as usize];
            state.hungry = false;
            let Some(block) = state.current else { continue };
            let Some(b) = shard.blocks.get_mut(&block) else { continue };
            let end = (u64::from(b.populated) + 1) * OS_PAGE;
            if b.populated < b.pages {
                self.extend(block, b, state, end);
            }
        }
    }

    /// A free block for that class: warm before punched before new.
    #[cold]
    fn take_block(&self, class: u8) -> Option<(u32, u16)> {
        let mut free = self.free.lock();
        let (block, populated) = if let Some(warm) = free.warm.pop() {
            self.warm_blocks.fetch_sub(1, Ordering::Relaxed);
            warm
        } else if let Some(block) = free.cold.pop_first() {
            (block, 0)
        } else {
            (self.arena.grow()?, 0)
        };
        drop(free);
        // Old bytes where the new class has its headers must not read as headers.
        let size = u64::from(CLASSES.size(class));
        let start = u64::from(block) << BLOCK_SHIFT;
        let mut at = 0;
        while at + 16 <= u64::from(populated) * OS_PAGE && at + size <= BLOCK_SIZE {
            self.arena.clear_header(start + at);
            at += size;
        }
        self.arena.set_block_entry(block, BlockEntry { class: Some(class), populated });
        Some((block, populated))
    }

    /// Size of the slot that starts at that offset. `None`: none does, in memory that is there.
    pub fn size_at(&self, offset: u64) -> Option<u32> {
        let block = u32::try_from(offset >> BLOCK_SHIFT).ok().filter(|&b| b < self.arena.grown())?;
        let entry = self.arena.block_entry(block)?;
        let class = entry.class.filter(|&c| usize::from(c) < CLASSES.count())?;
        let (size, within) = (u64::from(CLASSES.size(class)), offset & (BLOCK_SIZE - 1));
        (within.is_multiple_of(size) && within + size <= u64::from(entry.populated) * OS_PAGE)
            .then_some(size as u32)
    }

    /// Size of a slot that is in use.
    #[inline]
    pub fn slot_size(&self, offset: u64) -> u32 {
        let block = (offset >> BLOCK_SHIFT) as usize;
        CLASSES.size(self.class[block].load(Ordering::Relaxed))
    }

    /// Gives a slot back. Its header was cleared before.
    #[inline]
    pub fn free(&self, offset: u64) {
        let block = (offset >> BLOCK_SHIFT) as u32;
        let mut guard = self.shard_of(block);
        let shard = &mut *guard;
        let Some(b) = shard.blocks.get_mut(&block) else {
            debug_assert!(false, "free of a slot in a free block");
            return;
        };
        let class = b.class;
        let slot = (offset & (BLOCK_SIZE - 1)) as u32 / CLASSES.size(class);
        if !b.give(slot) {
            debug_assert!(false, "double free");
            return;
        }
        let state = &mut shard.classes[class as usize];
        state.used -= 1;
        if b.free == b.slots {
            self.release(block, shard);
        } else if b.free == 1 && state.current != Some(block) {
            state.partial.insert(block);
        }
    }

    pub fn shard_of(&self, block: u32) -> MutexGuard<'_, Shard> {
        // A block changes its shard only while it is free, and the caller's slot is in it.
        let owner = self.owner[block as usize].load(Ordering::Relaxed);
        self.shards[owner as usize].lock()
    }

    #[cold]
    fn release(&self, block: u32, shard: &mut Shard) {
        let Some(b) = shard.blocks.remove(&block) else { return };
        let state = &mut shard.classes[b.class as usize];
        state.blocks -= 1;
        state.pages -= u64::from(b.populated);
        if state.current == Some(block) {
            state.current = None;
        }
        state.partial.remove(&block);
        self.arena.set_block_entry(block, BlockEntry { class: None, populated: b.populated });
        self.free.lock().warm.push((block, b.populated));
        self.warm_blocks.fetch_add(1, Ordering::Relaxed);
    }
}
