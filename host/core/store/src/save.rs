// SPDX-License-Identifier: Apache-2.0
//! A pool's pages to a file, also while they change, and back into a pool of any store.
//!
//! The file: a head, records, an end; all numbers little-endian.
//!
//! | head, 64 bytes | |
//! |---|---|
//! | 0..8 | `TMEMPOOL` |
//! | 8..12, 12..16, 16..20 | version 1; bytes in a page; pages of a dense pool, 0 for a sparse one |
//! | 20..56 | zero |
//! | 56..64 | xxh3 of the bytes before |
//!
//! | record, 48 bytes and its data | |
//! |---|---|
//! | 0 | 1 a page, 2 a page that is gone, 3 the end |
//! | 1 | how the data is to be read: 0 the page, 1 one lz4 block, 3 a word that fills it |
//! | 4..8 | bytes of data |
//! | 8..32, 32..36 | object, index; of the end: pages, gone, pages that are left |
//! | 40..48 | xxh3 of the data, seeded with that of the bytes before |
//!
//! Later records of a key stand against earlier ones: the first pass writes every page, each that
//! follows what has changed since. What does not check is refused as a whole, before anything is
//! put.

use std::collections::HashMap;
use std::ffi::c_int;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom, Write};

use twox_hash::{XxHash3_64, XxHash3_128};

use crate::codec::{PAGE_MAX, Scratch, same_filled, with_scratch};
use crate::error::{Result, StoreError};
use crate::index::Stand;
use crate::layout::ObjectId;
use crate::ops::{Handle, Put};

const MAGIC: &[u8; 8] = b"TMEMPOOL";
const VERSION: u32 = 1;
const HEAD: usize = 64;
const RECORD: usize = 48;

const PAGE: u8 = 1;
const GONE: u8 = 2;
const END: u8 = 3;

const RAW: u8 = 0;
const LZ4: u8 = 1;
const SAME: u8 = 3;

/// No further pass when the last one wrote so few: the guest makes about as many in the meantime.
const FEW: u64 = 64;

/// Passes at the end, at most.
const SETTLING: u32 = 3;

type Key = (ObjectId, u32);

/// What a save wrote, or a restore read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Saved {
    /// Records of pages.
    pub pages: u64,
    /// Records of pages that were gone later.
    pub gone: u64,
    /// Pages that the file comes to.
    pub left: u64,
    /// Passes over the pool.
    pub passes: u32,
}

/// A page as it was written last.
struct Written {
    /// XXH3-128, seeded anew for each save: no guest can prepare two pages that it takes for one, and two that happen to
    /// be have a chance of one in 2^128.
    hash: u128,
    pass: u32,
}

fn invalid(what: impl Into<String>) -> StoreError {
    StoreError::Invalid(what.into())
}

impl Handle {
    /// Writes the pool to `out` in at most `passes` passes, while it changes, and one to three more after
    /// `last`: what that freezes is in the file as it stands then. The pool itself does not change.
    ///
    /// # Errors
    /// The pool is ephemeral or has lost pages, and a restored one would miss them; `out` does not
    /// take it; whatever `last` says.
    pub fn save(
        &self,
        out: &mut impl Write,
        passes: u32,
        last: impl FnOnce() -> Result<()>,
    ) -> Result<Saved> {
        let pool = &*self.pool;
        if !pool.spec.persistent {
            return Err(invalid(
                "an ephemeral pool is a cache: its pages may vanish, and nobody misses them",
            ));
        }
        let io = StoreError::io("the pool cannot be written");
        out.write_all(&head(pool.page_size(), pool.spec.pages)).map_err(io)?;
        let mut save = Save {
            handle: self,
            seed: RandomState::new().build_hasher().finish(),
            written: HashMap::new(),
            saved: Saved::default(),
            changed: 0,
        };
        for pass in 1..=passes {
            save.pass(out, pass)?;
            if save.changed <= FEW {
                break;
            }
        }
        last()?;
        // A put that was under way when the VM was frozen is found by the pass that finds nothing more.
        for _ in 0..SETTLING {
            save.pass(out, save.saved.passes + 1)?;
            if save.changed == 0 {
                break;
            }
        }
        let saved = Saved { left: save.written.len() as u64, ..save.saved };
        let object = [saved.pages, saved.gone, saved.left];
        write_record(out, END, RAW, &(object, 0), &[])?;
        out.flush().map_err(StoreError::io("the pool cannot be written"))?;
        Ok(saved)
    }

    /// Puts what `from` holds into the pool, which is empty. All of it, or nothing and an error.
    ///
    /// # Errors
    /// It is no such file, is damaged, or is of another kind of pool; the pool is not empty, or has
    /// no room for it.
    pub fn restore(&self, from: &mut (impl Read + Seek)) -> Result<Saved> {
        let pool = &*self.pool;
        if !pool.spec.persistent {
            return Err(invalid("pages of a persistent pool do not go into an ephemeral one"));
        }
        if pool.holding.pages.load(std::sync::atomic::Ordering::Relaxed) != 0 {
            return Err(StoreError::Exists(format!("pool {} has pages already", pool.id)));
        }
        let start = from.stream_position().map_err(StoreError::io("the file cannot be read"))?;
        let mut left: HashMap<Key, ()> = HashMap::new();
        let saved = self.records(from, |key, page| {
            if page.is_some() {
                left.insert(key, ());
            } else {
                left.remove(&key);
            }
            Ok(())
        })?;
        if left.len() as u64 != saved.left {
            return Err(invalid("the file is damaged: its end does not say what its records come to"));
        }
        drop(left);
        from.seek(SeekFrom::Start(start)).map_err(StoreError::io("the file cannot be read"))?;
        let done = self.records(from, |(object, index), page| match page {
            Some(page) => {
                // SAFETY: a page of the pool, ours alone.
                match unsafe { self.put(&object, index, page.as_ptr()) } {
                    Put::Stored => Ok(()),
                    Put::Frozen => Err(StoreError::NoSpace("the VM is frozen: thaw it first".into())),
                    Put::OverCap => Err(StoreError::NoSpace("the pages do not fit the VM's cap".into())),
                    other => {
                        Err(StoreError::NoSpace(format!("the store has no room for the pages: {other:?}")))
                    }
                }
            }
            None => {
                self.flush_page(&object, index);
                Ok(())
            }
        });
        if done.is_err() {
            self.inner.drain(pool, None, false);
        }
        done
    }

    /// Reads a file, every byte of it checked, and gives its records to `f`.
    fn records(
        &self,
        from: &mut impl Read,
        mut f: impl FnMut(Key, Option<&[u8]>) -> Result<()>,
    ) -> Result<Saved> {
        let pool = &*self.pool;
        let (page_size, capacity) = read_head(from)?;
        if page_size != pool.page_size() {
            return Err(invalid(format!(
                "the file has pages of {page_size} bytes, the pool of {}",
                pool.page_size()
            )));
        }
        match (capacity, pool.spec.pages) {
            (None, None) => {}
            (Some(had), Some(has)) if had <= has => {}
            (Some(had), Some(has)) => {
                return Err(invalid(format!("the file is of a pool of {had} pages, this one has {has}")));
            }
            _ => {
                return Err(invalid(
                    "a dense pool's pages go into a dense pool, a sparse one's into a sparse one",
                ));
            }
        }
        let mut saved = Saved::default();
        let (mut data, mut page) = (Vec::new(), vec![0u8; page_size]);
        loop {
            let mut raw = [0u8; RECORD];
            fill(from, &mut raw)?;
            let record = Record::parse(&raw).filter(|r| r.len <= page_size);
            let record =
                record.ok_or_else(|| invalid("the file is damaged: what should be a record is none"))?;
            data.resize(record.len, 0);
            fill(from, &mut data)?;
            if checksum(&raw, &data) != word(&raw, 40) {
                return Err(invalid("the file is damaged: a record does not check"));
            }
            let key = (record.object, record.index);
            let known = capacity.is_none_or(|n| record.index < n && record.object == [0; 3]);
            match record.kind {
                PAGE if known && decode(record.encoding, &data, &mut page) => {
                    saved.pages += 1;
                    f(key, Some(&page))?;
                }
                GONE if known && data.is_empty() => {
                    saved.gone += 1;
                    f(key, None)?;
                }
                END if data.is_empty() => {
                    let told = record.object;
                    if told[..2] != [saved.pages, saved.gone] || from.read(&mut [0]).unwrap_or(1) != 0 {
                        return Err(invalid("the file is damaged: its end is not where it should be"));
                    }
                    return Ok(Saved { left: told[2], ..saved });
                }
                _ => return Err(invalid("the file is damaged: a record makes no sense")),
            }
        }
    }
}

/// A save under way.
struct Save<'a> {
    handle: &'a Handle,
    /// Of the hashes.
    seed: u64,
    written: HashMap<Key, Written>,
    saved: Saved,
    /// Records of the last pass.
    changed: u64,
}

impl Save<'_> {
    /// Writes every page that is not in the file as it is now, and what is there no longer.
    fn pass(&mut self, out: &mut impl Write, pass: u32) -> Result<()> {
        let (handle, pool) = (self.handle, &*self.handle.pool);
        let before = self.saved.pages + self.saved.gone;
        let mut page = vec![0u8; pool.page_size()];
        let mut packed = Vec::new();
        let mut keys = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            keys.clear();
            from = pool.index.keys(at, &mut keys);
            for key in &keys {
                let found = pool.index.with(&key.0, key.1, |e| match e.stand {
                    Stand::Page(slot) => {
                        // SAFETY: the entry is locked and says the slot is its page; `page` is ours.
                        let read = |s: &mut Scratch| unsafe {
                            handle.inner.read_slot(s, pool, slot, page.as_mut_ptr())
                        };
                        if with_scratch(read) { Ok(true) } else { Err(()) }
                    }
                    Stand::Lost(_) => Err(()),
                    Stand::Absent | Stand::Refused => Ok(false),
                });
                match found {
                    None => return Err(StoreError::NotFound(format!("pool {} is gone", pool.id))),
                    Some(Ok(false)) => {}
                    Some(Err(())) => {
                        return Err(invalid(format!(
                            "page {} of pool {} is lost: a copy would miss it",
                            key.1, pool.id
                        )));
                    }
                    Some(Ok(true)) => {
                        let hash = XxHash3_128::oneshot_with_seed(self.seed, &page);
                        let old = self.written.insert(*key, Written { hash, pass });
                        if old.is_none_or(|old| old.hash != hash) {
                            let encoding = encode(&page, &mut packed);
                            write_record(out, PAGE, encoding, key, &packed)?;
                            self.saved.pages += 1;
                        }
                    }
                }
            }
        }
        if pool.damaged() {
            return Err(invalid(format!("pool {} is damaged: what it misses may be lost pages", pool.id)));
        }
        let gone: Vec<Key> = self.written.iter().filter(|(_, w)| w.pass != pass).map(|(k, _)| *k).collect();
        for key in gone {
            self.written.remove(&key);
            write_record(out, GONE, RAW, &key, &[])?;
            self.saved.gone += 1;
        }
        self.saved.passes = pass;
        self.changed = self.saved.pages + self.saved.gone - before;
        Ok(())
    }
}

fn head(page_size: usize, pages: Option<u32>) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&(page_size as u32).to_le_bytes());
    head[16..20].copy_from_slice(&pages.unwrap_or(0).to_le_bytes());
    let check = XxHash3_64::oneshot(&head[..56]);
    head[56..].copy_from_slice(&check.to_le_bytes());
    head
}

/// Bytes in a page, and pages of a dense pool.
fn read_head(from: &mut impl Read) -> Result<(usize, Option<u32>)> {
    let mut head = [0; HEAD];
    fill(from, &mut head)?;
    if &head[..8] != MAGIC {
        return Err(invalid("this is no saved pool"));
    }
    if word(&head, 56) != XxHash3_64::oneshot(&head[..56]) {
        return Err(invalid("the file is damaged: its head does not check"));
    }
    let version = half(&head, 8);
    if version != VERSION {
        return Err(invalid(format!("the file has version {version}, this program reads {VERSION}")));
    }
    if head[20..56].iter().any(|&b| b != 0) {
        return Err(invalid("the file says something that this program does not know"));
    }
    let pages = half(&head, 16);
    Ok((half(&head, 12) as usize, (pages != 0).then_some(pages)))
}

struct Record {
    kind: u8,
    encoding: u8,
    len: usize,
    object: ObjectId,
    index: u32,
}

impl Record {
    fn parse(raw: &[u8; RECORD]) -> Option<Self> {
        if raw[2..4] != [0; 2] || raw[36..40] != [0; 4] {
            return None;
        }
        Some(Self {
            kind: raw[0],
            encoding: raw[1],
            len: half(raw, 4) as usize,
            object: [word(raw, 8), word(raw, 16), word(raw, 24)],
            index: half(raw, 32),
        })
    }
}

fn write_record(out: &mut impl Write, kind: u8, encoding: u8, key: &Key, data: &[u8]) -> Result<()> {
    let mut raw = [0u8; RECORD];
    raw[0] = kind;
    raw[1] = encoding;
    raw[4..8].copy_from_slice(&(data.len() as u32).to_le_bytes());
    for (at, w) in key.0.iter().enumerate() {
        raw[8 + at * 8..16 + at * 8].copy_from_slice(&w.to_le_bytes());
    }
    raw[32..36].copy_from_slice(&key.1.to_le_bytes());
    let check = checksum(&raw, data);
    raw[40..].copy_from_slice(&check.to_le_bytes());
    out.write_all(&raw)
        .and_then(|()| out.write_all(data))
        .map_err(StoreError::io("the pool cannot be written"))
}

fn checksum(raw: &[u8; RECORD], data: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&raw[..40]), data)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut w = [0; 8];
    w.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(w)
}

fn half(bytes: &[u8], at: usize) -> u32 {
    let mut w = [0; 4];
    w.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(w)
}

fn fill(from: &mut impl Read, into: &mut [u8]) -> Result<()> {
    from.read_exact(into).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => invalid("the file is cut off"),
        _ => StoreError::Io { what: "the file cannot be read".into(), source: e },
    })
}

/// Makes `packed` the page's data, and says how it is to be read.
fn encode(page: &[u8], packed: &mut Vec<u8>) -> u8 {
    packed.clear();
    // SAFETY: the page is valid for its length, a multiple of 4096.
    if let Some(word) = unsafe { same_filled(page.as_ptr(), page.len()) } {
        packed.extend_from_slice(&word.to_ne_bytes());
        return SAME;
    }
    packed.resize(page.len(), 0);
    // SAFETY: source and destination are valid for the lengths given, at most 2 MiB. What does not
    // become shorter than the page is answered by 0.
    let n = unsafe {
        lz4_sys::LZ4_compress_default(
            page.as_ptr().cast(),
            packed.as_mut_ptr().cast(),
            page.len() as c_int,
            packed.len() as c_int - 1,
        )
    };
    if n > 0 {
        packed.truncate(n as usize);
        return LZ4;
    }
    packed.copy_from_slice(page);
    RAW
}

/// Makes `page` what `data` says. False if it says no page.
fn decode(encoding: u8, data: &[u8], page: &mut [u8]) -> bool {
    debug_assert!(page.len() <= PAGE_MAX);
    match encoding {
        RAW if data.len() == page.len() => {
            page.copy_from_slice(data);
            true
        }
        SAME if data.len() == 8 => {
            page.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(data));
            true
        }
        LZ4 => {
            // SAFETY: source and destination are valid for the lengths given; the decoder stays in them
            // whatever the source says.
            let n = unsafe {
                lz4_sys::LZ4_decompress_safe(
                    data.as_ptr().cast(),
                    page.as_mut_ptr().cast(),
                    data.len() as c_int,
                    page.len() as c_int,
                )
            };
            usize::try_from(n).is_ok_and(|n| n == page.len())
        }
        _ => false,
    }
}
