// SPDX-License-Identifier: Apache-2.0
//! Pools and VMs: what the tables of the arena describe, as they live in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::codec::{Codec, PAGE_MAX, PAGE_SIZE};
use crate::index::{Dense, Index, Sparse};
use crate::lru::Lru;
use crate::quota::Account;
use crate::stats::{Counters, Latencies};

/// A pool's number: its place in the arena's pool table.
pub type PoolId = u16;
/// A VM's number: its place in the arena's VM table.
pub type VmId = u16;

/// What a pool is. Fixed when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpec {
    /// Pages stay until flushed (else they may vanish at any moment).
    pub persistent: bool,
    /// VMs that give the same uuid use the same pool.
    pub shared: Option<[u8; 16]>,
    /// Of a private pool: the uuid by which its VM finds it again. The store keeps it, no more.
    pub name: Option<[u8; 16]>,
    /// `Some(n)`: a dense pool (swap) with indices `0..n` and one object; else sparse.
    pub pages: Option<u32>,
    /// How pages are compressed; may change later, unless they come compressed.
    pub codec: Codec,
    /// Bytes in a page: 4096 << n, at most 2 MiB.
    pub page_size: u32,
    /// Pages may come compressed: [`put_packed`](crate::Handle::put_packed).
    pub packed: bool,
}

impl PoolSpec {
    /// A swap disk of so many pages of 4096 bytes: persistent, private, dense, lz4.
    pub const fn dense(pages: u32) -> Self {
        Self { pages: Some(pages), ..Self::sparse(true) }
    }

    /// Objects of pages of 4096 bytes: sparse, private, lz4.
    pub const fn sparse(persistent: bool) -> Self {
        let page_size = PAGE_SIZE as u32;
        let (shared, name, pages) = (None, None, None);
        Self { persistent, shared, name, pages, codec: Codec::Lz4, page_size, packed: false }
    }

    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.pages.is_some() && (!self.persistent || self.shared.is_some()) {
            return Err("a dense pool is a swap disk: persistent and private".into());
        }
        if self.shared.is_some() && self.name.is_some() || self.name == Some([0; 16]) {
            return Err("a shared pool goes by its one uuid, and 0 is none".into());
        }
        if self.pages == Some(0) {
            return Err("a dense pool has at least one page".into());
        }
        if !self.page_size.is_power_of_two() || !(PAGE_SIZE..=PAGE_MAX).contains(&(self.page_size as usize)) {
            return Err(format!("a page is a power of two from 4096 bytes to 2 MiB, not {}", self.page_size));
        }
        if self.packed && self.codec == Codec::None {
            return Err("pages that come compressed need a codec: lz4 or zstd".into());
        }
        Ok(())
    }
}

/// How much a pool holds now.
#[derive(Default)]
pub struct Holding {
    /// Pages.
    pub pages: AtomicU64,
    /// Bytes of their compressed data.
    pub compressed: AtomicU64,
    /// Bytes of their slots: what is charged.
    pub slots: AtomicU64,
    /// Pages kept as one word.
    pub same_filled: AtomicU64,
    /// Pages kept as they are.
    pub raw: AtomicU64,
}

/// A pool.
pub struct Pool {
    /// Its number.
    pub id: PoolId,
    /// What it is.
    pub spec: PoolSpec,
    /// The VMs that use it: one, unless it is shared.
    pub members: Mutex<Vec<VmId>>,
    /// Who pays for its pages. A shared pool pays for itself.
    pub account: Arc<Account>,
    pub(crate) index: Index,
    codec: AtomicU8,
    /// Something in the arena could not be read at recovery: a miss may be a lost page.
    pub(crate) damaged: AtomicBool,
    pub(crate) lru: Mutex<Lru>,
    /// What it holds.
    pub holding: Holding,
    /// What happened.
    pub counters: Counters,
    /// How long it took.
    pub latencies: Latencies,
}

impl Pool {
    /// `None`: no address space for the index.
    pub(crate) fn new(id: PoolId, spec: PoolSpec, members: Vec<VmId>, account: Arc<Account>) -> Option<Self> {
        let index = match spec.pages {
            Some(n) => Index::Dense(Dense::new(n)?),
            None => Index::Sparse(Sparse::new()),
        };
        Some(Self {
            id,
            spec,
            members: Mutex::new(members),
            account,
            index,
            codec: AtomicU8::new(spec.codec as u8),
            damaged: AtomicBool::new(false),
            lru: Mutex::new(Lru::new()),
            holding: Holding::default(),
            counters: Counters::default(),
            latencies: Latencies::default(),
        })
    }

    /// Bytes in a page.
    #[inline]
    pub fn page_size(&self) -> usize {
        self.spec.page_size as usize
    }

    /// How puts are compressed now.
    #[inline]
    pub fn codec(&self) -> Codec {
        Codec::from_byte(self.codec.load(Ordering::Relaxed)).unwrap_or(Codec::None)
    }

    pub(crate) fn set_codec(&self, codec: Codec) {
        self.codec.store(codec as u8, Ordering::Relaxed);
    }

    /// True if the arena could not be read whole at recovery.
    pub fn damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Bytes of host memory the index holds.
    pub fn index_bytes(&self) -> u64 {
        self.index.bytes()
    }

    /// Puts and flushes so far.
    pub(crate) fn changes(&self) -> u64 {
        self.counters.puts.load(Ordering::Relaxed) + self.counters.flushes.load(Ordering::Relaxed)
    }

    pub(crate) fn sparse(&self) -> bool {
        self.spec.pages.is_none()
    }
}

/// A VM as the store knows it.
pub struct Vm {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// What it may hold.
    pub account: Arc<Account>,
    /// Shared pools that it may join.
    pub(crate) authorised: Mutex<Vec<[u8; 16]>>,
    /// Counters of its pools that are gone.
    pub retired: Counters,
}

impl Vm {
    pub(crate) fn new(id: VmId, name: String, account: Account, authorised: Vec<[u8; 16]>) -> Self {
        let (account, authorised) = (Arc::new(account), Mutex::new(authorised));
        Self { id, name, account, authorised, retired: Counters::default() }
    }

    /// Uuids of the shared pools that it may join, in no order.
    pub fn authorised(&self) -> Vec<[u8; 16]> {
        self.authorised.lock().clone()
    }
}
