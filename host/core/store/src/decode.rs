// SPDX-License-Identifier: Apache-2.0
//! Pages, and parts of them, out of what a codec made of them.

use std::ffi::{c_char, c_int};
use std::ptr::NonNull;

use zstd_sys::ZSTD_DCtx;

use crate::codec::{Codec, Encoding, PAGE_SIZE, Scratch, UNIT_MAX};

unsafe extern "C" {
    // lz4.h: decodes no more than `target_size` bytes from the start.
    fn LZ4_decompress_safe_partial(
        src: *const c_char,
        dst: *mut c_char,
        src_size: c_int,
        target_size: c_int,
        dst_capacity: c_int,
    ) -> c_int;
}

impl Scratch {
    /// Writes the page of 4096 bytes that `data` encodes to `dst`. False if `data` encodes none.
    ///
    /// # Safety
    /// `dst` is valid for writes (and, for lz4 matches, reads) of [`PAGE_SIZE`] bytes. A guest may
    /// change it meanwhile: match offsets come from `data`, so all accesses stay inside the page.
    #[inline]
    pub unsafe fn decompress(&mut self, encoding: Encoding, data: &[u8], dst: *mut u8) -> bool {
        // SAFETY: by the caller.
        unsafe { self.decompress_unit(encoding, data, dst, PAGE_SIZE) }
    }

    /// Writes the `len` bytes that `data` encodes to `dst`. False if `data` does not encode so many.
    ///
    /// # Safety
    /// As [`Self::decompress`], with `len` for the page's size.
    #[inline]
    pub(crate) unsafe fn decompress_unit(
        &mut self,
        encoding: Encoding,
        data: &[u8],
        dst: *mut u8,
        len: usize,
    ) -> bool {
        match encoding {
            Encoding::Raw => {
                if data.len() != len {
                    return false;
                }
                // SAFETY: both sides hold `len` bytes and do not overlap (arena and guest memory).
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), dst, len) };
                true
            }
            Encoding::Same => {
                let Ok(word) = <[u8; 8]>::try_from(data) else { return false };
                let word = u64::from_ne_bytes(word);
                let words = dst.cast::<u64>();
                for i in 0..len / 8 {
                    // SAFETY: in bounds; guest memory need not be aligned.
                    unsafe { std::ptr::write_unaligned(words.add(i), word) };
                }
                true
            }
            Encoding::Lz4 => {
                // SAFETY: bounded by both lengths given.
                let n = unsafe {
                    lz4_sys::LZ4_decompress_safe(
                        data.as_ptr().cast(),
                        dst.cast(),
                        data.len() as c_int,
                        len as c_int,
                    )
                };
                n == len as c_int
            }
            Encoding::Zstd => {
                let Some(ctx) = self.zstd_d() else { return false };
                // SAFETY: ctx is ours alone; bounded by both lengths given.
                let n = unsafe {
                    zstd_sys::ZSTD_decompressDCtx(
                        ctx.as_ptr(),
                        dst.cast(),
                        len,
                        data.as_ptr().cast(),
                        data.len(),
                    )
                };
                n == len
            }
            Encoding::Units => false,
        }
    }

    /// Writes bytes `offset..end` of the `len` that `data` encodes to `dst`. False if `data` does not
    /// encode so many. Of what is compressed, no more is decoded than what comes before `end`.
    ///
    /// # Safety
    /// `offset <= end <= len`, which is at most [`UNIT_MAX`] unless the encoding is `Same`; `dst` is
    /// valid for writes of `end - offset` bytes.
    pub(crate) unsafe fn decompress_part(
        &mut self,
        encoding: Encoding,
        data: &[u8],
        len: usize,
        (offset, end): (usize, usize),
        dst: *mut u8,
    ) -> bool {
        match encoding {
            Encoding::Same => {
                let Ok(mut word) = <[u8; 8]>::try_from(data) else { return false };
                word.rotate_left(offset % 8);
                for at in (0..end - offset).step_by(8) {
                    let n = (end - offset - at).min(8);
                    // SAFETY: `n` bytes of the range, at most a word.
                    unsafe { std::ptr::copy_nonoverlapping(word.as_ptr(), dst.add(at), n) };
                }
                return true;
            }
            Encoding::Raw => {
                if data.len() != len {
                    return false;
                }
                // SAFETY: the range is inside `data`, dst by the caller; they do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().add(offset), dst, end - offset) };
                return true;
            }
            Encoding::Lz4 | Encoding::Zstd | Encoding::Units => {}
        }
        let mut plain = self.take_plain(UNIT_MAX);
        let good = len <= plain.len() && self.decompress_start(encoding, data, &mut plain, len, end);
        if good {
            // SAFETY: the range is inside the buffer, dst by the caller.
            unsafe { std::ptr::copy_nonoverlapping(plain.as_ptr().add(offset), dst, end - offset) };
        }
        self.set_plain(plain);
        good
    }

    /// Writes the first `end` of the `len` bytes that `data` encodes to `dst`; more may be written.
    /// False if `data` does not encode so many.
    fn decompress_start(
        &mut self,
        encoding: Encoding,
        data: &[u8],
        dst: &mut [u8],
        len: usize,
        end: usize,
    ) -> bool {
        assert!(end <= len && len <= dst.len(), "a range outside its unit");
        if encoding != Encoding::Lz4 {
            // SAFETY: dst is ours and holds `len` bytes.
            return unsafe { self.decompress_unit(encoding, data, dst.as_mut_ptr(), len) };
        }
        // SAFETY: bounded by both lengths given.
        let n = unsafe {
            LZ4_decompress_safe_partial(
                data.as_ptr().cast(),
                dst.as_mut_ptr().cast(),
                data.len() as c_int,
                end as c_int,
                len as c_int,
            )
        };
        usize::try_from(n).is_ok_and(|n| n >= end)
    }

    /// A copy of the `len` bytes at `src`, if pool codec `codec` decodes it to exactly `page` bytes,
    /// which are then at the start of `plain`.
    ///
    /// # Safety
    /// `src` is valid for reads of `len` bytes, at most `page`; they may change meanwhile, but what
    /// was checked is what comes back. `plain` holds `page` bytes twice.
    pub(crate) unsafe fn unpack<'a>(
        &mut self,
        codec: Codec,
        src: *const u8,
        len: usize,
        page: usize,
        plain: &'a mut [u8],
    ) -> Option<(Encoding, &'a [u8])> {
        let encoding = match codec {
            Codec::None => return None,
            Codec::Lz4 => Encoding::Lz4,
            Codec::Zstd => Encoding::Zstd,
        };
        let (plain, copy) = plain.split_at_mut(page);
        let copy = &mut copy[..len];
        // SAFETY: src by the caller; the copy is ours.
        unsafe { std::ptr::copy_nonoverlapping(src, copy.as_mut_ptr(), len) };
        // SAFETY: a buffer of ours that holds a page.
        unsafe { self.decompress_unit(encoding, copy, plain.as_mut_ptr(), page) }.then_some((encoding, copy))
    }

    fn zstd_d(&mut self) -> Option<NonNull<ZSTD_DCtx>> {
        if self.zstd_d.is_none() {
            // SAFETY: plain constructor; null on no memory.
            self.zstd_d = NonNull::new(unsafe { zstd_sys::ZSTD_createDCtx() });
        }
        self.zstd_d
    }
}
