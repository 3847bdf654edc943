// SPDX-License-Identifier: Apache-2.0
//! Slots in the mapped arena: header, object id, data, checksum.

use twox_hash::XxHash3_64;

use crate::arena::Arena;
use crate::codec::Encoding;
use crate::layout::{self, ObjectId, SlotHeader};

impl Arena {
    /// The header at a slot, if it is one.
    #[inline]
    pub fn header(&self, slot: u64) -> Option<SlotHeader> {
        let at = self.data(slot);
        // SAFETY: slots are 8-aligned and at least a header long.
        let (word0, word1) = unsafe { (layout::load(at), layout::load(at.add(8))) };
        SlotHeader::parse(word0, word1)
    }

    /// The second header word as it is: zero in a free slot.
    pub fn header_word(&self, slot: u64) -> u64 {
        // SAFETY: as in `header`.
        unsafe { layout::load(self.data(slot).add(8)) }
    }

    /// The object id in the header of a sparse slot.
    #[inline]
    pub fn object(&self, slot: u64) -> ObjectId {
        let at = self.data(slot);
        // SAFETY: a sparse slot is at least 40 bytes long.
        unsafe { [layout::load(at.add(16)), layout::load(at.add(24)), layout::load(at.add(32))] }
    }

    /// Marks a slot free.
    #[inline]
    pub fn clear_header(&self, slot: u64) {
        // SAFETY: as in `header`; the caller holds the key's lock.
        unsafe { layout::store(self.data(slot).add(8), 0) };
    }

    /// The data bytes of a slot.
    ///
    /// # Safety
    /// The caller holds the key's lock (or the slot is not published) for as long as it looks, and
    /// `header` is this slot's, checked against its size class.
    #[inline]
    pub unsafe fn payload<'a>(&self, slot: u64, header: &SlotHeader) -> &'a [u8] {
        // SAFETY: by the caller.
        unsafe { std::slice::from_raw_parts(self.data(slot).add(header.header_len()), header.len as usize) }
    }

    /// Checksum of a slot: its data and every field of its header.
    #[inline]
    pub fn checksum(&self, header: &SlotHeader, object: Option<&ObjectId>, data: &[u8]) -> u32 {
        let (word0, word1) = SlotHeader { checksum: 0, ..*header }.words();
        // Where units lie changes as they are moved; what they hold does not.
        let data = if header.encoding == Encoding::Units { &data[..data.len() / 3] } else { data };
        // The secret is long enough (136 bytes), which is all that can be wrong with it.
        let mut h = XxHash3_64::oneshot_with_secret(&self.secret, data).unwrap_or(0);
        let mut mix = |w: u64| {
            h = (h ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            h ^= h >> 29;
        };
        mix(word0);
        mix(word1);
        if let Some(o) = object {
            o.iter().for_each(|&w| mix(w));
        }
        (h ^ h >> 32) as u32
    }

    /// Writes data and header of a slot that belongs to the caller: data first, header last.
    ///
    /// # Safety
    /// `slot` was taken from the allocator, is not published, and fits `header.slot_len()`. `data`
    /// is valid for reads of `header.len` bytes (a guest may change it meanwhile: the checksum is
    /// of what was kept).
    #[inline]
    pub unsafe fn write_slot(
        &self,
        slot: u64,
        header: SlotHeader,
        object: Option<&ObjectId>,
        data: *const u8,
    ) {
        // SAFETY: by the caller.
        unsafe {
            let header = self.write_data(slot, header, object, data);
            self.publish(slot, &header);
        }
    }

    /// The first half of [`Self::write_slot`]: all but the header, which comes back with its
    /// checksum. The slot still says that it is free.
    ///
    /// # Safety
    /// As [`Self::write_slot`].
    #[inline]
    pub unsafe fn write_data(
        &self,
        slot: u64,
        mut header: SlotHeader,
        object: Option<&ObjectId>,
        data: *const u8,
    ) -> SlotHeader {
        let at = self.data(slot);
        let len = header.len as usize;
        // SAFETY: by the caller; the arena and the source do not overlap.
        unsafe {
            let payload = at.add(header.header_len());
            std::ptr::copy_nonoverlapping(data, payload, len);
            let kept = std::slice::from_raw_parts(payload, len);
            header.checksum = self.checksum(&header, object, kept);
            if let Some(o) = object {
                for (i, &w) in o.iter().enumerate() {
                    layout::store(at.add(16 + i * 8), w);
                }
            }
        }
        header
    }

    /// Writes the header of a slot whose data is written: from here on it is what it says.
    ///
    /// # Safety
    /// As [`Self::write_slot`].
    #[inline]
    pub unsafe fn publish(&self, slot: u64, header: &SlotHeader) {
        let at = self.data(slot);
        let (word0, word1) = header.words();
        // SAFETY: slots are 8-aligned and at least a header long.
        unsafe {
            layout::store(at, word0);
            layout::store(at.add(8), word1);
        }
    }
}
