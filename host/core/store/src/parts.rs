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

use crate::codec::{self, Encoding, Scratch, UNIT_MAX};
use crate::index::{Entry, Stand};
use crate::keep::Kept;
use crate::layout::ObjectId;
use crate::ops::{Get, Handle, Put};
use crate::stats::bump;
use crate::units::{self, Draft};

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

    /// What of it is in a unit of a large page, in the unit's own offsets.
    fn in_unit(self, number: usize) -> Option<Self> {
        let start = number * UNIT_MAX;
        let offset = self.offset.saturating_sub(start);
        let end = self.end.saturating_sub(start).min(UNIT_MAX);
        (offset < end).then_some(Self { offset, end })
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
        // SAFETY: the entry is locked and says the slot is its page; dst by the caller.
        if !unsafe { self.read_range(scratch, slot, range, dst) } {
            e.stand = Stand::Lost(slot);
            return Get::Lost;
        }
        if !self.pool.spec.persistent {
            self.refresh(e);
        }
        Get::Hit
    }

    // False: the bytes are not what was kept. SAFETY contract: as `read`, for a locked key's slot.
    unsafe fn read_range(&self, scratch: &mut Scratch, slot: u64, range: Range, dst: *mut u8) -> bool {
        let (inner, page) = (&*self.inner, self.pool.page_size());
        // SAFETY: by the caller.
        let Some((header, data)) = (unsafe { inner.checked(slot) }) else { return false };
        if header.encoding != Encoding::Units {
            let whole = header.encoding == Encoding::Same || page <= UNIT_MAX;
            // SAFETY: the range is inside the page; dst by the caller.
            return whole
                && unsafe {
                    scratch.decompress_part(header.encoding, data, page, (range.offset, range.end), dst)
                };
        }
        // SAFETY: by the caller.
        let Some(head) = (unsafe { inner.head(&self.pool, slot) }) else { return false };
        (0..head.count()).filter_map(|n| Some((n, range.in_unit(n)?))).all(|(number, part)| {
            let Some(at) = inner.unit(&head, number) else { return false };
            // SAFETY: by the caller; the part is inside the unit and, of dst, where the range has it.
            unsafe {
                let to = dst.add(number * UNIT_MAX + part.offset - range.offset);
                inner.unit_data(&at).is_some_and(|data| {
                    scratch.decompress_part(at.header.encoding, data, UNIT_MAX, (part.offset, part.end), to)
                })
            }
        })
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
            let mut plain = s.take_plain(UNIT_MAX);
            let answer = self.keep_or_refuse(object, index, |e| {
                if self.vm.account.frozen() {
                    bump(&self.pool.counters.refused_frozen);
                    self.remove_failed(e);
                    return Kept::Done(Put::Frozen);
                }
                let kept = if units::count(self.pool.page_size()) > 0 {
                    // SAFETY: src by the caller.
                    unsafe { self.write_units(s, e, (object, index), &mut plain, (range, src), absent) }
                } else {
                    // SAFETY: as above.
                    unsafe { self.write_whole(s, e, (object, index), &mut plain, (range, src), absent) }
                };
                kept.unwrap_or_else(|answer| {
                    if let (Put::Lost, Stand::Page(slot)) = (answer, e.stand) {
                        e.stand = Stand::Lost(slot);
                    }
                    Kept::Done(answer)
                })
            });
            s.set_plain(plain);
            answer
        })
    }

    // SAFETY contract: as `write`, for the range's length.
    unsafe fn write_whole(
        &self,
        scratch: &mut Scratch,
        e: &mut Entry,
        (object, index): (&ObjectId, u32),
        plain: &mut [u8],
        (range, src): (Range, *const u8),
        absent: Absent,
    ) -> Result<Kept, Put> {
        let page = self.pool.page_size();
        match self.to_change(e, absent)? {
            // SAFETY: the entry is locked; the buffer is ours and holds a page.
            Some(slot) if unsafe { self.inner.read_slot(scratch, &self.pool, slot, plain.as_mut_ptr()) } => {}
            Some(_) => return Err(Put::Lost),
            None => plain[..page].fill(0),
        }
        // SAFETY: the range is inside the page, which the buffer holds; src by the caller. What is
        // encoded is our copy, which stays as it is, as the scratch does.
        unsafe {
            std::ptr::copy_nonoverlapping(src, plain.as_mut_ptr().add(range.offset), range.len());
            let encoded = self.encode(scratch, index, plain.as_ptr(), page);
            Ok(self.keep(e, object, index, &encoded, None))
        }
    }

    // Only the units that the range touches are done anew. SAFETY contract: as `write_whole`.
    unsafe fn write_units(
        &self,
        scratch: &mut Scratch,
        e: &mut Entry,
        (object, index): (&ObjectId, u32),
        plain: &mut [u8],
        (range, src): (Range, *const u8),
        absent: Absent,
    ) -> Result<Kept, Put> {
        let (inner, pool) = (&*self.inner, &*self.pool);
        // The page as it is: a head, or one word that fills it.
        let (mut head, mut word) = (None, 0);
        if let Some(slot) = self.to_change(e, absent)? {
            // SAFETY: the entry is locked and says the slot is its page.
            let (header, data) = unsafe { inner.checked(slot) }.ok_or(Put::Lost)?;
            match (header.encoding, <[u8; 8]>::try_from(data)) {
                (Encoding::Same, Ok(bytes)) => word = u64::from_ne_bytes(bytes),
                // SAFETY: as above.
                _ => head = Some(unsafe { inner.head(pool, slot) }.ok_or(Put::Lost)?),
            }
        }
        let mut draft = Draft::new(inner);
        for number in 0..units::count(pool.page_size()) {
            let part = range.in_unit(number);
            if let (None, Some(head)) = (part, &head) {
                draft.reuse(&inner.unit(head, number).ok_or(Put::Lost)?);
                continue;
            }
            let encoded = if let Some(part) = part {
                // SAFETY: the buffer is ours and holds a unit; the part is inside it, and src has it
                // where the range does. What is encoded is our copy.
                unsafe {
                    match &head {
                        Some(head) => {
                            if !inner.read_unit(scratch, head, number, plain.as_mut_ptr()) {
                                return Err(Put::Lost);
                            }
                        }
                        None => plain[..UNIT_MAX]
                            .chunks_exact_mut(8)
                            .for_each(|c| c.copy_from_slice(&word.to_ne_bytes())),
                    }
                    let from = src.add(number * UNIT_MAX + part.offset - range.offset);
                    std::ptr::copy_nonoverlapping(from, plain.as_mut_ptr().add(part.offset), part.len());
                    self.encode(scratch, index, plain.as_ptr(), UNIT_MAX)
                }
            } else {
                scratch.same(word)
            };
            // SAFETY: what is encoded lies in our buffer or the scratch, which stay as they are.
            if !unsafe { draft.write(pool, object, index, &encoded) } {
                return Ok(Kept::Short(UNIT_MAX as u64));
            }
        }
        let encoded = draft.head();
        // SAFETY: the table lies in the draft, which stays where it is.
        Ok(unsafe { self.keep(e, object, index, &encoded, Some(&mut draft)) })
    }

    /// The slot of a locked entry's page that is to be changed; `None`: it is all zeroes.
    fn to_change(&self, e: &mut Entry, absent: Absent) -> Result<Option<u64>, Put> {
        match (self.slot_of(e), absent) {
            (Ok(slot), _) => Ok(Some(slot)),
            (Err(Get::Miss), Absent::Zeroes) => Ok(None),
            (Err(Get::Miss | Get::Refused), Absent::Missing) => Err(Put::Missing),
            (Err(_), _) => Err(Put::Lost),
        }
    }
}
