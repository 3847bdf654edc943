// SPDX-License-Identifier: Apache-2.0
//! What is done in an exit: from nothing, over copying and compressing, to the store and the disk.

mod compute;
mod deferred;
mod disk;
mod paging;

use std::sync::Arc;

use crate::clock::ticks;
use crate::error::{ExitError, Result};
use crate::memory::{Memory, PAGE};

pub use disk::DiskSite;
pub(crate) use disk::transfer;
pub use paging::StoreSite;

/// Pages at the end of a guest's memory that gets and reads write to.
pub const FRAMES: usize = 128;

/// The work of one request, prepared beforehand.
pub trait Work: Send {
    /// Does request `seq`. What a real host would do in the exit, and nothing else.
    ///
    /// # Errors
    /// It could not be done: the reason ends the turn.
    fn run(&mut self, seq: u32) -> std::result::Result<(), String>;

    /// After the last request: checks what was done, and says what else is to be known.
    ///
    /// # Errors
    /// Something came back different from what was put.
    fn finish(&mut self) -> std::result::Result<Extra, String> {
        Ok(Extra::default())
    }
}

/// What a turn tells besides its samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extra {
    /// CPU time of threads of the work itself, nanoseconds.
    pub cpu_ns: u64,
    /// Most pages that waited at once.
    pub backlog: Option<u64>,
}

/// The guest's pages as the host sees them: the corpus, and frames after it.
#[derive(Clone)]
pub struct Pages {
    memory: Arc<Memory>,
    start: usize,
    count: usize,
}

impl Pages {
    /// `count` pages at `start` of `memory`, and [`FRAMES`] frames behind them.
    pub fn new(memory: Arc<Memory>, start: usize, count: usize) -> Self {
        assert!(count > 0 && start + (count + FRAMES) * PAGE <= memory.len());
        Self { memory, start, count }
    }

    /// Pages of the corpus.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Page `i` of the corpus, modulo their number.
    #[inline]
    pub fn page(&self, i: usize) -> *mut u8 {
        self.memory.at(self.start + i % self.count * PAGE, PAGE)
    }

    /// Frame `i`, modulo their number.
    #[inline]
    pub fn frame(&self, i: usize) -> *mut u8 {
        self.memory.at(self.start + (self.count + i % FRAMES) * PAGE, PAGE)
    }

    /// True if frame `i` holds what page `page` of the corpus does.
    fn same(&self, i: usize, page: usize) -> bool {
        // SAFETY: both are pages of this memory, and no guest touches them in this crate.
        unsafe {
            std::slice::from_raw_parts(self.frame(i), PAGE)
                == std::slice::from_raw_parts(self.page(page), PAGE)
        }
    }
}

/// Where work finds what it works on.
pub struct Site {
    /// The guest's pages.
    pub pages: Pages,
    /// Memory far larger than any cache, made when it is first asked for.
    pub cold: Option<Arc<Memory>>,
    /// Pools of the store.
    pub store: Option<StoreSite>,
    /// A file on a disk.
    pub disk: Option<DiskSite>,
    /// Ticks in a second.
    pub hz: f64,
    /// CPU of a thread of the work's own.
    pub other_cpu: Option<usize>,
}

/// Bytes of the memory that copies between cold pages go through.
const COLD: usize = 256 << 20;

/// An order that looks random and visits every number below `n` before it repeats, if `n` is a
/// power of two: an odd multiplier modulo 2^32 (Knuth's, TAOCP volume 3, section 6.4).
#[inline]
pub fn scatter(seq: u32, n: usize) -> usize {
    (seq.wrapping_mul(2_654_435_761) >> 7) as usize % n
}

/// Spins for `count` ticks from `since`.
#[inline]
fn spin_until(since: u64, count: u64) {
    while ticks() - since < count {
        std::hint::spin_loop();
    }
}

struct Nothing;

impl Work for Nothing {
    fn run(&mut self, _seq: u32) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// An emulated device: answers so many ticks after the request.
struct Device(u64);

impl Work for Device {
    fn run(&mut self, _seq: u32) -> std::result::Result<(), String> {
        spin_until(ticks(), self.0);
        Ok(())
    }
}

/// Makes the work called `name`. `n`: its number, where it has one (microseconds, pages).
///
/// # Errors
/// No such work, or this host cannot do it.
pub fn make(site: &mut Site, name: &str, n: u32) -> Result<Box<dyn Work>> {
    if site.cold.is_none() && name == "copy-cold" {
        let cold = Memory::new(COLD)?;
        // SAFETY: our own mapping, nobody else knows it yet.
        unsafe { std::ptr::write_bytes(cold.at(0, COLD), 0x5a, COLD) };
        site.cold = Some(Arc::new(cold));
    }
    let us = |n: u32| (f64::from(n) * site.hz / 1e6) as u64;
    match name {
        "nothing" => Ok(Box::new(Nothing)),
        "device" => Ok(Box::new(Device(us(n)))),
        "delay" => paging::delayed(site, us(n)),
        "copy-hot" | "copy-cold" | "lz4-compress" | "lz4-decompress" | "zstd-compress"
        | "zstd-decompress" => compute::make(site, name),
        "put" | "put-zstd" | "get" | "flush" | "put-bounce" | "put-batch" | "get-batch" | "exchange"
        | "put+get" => paging::make(site, name, n),
        "put-deferred" => deferred::make(site),
        _ => disk::make(site, name)
            .unwrap_or_else(|| Err(ExitError::Invalid(format!("there is no work called {name:?}")))),
    }
}
