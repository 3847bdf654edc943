// SPDX-License-Identifier: Apache-2.0
//! Pools as the ABI sees them: flags of one to be made, and what bounds requests for one.

use crate::wire::{Header, ORDER_MAX, Object, PAGE_SHIFT, Status, feature};

/// `TMEM_POOL_PERSISTENT`.
pub const PERSISTENT: u64 = 1 << 0;
/// `TMEM_POOL_SHARED`.
pub const SHARED: u64 = 1 << 1;
/// `TMEM_POOL_PACKED`.
pub const PACKED: u64 = 1 << 2;
/// `TMEM_POOL_ATTACH`.
pub const ATTACH: u64 = 1 << 3;
/// `TMEM_POOL_ORDER_SHIFT`.
pub const ORDER_SHIFT: u32 = 4;
/// `TMEM_POOL_CODEC_SHIFT`.
pub const CODEC_SHIFT: u32 = 8;
/// `TMEM_POOL_FLAGS`.
pub const FLAGS: u64 = 0xfff;

const CODEC_LZ4: u64 = 1;
const CODEC_ZSTD: u64 = 2;

/// How the pages of a packed pool come: `TMEM_CODEC_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// One lz4 block.
    Lz4,
    /// One zstd frame.
    Zstd,
}

/// Whose a pool is, and how it is found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The VM's own, under its number only.
    Private,
    /// The VM's own, and found again under this uuid.
    Attach([u8; 16]),
    /// Of all VMs that are authorised for this uuid.
    Shared([u8; 16]),
}

/// A pool to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewPool {
    /// Else ephemeral.
    pub persistent: bool,
    /// Whose it is.
    pub name: Name,
    /// Page size: 4 KiB << order, 0 to 9.
    pub order: u32,
    /// Pages come compressed.
    pub packing: Option<Packing>,
    /// A swap pool of so many pages.
    pub pages: Option<u32>,
}

impl NewPool {
    /// From a request whose other fields are checked. Refused is what is unknown, not agreed on, or does not go together.
    pub(crate) fn parse(header: &Header, features: u64) -> Result<Self, Status> {
        let flags = header.argument;
        let [low, high, rest] = header.object;
        let order = (flags >> ORDER_SHIFT & 0xf) as u32;
        let packing = match (flags & PACKED != 0, flags >> CODEC_SHIFT & 0xf) {
            (false, 0) => None,
            (true, CODEC_LZ4) => Some(Packing::Lz4),
            (true, CODEC_ZSTD) => Some(Packing::Zstd),
            _ => return Err(Status::BadFlags),
        };
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&low.to_le_bytes());
        uuid[8..].copy_from_slice(&high.to_le_bytes());
        let name = match (flags & SHARED != 0, flags & ATTACH != 0, uuid != [0; 16]) {
            (false, false, false) => Name::Private,
            (false, true, true) => Name::Attach(uuid),
            (true, false, true) => Name::Shared(uuid),
            _ => return Err(Status::BadFlags),
        };
        let pool = Self {
            persistent: flags & PERSISTENT != 0,
            name,
            order,
            packing,
            pages: (header.count != 0).then_some(header.count),
        };
        let shared = matches!(name, Name::Shared(_));
        let agreed = (order == 0 || features & feature::LARGE != 0)
            && (packing.is_none() || features & feature::PACKED != 0)
            && (!shared || features & feature::SHARED != 0);
        let swap = pool.pages.is_none() || (pool.persistent && !shared);
        (flags & !FLAGS == 0 && rest == 0 && order <= ORDER_MAX && agreed && swap)
            .then_some(pool)
            .ok_or(Status::BadFlags)
    }

    /// What bounds requests for it.
    pub fn shape(&self) -> Shape {
        Shape { page_size: 1 << (PAGE_SHIFT + self.order), pages: self.pages, packed: self.packing.is_some() }
    }
}

/// What the parser must know of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes in a page: 4096 to 2 MiB.
    pub page_size: u32,
    /// A swap pool's keys are object 0 and an index below this.
    pub pages: Option<u32>,
    /// Puts send compressed pages.
    pub packed: bool,
}

impl Shape {
    /// True if the pool can have all keys from `index` on, `count` of them, at least one.
    pub(crate) fn holds(&self, object: &Object, index: u32, count: u32) -> bool {
        match (self.pages, index.checked_add(count - 1)) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(pages), Some(last)) => *object == [0; 3] && last < pages,
        }
    }
}
