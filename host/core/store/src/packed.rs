// SPDX-License-Identifier: Apache-2.0
//! Pages that come compressed.
//!
//! The guest compresses, with the codec of the pool; the host keeps what comes, after it decoded it
//! once to see that it is exactly one page: a get can then answer with the page, as for any other
//! pool, and what is bad is refused while the guest still has the page. Of a page above 64 KiB what
//! is kept is the page, compressed anew in its units.

use crate::codec::{self, Encoded, UNIT_MAX};
use crate::layout::ObjectId;
use crate::ops::{Handle, Put};
use crate::stats::bump;
use crate::units;

impl Handle {
    /// Keeps a page that comes as `len` bytes at `src`: one lz4 block or zstd frame, as the pool's
    /// codec is, of exactly one page. They must be fewer than a page has: what does not compress is
    /// [`Self::put`]. [`Put::BadData`]: they are not, or the pool is not for such pages.
    ///
    /// # Safety
    /// `src` is valid for reads of `len` bytes for the whole call; they may change meanwhile.
    pub unsafe fn put_packed(&self, object: &ObjectId, index: u32, src: *const u8, len: usize) -> Put {
        bump(&self.pool.counters.puts);
        if self.vm.account.frozen() {
            bump(&self.pool.counters.refused_frozen);
            return self.refuse(object, index, Put::Frozen);
        }
        let page = self.pool.page_size();
        if !self.pool.spec.packed || len >= page {
            return self.refuse(object, index, Put::BadData);
        }
        codec::with_scratch(|s| {
            let mut plain = s.take_plain(2 * page.max(UNIT_MAX));
            // SAFETY: src by the caller; the buffer holds a page twice.
            let unpacked = unsafe { s.unpack(self.pool.codec(), src, len, page, &mut plain) };
            let answer = match unpacked {
                None => self.refuse(object, index, Put::BadData),
                Some(_) if units::count(page) > 0 => {
                    // SAFETY: the page is at the start of the buffer, which stays as it is.
                    unsafe { self.put_units(s, object, index, plain.as_ptr()) }
                }
                Some((encoding, data)) => {
                    let encoded = Encoded { encoding, data: data.as_ptr(), len };
                    self.prefetch_slot(index);
                    self.keep_or_refuse(object, index, |e| {
                        // SAFETY: the bytes are our copy, which stays as it is.
                        unsafe { self.keep(e, object, index, &encoded, None) }
                    })
                }
            };
            s.set_plain(plain);
            answer
        })
    }
}
