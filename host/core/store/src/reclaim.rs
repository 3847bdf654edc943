// SPDX-License-Identifier: Apache-2.0
//! The allocator's other half: memory back to the host. What to compact is decided here, pages are
//! moved by [`crate::upkeep`], which knows their keys.

use std::sync::atomic::Ordering;

use crate::alloc::{Allocator, BLOCK_PAGES};
use crate::classes::CLASSES;
use crate::layout::{BLOCK_SHIFT, BLOCK_SIZE, BlockEntry, OS_PAGE};

impl Allocator {
    /// Empty blocks that still hold memory.
    pub fn warm_blocks(&self) -> usize {
        self.warm_blocks.load(Ordering::Relaxed)
    }

    /// Punches empty blocks down to `keep`; bytes given back to the host.
    pub fn trim(&self, keep: usize) -> u64 {
        let mut bytes = 0;
        loop {
            let Some((block, populated)) = ({
                let mut free = self.free.lock();
                if free.warm.len() > keep { free.warm.pop() } else { None }
            }) else {
                return bytes;
            };
            self.warm_blocks.fetch_sub(1, Ordering::Relaxed);
            if self.arena.punch(block, 0, populated).is_err() {
                // It stays ours, with its memory; the next trim tries again.
                self.free.lock().warm.push((block, populated));
                self.warm_blocks.fetch_add(1, Ordering::Relaxed);
                return bytes;
            }
            self.arena.set_block_entry(block, BlockEntry { class: None, populated: 0 });
            bytes += u64::from(populated) * OS_PAGE;
            self.free.lock().cold.insert(block);
        }
    }

    /// The block that costs most for what it holds: in a class whose free, populated slots are
    /// more than `1/spare` of it and fill a block or more between them, the emptiest block. It is
    /// closed to new slots, so that moving its pages elsewhere empties it.
    pub fn close_sparsest(&self, spare: u64) -> Option<u32> {
        for shard in &self.shards {
            let mut guard = shard.lock();
            let shard = &mut *guard;
            for (class, state) in shard.classes.iter_mut().enumerate() {
                let size = u64::from(CLASSES.size(class as u8));
                let capacity = state.pages * OS_PAGE / size;
                let free = capacity.saturating_sub(state.used);
                if state.blocks < 2 || free * spare <= capacity {
                    continue;
                }
                let sparsest = state
                    .partial
                    .iter()
                    .filter_map(|&n| shard.blocks.get(&n).map(|b| (b.slots - b.free, n)))
                    .min();
                if let Some((used, block)) = sparsest
                    && u64::from(used) < free
                {
                    state.partial.remove(&block);
                    return Some(block);
                }
            }
        }
        None
    }

    /// Blocks of classes that waste: more than `1/spare` of their memory, and two pages, in free
    /// slots.
    pub fn loose_blocks(&self, spare: u64) -> Vec<u32> {
        let mut loose = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let wasteful: Vec<bool> = shard
                .classes
                .iter()
                .enumerate()
                .map(|(class, state)| {
                    let size = u64::from(CLASSES.size(class as u8));
                    let free = (state.pages * OS_PAGE).saturating_sub(state.used * size);
                    free > state.pages * OS_PAGE / spare + 2 * OS_PAGE
                })
                .collect();
            loose.extend(
                shard
                    .blocks
                    .iter()
                    .filter(|(_, b)| b.free > 0 && wasteful[b.class as usize])
                    .map(|(&n, _)| n),
            );
        }
        loose
    }

    /// Up to `n` full blocks that were not put into a huge page yet; they count as done from now on.
    pub fn full_blocks(&self, n: usize) -> Vec<u32> {
        let mut full = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for (&block, b) in &mut shard.blocks {
                if full.len() < n && b.free == 0 && !b.huge && b.populated == BLOCK_PAGES {
                    b.huge = true;
                    full.push(block);
                }
            }
        }
        full
    }

    /// Takes the first free slot of this one's block, if it lies before it.
    pub fn alloc_below(&self, offset: u64) -> Option<u64> {
        let block = (offset >> BLOCK_SHIFT) as u32;
        let mut guard = self.shard_of(block);
        let shard = &mut *guard;
        let b = shard.blocks.get_mut(&block)?;
        let size = CLASSES.size(b.class);
        let free = b.lowest_free()?;
        if free >= (offset & (BLOCK_SIZE - 1)) as u32 / size {
            return None;
        }
        b.take(free);
        shard.classes[b.class as usize].used += 1;
        Some((u64::from(block) << BLOCK_SHIFT) + u64::from(free * size))
    }

    /// Gives back what lies behind the last slot in use of a block.
    pub fn trim_tail(&self, block: u32) {
        let mut guard = self.shard_of(block);
        let shard = &mut *guard;
        let Some(b) = shard.blocks.get_mut(&block) else { return };
        let last = (0..b.slots).rev().find(|s| b.bitmap[*s as usize / 64] & 1 << (s % 64) == 0);
        let Some(last) = last else { return };
        let state = &mut shard.classes[b.class as usize];
        let need = (u64::from(last + 1) * u64::from(CLASSES.size(b.class))).div_ceil(OS_PAGE) as u16;
        // Under the shard's lock: nobody takes a slot in what is about to go.
        if need < b.populated && self.arena.punch(block, need, b.populated).is_ok() {
            state.pages -= u64::from(b.populated - need);
            b.populated = need;
            self.arena.set_block_entry(block, BlockEntry { class: Some(b.class), populated: need });
        }
    }

    /// The slots in use of a block (data offsets), at this moment.
    pub fn used_slots(&self, block: u32) -> Vec<u64> {
        let guard = self.shard_of(block);
        let Some(b) = guard.blocks.get(&block) else { return Vec::new() };
        let size = u64::from(CLASSES.size(b.class));
        let start = u64::from(block) << BLOCK_SHIFT;
        (0..b.slots)
            .filter(|s| b.bitmap[*s as usize / 64] & 1 << (s % 64) == 0)
            .map(|s| start + u64::from(s) * size)
            .collect()
    }

    /// Opens a block again that [`Self::close_sparsest`] closed and that did not empty.
    pub fn reopen(&self, block: u32) {
        let mut guard = self.shard_of(block);
        let shard = &mut *guard;
        if let Some(b) = shard.blocks.get(&block)
            && b.free > 0
        {
            let state = &mut shard.classes[b.class as usize];
            if state.current != Some(block) {
                state.partial.insert(block);
            }
        }
    }
}
