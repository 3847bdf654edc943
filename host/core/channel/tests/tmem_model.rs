// SPDX-License-Identifier: Apache-2.0
//! Random requests, well-formed and not, against a plain model of pools, over a ring without threads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::tmem::{Vm, hello, items, new_pool, persistent};
use common::*;
use proptest::prelude::*;
use tmem_abi::wire::{REPLY_SIZE, REQUEST_LIST, REQUEST_SIZE};
use tmem_abi::{Header, Op, Reply, Status};
use tmem_channel::PAGE_SIZE;
use tmem_channel::device::DeviceModel;
use tmem_channel::ring::{Ring, RingSetup};
use tmem_channel::stats::QueueCounters;
use tmem_channel::tmem::device::Device;
use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 64;
/// Where buffers are laid out: before, over and behind the point where two regions touch.
const HEAP: u64 = 0x9_8000;
const SPLIT: u64 = 0xa_0000;
const END: u64 = 0x10_0000;

const OPS: [Op; 8] =
    [Op::Put, Op::Get, Op::FlushPage, Op::FlushObject, Op::Read, Op::Write, Op::Exchange, Op::NewPage];

type Key = ([u64; 3], u32);

/// Pages by pool and key. Pool 0 is persistent, pool 1 is private and ephemeral, pool 2 is nobody's.
#[derive(Default)]
struct Model(HashMap<(usize, Key), Vec<u8>>);

impl Model {
    fn get(&mut self, pool: usize, key: Key) -> Option<Vec<u8>> {
        if pool == 1 { self.0.remove(&(pool, key)) } else { self.0.get(&(pool, key)).cloned() }
    }
}

#[derive(Clone, Debug)]
struct Ask {
    op: Op,
    pool: usize,
    first: (u64, u32),
    count: u32,
    list: bool,
    part: (u32, u32),
    seed: u64,
    flags: u16,
    /// Lengths at which buffers are cut into descriptors.
    cuts: Vec<u16>,
    /// Bytes missing at the end of what is sent, and of the room.
    short: u16,
    narrow: u16,
}

fn ask() -> impl Strategy<Value = Ask> {
    let op = prop::sample::select(vec![Op::Put, Op::Put, Op::Get, Op::Get]).boxed();
    let op = prop_oneof![2 => op, 3 => prop::sample::select(OPS.to_vec())];
    let pool = prop_oneof![6 => Just(0usize), 4 => Just(1usize), 1 => Just(2usize)];
    let part = (prop_oneof![Just(0u32), 0u32..4200], prop_oneof![Just(0u32), 1u32..600, Just(4096u32)]);
    let cuts = prop::collection::vec(prop_oneof![1u16..600, Just(4096u16), Just(8192u16)], 1..4);
    let flags = prop_oneof![15 => Just(0u16), 1 => 2u16..];
    let rarely = || prop_oneof![12 => Just(0u16), 1 => 1u16..600];
    (
        (op, pool, (0u64..3, 0u32..8), 1u32..6, prop::bool::weighted(0.3), part),
        (any::<u64>(), flags, cuts, rarely(), rarely()),
    )
        .prop_map(|((op, pool, first, count, list, part), (seed, flags, cuts, short, narrow))| Ask {
            op,
            pool,
            first,
            count,
            list,
            part,
            seed,
            flags,
            cuts,
            short,
            narrow,
        })
}

/// A request as it is sent, and what it is to fetch.
struct Sent {
    header: Header,
    behind: Vec<u8>,
    keys: Vec<Key>,
    fetches: usize,
}

fn sent(ask: &Ask, numbers: [u32; 3], cookie: u64) -> Sent {
    let many = matches!(ask.op, Op::Put | Op::Get | Op::FlushPage);
    let list = ask.list && many;
    let count = if many { ask.count } else { 1 };
    let first = ([ask.first.0, 0, 0], ask.first.1);
    let keys: Vec<Key> = match list {
        true => {
            (0..count).map(|i| ([ask.seed >> i & 1, 0, 0], (ask.seed >> (8 + i * 3) & 7) as u32)).collect()
        }
        false => (0..count).map(|i| (first.0, first.1 + i)).collect(),
    };
    let mut header =
        Header { op: ask.op as u16, pool: numbers[ask.pool], count, cookie, ..Header::default() };
    header.flags = ask.flags | if list { REQUEST_LIST } else { 0 };
    if !list {
        (header.object, header.index) = first;
    }
    let mut behind = if list { items(&keys) } else { Vec::new() };
    let data = (0..count).flat_map(|i| page(ask.seed ^ u64::from(i)));
    let mut fetches = 0;
    match ask.op {
        Op::Put => behind.extend(data),
        Op::Get => fetches = count as usize * PAGE_SIZE,
        Op::FlushObject => (header.count, header.index) = (0, 0),
        Op::Read | Op::Write => {
            (header.offset, header.length) = ask.part;
            if ask.op == Op::Read {
                fetches = ask.part.1 as usize;
            } else {
                behind.extend(data.take(ask.part.1 as usize));
            }
        }
        Op::Exchange => {
            behind.extend(items(&[other(ask)]));
            behind.extend(data);
            fetches = PAGE_SIZE;
        }
        _ => {}
    }
    Sent { header, behind, keys, fetches }
}

/// The key that an exchange gets.
fn other(ask: &Ask) -> Key {
    ([ask.seed & 1, 0, 0], (ask.seed >> 8 & 7) as u32)
}

/// What a host would answer: status, value, done, and the data.
fn expected(model: &mut Model, ask: &Ask, sent: &Sent, whole: bool) -> (Status, u64, u128, Vec<u8>) {
    let refused = |status| (status, 0, 0, Vec::new());
    let (offset, length) = (ask.part.0 as usize, ask.part.1 as usize);
    let part = matches!(ask.op, Op::Read | Op::Write);
    if ask.flags != 0 {
        return refused(Status::BadFlags);
    }
    if ask.pool == 2 {
        return refused(Status::BadPool);
    }
    if !whole || part && (length == 0 || offset + length > PAGE_SIZE) {
        return refused(Status::BadLength);
    }
    let data = |i: usize| page(ask.seed ^ i as u64);
    let (pool, first) = (ask.pool, sent.keys[0]);
    let pages = |statuses: &[bool], found: Vec<Vec<u8>>| {
        let done = statuses.iter().enumerate().fold(0u128, |all, (i, ok)| all | u128::from(*ok) << i);
        let status = if statuses.iter().all(|ok| *ok) { Status::Ok } else { Status::Miss };
        (status, u64::from(done.count_ones()), done, found.concat())
    };
    match ask.op {
        Op::Put => {
            for (i, key) in sent.keys.iter().enumerate() {
                model.0.insert((pool, *key), data(i));
            }
            pages(&vec![true; sent.keys.len()], Vec::new())
        }
        Op::NewPage => {
            model.0.insert((pool, first), vec![0; PAGE_SIZE]);
            pages(&[true], Vec::new())
        }
        Op::Get => {
            let found: Vec<_> = sent.keys.iter().map(|key| model.get(pool, *key)).collect();
            let statuses: Vec<_> = found.iter().map(Option::is_some).collect();
            let last = statuses.iter().rposition(|ok| *ok).map_or(0, |at| at + 1);
            let found = found.into_iter().take(last).map(|page| page.unwrap_or(vec![0; PAGE_SIZE])).collect();
            pages(&statuses, found)
        }
        Op::FlushPage => {
            let there: Vec<_> = sent.keys.iter().map(|key| model.0.remove(&(pool, *key)).is_some()).collect();
            let (_, value, done, _) = pages(&there, Vec::new());
            (Status::Ok, value, done, Vec::new())
        }
        Op::FlushObject => {
            let before = model.0.len();
            model.0.retain(|(at, (object, _)), _| *at != pool || *object != first.0);
            (Status::Ok, (before - model.0.len()) as u64, 0, Vec::new())
        }
        Op::Read => match model.0.get(&(pool, first)) {
            Some(page) => pages(&[true], vec![page[offset..offset + length].to_vec()]),
            None => pages(&[false], Vec::new()),
        },
        Op::Write => match model.0.get_mut(&(pool, first)) {
            Some(page) => {
                page[offset..offset + length].copy_from_slice(&data(0)[..length]);
                pages(&[true], Vec::new())
            }
            None => pages(&[false], Vec::new()),
        },
        _ => {
            model.0.insert((pool, first), data(0));
            let found = model.get(pool, other(ask));
            pages(&[true, found.is_some()], found.into_iter().collect())
        }
    }
}

/// A ring over guest memory, and a driver that cuts its requests into pieces.
struct Bed {
    mem: Arc<GuestMemoryMmap>,
    ring: Ring,
    counters: QueueCounters,
    submitted: u16,
    cuts: Vec<u16>,
    start: u64,
}

impl Bed {
    /// One request: used length and what the writable part then holds.
    fn ask(
        &mut self,
        queue: &MockSplitQueue<GuestMemoryMmap>,
        request: &[u8],
        room: usize,
    ) -> (u32, Vec<u8>) {
        let (mut at, mut pieces) = (self.start, Vec::new());
        let mut cuts = self.cuts.iter().cycle();
        for (content, flags) in [(request, 0), (&vec![UNTOUCHED; room][..], WRITE)] {
            let mut left = content;
            while !left.is_empty() {
                // Few enough descriptors for the table.
                let n = usize::from(*cuts.next().unwrap()).max(content.len() / 20).min(left.len());
                self.mem.write_slice(&left[..n], GuestAddress(at)).unwrap();
                pieces.push((at, n, flags));
                at += n as u64;
                left = &left[n..];
            }
        }
        for (i, (addr, len, flags)) in pieces.iter().enumerate() {
            let more = if i + 1 < pieces.len() { NEXT } else { 0 };
            let desc = split::Descriptor::new(*addr, *len as u32, flags | more, i as u16 + 1);
            queue.desc_table().store(i as u16, RawDescriptor::from(desc)).unwrap();
        }
        queue.avail().ring().ref_at(usize::from(self.submitted % SIZE)).unwrap().store(0);
        self.submitted += 1;
        queue.avail().idx().store(self.submitted.to_le());
        let served = self.ring.serve(&self.counters, &AtomicBool::new(false)).unwrap();
        assert_eq!(served.completed, 1);
        let used = queue.used().ring().ref_at(usize::from((self.submitted - 1) % SIZE)).unwrap().load();
        let mut out = Vec::new();
        for (at, n, _) in pieces.iter().filter(|(_, _, flags)| *flags == WRITE) {
            let mut piece = vec![0; *n];
            self.mem.read_slice(&mut piece, GuestAddress(*at)).unwrap();
            out.extend(piece);
        }
        (used.len(), out)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_device_behaves_like_pools(asks in prop::collection::vec(ask(), 1..60), event_idx: bool) {
        let ranges = [(GuestAddress(0), SPLIT as usize), (GuestAddress(SPLIT), (END - SPLIT) as usize)];
        let mem: Arc<GuestMemoryMmap> = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let queue = MockSplitQueue::new(&*mem, SIZE);
        let folder = tempfile::tempdir().unwrap();
        let vm = Vm::new(folder.path());
        let device = Arc::new(Device::new(Arc::new(vm.engine.session()), 1));
        let counters = QueueCounters::new(device.names());
        let (desc, avail, used) = (queue.desc_table_addr().0, queue.avail_addr().0, queue.used_addr().0);
        let setup = RingSetup { size: SIZE, desc, avail, used, event_idx, indirect: true };
        let ring = Ring::start(setup, mem.clone(), device.queue()).unwrap();
        let mut bed = Bed { mem: mem.clone(), ring, counters, submitted: 0, cuts: vec![4096], start: HEAP };
        let mut told = |header: &Header| {
            let (_, out) = bed.ask(&queue, &header.encode(), REPLY_SIZE);
            Reply::decode(out[..].try_into().unwrap()).unwrap().value as u32
        };
        told(&hello());
        let numbers = [told(&persistent(1)), told(&new_pool(0, 0)), 12345];
        let mut model = Model::default();
        for (number, ask) in asks.iter().enumerate() {
            let sent = sent(ask, numbers, number as u64);
            let mut request = sent.header.encode().to_vec();
            request.extend_from_slice(&sent.behind);
            request.truncate(request.len() - usize::from(ask.short).min(request.len()));
            let room = (REPLY_SIZE + sent.fetches).saturating_sub(usize::from(ask.narrow));
            if request.is_empty() && room == 0 {
                // There is no chain of nothing.
                continue;
            }
            bed.cuts = ask.cuts.clone();
            bed.start = HEAP + ask.seed % 4096;
            let (used, out) = bed.ask(&queue, &request, room);
            if room < REPLY_SIZE {
                prop_assert_eq!(used, 0);
                prop_assert!(out.iter().all(|byte| *byte == UNTOUCHED));
                continue;
            }
            let reply = Reply::decode(out[..REPLY_SIZE].try_into().unwrap()).unwrap();
            if request.len() < REQUEST_SIZE {
                prop_assert_eq!((reply, used as usize), (Reply::refusal(Status::BadLength, 0), REPLY_SIZE));
                continue;
            }
            let whole = ask.short == 0 && ask.narrow == 0;
            let (status, value, done, data) = expected(&mut model, ask, &sent, whole);
            prop_assert_eq!(reply, Reply { status, cookie: number as u64, value, done }, "{:?}", ask);
            prop_assert_eq!(used as usize, REPLY_SIZE + data.len());
            prop_assert!(out[REPLY_SIZE..][..data.len()] == data[..], "{:?}", ask);
        }
        for ((pool, key), page) in &model.0 {
            let ask = Header { op: Op::Get as u16, pool: numbers[*pool], object: key.0, index: key.1, count: 1, ..Header::default() };
            let (_, out) = bed.ask(&queue, &ask.encode(), REPLY_SIZE + PAGE_SIZE);
            prop_assert!(out[REPLY_SIZE..] == page[..], "pool {} {:?}", pool, key);
        }
    }
}
