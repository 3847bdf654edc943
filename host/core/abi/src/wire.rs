// SPDX-License-Identifier: Apache-2.0
//! Structures and constants of `guest/abi/tmem_abi.h`, little-endian and without padding.

/// `TMEM_ABI_VERSION`: the highest version this host speaks, and the lowest.
pub const VERSION: u32 = 1;
/// `TMEM_BATCH_MAX`: pages in one request.
pub const BATCH_MAX: u32 = 128;
/// `TMEM_DATA_MAX`: bytes of data in one request or reply.
pub const DATA_MAX: u32 = 2 << 20;
/// `TMEM_POOLS_MAX`: pools of one VM.
pub const POOLS_MAX: u32 = 16;
/// `TMEM_PAGE_SHIFT`: of a page of order 0.
pub const PAGE_SHIFT: u32 = 12;
/// `TMEM_ORDER_MAX`: of the largest page.
pub const ORDER_MAX: u32 = 9;

/// Bytes of `struct tmem_request`.
pub const REQUEST_SIZE: usize = 64;
/// Bytes of `struct tmem_item`.
pub const ITEM_SIZE: usize = 32;
/// Bytes of `struct tmem_reply`.
pub const REPLY_SIZE: usize = 40;

/// `TMEM_REQUEST_LIST`.
pub const REQUEST_LIST: u16 = 1;

/// An object's id: 192 bits.
pub type Object = [u64; 3];

/// `TMEM_FEATURE_*`.
pub mod feature {
    /// More than one page in put, get and flush page.
    pub const BATCH: u64 = 1 << 0;
    /// Listed keys.
    pub const LIST: u64 = 1 << 1;
    /// Read and write.
    pub const RANGE: u64 = 1 << 2;
    /// Exchange.
    pub const EXCHANGE: u64 = 1 << 3;
    /// Pools with pages above 4 KiB.
    pub const LARGE: u64 = 1 << 4;
    /// Pools of pages that the guest has compressed.
    pub const PACKED: u64 = 1 << 5;
    /// Shared pools.
    pub const SHARED: u64 = 1 << 6;
    /// New page.
    pub const NEW_PAGE: u64 = 1 << 7;
    /// All of them.
    pub const ALL: u64 = 0xff;
}

/// `TMEM_OP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Op {
    NewPool = 1,
    DestroyPool = 2,
    NewPage = 3,
    Put = 4,
    Get = 5,
    FlushPage = 6,
    FlushObject = 7,
    Read = 8,
    Write = 9,
    Exchange = 10,
    Hello = 32,
}

impl Op {
    /// All operations.
    pub const ALL: [Self; 11] = [
        Self::NewPool,
        Self::DestroyPool,
        Self::NewPage,
        Self::Put,
        Self::Get,
        Self::FlushPage,
        Self::FlushObject,
        Self::Read,
        Self::Write,
        Self::Exchange,
        Self::Hello,
    ];

    /// The operation of that number.
    pub fn from_wire(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|&op| op as u16 == number)
    }

    /// Its name in counters and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::NewPool => "new-pool",
            Self::DestroyPool => "destroy-pool",
            Self::NewPage => "new-page",
            Self::Put => "put",
            Self::Get => "get",
            Self::FlushPage => "flush-page",
            Self::FlushObject => "flush-object",
            Self::Read => "read",
            Self::Write => "write",
            Self::Exchange => "exchange",
            Self::Hello => "hello",
        }
    }
}

/// Status of a reply: `TMEM_OK` to `TMEM_HOST_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Status {
    Ok = 0,
    Miss = 1,
    NoRoom = 2,
    OverCap = 3,
    Frozen = 4,
    Lost = 5,
    BadData = 6,
    BadOp = 16,
    BadFlags = 17,
    BadPool = 18,
    BadLength = 19,
    BadVersion = 20,
    NotNegotiated = 21,
    NotPermitted = 22,
    HostError = 23,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Ok,
        Self::Miss,
        Self::NoRoom,
        Self::OverCap,
        Self::Frozen,
        Self::Lost,
        Self::BadData,
        Self::BadOp,
        Self::BadFlags,
        Self::BadPool,
        Self::BadLength,
        Self::BadVersion,
        Self::NotNegotiated,
        Self::NotPermitted,
        Self::HostError,
    ];

    /// The status of that number.
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&s| s as u32 == number)
    }

    /// Its name in counters, logs and vectors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Miss => "miss",
            Self::NoRoom => "no-room",
            Self::OverCap => "over-cap",
            Self::Frozen => "frozen",
            Self::Lost => "lost",
            Self::BadData => "bad-data",
            Self::BadOp => "bad-op",
            Self::BadFlags => "bad-flags",
            Self::BadPool => "bad-pool",
            Self::BadLength => "bad-length",
            Self::BadVersion => "bad-version",
            Self::NotNegotiated => "not-negotiated",
            Self::NotPermitted => "not-permitted",
            Self::HostError => "host-error",
        }
    }
}

fn le<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

fn le32(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(le(raw, at))
}

fn le64(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(le(raw, at))
}

fn object(raw: &[u8], at: usize) -> Object {
    [le64(raw, at), le64(raw, at + 8), le64(raw, at + 16)]
}

/// `struct tmem_request`, as it came and not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Header {
    pub op: u16,
    pub flags: u16,
    pub pool: u32,
    pub object: Object,
    pub index: u32,
    pub count: u32,
    pub offset: u32,
    pub length: u32,
    pub argument: u64,
    pub cookie: u64,
}

impl Header {
    /// From bytes.
    pub fn decode(raw: &[u8; REQUEST_SIZE]) -> Self {
        Self {
            op: u16::from_le_bytes(le(raw, 0)),
            flags: u16::from_le_bytes(le(raw, 2)),
            pool: le32(raw, 4),
            object: object(raw, 8),
            index: le32(raw, 32),
            count: le32(raw, 36),
            offset: le32(raw, 40),
            length: le32(raw, 44),
            argument: le64(raw, 48),
            cookie: le64(raw, 56),
        }
    }

    /// To bytes.
    pub fn encode(&self) -> [u8; REQUEST_SIZE] {
        let mut raw = [0; REQUEST_SIZE];
        raw[0..2].copy_from_slice(&self.op.to_le_bytes());
        raw[2..4].copy_from_slice(&self.flags.to_le_bytes());
        raw[4..8].copy_from_slice(&self.pool.to_le_bytes());
        for (i, word) in self.object.iter().enumerate() {
            raw[8 + 8 * i..16 + 8 * i].copy_from_slice(&word.to_le_bytes());
        }
        raw[32..36].copy_from_slice(&self.index.to_le_bytes());
        raw[36..40].copy_from_slice(&self.count.to_le_bytes());
        raw[40..44].copy_from_slice(&self.offset.to_le_bytes());
        raw[44..48].copy_from_slice(&self.length.to_le_bytes());
        raw[48..56].copy_from_slice(&self.argument.to_le_bytes());
        raw[56..64].copy_from_slice(&self.cookie.to_le_bytes());
        raw
    }
}

/// `struct tmem_item`, as it came and not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Item {
    pub object: Object,
    pub index: u32,
    pub reserved: u32,
}

impl Item {
    /// From bytes.
    pub fn decode(raw: &[u8; ITEM_SIZE]) -> Self {
        Self { object: object(raw, 0), index: le32(raw, 24), reserved: le32(raw, 28) }
    }

    /// To bytes.
    pub fn encode(&self) -> [u8; ITEM_SIZE] {
        let mut raw = [0; ITEM_SIZE];
        for (i, word) in self.object.iter().enumerate() {
            raw[8 * i..8 + 8 * i].copy_from_slice(&word.to_le_bytes());
        }
        raw[24..28].copy_from_slice(&self.index.to_le_bytes());
        raw[28..32].copy_from_slice(&self.reserved.to_le_bytes());
        raw
    }
}

/// `struct tmem_reply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// How it went.
    pub status: Status,
    /// The request's.
    pub cookie: u64,
    /// By operation; pages done.
    pub value: u64,
    /// Bit i: page i was done.
    pub done: u128,
}

impl Reply {
    /// A refusal of a whole request, with the value that its status has.
    pub fn refusal(status: Status, cookie: u64) -> Self {
        let value = if status == Status::BadVersion { u64::from(VERSION) } else { 0 };
        Self { status, cookie, value, done: 0 }
    }

    /// To bytes.
    pub fn encode(&self) -> [u8; REPLY_SIZE] {
        let mut raw = [0; REPLY_SIZE];
        raw[0..4].copy_from_slice(&(self.status as u32).to_le_bytes());
        raw[8..16].copy_from_slice(&self.cookie.to_le_bytes());
        raw[16..24].copy_from_slice(&self.value.to_le_bytes());
        raw[24..40].copy_from_slice(&self.done.to_le_bytes());
        raw
    }

    /// From bytes; `None`: an unknown status, or the reserved field is not 0.
    pub fn decode(raw: &[u8; REPLY_SIZE]) -> Option<Self> {
        Some(Self {
            status: Status::from_wire(le32(raw, 0)).filter(|_| le32(raw, 4) == 0)?,
            cookie: le64(raw, 8),
            value: le64(raw, 16),
            done: u128::from_le_bytes(le(raw, 24)),
        })
    }
}
