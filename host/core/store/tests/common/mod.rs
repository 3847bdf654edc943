// SPDX-License-Identifier: Apache-2.0
//! Pages, and handles that take and give them as vectors.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod vms;

use tmem_store::{Codec, Get, Handle, Put};

/// xorshift64*: small, seeded, good enough to choose operations.
pub struct Rng(pub u64);
impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A page of one of four kinds: filled with a word, about 4:1, about 1.5:1, random. Of a large
/// page, each 64 KiB are of a kind of their own, unless one word fills all.
pub fn page(seed: u64, size: usize) -> Vec<u8> {
    if seed.is_multiple_of(4) {
        return seed.to_le_bytes().repeat(size / 8);
    }
    let mut p = vec![0u8; size];
    for (i, unit) in p.chunks_mut(64 << 10).enumerate() {
        let seed = seed.wrapping_add(i as u64);
        let mut r = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let random = match seed % 4 {
            0 => {
                unit.fill(seed as u8);
                continue;
            }
            1 => unit.len() / 5,
            2 => unit.len() / 3 * 2,
            _ => unit.len(),
        };
        for c in unit[..random].chunks_mut(8) {
            let w = r.next().to_le_bytes();
            c.copy_from_slice(&w[..c.len()]);
        }
    }
    p
}

pub fn put(h: &Handle, o: &[u64; 3], i: u32, p: &[u8]) -> Put {
    assert_eq!(p.len(), h.pool().page_size());
    // SAFETY: a page.
    unsafe { h.put(o, i, p.as_ptr()) }
}

pub fn get(h: &Handle, o: &[u64; 3], i: u32) -> (Get, Vec<u8>) {
    let mut p = vec![0xeeu8; h.pool().page_size()];
    // SAFETY: a page.
    let g = unsafe { h.get(o, i, p.as_mut_ptr()) };
    (g, p)
}

pub fn read(h: &Handle, o: &[u64; 3], i: u32, offset: usize, len: usize) -> (Get, Vec<u8>) {
    let mut p = vec![0xeeu8; len];
    // SAFETY: as long as it says.
    let g = unsafe { h.read(o, i, offset, len, p.as_mut_ptr()) };
    (g, p)
}

pub fn write(h: &Handle, o: &[u64; 3], i: u32, offset: usize, data: &[u8]) -> Put {
    // SAFETY: as long as it says.
    unsafe { h.write(o, i, offset, data.len(), data.as_ptr()) }
}

/// What a guest makes of a page: one lz4 block or zstd frame.
pub fn pack(codec: Codec, page: &[u8]) -> Vec<u8> {
    let mut out = vec![0u8; page.len() + page.len() / 100 + 1024];
    let n = if codec == Codec::Zstd {
        // SAFETY: lengths as they are.
        unsafe {
            zstd_sys::ZSTD_compress(out.as_mut_ptr().cast(), out.len(), page.as_ptr().cast(), page.len(), 3)
        }
    } else {
        let (src, dst) = (page.as_ptr().cast(), out.as_mut_ptr().cast());
        // SAFETY: lengths as they are.
        unsafe { lz4_sys::LZ4_compress_default(src, dst, page.len() as i32, out.len() as i32) as usize }
    };
    out.truncate(n);
    out
}
