// SPDX-License-Identifier: Apache-2.0
//! One block in use: which of its slots are free, and how much of it has memory behind it.

use crate::classes::CLASSES;
use crate::layout::{BLOCK_SIZE, OS_PAGE};

/// A block in use by a shard.
pub(crate) struct Block {
    pub class: u8,
    pub populated: u16,
    /// Pages that its slots reach into.
    pub pages: u16,
    pub slots: u32,
    pub free: u32,
    /// Word from which the search for a free slot starts: none is free below it.
    pub hint: u32,
    /// Bit set: slot free.
    pub bitmap: Box<[u64]>,
    /// Put into a huge page, or tried.
    pub huge: bool,
}

impl Block {
    pub fn new(class: u8, populated: u16) -> Self {
        let slots = slots_per_block(class);
        let mut bitmap = vec![u64::MAX; slots.div_ceil(64) as usize].into_boxed_slice();
        if !slots.is_multiple_of(64)
            && let Some(last) = bitmap.last_mut()
        {
            *last = (1 << (slots % 64)) - 1;
        }
        let pages = (u64::from(slots) * u64::from(CLASSES.size(class))).div_ceil(OS_PAGE) as u16;
        Self { class, populated, pages, slots, free: slots, hint: 0, bitmap, huge: false }
    }

    pub fn lowest_free(&mut self) -> Option<u32> {
        for word in self.hint as usize..self.bitmap.len() {
            if self.bitmap[word] != 0 {
                self.hint = word as u32;
                return Some(word as u32 * 64 + self.bitmap[word].trailing_zeros());
            }
        }
        None
    }

    pub fn take(&mut self, slot: u32) {
        self.bitmap[slot as usize / 64] &= !(1 << (slot % 64));
        self.free -= 1;
    }

    /// False if the slot was free already.
    pub fn give(&mut self, slot: u32) -> bool {
        let (word, bit) = (slot as usize / 64, 1 << (slot % 64));
        if self.bitmap[word] & bit != 0 {
            return false;
        }
        self.bitmap[word] |= bit;
        self.free += 1;
        self.hint = self.hint.min(word as u32);
        true
    }
}

fn slots_per_block(class: u8) -> u32 {
    BLOCK_SIZE as u32 / CLASSES.size(class)
}
