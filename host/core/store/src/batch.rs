// SPDX-License-Identifier: Apache-2.0
//! Several pages in one request.
//!
//! A page far away costs two accesses to memory one after the other: its entry in the index says
//! where its slot is. In a batch both are asked for ahead, while pages before it are worked on.

use crate::codec;
use crate::fetch::prefetch_lines;
use crate::layout::ObjectId;
use crate::ops::{Get, Handle, Put};

/// How many pages ahead of its turn the index entry of a page is asked for, and its slot.
const ENTRY_AHEAD: usize = 8;
const SLOT_AHEAD: usize = 4;

/// One page of a batch: its key, and where it is put from or got to.
#[derive(Clone, Copy)]
pub struct PageAt<P> {
    /// The object.
    pub object: ObjectId,
    /// The index in it.
    pub index: u32,
    /// Memory of one page.
    pub at: P,
}

/// Answers to the two halves of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchanged {
    /// The put, which is done first.
    pub put: Put,
    /// The get. `None`: the put was refused, so nothing was got and the destination is untouched.
    pub get: Option<Get>,
}

impl Handle {
    /// Puts the page at `src` under one key, then gets another to `dst`, which may be the same
    /// memory: what a guest does that swaps a page out and another into its frame.
    ///
    /// It is a put and a get one after the other, no more: other requests may come in between, and
    /// if both name one key, the get gives what was just put. After a put that was refused nothing
    /// is got, as `dst` may hold the only copy of the page. A get that misses leaves the put done.
    ///
    /// # Safety
    /// `src` as for [`Self::put`], `dst` as for [`Self::get`].
    pub unsafe fn exchange(
        &self,
        put: (&ObjectId, u32),
        src: *const u8,
        get: (&ObjectId, u32),
        dst: *mut u8,
    ) -> Exchanged {
        self.pool.index.prefetch(put.1);
        self.pool.index.prefetch(get.1);
        codec::with_scratch(|s| {
            let ahead = || self.prefetch_page(get.1);
            // SAFETY: src by the caller.
            let stored = unsafe { self.put_with(s, put.0, put.1, src, ahead) };
            let got = (stored == Put::Stored).then(|| {
                // SAFETY: dst by the caller.
                unsafe { self.get_with(s, get.0, get.1, dst) }
            });
            Exchanged { put: stored, get: got }
        })
    }

    /// Puts pages in their order; each is answered for itself, in its place of `answers`. The
    /// shorter of both slices ends the batch.
    ///
    /// # Safety
    /// Each `at` as for [`Self::put`].
    pub unsafe fn put_many(&self, pages: &[PageAt<*const u8>], answers: &mut [Put]) {
        pages.iter().take(ENTRY_AHEAD).for_each(|p| self.pool.index.prefetch(p.index));
        codec::with_scratch(|s| {
            for (i, (page, answer)) in pages.iter().zip(answers).enumerate() {
                let ahead = || {
                    if let Some(p) = pages.get(i + ENTRY_AHEAD) {
                        self.pool.index.prefetch(p.index);
                    }
                };
                // SAFETY: by the caller.
                *answer = unsafe { self.put_with(s, &page.object, page.index, page.at, ahead) };
            }
        });
    }

    /// Gets pages in their order; each is answered for itself, in its place of `answers`. The
    /// shorter of both slices ends the batch.
    ///
    /// # Safety
    /// Each `at` as for [`Self::get`].
    pub unsafe fn get_many(&self, pages: &[PageAt<*mut u8>], answers: &mut [Get]) {
        pages.iter().take(ENTRY_AHEAD).for_each(|p| self.pool.index.prefetch(p.index));
        pages.iter().take(SLOT_AHEAD).for_each(|p| self.prefetch_page(p.index));
        codec::with_scratch(|s| {
            for (i, (page, answer)) in pages.iter().zip(answers).enumerate() {
                if let Some(p) = pages.get(i + ENTRY_AHEAD) {
                    self.pool.index.prefetch(p.index);
                }
                if let Some(p) = pages.get(i + SLOT_AHEAD) {
                    self.prefetch_page(p.index);
                }
                // SAFETY: by the caller.
                *answer = unsafe { self.get_with(s, &page.object, page.index, page.at) };
            }
        });
    }

    /// Flushes pages; how many there were.
    pub fn flush_many(&self, keys: impl Iterator<Item = (ObjectId, u32)>) -> u64 {
        keys.map(|(object, index)| u64::from(self.flush_page(&object, index))).sum()
    }

    /// Asks for the start of a key's page.
    #[inline]
    fn prefetch_page(&self, index: u32) {
        if let Some(slot) = self.pool.index.peek(index) {
            prefetch_lines(self.inner.arena.data(slot));
        }
    }
}
