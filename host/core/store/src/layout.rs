// SPDX-License-Identifier: Apache-2.0
//! The arena's format: what lies where in the file, and how one slot describes itself.
//!
//! ```text
//! 0         superblock (one 4 KiB page)
//! VM_TABLE  4096 VM entries of 512 bytes
//! POOL_TABLE 16384 pool entries of 128 bytes
//! BLOCK_TABLE one u64 a block: size class, populated pages, check bits
//! DATA      blocks of 2 MiB, each cut into slots of one size class
//! ```
//! A slot is a 16-byte header (40 bytes with the 192-bit object id of sparse pools) and its data.
//! Pages above 64 KiB lie in several slots: see [`crate::units`].
//! Stores reach the file in program order as other processes see it (shared memory, x86-64 and
//! release stores), so *data first, header last* is enough against the death of the process. It is
//! not meant to outlive the machine: neither do the guests.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::codec::Encoding;

pub(crate) const BLOCK_SHIFT: u32 = 21;
/// Bytes in a block, the unit of growth and of hole punching.
pub const BLOCK_SIZE: u64 = 1 << BLOCK_SHIFT;
pub(crate) const OS_PAGE: u64 = 4096;

pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"kvmtmem\x01");
pub(crate) const FORMAT_VERSION: u32 = 2;

pub(crate) const MAX_VMS: usize = 4096;
pub(crate) const VM_ENTRY: usize = 512;
pub(crate) const MAX_POOLS: usize = 16384;
pub(crate) const POOL_ENTRY: usize = 128;
/// 2 TiB of blocks; the table is sparse, so this costs address space only.
pub(crate) const MAX_BLOCKS: u64 = 1 << 20;

pub(crate) const VM_TABLE: u64 = OS_PAGE;
pub(crate) const POOL_TABLE: u64 = VM_TABLE + (MAX_VMS * VM_ENTRY) as u64;
pub(crate) const BLOCK_TABLE: u64 = POOL_TABLE + (MAX_POOLS * POOL_ENTRY) as u64;
pub(crate) const DATA: u64 = (BLOCK_TABLE + MAX_BLOCKS * 8).next_multiple_of(BLOCK_SIZE);

/// Header bytes of a slot in a dense pool.
pub(crate) const HEADER: usize = 16;
/// Header bytes of a slot in a sparse pool: the object id follows.
pub(crate) const HEADER_SPARSE: usize = 40;

/// A 192-bit object id, as three words (Xen's `oid[3]`).
pub type ObjectId = [u64; 3];

const SLOT_MAGIC: u64 = 0xa5;
pub(crate) const SEQ_BITS: u32 = 10;
const SEQ_MASK: u64 = (1 << SEQ_BITS) - 1;

/// The header of a slot. `word1` is zero in a free slot and is written last.
///
/// word0: checksum (0..32), index (32..64).
/// word1: magic (0..8), encoding (8..12), sparse (12), unit (13), zero (14..16), pool (16..32),
/// length (32..49), number of the unit (49..54), sequence (54..64).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotHeader {
    pub pool: u16,
    pub index: u32,
    pub len: u32,
    pub encoding: Encoding,
    pub sparse: bool,
    /// The slot holds that unit of a large page, not a page.
    pub unit: Option<u8>,
    /// Told apart from an older slot of the same key by serial arithmetic; grows by one a put.
    pub seq: u16,
    pub checksum: u32,
}

impl SlotHeader {
    #[inline]
    pub fn words(&self) -> (u64, u64) {
        let word0 = u64::from(self.checksum) | u64::from(self.index) << 32;
        let word1 = SLOT_MAGIC
            | (self.encoding as u64) << 8
            | u64::from(self.sparse) << 12
            | u64::from(self.unit.is_some()) << 13
            | u64::from(self.pool) << 16
            | u64::from(self.len) << 32
            | u64::from(self.unit.unwrap_or(0)) << 49
            | (u64::from(self.seq) & SEQ_MASK) << 54;
        (word0, word1)
    }

    /// `None`: these words are no header.
    #[inline]
    pub fn parse(word0: u64, word1: u64) -> Option<Self> {
        if word1 & 0xff != SLOT_MAGIC || word1 & 0xc000 != 0 {
            return None;
        }
        let unit = match (word1 >> 13 & 1, (word1 >> 49 & 0x1f) as u8) {
            (0, 0) => None,
            (0, _) => return None,
            (_, number) => Some(number),
        };
        Some(Self {
            pool: (word1 >> 16) as u16,
            index: (word0 >> 32) as u32,
            len: (word1 >> 32) as u32 & 0x1_ffff,
            encoding: Encoding::from_bits(word1 >> 8 & 0xf)?,
            sparse: word1 & 1 << 12 != 0,
            unit,
            seq: (word1 >> 54) as u16,
            checksum: word0 as u32,
        })
    }

    #[inline]
    pub fn header_len(&self) -> usize {
        if self.sparse { HEADER_SPARSE } else { HEADER }
    }

    #[inline]
    pub fn slot_len(&self) -> usize {
        self.header_len() + self.len as usize
    }
}

#[inline]
pub(crate) fn next_seq(seq: u16) -> u16 {
    seq.wrapping_add(1) & SEQ_MASK as u16
}

/// Serial-number arithmetic (RFC 1982) on [`SEQ_BITS`] bits: is `a` later than `b`? Two slots of
/// one key only exist inside one interrupted put, so they are one apart.
#[inline]
pub(crate) fn seq_later(a: u16, b: u16) -> bool {
    let diff = a.wrapping_sub(b) & SEQ_MASK as u16;
    diff != 0 && diff < 1 << (SEQ_BITS - 1)
}

/// An entry of the block table, never zero for a block that the file has. Check bits tell a torn or flipped entry from a real one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockEntry {
    /// Size class, `None` for a free block.
    pub class: Option<u8>,
    /// 4 KiB pages of memory behind the block, from its start.
    pub populated: u16,
}

impl BlockEntry {
    pub fn pack(self, block: u32) -> u64 {
        let low = self.class.map_or(0, |c| u64::from(c) + 1) | u64::from(self.populated) << 16;
        low | u64::from(Self::check(block, low as u32)) << 32
    }

    pub fn unpack(word: u64, block: u32) -> Option<Self> {
        let low = word as u32;
        let class = low & 0xffff;
        let populated = (low >> 16) as u16;
        if (word >> 32) as u32 != Self::check(block, low)
            || class > 255
            || u64::from(populated) > BLOCK_SIZE / OS_PAGE
        {
            return None;
        }
        Some(Self { class: (class as u16).checked_sub(1).map(|c| c as u8), populated })
    }

    fn check(block: u32, low: u32) -> u32 {
        let x = (u64::from(block) << 32 | u64::from(low)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (x >> 32) as u32 ^ 0x746d_656d
    }
}

/// Loads a word of the mapped file.
///
/// # Safety
/// `at` is 8-aligned and inside a mapping that outlives the call.
#[inline]
pub(crate) unsafe fn load(at: *const u8) -> u64 {
    // SAFETY: by the caller.
    unsafe { &*at.cast::<AtomicU64>() }.load(Ordering::Acquire)
}

/// Stores a word of the mapped file, after everything stored before it.
///
/// # Safety
/// As [`load`], and the mapping is writable.
#[inline]
pub(crate) unsafe fn store(at: *mut u8, value: u64) {
    // SAFETY: by the caller.
    unsafe { &*at.cast::<AtomicU64>() }.store(value, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip() {
        for seq in [0, 1, 1023] {
            for (sparse, unit) in [(false, None), (true, None), (false, Some(0)), (true, Some(31))] {
                let h = SlotHeader {
                    pool: 0xbeef,
                    index: 0xdead_beef,
                    len: 65536,
                    encoding: Encoding::Zstd,
                    sparse,
                    unit,
                    seq,
                    checksum: 0x1234_5678,
                };
                let (a, b) = h.words();
                assert_eq!(SlotHeader::parse(a, b), Some(h));
            }
        }
        assert_eq!(SlotHeader::parse(0, 0), None);
    }

    #[test]
    fn sequence_wraps() {
        assert!(seq_later(1, 0));
        assert!(seq_later(0, 1023));
        assert!(!seq_later(1023, 0));
        assert!(!seq_later(5, 5));
        assert_eq!(next_seq(1023), 0);
    }

    #[test]
    fn block_entry_detects_flips() {
        let e = BlockEntry { class: Some(17), populated: 512 };
        let w = e.pack(99);
        assert_eq!(BlockEntry::unpack(w, 99), Some(e));
        assert_eq!(BlockEntry::unpack(w, 98), None);
        for bit in 0..64 {
            assert_eq!(BlockEntry::unpack(w ^ 1 << bit, 99), None, "bit {bit}");
        }
    }
}
