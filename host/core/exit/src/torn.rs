// SPDX-License-Identifier: Apache-2.0
//! Compressing a page that changes meanwhile: does the codec keep within its bounds, and what does
//! its output decode to?
//!
//! Run it in a process of its own: a codec that does not keep within its bounds may take it down.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tmem_store::Codec;
use tmem_store::codec::{Encoding, Scratch};

use crate::error::{ExitError, Result};
use crate::memory::{Memory, PAGE};
use crate::threads::{self, usable_cpus};

/// What was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Torn {
    /// Pages compressed while they changed.
    pub pages: u64,
    /// Pages whose output did not decode to a page: found out, not passed on.
    pub undecodable: u64,
    /// Pages at which something was written behind a destination.
    pub overruns: u64,
}

/// Bytes behind a destination that must stay as they are.
const CANARY: usize = PAGE;
const CANARY_BYTE: u8 = 0xc5;
/// LZ4_compressBound(4096) and ZSTD_compressBound(4096), the larger.
const BOUND: usize = 4175;
/// A destination that most pages do not fit: the codec must give up, not write on.
const TIGHT: usize = 1024;

/// A destination with canaries behind it.
struct Guarded {
    bytes: Vec<u8>,
    len: usize,
}

impl Guarded {
    fn new(len: usize) -> Self {
        Self { bytes: vec![CANARY_BYTE; len + CANARY], len }
    }

    fn intact(&mut self) -> bool {
        let tail = &mut self.bytes[self.len..];
        let whole = tail.iter().all(|&b| b == CANARY_BYTE);
        tail.fill(CANARY_BYTE);
        whole
    }
}

/// Compresses one page again and again for `time`, while another thread rewrites it from `corpus`
/// all the time, in pieces of every size.
///
/// # Errors
/// One CPU only: nothing would change meanwhile. `codec` none: there is nothing to try.
pub fn torn(codec: Codec, corpus: &[u8], time: Duration, seed: u64) -> Result<Torn> {
    let cpus = usable_cpus();
    let (Some(&here), Some(&there)) = (cpus.first(), cpus.get(1)) else {
        return Err(ExitError::NotOffered(
            "two CPUs are needed: one rewrites what the other compresses".into(),
        ));
    };
    if codec == Codec::None || corpus.len() < PAGE {
        return Err(ExitError::Invalid("a codec and at least one page are needed".into()));
    }
    let page = Arc::new(Memory::new(PAGE)?);
    page.write(0, &corpus[..PAGE]);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (page, stop, corpus) = (page.clone(), stop.clone(), corpus.to_vec());
        threads::spawn("tmem-torn", Some(there), move || rewrite(&page, &corpus, &stop, seed))?
    };
    let reader = threads::spawn("tmem-torn", Some(here), move || {
        let mut trial = Trial::new(codec);
        let end = Instant::now() + time;
        while Instant::now() < end {
            for _ in 0..64 {
                trial.one(page.at(0, PAGE));
            }
        }
        trial.seen
    })?;
    let seen = threads::join(reader);
    stop.store(true, Ordering::Relaxed);
    threads::join(writer)?;
    seen
}

/// xorshift64 (Marsaglia 2003).
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 16) as usize
}

fn rewrite(page: &Memory, corpus: &[u8], stop: &AtomicBool, seed: u64) {
    let mut dice = seed | 1;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..64 {
            let at = next(&mut dice) % PAGE;
            let len = 1 + next(&mut dice) % (PAGE - at).min(256);
            let from = next(&mut dice) % (corpus.len() - len + 1);
            page.write(at, &corpus[from..from + len]);
        }
    }
}

struct Trial {
    codec: Codec,
    scratch: Scratch,
    roomy: Guarded,
    tight: Guarded,
    out: Guarded,
    seen: Torn,
}

impl Trial {
    fn new(codec: Codec) -> Self {
        Self {
            codec,
            scratch: Scratch::new(),
            roomy: Guarded::new(BOUND),
            tight: Guarded::new(TIGHT),
            out: Guarded::new(PAGE),
            seen: Torn::default(),
        }
    }

    /// Once as the library's documentation says, once into too small a destination, and once as the
    /// store does it, whose output is then decoded.
    fn one(&mut self, page: *const u8) {
        let sizes =
            [compress(self.codec, page, &mut self.roomy), compress(self.codec, page, &mut self.tight)];
        let mut overrun = !self.roomy.intact() | !self.tight.intact();
        // SAFETY: a page that another thread writes to: what the store promises to bear.
        let packed = unsafe { self.scratch.compress(self.codec, page) }.map(|(e, data)| (e, data.to_vec()));
        let mut decoded = true;
        if let Some((encoding, data)) = packed {
            decoded &= self.decodes(encoding, &data);
            overrun |= !self.out.intact();
        }
        if let Some(len) = sizes[0] {
            let encoding = if self.codec == Codec::Zstd { Encoding::Zstd } else { Encoding::Lz4 };
            let data = self.roomy.bytes[..len.min(BOUND)].to_vec();
            decoded &= self.decodes(encoding, &data);
            overrun |= !self.out.intact();
        }
        self.seen.pages += 1;
        self.seen.undecodable += u64::from(!decoded);
        self.seen.overruns += u64::from(overrun);
    }

    fn decodes(&mut self, encoding: Encoding, data: &[u8]) -> bool {
        // SAFETY: room for a page, and canaries behind it.
        unsafe { self.scratch.decompress(encoding, data, self.out.bytes.as_mut_ptr()) }
    }
}

/// The library's own call. `None`: it said that it does not fit.
fn compress(codec: Codec, page: *const u8, to: &mut Guarded) -> Option<usize> {
    // SAFETY: both sizes as they are; the page may change meanwhile, which is what is tried here.
    unsafe {
        if codec == Codec::Zstd {
            let n = zstd_sys::ZSTD_compress(to.bytes.as_mut_ptr().cast(), to.len, page.cast(), PAGE, 1);
            (zstd_sys::ZSTD_isError(n) == 0).then_some(n)
        } else {
            let n = lz4_sys::LZ4_compress_default(
                page.cast(),
                to.bytes.as_mut_ptr().cast(),
                PAGE as c_int,
                to.len as c_int,
            );
            usize::try_from(n).ok().filter(|&n| n > 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_codec_writes_behind_its_destination() {
        if usable_cpus().len() < 2 {
            return;
        }
        let corpus: Vec<u8> = (0..PAGE * 8).map(|i| (i / 7 % 251) as u8 ^ (i / 4096) as u8).collect();
        for codec in [Codec::Lz4, Codec::Zstd] {
            let seen = torn(codec, &corpus, Duration::from_millis(200), 7).unwrap();
            assert!(seen.pages > 0);
            assert_eq!(seen.overruns, 0, "{codec:?}");
        }
    }

    #[test]
    fn a_canary_that_was_overwritten_is_seen_once() {
        let mut g = Guarded::new(8);
        assert!(g.intact());
        g.bytes[8] = 0;
        assert!(!g.intact());
        assert!(g.intact());
    }
}
