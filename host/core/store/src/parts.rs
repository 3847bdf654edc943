// SPDX-License-Identifier: Apache-2.0
//! Byte ranges of pages: read and write.
//!
//! Xen had them (`TMEM_READ`, `TMEM_WRITE`), but never together with compression. Here:
//! - A range that is not inside the page is refused and changes nothing.
//! - A read leaves the page where it is, in a private ephemeral pool too: whoever asked for a part
//!   does not have the rest.
//! - A write needs the page: [`Put::Missing`] otherwise. A block device, where what was never
//!   written reads as zeroes, uses [`Handle::write_part`].
//! - A write that is refused for room, cap or frost is a put that failed: the whole page is gone
//!   (rule 1), never partly old and partly new.

use crate::codec::{self, Scratch};
use crate::index::{Entry, Stand};
use crate::keep::Kept;
use crate::layout::ObjectId;
use crate::ops::{Get, Handle, Put};
use crate::stats::bump;

/// What a write makes of a page that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    Missing,
    Zeroes,
}

/// Bytes `offset..end` of a page, inside it.
#[derive(Clone, Copy)]
struct Range {
    offset: usize,
    end: usize,
}

impl Range {
    fn new(offset: usize, len: usize, page: usize) -> Option<Self> {
        let end = offset.checked_add(len).filter(|&end| end <= page)?;
        Some(Self { offset, end })
    }

    fn len(self) -> usize {
        self.end - self.offset
    }
}

impl Handle {
    /// Writes bytes `offset..offset + len` of the page under a key to `dst`.
    ///
    /// # Safety
    /// `dst` is valid for writes of `len` bytes for the whole call; others may access it.
    pub unsafe fn read(&self, object: &ObjectId, index: u32, offset: usize, len: usize, dst: *mut u8) -> Get {
        let Some(range) = Range::new(offset, len, self.pool.page_size()) else {
            return self.count_get(Get::BadRange);
        };
        let answer = codec::with_scratch(|s| {
            self.pool.index.with(object, index, |e| {
                // SAFETY: dst by the caller.
                unsafe { self.fetch_part(s, e, range, dst) }
            })
        });
        self.count_get(answer.unwrap_or(Get::NoPool))
    }

    // SAFETY contract: as `read`.
    unsafe fn fetch_part(&self, scratch: &mut Scratch, e: &mut Entry, range: Range, dst: *mut u8) -> Get {
        let slot = match self.slot_of(e) {
            Ok(slot) => slot,
            Err(answer) => return answer,
        };
        let page = self.pool.page_size();
        let mut plain = scratch.take_plain();
        // SAFETY: the entry is locked and says the slot is its page.
        let good = unsafe { self.inner.checked(slot) }.is_some_and(|(header, data)| {
            scratch.decompress_start(header.encoding, data, &mut plain, page, range.end)
        });
        if good {
            // SAFETY: the range is inside the page, which the buffer holds; dst by the caller.
            unsafe { std::ptr::copy_nonoverlapping(plain.as_ptr().add(range.offset), dst, range.len()) };
        }
        scratch.set_plain(plain);
        if !good {
            e.stand = Stand::Lost(slot);
            return Get::Lost;
        }
        if !self.pool.spec.persistent {
            self.refresh(e);
        }
        Get::Hit
    }

    /// Replaces bytes `offset..offset + len` of the page under a key by those at `src`.
    ///
    /// # Safety
    /// `src` is valid for reads of `len` bytes for the whole call; the bytes may change meanwhile.
    pub unsafe fn write(
        &self,
        object: &ObjectId,
        index: u32,
        offset: usize,
        len: usize,
        src: *const u8,
    ) -> Put {
        // SAFETY: by the caller.
        unsafe {
            self.write_range(
                object,
                index,
                Range::new(offset, len, self.pool.page_size()),
                src,
                Absent::Missing,
            )
        }
    }

    /// As [`Self::write`], for a block device: a page that is not there counts as zeroes.
    pub fn write_part(&self, object: &ObjectId, index: u32, offset: usize, data: &[u8]) -> Put {
        let range = Range::new(offset, data.len(), self.pool.page_size());
        // SAFETY: `data` is valid for its length.
        unsafe { self.write_range(object, index, range, data.as_ptr(), Absent::Zeroes) }
    }

    // SAFETY contract: as `write`, for the range's length.
    unsafe fn write_range(
        &self,
        object: &ObjectId,
        index: u32,
        range: Option<Range>,
        src: *const u8,
        absent: Absent,
    ) -> Put {
        bump(&self.pool.counters.puts);
        let Some(range) = range else { return Put::BadRange };
        codec::with_scratch(|s| {
            let mut plain = s.take_plain();
            let answer = self.keep_or_refuse(object, index, |e| {
                if self.vm.account.frozen() {
                    bump(&self.pool.counters.refused_frozen);
                    self.remove_failed(e);
                    return Kept::Done(Put::Frozen);
                }
                if let Err(answer) = self.whole(s, e, &mut plain, absent) {
                    return Kept::Done(answer);
                }
                // SAFETY: the range is inside the page, which the buffer holds; src by the caller.
                // What is encoded is our copy, which stays as it is, as the scratch does.
                unsafe {
                    std::ptr::copy_nonoverlapping(src, plain.as_mut_ptr().add(range.offset), range.len());
                    let encoded = self.encode(s, index, plain.as_ptr(), self.pool.page_size());
                    self.keep(e, object, index, &encoded)
                }
            });
            s.set_plain(plain);
            answer
        })
    }

    /// The page of a locked entry as it is now, to be changed.
    fn whole(
        &self,
        scratch: &mut Scratch,
        e: &mut Entry,
        plain: &mut [u8],
        absent: Absent,
    ) -> Result<(), Put> {
        let page = self.pool.page_size();
        match (self.slot_of(e), absent) {
            (Ok(slot), _) => {
                // SAFETY: the entry is locked; the buffer is ours and holds a page.
                if !unsafe { self.inner.read_slot(scratch, slot, plain.as_mut_ptr(), page) } {
                    e.stand = Stand::Lost(slot);
                    return Err(Put::Lost);
                }
            }
            (Err(Get::Miss), Absent::Zeroes) => plain[..page].fill(0),
            (Err(Get::Miss | Get::Refused), Absent::Missing) => return Err(Put::Missing),
            (Err(_), _) => return Err(Put::Lost),
        }
        Ok(())
    }
}
