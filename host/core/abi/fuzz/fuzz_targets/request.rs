// SPDX-License-Identifier: Apache-2.0
//! Any bytes as a request: it is refused, or what comes out is within every bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tmem_abi::pool::Name;
use tmem_abi::wire::{BATCH_MAX, DATA_MAX, ITEM_SIZE, REPLY_SIZE, REQUEST_SIZE};
use tmem_abi::{
    Agreed, Data, Guest, Header, Item, Key, KeyList, Keys, Part, Reply, Request, Shape, feature, parse,
};

struct Fuzzed(Option<u64>);

impl Guest for Fuzzed {
    type Pool = Shape;
    fn agreed(&self) -> Option<Agreed> {
        self.0.map(|features| Agreed { version: 1, features })
    }
    fn pool(&self, number: u32) -> Option<(Shape, Shape)> {
        let shape = Shape {
            page_size: 4096 << (number & 0xf),
            pages: (number & 0x10 != 0).then_some(number >> 8 & 0x3f),
            packed: number & 0x20 != 0,
        };
        (number & 0xf <= 9 && number < 1 << 16 && shape.pages != Some(0)).then_some((shape, shape))
    }
}

fn within(shape: &Shape, key: &Key) {
    if let Some(pages) = shape.pages {
        assert!(key.object == [0; 3] && key.index < pages);
    }
}

fn pages(shape: &Shape, keys: Keys, list: &KeyList) -> u64 {
    let all: Vec<Key> = keys.iter(list).collect();
    assert_eq!(all.len(), keys.count());
    assert!((1..=BATCH_MAX as usize).contains(&all.len()));
    all.iter().for_each(|key| within(shape, key));
    if let Keys::Run { first, count } = keys {
        // No index wraps around.
        assert!(first.index.checked_add(count - 1).is_some());
    }
    all.len() as u64 * u64::from(shape.page_size)
}

fn inside(shape: &Shape, part: Part) -> u64 {
    assert!(part.length > 0 && u64::from(part.offset) + u64::from(part.length) <= u64::from(shape.page_size));
    u64::from(part.length)
}

fn sends(shape: &Shape, data: Data, plain: u64) -> u64 {
    match data {
        Data::Plain => plain,
        Data::Packed(n) => {
            assert!(shape.packed && n > 0 && n < shape.page_size);
            u64::from(n)
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[said, features, near, room_of], rest)) = data.split_first_chunk() else { return };
    if let Some(raw) = rest.first_chunk::<REPLY_SIZE>()
        && let Some(reply) = Reply::decode(raw)
    {
        assert_eq!(reply.encode(), *raw);
    }
    let Some((raw, behind)) = rest.split_first_chunk::<REQUEST_SIZE>() else { return };
    let mut header = Header::decode(raw);
    assert_eq!(header.encode(), *raw);
    // Numbers near what is right, so that the fuzzer gets past the first checks.
    if near & 1 != 0 {
        header.op %= 34;
        header.flags &= 1;
        header.count %= 140;
    }
    if near & 2 != 0 {
        header.offset &= 0x1f_ffff;
        header.length &= 0x3f_ffff;
        header.pool &= 0x3f3f;
    }
    if near & 4 != 0 {
        (header.object, header.index) = ([0; 3], header.index & 0x3f);
    }
    let guest = Fuzzed((said != 0).then_some(u64::from(features)));
    let shape = guest.pool(header.pool).map(|(shape, _)| shape);
    // As much as a good request of this kind has, and what the fuzzer wants.
    let page = shape.map_or(4096, |s| u64::from(s.page_size));
    let items = if header.flags & 1 != 0 { u64::from(header.count) } else { u64::from(header.op == 10) };
    let body = match near >> 3 & 3 {
        0 => 0,
        1 => page * u64::from(header.count),
        2 => u64::from(header.length),
        _ => u64::from(header.cookie as u32),
    };
    let sent = items * ITEM_SIZE as u64 + body;
    let room = if room_of & 1 == 0 { u64::from(DATA_MAX) } else { u64::from(room_of) * 512 };
    let (mut list, mut taken) = (KeyList::default(), 0u64);
    let next = |item: &mut [u8; ITEM_SIZE]| {
        let at = taken as usize * ITEM_SIZE;
        taken += 1;
        if let Some(bytes) = behind.get(at..at + ITEM_SIZE) {
            item.copy_from_slice(bytes);
            assert_eq!(Item::decode(item).encode(), *item);
        }
    };
    let parsed = parse(&guest, &header, sent, room, &mut list, next);
    assert!(taken <= u64::from(BATCH_MAX) && taken * ITEM_SIZE as u64 <= sent);
    let Ok(request) = parsed else { return };
    let agreed = guest.0.unwrap_or(0);
    let (mut sends_now, mut fetches) = (0, 0);
    match request {
        Request::Hello { .. } => {}
        Request::NewPool(new) => {
            assert!(new.order <= 9 && (new.order == 0 || agreed & feature::LARGE != 0));
            assert!(new.packing.is_none() || agreed & feature::PACKED != 0);
            assert!(!matches!(new.name, Name::Shared(_)) || agreed & feature::SHARED != 0);
            assert!(new.pages.is_none() || new.persistent && !matches!(new.name, Name::Shared(_)));
            assert!(new.shape().page_size >= 4096 && new.shape().page_size <= 2 << 20);
        }
        Request::DestroyPool { number, .. } => assert_eq!(number, header.pool),
        Request::NewPage { pool, key } => within(&pool, &key),
        Request::Put { pool, keys, data } => {
            sends_now = sends(&pool, data, pages(&pool, keys, &list));
        }
        Request::Get { pool, keys } => fetches = pages(&pool, keys, &list),
        Request::FlushPage { pool, keys } => {
            pages(&pool, keys, &list);
        }
        Request::FlushObject { pool, object } => within(&pool, &Key { object, index: 0 }),
        Request::Read { pool, key, part } => {
            within(&pool, &key);
            fetches = inside(&pool, part);
        }
        Request::Write { pool, key, part } => {
            within(&pool, &key);
            sends_now = inside(&pool, part);
        }
        Request::Exchange { pool, put, data, get } => {
            within(&pool, &put);
            within(&pool, &get);
            sends_now = sends(&pool, data, u64::from(pool.page_size));
            fetches = u64::from(pool.page_size);
        }
    }
    assert_eq!(sent, taken * ITEM_SIZE as u64 + sends_now, "all that was sent has a meaning");
    assert!(fetches <= room && fetches <= u64::from(DATA_MAX) && sends_now <= u64::from(DATA_MAX));
});
