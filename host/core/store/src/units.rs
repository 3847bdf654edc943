// SPDX-License-Identifier: Apache-2.0
//! Pages above 64 KiB: several slots, that are one page or none.
//!
//! Each 64 KiB of such a page are a *unit*, compressed by itself: lz4 refers back no further, so
//! larger units would save nothing, and a byte range needs the units it touches and no others. A
//! unit's slot says whose it is and which. The page is its *head*: a slot like that of a small page
//! whose data is a table of the units' checksums and slots.
//!
//! - A put writes units as free slots, then, under the key's lock, their headers, then the head's.
//!   Until the head stands, the page before it does; what a crash leaves without a head is freed.
//! - The checksum of a unit covers its key, its number and its data, and that of the head covers
//!   these checksums: units of two puts never mix. Where the units lie is not covered. A unit that
//!   moves changes its word there, and what is found at a place must be the unit looked for.
//! - If a unit does not check, all of the page is lost.

use std::sync::atomic::Ordering;

use crate::classes::CLASSES;
use crate::codec::{Encoded, Encoding, PAGE_MAX, Scratch, UNIT_MAX};
use crate::layout::{self, HEADER, HEADER_SPARSE, ObjectId, SlotHeader};
use crate::pool::Pool;
use crate::store::Inner;

pub(crate) const UNITS_MAX: usize = PAGE_MAX / UNIT_MAX;

/// Units of a page; none of one that is kept in one slot.
#[inline]
pub(crate) const fn count(page_size: usize) -> usize {
    if page_size > UNIT_MAX { page_size / UNIT_MAX } else { 0 }
}

/// Bytes of a head's table: checksums (u32), then slots (u64), little-endian, in order. `n` is
/// even, so all of them are aligned.
pub(crate) const fn table_len(n: usize) -> usize {
    n * 12
}

/// A head that was checked.
pub(crate) struct Head {
    slot: u64,
    pool: u16,
    index: u32,
    object: Option<ObjectId>,
    n: usize,
    units: [(u32, u64); UNITS_MAX],
}

/// A unit that is where its head says: its header is the one the head means.
#[derive(Clone, Copy)]
pub(crate) struct UnitAt {
    pub slot: u64,
    pub header: SlotHeader,
    pub size: u64,
}

impl Inner {
    /// The head in a slot, if it is one of that pool and checks.
    ///
    /// # Safety
    /// The key's entry is locked, and `slot` is what it has.
    pub unsafe fn head(&self, pool: &Pool, slot: u64) -> Option<Head> {
        // SAFETY: by the caller.
        let (header, data) = unsafe { self.checked(slot) }?;
        let n = count(pool.page_size());
        if n == 0 || header.encoding != Encoding::Units || data.len() != table_len(n) {
            return None;
        }
        let mut units = [(0, 0); UNITS_MAX];
        let (checksums, slots) = data.split_at(4 * n);
        for (unit, (c, s)) in units.iter_mut().zip(checksums.chunks_exact(4).zip(slots.chunks_exact(8))) {
            let (mut checksum, mut slot) = ([0; 4], [0; 8]);
            checksum.copy_from_slice(c);
            slot.copy_from_slice(s);
            *unit = (u32::from_le_bytes(checksum), u64::from_le_bytes(slot));
        }
        let object = header.sparse.then(|| self.arena.object(slot));
        Some(Head { slot, pool: header.pool, index: header.index, object, n, units })
    }

    /// A unit of a head, if it lies where the head says.
    pub fn unit(&self, head: &Head, number: usize) -> Option<UnitAt> {
        let (checksum, slot) = head.units[..head.n].get(number).copied()?;
        let size = self.alloc.size_at(slot)?;
        let header = self.arena.header(slot)?;
        let same = header.unit == Some(number as u8)
            && (header.pool, header.index) == (head.pool, head.index)
            && header.sparse == head.object.is_some()
            && head.object.is_none_or(|o| self.arena.object(slot) == o)
            && header.checksum == checksum
            && header.slot_len() <= size as usize;
        same.then_some(UnitAt { slot, header, size: u64::from(size) })
    }

    /// The units of a head that are where it says.
    pub fn units<'a>(&'a self, head: &'a Head) -> impl Iterator<Item = UnitAt> + 'a {
        (0..head.n).filter_map(|number| self.unit(head, number))
    }

    /// The data of a unit, if it checks.
    ///
    /// # Safety
    /// The key's entry is locked for as long as the data is used.
    pub unsafe fn unit_data<'a>(&self, at: &UnitAt) -> Option<&'a [u8]> {
        let object = at.header.sparse.then(|| self.arena.object(at.slot));
        // SAFETY: locked by the caller; the length was checked against the slot's size.
        let data = unsafe { self.arena.payload(at.slot, &at.header) };
        (self.arena.checksum(&at.header, object.as_ref(), data) == at.header.checksum).then_some(data)
    }

    /// Writes the page of a head to `dst`. False: not all of it is what was kept.
    ///
    /// # Safety
    /// The key's entry is locked and `slot` is its page's; `dst` is valid for writes of a page.
    #[cold]
    pub unsafe fn read_units(&self, scratch: &mut Scratch, pool: &Pool, slot: u64, dst: *mut u8) -> bool {
        // SAFETY: by the caller.
        let Some(head) = (unsafe { self.head(pool, slot) }) else { return false };
        (0..head.n).all(|number| {
            // SAFETY: by the caller; the unit is inside the page.
            unsafe { self.read_unit(scratch, &head, number, dst.add(number * UNIT_MAX)) }
        })
    }

    /// Writes one unit to `dst`. False: it is not what was kept.
    ///
    /// # Safety
    /// The key's entry is locked; `dst` is valid for writes of [`UNIT_MAX`] bytes.
    pub unsafe fn read_unit(&self, scratch: &mut Scratch, head: &Head, number: usize, dst: *mut u8) -> bool {
        let Some(at) = self.unit(head, number) else { return false };
        // SAFETY: by the caller.
        unsafe {
            self.unit_data(&at)
                .is_some_and(|data| scratch.decompress_unit(at.header.encoding, data, dst, UNIT_MAX))
        }
    }

    /// Frees the units of a page whose head is free already, but for those that a new head has.
    pub fn free_units(&self, head: &Head, but: Option<&Draft<'_>>) {
        for at in self.units(head).filter(|at| !but.is_some_and(|d| d.has(at.slot))) {
            self.arena.clear_header(at.slot);
            self.alloc.free(at.slot);
        }
    }

    /// Tells a head that one of its units lies in another slot now, where it is whole already.
    ///
    /// # Safety
    /// The key's entry is locked, and the head stands.
    pub unsafe fn unit_moved(&self, head: &Head, number: usize, to: u64) {
        let header = if head.object.is_some() { HEADER_SPARSE } else { HEADER };
        let at = header + 4 * head.n + 8 * number;
        // SAFETY: inside the head's table; aligned, see `table_len`.
        unsafe { layout::store(self.arena.data(head.slot).add(at), to) };
    }
}

impl Head {
    /// Number of the unit that lies in that slot.
    pub fn number_at(&self, slot: u64) -> Option<usize> {
        self.units[..self.n].iter().position(|&(_, at)| at == slot)
    }

    pub fn count(&self) -> usize {
        self.n
    }
}

/// Units on their way to be a page: written to slots that still say they are free, or taken over
/// from the page before. Dropped without having become one, it gives its slots back.
pub(crate) struct Draft<'a> {
    inner: &'a Inner,
    n: usize,
    units: [Planned; UNITS_MAX],
    table: [u8; table_len(UNITS_MAX)],
    /// Bytes of the units' slots, and of their data.
    pub size: u64,
    pub compressed: u64,
    /// It is a page now.
    pub done: bool,
}

#[derive(Clone, Copy, Default)]
struct Planned {
    slot: u64,
    checksum: u32,
    /// The header to be written.
    fresh: Option<SlotHeader>,
}

impl<'a> Draft<'a> {
    pub fn new(inner: &'a Inner) -> Self {
        let units = [Planned::default(); UNITS_MAX];
        let table = [0; table_len(UNITS_MAX)];
        Self { inner, n: 0, units, table, size: 0, compressed: 0, done: false }
    }

    /// Adds the next unit. False: there is no slot for it.
    ///
    /// # Safety
    /// `unit.data` is valid for reads of `unit.len` bytes, which may change meanwhile.
    pub unsafe fn write(&mut self, pool: &Pool, object: &ObjectId, index: u32, unit: &Encoded) -> bool {
        let sparse = pool.sparse();
        let header = SlotHeader {
            pool: pool.id,
            index,
            len: unit.len as u32,
            encoding: unit.encoding,
            sparse,
            unit: Some(self.n as u8),
            seq: 0,
            checksum: 0,
        };
        let class = CLASSES.of(header.slot_len());
        let Some(slot) = self.inner.alloc.alloc(class) else { return false };
        // SAFETY: the slot is ours and of the class for this length; data by the caller.
        let header =
            unsafe { self.inner.arena.write_data(slot, header, sparse.then_some(object), unit.data) };
        self.add(slot, &header, u64::from(CLASSES.size(class)), true);
        true
    }

    /// Takes the next unit over from the page before.
    pub fn reuse(&mut self, at: &UnitAt) {
        self.add(at.slot, &at.header, at.size, false);
    }

    fn add(&mut self, slot: u64, header: &SlotHeader, size: u64, fresh: bool) {
        let fresh = fresh.then_some(*header);
        self.units[self.n] = Planned { slot, checksum: header.checksum, fresh };
        self.n += 1;
        self.size += size;
        self.compressed += u64::from(header.len);
    }

    fn has(&self, slot: u64) -> bool {
        self.units[..self.n].iter().any(|u| u.slot == slot)
    }

    /// What the head is to hold.
    pub fn head(&mut self) -> Encoded {
        let (checksums, slots) = self.table.split_at_mut(4 * self.n);
        let units = &self.units[..self.n];
        for (to, unit) in checksums.chunks_exact_mut(4).zip(units) {
            to.copy_from_slice(&unit.checksum.to_le_bytes());
        }
        for (to, unit) in slots.chunks_exact_mut(8).zip(units) {
            to.copy_from_slice(&unit.slot.to_le_bytes());
        }
        Encoded { encoding: Encoding::Units, data: self.table.as_ptr(), len: table_len(self.n) }
    }

    /// Writes the headers: the units are what they say, and belong to the head that comes next.
    pub fn publish(&self) {
        for (unit, header) in self.units[..self.n].iter().filter_map(|u| Some((u, u.fresh?))) {
            // SAFETY: the slot is ours, and its data was written for this header.
            unsafe { self.inner.arena.publish(unit.slot, &header) };
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        for unit in self.units[..self.n].iter().filter(|u| u.fresh.is_some()) {
            self.inner.alloc.free(unit.slot);
        }
    }
}

/// Counts a unit that recovery found. Heads are counted like small pages.
pub(crate) fn account_unit(pool: &Pool, at: &UnitAt) {
    pool.holding.slots.fetch_add(at.size, Ordering::Relaxed);
    pool.holding.compressed.fetch_add(u64::from(at.header.len), Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
