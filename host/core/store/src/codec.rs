// SPDX-License-Identifier: Apache-2.0
//! Compression of single pages, straight from guest memory.
//!
//! The source may change while it is read: a guest owns it. lz4 and zstd stay inside the
//! destination whatever they read, because it is as large as their worst case. What comes out then
//! is some page or, about once in 20,000 puts of a page that is rewritten all the time, nothing
//! that decodes: a get of it answers *lost*. A kernel that swaps never reads such a page: it was
//! dirtied while it was written, so it is written again before it is dropped. (zram asks for stable
//! pages for this reason; a virtio-blk device cannot.)

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;

use zstd_sys::{ZSTD_CCtx, ZSTD_DCtx};

/// Bytes in a page, unless its pool says otherwise.
pub const PAGE_SIZE: usize = 4096;

/// Bytes in the largest page that a pool can have.
pub const PAGE_MAX: usize = 2 << 20;

/// Most bytes compressed as one: what lz4 can refer back to. Larger pages are made of such units.
pub(crate) const UNIT_MAX: usize = 64 << 10;

/// A compressed unit longer than this is kept raw: the next size classes are within 3 % of it, and
/// what is raw costs no decompression.
const fn keep_compressed_max(len: usize) -> usize {
    len - len / 32
}

/// LZ4_compressBound(65536) is 65809 and ZSTD_compressBound(65536) is 65856: room for both.
const SCRATCH: usize = UNIT_MAX + 512;

/// zstd's fastest regular level; higher levels gain little on a single page.
const ZSTD_LEVEL: c_int = 1;

unsafe extern "C" {
    // Exported by liblz4 for static linking (lz4.h, LZ4_STATIC_LINKING_ONLY): compresses without
    // clearing the 16 KiB hash table each time, which costs more than the page itself.
    fn LZ4_compress_fast_extState_fastReset(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_size: c_int,
        dst_capacity: c_int,
        acceleration: c_int,
    ) -> c_int;
    fn LZ4_initStream(buffer: *mut c_void, size: usize) -> *mut c_void;
}

/// How a pool compresses the pages put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// Pages are kept as they come (same-filled ones still as one word).
    None = 0,
    /// lz4, the default: a page in about a microsecond.
    Lz4 = 1,
    /// zstd level 1: denser, several times slower.
    Zstd = 2,
}

impl Codec {
    /// The codec of that name: `none`, `lz4` or `zstd`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::None),
            "lz4" => Some(Self::Lz4),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name of the codec.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// How the bytes in one slot are to be read. Part of the arena's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// The bytes themselves.
    Raw = 0,
    /// One lz4 block.
    Lz4 = 1,
    /// One zstd frame.
    Zstd = 2,
    /// One 8-byte word that fills all of it.
    Same = 3,
    /// A table of the slots that hold a large page's units: see [`crate::units`].
    Units = 4,
}

impl Encoding {
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            3 => Some(Self::Same),
            4 => Some(Self::Units),
            _ => None,
        }
    }
}

#[repr(C, align(64))]
struct Lz4State([u8; 16448]);

/// What is to be kept of a page (or of one unit of a large one): `len` bytes at `data`, which lie
/// in the [`Scratch`] that made it or are the page itself.
#[derive(Clone, Copy)]
pub(crate) struct Encoded {
    pub encoding: Encoding,
    pub data: *const u8,
    pub len: usize,
}

/// Compression state of one thread. Made once, reused for each page: nothing allocates in a put.
pub struct Scratch {
    pub(crate) out: Box<[u8]>,
    /// Room for bytes as they are when they are changed in part or checked; made when first needed.
    plain: Box<[u8]>,
    lz4: Box<Lz4State>,
    zstd_c: Option<NonNull<ZSTD_CCtx>>,
    pub(crate) zstd_d: Option<NonNull<ZSTD_DCtx>>,
    calls: u32,
}

// SAFETY: zstd's contexts belong to whoever holds them, not to a thread.
unsafe impl Send for Scratch {}

thread_local! {
    static LOCAL: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// Runs `f` with this thread's scratch space.
pub fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    LOCAL.with(|s| f(&mut s.borrow_mut()))
}

/// The word that fills all of a page, if one does.
///
/// # Safety
/// `src` is valid for reads of `len` bytes, a multiple of 4096 (they may change meanwhile).
#[inline]
pub(crate) unsafe fn same_filled(src: *const u8, len: usize) -> Option<u64> {
    let (words, n) = (src.cast::<u64>(), len / 8);
    // SAFETY: in bounds by the caller's promise; a guest's memory need not be aligned.
    let word = |i: usize| unsafe { std::ptr::read_unaligned(words.add(i)) };
    let first = word(0);
    // A page of data differs early or at its end far more often than only in the middle.
    if word(n - 1) != first || word(1) != first || word(n / 2 - 1) != first {
        return None;
    }
    (2..n - 1).all(|i| word(i) == first).then_some(first)
}

impl Scratch {
    /// Fresh state. Prefer [`with_scratch`].
    pub fn new() -> Self {
        let mut lz4 = Box::new(Lz4State([0; 16448]));
        // SAFETY: the buffer is larger than sizeof(LZ4_stream_t) (16416) and aligned.
        unsafe { LZ4_initStream((&raw mut *lz4).cast(), size_of::<Lz4State>()) };
        // Zeroed by the kernel when first touched: 4 KiB pages need two pages of it.
        let out = vec![0; SCRATCH].into_boxed_slice();
        Self { out, plain: Box::default(), lz4, zstd_c: None, zstd_d: None, calls: 0 }
    }

    /// True once in `n` calls: which of this thread's operations are timed.
    #[inline]
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.calls = self.calls.wrapping_add(1);
        self.calls % n == 1
    }

    /// A buffer of at least `len` bytes that hold anything. It is given back with
    /// [`Self::set_plain`], so that the rest of the scratch can be used meanwhile.
    pub(crate) fn take_plain(&mut self, len: usize) -> Box<[u8]> {
        if self.plain.len() < len {
            return vec![0; len].into_boxed_slice();
        }
        std::mem::take(&mut self.plain)
    }

    pub(crate) fn set_plain(&mut self, plain: Box<[u8]>) {
        self.plain = plain;
    }

    /// Compresses one page of 4096 bytes. `None`: it does not compress, keep it raw.
    ///
    /// # Safety
    /// `src` is valid for reads of [`PAGE_SIZE`] bytes (which may change meanwhile).
    #[inline]
    pub unsafe fn compress(&mut self, codec: Codec, src: *const u8) -> Option<(Encoding, &[u8])> {
        // SAFETY: by the caller.
        let (encoding, len) = unsafe { self.compress_unit(codec, src, PAGE_SIZE) }?;
        Some((encoding, &self.out[..len]))
    }

    /// Compresses `len` bytes to the start of `out`; how many came out.
    // SAFETY contract: src valid for reads of `len` bytes, at most UNIT_MAX.
    #[inline]
    unsafe fn compress_unit(
        &mut self,
        codec: Codec,
        src: *const u8,
        len: usize,
    ) -> Option<(Encoding, usize)> {
        let (encoding, n) = match codec {
            Codec::None => return None,
            // SAFETY: src as promised; out holds lz4's worst case.
            Codec::Lz4 => (Encoding::Lz4, unsafe { self.lz4(src, len) }),
            // SAFETY: as above.
            Codec::Zstd => (Encoding::Zstd, unsafe { self.zstd(src, len) }?),
        };
        (n > 0 && n <= keep_compressed_max(len)).then_some((encoding, n))
    }

    /// What is to be kept of a unit that no word fills.
    ///
    /// # Safety
    /// `src` is valid for reads of `len` bytes, at most [`UNIT_MAX`], for as long as the answer is
    /// used (they may change meanwhile).
    #[inline]
    pub(crate) unsafe fn encode(&mut self, codec: Codec, src: *const u8, len: usize) -> Encoded {
        // SAFETY: by the caller.
        match unsafe { self.compress_unit(codec, src, len) } {
            Some((encoding, len)) => Encoded { encoding, data: self.out.as_ptr(), len },
            None => Encoded { encoding: Encoding::Raw, data: src, len },
        }
    }

    /// What is to be kept of a unit that `word` fills.
    #[inline]
    pub(crate) fn same(&mut self, word: u64) -> Encoded {
        self.out[..8].copy_from_slice(&word.to_ne_bytes());
        Encoded { encoding: Encoding::Same, data: self.out.as_ptr(), len: 8 }
    }

    // SAFETY contract: src valid for reads of `len` bytes, at most UNIT_MAX.
    #[inline]
    unsafe fn lz4(&mut self, src: *const u8, len: usize) -> usize {
        // SAFETY: the state was initialised by LZ4_initStream; sizes as declared.
        let n = unsafe {
            LZ4_compress_fast_extState_fastReset(
                (&raw mut *self.lz4).cast(),
                src.cast(),
                self.out.as_mut_ptr().cast(),
                len as c_int,
                SCRATCH as c_int,
                1,
            )
        };
        usize::try_from(n).unwrap_or(0)
    }

    // SAFETY contract: src valid for reads of `len` bytes, at most UNIT_MAX.
    unsafe fn zstd(&mut self, src: *const u8, len: usize) -> Option<usize> {
        let ctx = match self.zstd_c {
            Some(ctx) => ctx,
            None => {
                // SAFETY: plain constructor; null on no memory.
                let ctx = NonNull::new(unsafe { zstd_sys::ZSTD_createCCtx() })?;
                self.zstd_c = Some(ctx);
                ctx
            }
        };
        // SAFETY: ctx is ours alone; out holds zstd's worst case for a unit.
        let n = unsafe {
            zstd_sys::ZSTD_compressCCtx(
                ctx.as_ptr(),
                self.out.as_mut_ptr().cast(),
                SCRATCH,
                src.cast(),
                len,
                ZSTD_LEVEL,
            )
        };
        // SAFETY: pure function on a code.
        (unsafe { zstd_sys::ZSTD_isError(n) } == 0).then_some(n)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(ctx) = self.zstd_c {
            // SAFETY: made by ZSTD_createCCtx, freed once.
            unsafe { zstd_sys::ZSTD_freeCCtx(ctx.as_ptr()) };
        }
        if let Some(ctx) = self.zstd_d {
            // SAFETY: made by ZSTD_createDCtx, freed once.
            unsafe { zstd_sys::ZSTD_freeDCtx(ctx.as_ptr()) };
        }
    }
}
