// SPDX-License-Identifier: Apache-2.0
//! Copies and codecs alone: nothing is kept.

use std::sync::Arc;

use tmem_store::Codec;
use tmem_store::codec::{Encoding, Scratch};

use super::{Pages, Site, Work, scatter};
use crate::error::Result;
use crate::memory::{Memory, PAGE};

/// One page to one frame, both in the nearest cache.
struct CopyHot(Pages);

impl Work for CopyHot {
    fn run(&mut self, _seq: u32) -> std::result::Result<(), String> {
        // SAFETY: two different pages of the guest's memory.
        unsafe { std::ptr::copy_nonoverlapping(self.0.page(0), self.0.frame(0), PAGE) };
        std::hint::black_box(self.0.frame(0));
        Ok(())
    }
}

/// A page that no cache holds to a place that no cache holds.
struct CopyCold(Arc<Memory>);

impl Work for CopyCold {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        let half = self.0.len() / PAGE / 2;
        let from = scatter(seq, half);
        let to = half + scatter(seq.wrapping_add(77), half);
        // SAFETY: pages of different halves.
        unsafe {
            std::ptr::copy_nonoverlapping(self.0.at(from * PAGE, PAGE), self.0.at(to * PAGE, PAGE), PAGE);
        }
        Ok(())
    }
}

struct Compress {
    pages: Pages,
    codec: Codec,
    scratch: Scratch,
}

impl Work for Compress {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        // SAFETY: a page of the guest's memory.
        std::hint::black_box(unsafe { self.scratch.compress(self.codec, self.pages.page(seq as usize)) });
        Ok(())
    }
}

struct Decompress {
    pages: Pages,
    scratch: Scratch,
    packed: Vec<(Encoding, Vec<u8>)>,
    last: usize,
}

impl Work for Decompress {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        self.last = seq as usize % self.packed.len();
        let (encoding, data) = &self.packed[self.last];
        // SAFETY: a frame of the guest's memory.
        if unsafe { self.scratch.decompress(*encoding, data, self.pages.frame(0)) } {
            Ok(())
        } else {
            Err("a page did not decompress".into())
        }
    }

    fn finish(&mut self) -> std::result::Result<super::Extra, String> {
        if self.pages.same(0, self.last) {
            Ok(super::Extra::default())
        } else {
            Err("a page came back different from what was compressed".into())
        }
    }
}

/// The work of that name.
pub(super) fn make(site: &Site, name: &str) -> Result<Box<dyn Work>> {
    let pages = site.pages.clone();
    let codec = if name.starts_with("zstd") { Codec::Zstd } else { Codec::Lz4 };
    let mut scratch = Scratch::new();
    Ok(match (name, &site.cold) {
        ("copy-hot", _) => Box::new(CopyHot(pages)),
        ("copy-cold", Some(cold)) => Box::new(CopyCold(cold.clone())),
        ("lz4-compress" | "zstd-compress", _) => Box::new(Compress { pages, codec, scratch }),
        _ => {
            let packed = (0..pages.count()).map(|i| pack(&mut scratch, codec, pages.page(i))).collect();
            Box::new(Decompress { pages, scratch, packed, last: 0 })
        }
    })
}

/// One page compressed, or as it is when it does not compress.
fn pack(scratch: &mut Scratch, codec: Codec, page: *mut u8) -> (Encoding, Vec<u8>) {
    // SAFETY: a page of the guest's memory, which no guest touches now.
    match unsafe { scratch.compress(codec, page) } {
        Some((encoding, data)) => (encoding, data.to_vec()),
        // SAFETY: as above.
        None => (Encoding::Raw, unsafe { std::slice::from_raw_parts(page, PAGE) }.to_vec()),
    }
}
