// SPDX-License-Identifier: Apache-2.0
//! Pages put into the store and got back, straight from and to the guest's memory.

use tmem_store::{DENSE_OBJECT, Exchanged, Get, Handle, Put};

use super::{Extra, FRAMES, Pages, Site, Work, scatter, spin_until};
use crate::clock::ticks;
use crate::error::{ExitError, Result};
use crate::memory::PAGE;

/// Two dense pools of the same size, one for each codec.
#[derive(Clone)]
pub struct StoreSite {
    /// Compresses with lz4.
    pub lz4: Handle,
    /// Compresses with zstd.
    pub zstd: Handle,
}

impl StoreSite {
    fn span(&self) -> usize {
        self.lz4.pool().spec.pages.unwrap_or(1) as usize
    }
}

/// A pool and the guest's pages.
pub(super) struct Pool {
    pub handle: Handle,
    pub pages: Pages,
    pub span: usize,
}

impl Pool {
    pub fn of(site: &Site, zstd: bool) -> Result<Self> {
        let store = site.store.as_ref().ok_or_else(|| ExitError::NotOffered("no store was given".into()))?;
        let handle = if zstd { store.zstd.clone() } else { store.lz4.clone() };
        let pool = Self { handle, pages: site.pages.clone(), span: store.span() };
        // Every put is then one over a page that is there, every get one that hits.
        for i in 0..pool.span {
            pool.put(i, pool.pages.page(i)).map_err(ExitError::Failed)?;
        }
        Ok(pool)
    }

    #[inline]
    pub fn put(&self, index: usize, page: *const u8) -> std::result::Result<(), String> {
        // SAFETY: a page of the guest's memory, or a bounce buffer of that size.
        match unsafe { self.handle.put(&DENSE_OBJECT, index as u32, page) } {
            Put::Stored => Ok(()),
            other => Err(format!("put of page {index} was refused: {other:?}")),
        }
    }

    #[inline]
    fn get(&self, index: usize, frame: *mut u8) -> std::result::Result<(), String> {
        // SAFETY: a frame of the guest's memory.
        match unsafe { self.handle.get(&DENSE_OBJECT, index as u32, frame) } {
            Get::Hit => Ok(()),
            other => Err(format!("get of page {index} answered {other:?}")),
        }
    }

    /// The page that request `seq` puts under `index`: another one each time round.
    #[inline]
    pub fn source(&self, seq: u32, index: usize) -> usize {
        index + seq as usize / self.span
    }

    /// Some pages got again and compared whole. `holds` says which page of the corpus an index has.
    pub fn check(&self, holds: impl Fn(usize) -> usize) -> std::result::Result<(), String> {
        for index in (0..self.span).step_by((self.span / 64).max(1)) {
            self.get(index, self.pages.frame(0))?;
            if !self.pages.same(0, holds(index)) {
                return Err(format!("page {index} came back different from what was put"));
            }
        }
        Ok(())
    }
}

/// What the pool holds: the page that was put last under each index.
pub(super) struct Ledger(Vec<usize>);

impl Ledger {
    /// As [`Pool::of`] left it.
    pub fn new(span: usize) -> Self {
        Self((0..span).collect())
    }

    #[inline]
    pub fn set(&mut self, index: usize, page: usize) {
        self.0[index] = page;
    }

    pub fn get(&self, index: usize) -> usize {
        self.0[index]
    }
}

struct Puts {
    pool: Pool,
    ledger: Ledger,
    batch: u32,
    bounce: Option<Box<[u8; PAGE]>>,
    delay: Option<u64>,
}

impl Work for Puts {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        let began = ticks();
        for i in 0..self.batch {
            let seq = seq.wrapping_mul(self.batch).wrapping_add(i);
            let index = scatter(seq, self.pool.span);
            let source = self.pool.source(seq, index);
            let page = self.pool.pages.page(source);
            match &mut self.bounce {
                None => self.pool.put(index, page)?,
                Some(buffer) => {
                    // SAFETY: a page of the guest's memory into a buffer of that size.
                    unsafe { std::ptr::copy_nonoverlapping(page, buffer.as_mut_ptr(), PAGE) };
                    self.pool.put(index, buffer.as_ptr())?;
                }
            }
            self.ledger.set(index, source);
        }
        if let Some(delay) = self.delay {
            // So long after the put, whatever the put took.
            let put = ticks() - began;
            spin_until(began + put, delay);
        }
        Ok(())
    }

    fn finish(&mut self) -> std::result::Result<Extra, String> {
        self.pool.check(|index| self.ledger.get(index)).map(|()| Extra::default())
    }
}

struct Gets {
    pool: Pool,
    batch: u32,
}

impl Work for Gets {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        for i in 0..self.batch {
            let seq = seq.wrapping_mul(self.batch).wrapping_add(i);
            self.pool.get(scatter(seq, self.pool.span), self.pool.pages.frame(i as usize))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> std::result::Result<Extra, String> {
        self.pool.check(|index| index).map(|()| Extra::default())
    }
}

/// A page put and another got: at once, or each in a request of its own (an even one, and the odd one after it).
struct Swaps {
    pool: Pool,
    ledger: Ledger,
    at_once: bool,
}

impl Work for Swaps {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        let turn = if self.at_once { seq } else { seq / 2 };
        let index = scatter(turn, self.pool.span);
        let other = (index + self.pool.span / 2) % self.pool.span;
        let frame = self.pool.pages.frame(0);
        if !self.at_once && seq % 2 == 1 {
            return self.pool.get(other, frame);
        }
        let source = self.pool.source(turn, index);
        let page = self.pool.pages.page(source);
        self.ledger.set(index, source);
        if !self.at_once {
            return self.pool.put(index, page);
        }
        let (put, get) = ((&DENSE_OBJECT, index as u32), (&DENSE_OBJECT, other as u32));
        // SAFETY: a page and a frame of the guest's memory.
        match unsafe { self.pool.handle.exchange(put, page, get, frame) } {
            Exchanged { put: Put::Stored, get: Some(Get::Hit) } => Ok(()),
            refused => Err(format!("exchange of pages {index} and {other} answered {refused:?}")),
        }
    }

    fn finish(&mut self) -> std::result::Result<Extra, String> {
        self.pool.check(|index| self.ledger.get(index)).map(|()| Extra::default())
    }
}

/// Each page once: what is flushed is gone.
struct Flushes {
    pool: Pool,
    next: usize,
}

impl Work for Flushes {
    fn run(&mut self, _seq: u32) -> std::result::Result<(), String> {
        self.pool.handle.flush_page(&DENSE_OBJECT, (self.next % self.pool.span) as u32);
        self.next += 1;
        if self.next > self.pool.span { Err("more flushes than the pool has pages".into()) } else { Ok(()) }
    }
}

/// The work of that name; `n` is the size of a batch.
pub(super) fn make(site: &Site, name: &str, n: u32) -> Result<Box<dyn Work>> {
    let batch = if name.ends_with("-batch") { n } else { 1 };
    if batch == 0 || batch as usize > FRAMES {
        return Err(ExitError::Invalid(format!("a batch has 1 to {FRAMES} pages, not {batch}")));
    }
    let pool = Pool::of(site, name == "put-zstd")?;
    let ledger = Ledger::new(pool.span);
    Ok(match name {
        "get" | "get-batch" => Box::new(Gets { pool, batch }),
        "flush" => Box::new(Flushes { pool, next: 0 }),
        "exchange" | "put+get" => Box::new(Swaps { pool, ledger, at_once: name == "exchange" }),
        _ => {
            let bounce = (name == "put-bounce").then(|| Box::new([0; PAGE]));
            Box::new(Puts { pool, ledger, batch, bounce, delay: None })
        }
    })
}

/// A put and then a busy wait: the udelay experiment.
pub(super) fn delayed(site: &Site, delay: u64) -> Result<Box<dyn Work>> {
    let pool = Pool::of(site, false)?;
    let ledger = Ledger::new(pool.span);
    Ok(Box::new(Puts { pool, ledger, batch: 1, bounce: None, delay: Some(delay) }))
}
