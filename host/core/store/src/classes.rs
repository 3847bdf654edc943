// SPDX-License-Identifier: Apache-2.0
//! Size classes of slots: at most 3 % apart above 256 bytes, so that on average 1.5 % is lost. The
//! largest hold 64 KiB: what is more lies in several slots.

use crate::codec::{PAGE_SIZE, UNIT_MAX};
use crate::layout::{HEADER, HEADER_SPARSE};

/// The largest slot: a raw unit of a sparse pool.
pub(crate) const MAX_SLOT: usize = HEADER_SPARSE + UNIT_MAX;
const MIN_SLOT: usize = HEADER + 8;
/// A class and one more fit into a byte: the block table says 0 for a free block.
const COUNT_MAX: usize = 255;

/// Table of slot sizes, and the class for each size in steps of 8 bytes.
pub(crate) struct Classes {
    sizes: [u32; COUNT_MAX],
    count: usize,
    by_size: [u8; MAX_SLOT / 8 + 1],
}

const fn build() -> Classes {
    let mut c = Classes { sizes: [0; COUNT_MAX], count: 0, by_size: [0; MAX_SLOT / 8 + 1] };
    let mut size = MIN_SLOT;
    // A raw page and a raw unit fit exactly, dense and sparse.
    let mut exact = 0;
    let raw = [PAGE_SIZE, UNIT_MAX];
    while exact < raw.len() {
        while size < HEADER + raw[exact] {
            c.sizes[c.count] = size as u32;
            c.count += 1;
            let grown = (size * 103 / 100).next_multiple_of(8);
            size = if grown > size { grown } else { size + 8 };
        }
        c.sizes[c.count] = (HEADER + raw[exact]) as u32;
        c.sizes[c.count + 1] = (HEADER_SPARSE + raw[exact]) as u32;
        c.count += 2;
        let sparse = HEADER_SPARSE + raw[exact];
        size = (sparse * 103 / 100).next_multiple_of(8);
        exact += 1;
    }
    let mut i = 0;
    let mut class = 0;
    while i <= MAX_SLOT / 8 {
        while (c.sizes[class] as usize) < i * 8 {
            class += 1;
        }
        c.by_size[i] = class as u8;
        i += 1;
    }
    c
}

pub(crate) static CLASSES: Classes = build();

impl Classes {
    pub fn count(&self) -> usize {
        self.count
    }

    /// The smallest class that holds `len` bytes. `len` is at most [`MAX_SLOT`].
    #[inline]
    pub fn of(&self, len: usize) -> u8 {
        self.by_size[len.div_ceil(8)]
    }

    #[inline]
    pub fn size(&self, class: u8) -> u32 {
        self.sizes[class as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_fits_tightly() {
        for len in 1..=MAX_SLOT {
            let class = CLASSES.of(len);
            let size = CLASSES.size(class) as usize;
            assert!(size >= len && size.is_multiple_of(8));
            assert!(class == 0 || (CLASSES.size(class - 1) as usize) < len);
            if len > 256 {
                assert!(size as f64 <= len as f64 * 1.032 + 8.0, "{len} -> {size}");
            }
        }
        assert!(CLASSES.count() < 255);
        for size in [HEADER + 4096, HEADER_SPARSE + 4096, HEADER + UNIT_MAX, MAX_SLOT] {
            assert_eq!(CLASSES.size(CLASSES.of(size)) as usize, size);
        }
    }
}
