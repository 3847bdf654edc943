// SPDX-License-Identifier: Apache-2.0
//! Requests and replies in pieces, as descriptors cut them: what is answered does not depend on it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use proptest::prelude::*;
use tmem_abi::wire::{Item, REPLY_SIZE, REQUEST_LIST};
use tmem_abi::{Header, Op, Reply, Status, feature, pool};
use tmem_engine::{Engine, Options, REPLY_MAX, Scratch, Segment, Session};
use tmem_store::{Store, StoreOptions};

const PAGE: usize = 4096;

struct Rig {
    _dir: tempfile::TempDir,
    session: Session,
    scratch: Scratch,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };
        let store = Arc::new(Store::open(&dir.path().join("arena"), options).unwrap());
        store.vm_create("vm", 0, tmem_store::NO_CAP, 100).unwrap();
        let session = Engine::new(store, "vm", Options::default()).unwrap().session();
        let mut rig = Self { _dir: dir, session, scratch: Scratch::new() };
        let hello = Header { op: Op::Hello as u16, index: 1, argument: u64::MAX, ..Header::default() };
        assert_eq!(rig.whole(&hello.encode()).0.status, Status::Ok);
        rig
    }

    fn pool(&mut self, flags: u64, pages: u32) -> u32 {
        let new = Header { op: Op::NewPool as u16, argument: flags, count: pages, ..Header::default() };
        let reply = self.whole(&new.encode()).0;
        assert_eq!(reply.status, Status::Ok);
        reply.value as u32
    }

    /// In one piece.
    fn whole(&mut self, message: &[u8]) -> (Reply, Vec<u8>) {
        let mut out = vec![0xee; REPLY_MAX];
        let n = self.session.answer(message, &mut out, &mut self.scratch).unwrap();
        let reply = Reply::decode(out.first_chunk().unwrap()).unwrap();
        (reply, out[REPLY_SIZE..n].to_vec())
    }

    /// In pieces that end where `cuts` say, and with as much room as is fetched, to the byte.
    fn pieces(&mut self, message: &[u8], fetched: usize, cuts: &[usize]) -> (Reply, Vec<u8>) {
        let mut message = message.to_vec();
        let mut out = vec![0xee; REPLY_SIZE + fetched];
        let (readable, writable) = (cut(&mut message, cuts), cut(&mut out, cuts));
        // SAFETY: the pieces are of vectors that live and that nobody else touches meanwhile.
        let n = unsafe { self.session.serve(&readable, &writable, &mut self.scratch) }.unwrap();
        let reply = Reply::decode(out.first_chunk().unwrap()).unwrap();
        (reply, out[REPLY_SIZE..n].to_vec())
    }
}

fn cut(bytes: &mut [u8], cuts: &[usize]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut rest = bytes;
    for piece in cuts.iter().cycle().take(10_000) {
        let (now, later) = rest.split_at_mut((*piece).min(rest.len()));
        rest = later;
        segments.push(Segment::writing(now));
    }
    segments.push(Segment::writing(rest));
    segments
}

fn page(seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..PAGE)
        .map(|i| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            if i % 3 == 0 { x as u8 } else { 0 }
        })
        .collect()
}

fn request(op: Op, pool: u32, index: u32, count: u32) -> Header {
    Header { op: op as u16, pool, index, count, cookie: u64::from(index), ..Header::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn pieces_make_no_difference(
        cuts in prop::collection::vec(prop_oneof![0usize..100, Just(PAGE), Just(64), Just(40), 0usize..9000], 1..6),
        seed in any::<u32>(),
    ) {
        // A chain has at most some thousand pieces.
        prop_assume!(cuts.iter().sum::<usize>() >= 8);
        let mut rig = Rig::new();
        let pool = rig.pool(pool::PERSISTENT, 64);
        let contents: Vec<Vec<u8>> = (0..5).map(|i| page(u64::from(seed) + i)).collect();
        let put = [&request(Op::Put, pool, 3, 5).encode()[..], &contents.concat()].concat();
        let (reply, _) = rig.pieces(&put, 0, &cuts);
        prop_assert_eq!((reply.status, reply.done), (Status::Ok, 0b11111));
        let get = request(Op::Get, pool, 2, 7).encode();
        let (whole, data) = rig.whole(&get);
        prop_assert_eq!(whole.status, Status::Miss);
        prop_assert_eq!(&data, &[vec![0; PAGE], contents.concat()].concat());
        prop_assert_eq!(rig.pieces(&get, 7 * PAGE, &cuts), (whole, data));

        let keys = [7u32, 3, 60].map(|index| Item { index, ..Item::default() }.encode()).concat();
        let list = Header { flags: REQUEST_LIST, ..request(Op::Get, pool, 0, 3) }.encode();
        let (reply, data) = rig.pieces(&[&list[..], &keys].concat(), 3 * PAGE, &cuts);
        prop_assert_eq!((reply.status, reply.done), (Status::Miss, 3));
        prop_assert_eq!(data, [&contents[4][..], &contents[0]].concat());

        let write = Header { offset: 100, length: 3000, ..request(Op::Write, pool, 4, 1) };
        let (reply, _) = rig.pieces(&[&write.encode()[..], &contents[3][..3000]].concat(), 0, &cuts);
        prop_assert_eq!(reply.status, Status::Ok);
        let read = Header { op: Op::Read as u16, offset: 99, length: 3002, ..write };
        let (reply, data) = rig.pieces(&read.encode(), 3002, &cuts);
        prop_assert_eq!(reply.status, Status::Ok);
        prop_assert_eq!(data, [&contents[1][99..100], &contents[3][..3000], &contents[1][3100..3101]].concat());

        let other = Item { index: 6, ..Item::default() }.encode();
        let exchange = request(Op::Exchange, pool, 9, 1).encode();
        let (reply, data) = rig.pieces(&[&exchange[..], &other, &contents[0]].concat(), PAGE, &cuts);
        prop_assert_eq!((reply.status, reply.done), (Status::Ok, 3));
        prop_assert_eq!(&data, &contents[3]);
    }
}

/// A guest that swaps one page out and another into its place: one page of memory for both.
#[test]
fn exchange_in_place() {
    let mut rig = Rig::new();
    let pool = rig.pool(pool::PERSISTENT, 8);
    let put = [&request(Op::Put, pool, 1, 1).encode()[..], &page(1)].concat();
    assert_eq!(rig.whole(&put).0.status, Status::Ok);
    let item = Item { index: 1, ..Item::default() }.encode();
    let mut head = [&request(Op::Exchange, pool, 2, 1).encode()[..], &item].concat();
    let (mut frame, mut reply) = (page(2), [0u8; REPLY_SIZE]);
    let shared = Segment::writing(&mut frame);
    let readable = [Segment::writing(&mut head), shared];
    let writable = [Segment::writing(&mut reply), shared];
    // SAFETY: the pieces live, and only the engine touches them meanwhile.
    let n = unsafe { rig.session.serve(&readable, &writable, &mut rig.scratch) };
    assert_eq!(n, Some(REPLY_SIZE + PAGE));
    assert_eq!(frame, page(1));
    assert_eq!(rig.whole(&request(Op::Get, pool, 2, 1).encode()).1, page(2));
}

#[test]
fn no_room_for_a_reply_does_nothing() {
    let mut rig = Rig::new();
    let pool = rig.pool(pool::PERSISTENT, 8);
    let put = [&request(Op::Put, pool, 1, 1).encode()[..], &page(1)].concat();
    assert_eq!(rig.session.answer(&put, &mut [0; REPLY_SIZE - 1], &mut rig.scratch), None);
    assert_eq!(rig.whole(&request(Op::Get, pool, 1, 1).encode()).0.status, Status::Miss);
}

#[test]
fn features_are_those_of_the_options() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };
    let store = Arc::new(Store::open(&dir.path().join("arena"), options).unwrap());
    assert!(Engine::new(store.clone(), "vm", Options::default()).is_err());
    store.vm_create("vm", 0, tmem_store::NO_CAP, 100).unwrap();
    let only = Options { features: feature::BATCH | 1 << 40, ..Options::default() };
    let engine = Engine::new(store, "vm", only).unwrap();
    assert_eq!(engine.features(), feature::BATCH);
    let session = engine.session();
    assert_eq!(session.features(), None);
    let hello = Header { op: Op::Hello as u16, index: 1, argument: u64::MAX, ..Header::default() };
    let mut out = [0; REPLY_SIZE];
    assert_eq!(session.answer(&hello.encode(), &mut out, &mut Scratch::new()), Some(REPLY_SIZE));
    assert_eq!(session.features(), Some(feature::BATCH));
    session.reset();
    assert_eq!(session.features(), None);
}

/// Two queues of one device put and get their own keys at the same time, while a third says HELLO.
#[test]
fn queues_at_once() {
    let mut rig = Rig::new();
    let pool = rig.pool(pool::PERSISTENT, 1000);
    let session = &rig.session;
    std::thread::scope(|scope| {
        for queue in 0..2u32 {
            scope.spawn(move || {
                let (mut scratch, mut out) = (Scratch::new(), vec![0; REPLY_MAX]);
                for i in 0..500 {
                    let (index, data) = (queue * 500 + i, page(u64::from(queue * 1000 + i)));
                    let put = [&request(Op::Put, pool, index, 1).encode()[..], &data].concat();
                    assert_eq!(session.answer(&put, &mut out, &mut scratch), Some(REPLY_SIZE));
                    let get = request(Op::Get, pool, index, 1).encode();
                    assert_eq!(session.answer(&get, &mut out, &mut scratch), Some(REPLY_SIZE + PAGE));
                    assert_eq!(out[REPLY_SIZE..REPLY_SIZE + PAGE], data);
                }
            });
        }
        scope.spawn(move || {
            let (mut scratch, mut out) = (Scratch::new(), [0; REPLY_SIZE]);
            let hello = Header { op: Op::Hello as u16, index: 1, argument: u64::MAX, ..Header::default() };
            for _ in 0..500 {
                assert_eq!(session.answer(&hello.encode(), &mut out, &mut scratch), Some(REPLY_SIZE));
            }
        });
    });
    let get = rig.whole(&request(Op::Get, pool, 0, 128).encode());
    assert_eq!(get.0.status, Status::Ok);
}
