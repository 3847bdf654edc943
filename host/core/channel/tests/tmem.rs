// SPDX-License-Identifier: Apache-2.0
//! The tmem ABI over a real vhost-user socket and a real store.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::tmem::*;
use common::*;
use tmem_abi::wire::{REPLY_SIZE, REQUEST_SIZE};
use tmem_abi::{Header, Op, Reply, Status, feature, pool};
use tmem_channel::tmem::{Reason, TmemServer, ops};
use tmem_channel::{ChannelState, PAGE_SIZE, PollPolicy, QueueState};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

const BOTH: u64 = EVENT_IDX | INDIRECT_DESC;
const MQ: u64 = 1;

struct Bed {
    _folder: tempfile::TempDir,
    vm: Vm,
    server: TmemServer,
    driver: Driver,
}

/// A driver that said HELLO.
fn bed(queues: u16, features: u64, poll: PollPolicy) -> Bed {
    let (folder, socket) = folder();
    let vm = Vm::new(folder.path());
    let server = vm.serve(&socket, queues, poll);
    let mut driver = Driver::connect(&socket, queues, 64, features);
    assert_eq!(driver.told(&hello()), vm.engine.features());
    Bed { _folder: folder, vm, server, driver }
}

fn many(seed: u64, count: u64) -> Vec<u8> {
    (0..count).flat_map(|i| page(seed + i)).collect()
}

fn malformed(server: &TmemServer, reason: Reason) -> u64 {
    server.stats().malformed(reason)
}

fn refused(server: &TmemServer, status: Status) -> u64 {
    server.stats().refused(ops::status(status).unwrap())
}

#[test]
fn the_device_says_what_it_is_and_one_hello_is_for_all_queues() {
    let (folder, socket) = folder();
    let vm = Vm::new(folder.path());
    let server = vm.serve(&socket, 3, PollPolicy::Events);
    let mut driver = Driver::connect(&socket, 3, 64, BOTH | MQ);
    let space = driver.config_space();
    assert_eq!(space[..8], [1, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(u64::from_le_bytes(space[8..16].try_into().unwrap()), vm.engine.features());
    assert!(space[16..].iter().all(|byte| *byte == 0));
    let flush = pages(Op::FlushPage, 1, [0; 3], 0, 1);
    assert_eq!(driver.ask(2, &flush, &[], &[], 0).reply.status, Status::NotNegotiated);
    let old = Header { index: 0, cookie: 7, ..hello() };
    let answer = driver.ask(1, &old, &[], &[], 0).reply;
    assert_eq!((answer.status, answer.value, answer.cookie), (Status::BadVersion, 1, 7));
    assert_eq!(driver.ask(1, &hello(), &[], &[], 0).reply.status, Status::Ok);
    for queue in 0..3 {
        assert_eq!(driver.ask(queue, &flush, &[], &[], 0).reply.status, Status::BadPool);
    }
    let stats = server.stats();
    assert_eq!(stats.requests(ops::op(Op::Hello)), 2);
    assert_eq!(stats.requests(ops::op(Op::FlushPage)), 4);
    assert_eq!(refused(&server, Status::BadPool), 3);
    assert_eq!(refused(&server, Status::NotNegotiated), 1);
    // The next frontend has to say HELLO itself.
    drop(driver);
    eventually("listening", || server.stats().state == ChannelState::Listening);
    let mut driver = Driver::connect(&socket, 3, 64, BOTH);
    assert_eq!(driver.ask(0, &flush, &[], &[], 0).reply.status, Status::NotNegotiated);
    server.stop().unwrap();
}

#[test]
fn a_reset_ends_the_session_and_a_pause_does_not() {
    let mut bed = bed(1, BOTH, PollPolicy::Events);
    let flush = pages(Op::FlushPage, 1, [0; 3], 0, 1);
    bed.driver.frontend.get_vring_base(0).unwrap();
    bed.driver.start(0);
    assert_eq!(bed.driver.ask(0, &flush, &[], &[], 0).reply.status, Status::BadPool);
    bed.driver.frontend.get_vring_base(0).unwrap();
    bed.driver.frontend.reset_device().unwrap();
    bed.driver.frontend.set_features(bed.driver.features).unwrap();
    bed.driver.start(0);
    assert_eq!(bed.driver.ask(0, &flush, &[], &[], 0).reply.status, Status::NotNegotiated);
    assert_eq!(bed.driver.told(&hello()), bed.vm.engine.features());
    bed.server.stop().unwrap();
}

#[test]
fn pages_go_and_come_in_place() {
    for (features, poll) in [
        (BOTH, PollPolicy::Events),
        (0, PollPolicy::Events),
        (BOTH, PollPolicy::Adaptive { max_us: 50 }),
        (0, PollPolicy::Adaptive { max_us: 50 }),
    ] {
        let mut bed = bed(2, features | MQ, poll);
        let driver = &mut bed.driver;
        let pool = driver.told(&persistent(1)) as u32;
        for i in 0..200u32 {
            let put = pages(Op::Put, pool, [7, 8, 9], i, 1);
            let answer = driver.ask((i % 2) as usize, &put, &[], &page(u64::from(i)), 0);
            assert_eq!((answer.reply.status, answer.reply.done, answer.fetched), (Status::Ok, 1, 0));
        }
        for i in 0..200u32 {
            let get = pages(Op::Get, pool, [7, 8, 9], i, 1);
            let answer = driver.ask((i / 2 % 2) as usize, &get, &[], &[], PAGE_SIZE);
            assert_eq!((answer.reply.status, answer.fetched), (Status::Ok, PAGE_SIZE));
            assert_eq!(answer.data, page(u64::from(i)));
        }
        let get = pages(Op::Get, pool, [7, 8, 9], 200, 1);
        let answer = driver.ask(0, &get, &[], &[], PAGE_SIZE);
        assert_eq!((answer.reply.status, answer.fetched), (Status::Miss, 0));
        let counters: std::collections::HashMap<_, _> = bed.server.session().counters().snapshot().collect();
        assert_eq!(counters["bounced-pages"], 0);
        let stats = bed.server.stats();
        assert_eq!(stats.requests(ops::op(Op::Put)), 200);
        assert_eq!(stats.bytes(ops::op(Op::Put)), 200 * PAGE_SIZE as u64);
        assert_eq!(stats.bytes(ops::op(Op::Get)), 200 * PAGE_SIZE as u64);
        assert_eq!(stats.queues[0].latency[ops::op(Op::Get)].iter().sum::<u64>(), 101);
        bed.server.stop().unwrap();
    }
}

#[test]
fn batches_lists_ranges_and_exchange() {
    let mut bed = bed(1, BOTH, PollPolicy::Events);
    let driver = &mut bed.driver;
    let pool = driver.told(&persistent(1)) as u32;
    let put = driver.ask(0, &pages(Op::Put, pool, [0; 3], 0, 128), &[], &many(1000, 128), 0);
    assert_eq!((put.reply.status, put.reply.value, put.reply.done), (Status::Ok, 128, u128::MAX));
    let keys = [([0; 3], 5), ([1; 3], 5), ([0; 3], 3)];
    let (get, items) = listed(Op::Get, pool, &keys);
    let answer = driver.ask(0, &get, &items, &[], 3 * PAGE_SIZE);
    assert_eq!((answer.reply.status, answer.reply.done), (Status::Miss, 0b101));
    let expected = [page(1005), vec![0; PAGE_SIZE], page(1003)].concat();
    assert_eq!((answer.fetched, answer.data), (3 * PAGE_SIZE, expected));
    let part = |op, offset, length| Header { offset, length, ..pages(op, pool, [0; 3], 9, 1) };
    assert_eq!(driver.ask(0, &part(Op::Write, 100, 7), &[], b"changed", 0).reply.status, Status::Ok);
    let answer = driver.ask(0, &part(Op::Read, 98, 11), &[], &[], 11);
    let old = page(1009);
    assert_eq!(answer.data, [&old[98..100], b"changed", &old[107..109]].concat());
    let exchange = pages(Op::Exchange, pool, [0; 3], 500, 1);
    let keys = tmem_items(&[([0; 3], 4)]);
    let answer = driver.ask(0, &exchange, &keys, &page(77), PAGE_SIZE);
    assert_eq!((answer.reply.status, answer.reply.done, answer.data), (Status::Ok, 3, page(1004)));
    let answer = driver.ask(0, &pages(Op::Get, pool, [0; 3], 500, 1), &[], &[], PAGE_SIZE);
    assert_eq!(answer.data, page(77));
    let flushed = driver.told(&Header { op: Op::FlushObject as u16, pool, ..Header::default() });
    assert_eq!(flushed, 129);
    bed.server.stop().unwrap();
}

fn tmem_items(keys: &[([u64; 3], u32)]) -> Vec<u8> {
    common::tmem::items(keys)
}

#[test]
fn descriptors_may_split_anything_anywhere() {
    let mut bed = bed(1, BOTH, PollPolicy::Events);
    let driver = &mut bed.driver;
    let pool = driver.told(&persistent(1)) as u32;
    for (round, cuts) in
        [&[7usize, 1000, 1][..], &[4096], &[5000, 3], &[64, 4096, 8192], &[8193], &[333], &[40, 4096]]
            .iter()
            .enumerate()
    {
        let keys: Vec<_> = (0..3).map(|i| ([round as u64, 0, 0], i * 5)).collect();
        let (put, items) = listed(Op::Put, pool, &keys);
        let data = many(round as u64 * 10, 3);
        let request = [&put.encode()[..], &items, &data].concat();
        let (out, used) = driver.scatter(&request, REPLY_SIZE, cuts);
        assert_eq!(used as usize, REPLY_SIZE);
        assert_eq!(Reply::decode(&out.try_into().unwrap()).unwrap().done, 7);
        let (get, items) = listed(Op::Get, pool, &keys);
        let request = [&get.encode()[..], &items].concat();
        // More room than is needed stays as it was.
        let (out, used) = driver.scatter(&request, REPLY_SIZE + data.len() + 9, cuts);
        assert_eq!(used as usize, REPLY_SIZE + data.len());
        let reply = Reply::decode(out[..REPLY_SIZE].try_into().unwrap()).unwrap();
        assert_eq!((reply.status, reply.done), (Status::Ok, 7));
        assert!(out[REPLY_SIZE..][..data.len()] == data, "{cuts:?}");
        assert_eq!(out[REPLY_SIZE + data.len()..], [UNTOUCHED; 9]);
    }
    bed.server.stop().unwrap();
}

#[test]
fn chains_that_are_no_requests_are_told_counted_and_harm_nothing() {
    let mut bed = bed(1, BOTH, PollPolicy::Events);
    let driver = &mut bed.driver;
    let pool = driver.told(&persistent(1)) as u32;
    let put = Header { cookie: 99, ..pages(Op::Put, pool, [0; 3], 1, 1) };
    let request = [&put.encode()[..], &page(5)].concat();
    let status = |out: &[u8]| {
        let reply = Reply::decode(out[..REPLY_SIZE].try_into().unwrap()).unwrap();
        (reply.status, reply.cookie, reply.done)
    };
    // No room for a reply: not even tried.
    let (out, used) = driver.scatter(&request, REPLY_SIZE - 1, &[4096]);
    assert_eq!((used, out), (0, vec![UNTOUCHED; REPLY_SIZE - 1]));
    assert_eq!(driver.scatter(&request, 0, &[4096]).1, 0);
    assert_eq!(malformed(&bed.server, Reason::ReplyMissing), 2);
    // Too short to be a request.
    let (out, used) = driver.scatter(&request[..REQUEST_SIZE - 1], REPLY_SIZE, &[50]);
    assert_eq!((status(&out), used as usize), ((Status::BadLength, 0, 0), REPLY_SIZE));
    let (out, _) = driver.scatter(&[], REPLY_SIZE, &[50]);
    assert_eq!(status(&out), (Status::BadLength, 0, 0));
    assert_eq!(malformed(&bed.server, Reason::RequestTooShort), 2);
    // A byte too many, a byte too few; too little room for a page.
    for bytes in [&[&request[..], &[1]].concat()[..], &request[..request.len() - 1]] {
        let (out, _) = driver.scatter(bytes, REPLY_SIZE, &[4096]);
        assert_eq!(status(&out), (Status::BadLength, 99, 0));
    }
    let get = pages(Op::Get, pool, [0; 3], 1, 1).encode();
    let (out, used) = driver.scatter(&get, REPLY_SIZE + PAGE_SIZE - 1, &[4096]);
    assert_eq!((status(&out), used as usize), ((Status::BadLength, 0, 0), REPLY_SIZE));
    // A loop behind a place for the reply, and one before it.
    let base = driver.queues[0].buffers;
    driver.ram.write(base, &request);
    driver.set_chain(0, &[(base, request.len(), 0), (base + 0x8000, REPLY_SIZE, WRITE)]);
    driver.set_desc(0, 1, Desc { addr: base + 0x8000, len: REPLY_SIZE as u32, flags: NEXT | WRITE, next: 1 });
    assert_eq!(driver.run_head(0, 0) as usize, REPLY_SIZE);
    assert_eq!(status(&driver.ram.read(base + 0x8000, REPLY_SIZE)), (Status::BadLength, 99, 0));
    driver.set_desc(0, 0, Desc { addr: base, len: 64, flags: NEXT, next: 0 });
    assert_eq!(driver.run_head(0, 0), 0);
    assert_eq!(malformed(&bed.server, Reason::ChainTooLong), 2);
    // The reply over the request.
    driver.set_chain(0, &[(base, request.len(), 0), (base + request.len() as u64 - 1, REPLY_SIZE, WRITE)]);
    assert_eq!(driver.run_head(0, 0) as usize, REPLY_SIZE);
    assert_eq!(malformed(&bed.server, Reason::Overlap), 1);
    // An operation that is none, a flag that is none, a pool of nobody.
    for (header, expected) in [
        (Header { op: 11, ..put }, Status::BadOp),
        (Header { flags: 2, ..put }, Status::BadFlags),
        (Header { pool: pool + 1, ..put }, Status::BadPool),
        (Header { argument: 1, ..put }, Status::BadFlags),
    ] {
        let answer = driver.ask(0, &header, &[], &page(5), 0);
        assert_eq!((answer.reply.status, answer.reply.done), (expected, 0));
    }
    // Nothing of all that was kept, and the queue goes on.
    let miss = driver.ask(0, &pages(Op::Get, pool, [0; 3], 1, 1), &[], &[], PAGE_SIZE);
    assert_eq!(miss.reply.status, Status::Miss);
    assert_eq!(driver.ask(0, &put, &[], &page(5), 0).reply.status, Status::Ok);
    let stats = bed.server.stats();
    assert_eq!(stats.queues[0].state, QueueState::Running);
    assert_eq!(stats.requests(ops::op(Op::Put)), 6, "two of a wrong length, three wrong, one right");
    bed.server.stop().unwrap();
}

#[test]
fn a_broken_ring_stops_its_queue_alone() {
    let mut bed = bed(2, BOTH | MQ, PollPolicy::Events);
    let driver = &mut bed.driver;
    let pool = driver.told(&persistent(1)) as u32;
    driver.ram.u16(driver.queues[1].avail + 2).store(1000, std::sync::atomic::Ordering::Release);
    driver.queues[1].kick.write(1).unwrap();
    eventually("broken", || bed.server.stats().queues[1].state == QueueState::Broken);
    let put = pages(Op::Put, pool, [0; 3], 1, 1);
    assert_eq!(driver.ask(0, &put, &[], &page(5), 0).reply.status, Status::Ok);
    assert_eq!(bed.server.stats().state, ChannelState::Broken);
    bed.server.stop().unwrap();
}

#[test]
fn what_a_dead_server_left_is_done_by_the_next_one() {
    let (folder, socket) = folder();
    let (ram, number, put) = {
        let vm = Vm::new(folder.path());
        let server = vm.serve(&socket, 1, PollPolicy::Events);
        let mut driver = Driver::connect(&socket, 1, 64, BOTH);
        driver.told(&hello());
        let number = driver.told(&persistent(9)) as u32;
        let put = pages(Op::Put, number, [0; 3], 1, 1);
        assert_eq!(driver.ask(0, &put, &[], &page(1), 0).reply.status, Status::Ok);
        server.stop().unwrap();
        // The guest goes on while nobody serves it.
        driver.lay_out_tmem(0, &pages(Op::Put, number, [0; 3], 2, 1), &[], &page(2), 0);
        driver.publish(0, 0);
        driver.kick(0, 1);
        (driver.ram.clone(), number, driver.queues[0].next_avail)
    };
    let vm = Vm::new(folder.path());
    let server = vm.serve(&socket, 1, PollPolicy::Events);
    let mut driver = Driver::connect_with(&socket, 1, 64, BOTH, ram);
    driver.queues[0].next_avail = put;
    driver.queues[0].next_used = put - 1;
    let (head, used) = driver.wait_used(0);
    assert_eq!((head, used as usize), (0, REPLY_SIZE));
    assert_eq!(driver.answer(0, used, 0).reply.status, Status::NotNegotiated);
    driver.told(&hello());
    let found = driver.ask(0, &persistent(9), &[], &[], 0).reply;
    assert_eq!((found.value, found.done), (u64::from(number), 1), "by its uuid");
    let again = driver.ask(0, &pages(Op::Put, number, [0; 3], 2, 1), &[], &page(2), 0);
    assert_eq!(again.reply.status, Status::Ok);
    for index in [1, 2] {
        let answer = driver.ask(0, &pages(Op::Get, number, [0; 3], index, 1), &[], &[], PAGE_SIZE);
        assert_eq!((answer.reply.status, answer.data), (Status::Ok, page(u64::from(index))));
    }
    server.stop().unwrap();
}

#[test]
fn a_pool_that_is_made_twice_is_found_again() {
    let mut bed = bed(1, BOTH, PollPolicy::Events);
    let driver = &mut bed.driver;
    let first = driver.ask(0, &persistent(5), &[], &[], 0).reply;
    let again = driver.ask(0, &persistent(5), &[], &[], 0).reply;
    assert_eq!((first.value, first.done, again.done), (again.value, 0, 1));
    let other = driver.ask(0, &new_pool(pool::ATTACH, 5), &[], &[], 0).reply;
    assert_eq!(other.status, Status::NotPermitted);
    let gone = Header { op: Op::DestroyPool as u16, pool: first.value as u32, ..Header::default() };
    assert_eq!(driver.ask(0, &gone, &[], &[], 0).reply.status, Status::Ok);
    assert_eq!(driver.ask(0, &gone, &[], &[], 0).reply.status, Status::BadPool);
    // Get from a private ephemeral pool removes the page: a second one misses.
    let ephemeral = driver.told(&new_pool(0, 0)) as u32;
    let put = pages(Op::Put, ephemeral, [3; 3], 1, 1);
    assert_eq!(driver.ask(0, &put, &[], &page(5), 0).reply.status, Status::Ok);
    let get = pages(Op::Get, ephemeral, [3; 3], 1, 1);
    assert_eq!(driver.ask(0, &get, &[], &[], PAGE_SIZE).reply.status, Status::Ok);
    assert_eq!(driver.ask(0, &get, &[], &[], PAGE_SIZE).reply.status, Status::Miss);
    assert_ne!(bed.vm.engine.features() & feature::BATCH, 0);
    bed.server.stop().unwrap();
}
