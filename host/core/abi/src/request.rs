// SPDX-License-Identifier: Apache-2.0
//! Parses a request into a typed [`Request`] or the [`Status`] that refuses it. Nothing here acts.
//!
//! The header comes as a copy and every listed key is read once, so what is checked is what is
//! done, whatever the guest writes meanwhile. The order of checks is the header file's.

use crate::pool::{NewPool, Shape};
use crate::wire::{
    BATCH_MAX, DATA_MAX, Header, ITEM_SIZE, Item, Object, Op, REQUEST_LIST, Status, VERSION, feature,
};

/// What was agreed on by HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Of the ABI.
    pub version: u32,
    /// `TMEM_FEATURE_*` that both have.
    pub features: u64,
}

/// What the parser must know of the guest whose request it is.
pub trait Guest {
    /// A pool, for whoever acts.
    type Pool;
    /// What HELLO agreed on, if it was said.
    fn agreed(&self) -> Option<Agreed>;
    /// The guest's pool of that number, if it has one.
    fn pool(&self, number: u32) -> Option<(Self::Pool, Shape)>;
}

/// A key in a pool that can have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Key {
    pub object: Object,
    pub index: u32,
}

/// Keys that were listed behind a request. Reused for each: nothing allocates.
#[derive(Clone, Debug)]
pub struct KeyList([Key; BATCH_MAX as usize]);

impl Default for KeyList {
    fn default() -> Self {
        Self([Key::default(); BATCH_MAX as usize])
    }
}

/// The keys of a request, at least 1 and at most [`BATCH_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Indices in a row in one object.
    Run {
        /// The first.
        first: Key,
        /// How many.
        count: u32,
    },
    /// The first so many of the list.
    Listed(u32),
}

impl Keys {
    /// How many.
    pub fn count(self) -> usize {
        match self {
            Self::Run { count, .. } | Self::Listed(count) => count as usize,
        }
    }

    /// The `i`th; `None` behind the last.
    pub fn at(self, i: usize, list: &KeyList) -> Option<Key> {
        match self {
            _ if i >= self.count() => None,
            Self::Run { first, .. } => Some(Key { index: first.index.wrapping_add(i as u32), ..first }),
            Self::Listed(_) => list.0.get(i).copied(),
        }
    }

    /// All of them, in order.
    pub fn iter(self, list: &KeyList) -> impl Iterator<Item = Key> {
        (0..self.count()).map_while(move |i| self.at(i, list))
    }
}

/// What a put sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Pages as they are.
    Plain,
    /// One page in so many compressed bytes, fewer than a page.
    Packed(u32),
}

/// Part of a page, at least one byte and inside the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Part {
    pub offset: u32,
    pub length: u32,
}

/// A request that passed every check; `P` is a pool of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Request<P> {
    Hello {
        /// All that the guest could use; unknown ones, too.
        features: u64,
    },
    NewPool(NewPool),
    DestroyPool {
        number: u32,
        pool: P,
    },
    NewPage {
        pool: P,
        key: Key,
    },
    Put {
        pool: P,
        keys: Keys,
        data: Data,
    },
    Get {
        pool: P,
        keys: Keys,
    },
    FlushPage {
        pool: P,
        keys: Keys,
    },
    FlushObject {
        pool: P,
        object: Object,
    },
    Read {
        pool: P,
        key: Key,
        part: Part,
    },
    Write {
        pool: P,
        key: Key,
        part: Part,
    },
    Exchange {
        pool: P,
        put: Key,
        data: Data,
        get: Key,
    },
}

impl<P> Request<P> {
    /// The pool that it is for, if it is for one that is there.
    pub fn pool(&self) -> Option<&P> {
        match self {
            Self::Hello { .. } | Self::NewPool(_) => None,
            Self::DestroyPool { pool, .. }
            | Self::NewPage { pool, .. }
            | Self::Put { pool, .. }
            | Self::Get { pool, .. }
            | Self::FlushPage { pool, .. }
            | Self::FlushObject { pool, .. }
            | Self::Read { pool, .. }
            | Self::Write { pool, .. }
            | Self::Exchange { pool, .. } => Some(pool),
        }
    }
}

const POOL: u8 = 1 << 0;
const OBJECT: u8 = 1 << 1;
const INDEX: u8 = 1 << 2;
const COUNT: u8 = 1 << 3;
const OFFSET: u8 = 1 << 4;
const LENGTH: u8 = 1 << 5;
const ARGUMENT: u8 = 1 << 6;
const KEY: u8 = POOL | OBJECT | INDEX | COUNT;

/// Fields that an operation names: all others are 0.
const fn fields(op: Op) -> u8 {
    match op {
        Op::Hello => INDEX | ARGUMENT,
        Op::NewPool => OBJECT | COUNT | ARGUMENT,
        Op::DestroyPool => POOL,
        Op::FlushObject => POOL | OBJECT,
        Op::NewPage | Op::Get | Op::FlushPage => KEY,
        Op::Put | Op::Exchange => KEY | LENGTH,
        Op::Read | Op::Write => KEY | OFFSET | LENGTH,
    }
}

/// Fields of a header that are not 0.
fn used(h: &Header) -> u8 {
    let bits = [
        (h.pool != 0, POOL),
        (h.object != [0; 3], OBJECT),
        (h.index != 0, INDEX),
        (h.count != 0, COUNT),
        (h.offset != 0, OFFSET),
        (h.length != 0, LENGTH),
        (h.argument != 0, ARGUMENT),
    ];
    bits.iter().filter(|(is, _)| *is).fold(0, |all, (_, bit)| all | bit)
}

/// The feature that an operation belongs to; 0: every host has it.
const fn needed(op: Op) -> u64 {
    match op {
        Op::NewPage => feature::NEW_PAGE,
        Op::Read | Op::Write => feature::RANGE,
        Op::Exchange => feature::EXCHANGE,
        _ => 0,
    }
}

/// Parses a request.
///
/// `sent` is how many bytes came behind the header, `room` how many of data a reply may have;
/// `next` gives the next bytes behind the header, and is asked for no more than were sent.
///
/// # Errors
/// The status that refuses the request. Nothing was done.
pub fn parse<G: Guest>(
    guest: &G,
    header: &Header,
    sent: u64,
    room: u64,
    list: &mut KeyList,
    mut next: impl FnMut(&mut [u8; ITEM_SIZE]),
) -> Result<Request<G::Pool>, Status> {
    let agreed = guest.agreed();
    if agreed.is_none() && header.op != Op::Hello as u16 {
        return Err(Status::NotNegotiated);
    }
    let features = agreed.map_or(0, |a| a.features);
    let op = Op::from_wire(header.op).ok_or(Status::BadOp)?;
    if features & needed(op) != needed(op) {
        return Err(Status::BadOp);
    }
    let listed = header.flags & REQUEST_LIST != 0;
    let list_ok = matches!(op, Op::Put | Op::Get | Op::FlushPage) && features & feature::LIST != 0;
    let allowed = fields(op) & if listed { !(OBJECT | INDEX) } else { !0 };
    if header.flags & !REQUEST_LIST != 0 || (listed && !list_ok) || used(header) & !allowed != 0 {
        return Err(Status::BadFlags);
    }
    match op {
        Op::Hello if header.index != VERSION => return Err(Status::BadVersion),
        Op::Hello => return exact(sent, Request::Hello { features: header.argument }),
        Op::NewPool => return exact(sent, Request::NewPool(NewPool::parse(header, features)?)),
        _ => {}
    }
    let (pool, shape) = guest.pool(header.pool).ok_or(Status::BadPool)?;
    let key = Key { object: header.object, index: header.index };
    match op {
        Op::DestroyPool => return exact(sent, Request::DestroyPool { number: header.pool, pool }),
        Op::FlushObject => {
            if !shape.holds(&header.object, 0, 1) {
                return Err(Status::BadLength);
            }
            return exact(sent, Request::FlushObject { pool, object: header.object });
        }
        _ => {}
    }

    let lengths = Lengths::of(op, header, features, &shape, listed)?;
    if !listed && !shape.holds(&key.object, key.index, header.count) {
        return Err(Status::BadLength);
    }
    if sent != lengths.items * ITEM_SIZE as u64 + lengths.sends || room < lengths.fetches {
        return Err(Status::BadLength);
    }
    for key in list.0.iter_mut().take(lengths.items as usize) {
        let mut raw = [0; ITEM_SIZE];
        next(&mut raw);
        let item = Item::decode(&raw);
        if item.reserved != 0 {
            return Err(Status::BadFlags);
        }
        if !shape.holds(&item.object, item.index, 1) {
            return Err(Status::BadLength);
        }
        *key = Key { object: item.object, index: item.index };
    }

    let count = header.count;
    let keys = if listed { Keys::Listed(count) } else { Keys::Run { first: key, count } };
    // A page that did not compress comes as it is.
    let data = match shape.packed && header.length < shape.page_size {
        true => Data::Packed(header.length),
        false => Data::Plain,
    };
    let part = Part { offset: header.offset, length: header.length };
    Ok(match op {
        Op::NewPage => Request::NewPage { pool, key },
        Op::Put => Request::Put { pool, keys, data },
        Op::Get => Request::Get { pool, keys },
        Op::FlushPage => Request::FlushPage { pool, keys },
        Op::Read => Request::Read { pool, key, part },
        Op::Write => Request::Write { pool, key, part },
        Op::Exchange => Request::Exchange { pool, put: key, data, get: list.0[0] },
        Op::Hello | Op::NewPool | Op::DestroyPool | Op::FlushObject => return Err(Status::BadOp),
    })
}

/// A request that nothing follows.
fn exact<P>(sent: u64, request: Request<P>) -> Result<Request<P>, Status> {
    if sent == 0 { Ok(request) } else { Err(Status::BadLength) }
}

/// What follows a request for pages, and its reply.
struct Lengths {
    items: u64,
    sends: u64,
    fetches: u64,
}

impl Lengths {
    fn of(op: Op, h: &Header, features: u64, shape: &Shape, listed: bool) -> Result<Self, Status> {
        let many = matches!(op, Op::Put | Op::Get | Op::FlushPage)
            && !(op == Op::Put && shape.packed)
            && features & feature::BATCH != 0;
        let most = if many { BATCH_MAX } else { 1 };
        if h.count == 0 || h.count > most {
            return Err(Status::BadLength);
        }
        let page = u64::from(shape.page_size);
        let (pages, length) = (u64::from(h.count) * page, u64::from(h.length));
        let part = || (length > 0 && u64::from(h.offset) + length <= page).then_some(length);
        let put = || match shape.packed {
            true => (length > 0 && length <= page).then_some(length),
            false => (length == 0).then_some(pages),
        };
        let sends = match op {
            Op::Put | Op::Exchange => put(),
            Op::Write => part(),
            _ => Some(0),
        };
        let fetches = match op {
            Op::Get | Op::Exchange => Some(pages),
            Op::Read => part(),
            _ => Some(0),
        };
        let (Some(sends), Some(fetches)) = (sends, fetches) else { return Err(Status::BadLength) };
        if sends > u64::from(DATA_MAX) || fetches > u64::from(DATA_MAX) {
            return Err(Status::BadLength);
        }
        let items = match (listed, op) {
            (true, _) => u64::from(h.count),
            (false, Op::Exchange) => 1,
            _ => 0,
        };
        Ok(Self { items, sends, fetches })
    }
}
