// SPDX-License-Identifier: Apache-2.0
//! Serves a ring of tmem requests made of arbitrary bytes, on a real store; see ../README.md.
#![no_main]

mod shared;

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use shared::*;
use tmem_abi::wire::{ITEM_SIZE, REPLY_SIZE, REQUEST_LIST, REQUEST_SIZE};
use tmem_abi::{Header, Item, Op, feature, pool};
use tmem_channel::device::DeviceModel;
use tmem_channel::ring::{Ring, RingSetup};
use tmem_channel::stats::QueueCounters;
use tmem_channel::tmem::device::Device;
use tmem_engine::{Engine, Options, Scratch, Session};
use tmem_store::{NO_CAP, Store, StoreOptions};
use vm_memory::{Bytes, GuestAddress};

/// Where request headers, listed keys and indirect tables lie.
const HEADERS: u64 = 0x1_4000;
const ITEMS: u64 = 0x1_5000;
const TABLES: u64 = 0x1_6000;
const REPLIES: u64 = 0x1_7000;
const SLOTS: u64 = 24;
const PAGE: u32 = 4096;

fn store() -> &'static Arc<Store> {
    static STORE: OnceLock<(tempfile::TempDir, Arc<Store>)> = OnceLock::new();
    let (_, store) = STORE.get_or_init(|| {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = StoreOptions { limit: 32 << 20, accept_loss: false, maintenance: false };
        let store = Store::open(&folder.path().join("arena"), options).unwrap();
        store.vm_create("fuzz", 0, NO_CAP, 100).unwrap();
        (folder, Arc::new(store))
    });
    store
}

/// A VM with nothing left of the input before.
fn engine() -> Arc<Engine> {
    let store = store();
    let vm = store.vm("fuzz").unwrap().id;
    for pool in store.pools() {
        store.pool_destroy(vm, pool.id).unwrap();
    }
    Engine::new(store.clone(), "fuzz", Options::default()).unwrap()
}

fn tell(session: &Session, header: Header) -> u32 {
    let mut reply = [0; REPLY_SIZE];
    assert_eq!(session.answer(&header.encode(), &mut reply, &mut Scratch::new()), Some(REPLY_SIZE));
    u32::from_le_bytes([reply[16], reply[17], reply[18], reply[19]])
}

/// A header that is right or nearly so, or anything.
fn header(input: &mut Input<'_>, pools: &[u32], wild: bool) -> Header {
    if wild {
        let mut raw = [0; REQUEST_SIZE];
        raw.fill_with(|| input.u8());
        return Header::decode(&raw);
    }
    let op = Op::ALL[usize::from(input.u8()) % Op::ALL.len()];
    let pick = input.u8();
    let mut h = Header { op: op as u16, cookie: u64::from(pick), ..Header::default() };
    let many = matches!(op, Op::Put | Op::Get | Op::FlushPage);
    match op {
        Op::Hello => (h.index, h.argument) = (u32::from(pick & 1), u64::from(input.u16())),
        Op::NewPool => {
            h.argument = u64::from(input.u8());
            h.object[0] = u64::from(pick & 3);
            h.count = u32::from(pick >> 5);
        }
        _ => {
            h.pool = pools[usize::from(pick) % pools.len()];
            if op != Op::DestroyPool {
                h.object[0] = u64::from(pick >> 7);
            }
        }
    }
    if many || matches!(op, Op::NewPage | Op::Read | Op::Write | Op::Exchange) {
        h.index = u32::from(input.u8() % 16);
        h.count = if many { u32::from(input.u8() % 12) } else { 1 };
    }
    if matches!(op, Op::Read | Op::Write) {
        (h.offset, h.length) = (u32::from(input.u16()) % 4100, u32::from(input.u16()) % 4100);
    }
    if many && pick & 0x40 != 0 {
        (h.flags, h.object, h.index) = (REQUEST_LIST, [0; 3], 0);
    }
    h
}

/// Bytes of keys, of data sent, and of data fetched.
fn lengths(h: &Header) -> (u32, u32, u32) {
    let pages = h.count.min(12) * PAGE;
    let keys = if h.flags == REQUEST_LIST { h.count.min(12) } else { u32::from(h.op == Op::Exchange as u16) };
    let (sends, fetches) = match Op::from_wire(h.op) {
        Some(Op::Put) => (pages, 0),
        Some(Op::Get) => (0, pages),
        Some(Op::Read) => (0, h.length),
        Some(Op::Write) => (h.length, 0),
        Some(Op::Exchange) => (PAGE, PAGE),
        _ => (0, 0),
    };
    (keys * ITEM_SIZE as u32, sends, fetches)
}

/// Adds a buffer in one or several pieces.
fn pieces(input: &mut Input<'_>, links: &mut Vec<Link>, at: u64, len: u32, flags: u16) {
    let (mut at, mut left) = (at, len);
    let cut = match input.u8() {
        n if n < 160 => len,
        n => u32::from(n) * 17 % len.max(1) + 1,
    };
    for piece in 0..4 {
        let n = if piece == 3 { left } else { left.min(cut) };
        if n == 0 {
            return;
        }
        links.push(Link { addr: at, len: n, flags: NEXT | flags, next: 0 });
        at = at.wrapping_add(u64::from(n));
        left -= n;
    }
}

/// Descriptors of requests of which a part may be wrong; the table, and where chains begin.
fn table(input: &mut Input<'_>, entries: u16, headers: &[Header]) -> (Vec<u8>, Vec<u16>) {
    let mut links: Vec<Link> = Vec::new();
    let mut heads = Vec::new();
    while links.len() < usize::from(entries) {
        let shape = input.u8();
        let first = links.len();
        heads.push(first as u16);
        if shape % 8 == 0 {
            let len = u32::from(input.u8() % 17) * 16;
            links.push(Link { addr: TABLES + u64::from(shape >> 7) * 0x800, len, flags: INDIRECT, next: 0 });
        } else {
            let slot = u64::from(input.u8()) % SLOTS;
            let (keys, sends, fetches) = lengths(&headers[slot as usize]);
            pieces(input, &mut links, HEADERS + slot * 64, REQUEST_SIZE as u32, 0);
            pieces(input, &mut links, ITEMS, keys, 0);
            let at = input.address(HEADERS);
            pieces(input, &mut links, at, sends, 0);
            pieces(input, &mut links, REPLIES + slot * 64, REPLY_SIZE as u32, WRITE);
            let at = input.address(HEADERS);
            pieces(input, &mut links, at, fetches, WRITE);
            let last = links.len() - 1;
            links[last].flags &= !NEXT;
            for at in first..last {
                links[at].next = at as u16 + 1;
            }
        }
        if shape & 0x38 == 0 {
            let at = first + usize::from(input.u8()) % (links.len() - first);
            let addr = input.address(HEADERS);
            links[at] =
                Link { addr, len: u32::from(input.u16()), flags: input.u16() % 16, next: input.u16() % 64 };
        }
    }
    (links.iter().take(usize::from(entries)).flat_map(Link::bytes).collect(), heads)
}

fuzz_target!(|data: &[u8]| {
    let mem = memory();
    let mut input = Input(data);
    for base in BASES {
        mem.write_slice(&[0; REGION], GuestAddress(base)).unwrap();
    }
    let mode = input.u8();
    let start = if mode & 1 == 0 { 0 } else { input.u16() };
    let steps = input.steps();
    let session = engine().session();
    let mut pools = vec![0, 77];
    if mode & 2 == 0 {
        tell(
            &session,
            Header { op: Op::Hello as u16, index: 1, argument: feature::ALL, ..Header::default() },
        );
        for (flags, count) in [(0, 0), (pool::PERSISTENT, 0), (pool::PERSISTENT, 16)] {
            let header = Header { op: Op::NewPool as u16, argument: flags, count, ..Header::default() };
            pools.extend([tell(&session, header); 2]);
        }
    }
    let headers: Vec<Header> = (0..SLOTS).map(|_| header(&mut input, &pools, mode & 4 != 0)).collect();
    for (slot, header) in (0..).zip(&headers) {
        mem.write_slice(&header.encode(), GuestAddress(HEADERS + slot * 64)).unwrap();
        let bytes = input.u16();
        let item = Item {
            object: [u64::from(bytes >> 15), 0, 0],
            index: u32::from(bytes & 15),
            reserved: u32::from(bytes) >> 4 & 1,
        };
        mem.write_slice(&item.encode(), GuestAddress(ITEMS + slot * 32)).unwrap();
    }
    let (main, heads) = table(&mut input, SIZE, &headers);
    mem.write_slice(&main, GuestAddress(DESC)).unwrap();
    for at in 0..u64::from(mode >> 6) {
        let (table, _) = table(&mut input, 16, &headers);
        mem.write_slice(&table, GuestAddress(TABLES + at * 0x800)).unwrap();
    }
    for slot in 0..u64::from(SIZE) {
        let pick = input.u8();
        let head = match mode & 8 {
            0 => heads[usize::from(pick) % heads.len()] % SIZE,
            _ => u16::from(pick) % (SIZE + 1),
        };
        mem.write_obj(head, GuestAddress(AVAIL + 4 + slot * 2)).unwrap();
    }
    mem.write_obj(start, GuestAddress(USED + 2)).unwrap();
    mem.write_obj(start, GuestAddress(AVAIL + 2)).unwrap();

    let device = Arc::new(Device::new(Arc::new(session), 1));
    let counters = QueueCounters::new(device.names());
    let setup = RingSetup {
        size: SIZE,
        desc: DESC,
        avail: AVAIL,
        used: USED,
        event_idx: mode & 32 != 0,
        indirect: mode & 0xc0 != 0,
    };
    let mut ring = Ring::start(setup, mem.clone(), device.queue()).unwrap();
    drive(mem, &mut ring, &counters, start, &steps, mode & 8 != 0, |slot| {
        let len: u32 = mem.read_obj(GuestAddress(USED + 8 + slot * 8)).unwrap();
        assert!(len == 0 || (REPLY_SIZE as u32..=REPLY_SIZE as u32 + (2 << 20)).contains(&len), "{len}");
    });
});
