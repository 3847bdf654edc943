// SPDX-License-Identifier: Apache-2.0
//! Lifetime: sockets, reconnection, change of memory under running queues, stopping.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use tmem_channel::{
    BlkServer, ChannelError, ChannelState, Op, PAGE_SIZE, PageBackend, PollPolicy, PutResult, QueueState,
};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

const PAGES: u64 = 1 << 14;
const BOTH: u64 = EVENT_IDX | INDIRECT_DESC;

#[test]
fn the_socket_is_private_and_has_one_live_owner() {
    let (_folder, socket) = folder();
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(8)).unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    for _ in 0..200 {
        // More often than the backlog is long, and still it neither waits nor succeeds.
        let second = BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(8));
        assert!(matches!(second, Err(ChannelError::SocketInUse(_))));
    }
    // The first one was not harmed.
    let mut driver = Driver::connect(&socket, 1, 16, BOTH);
    assert_eq!(driver.write(0, 0, &page(1)), OK);
    server.stop().unwrap();
    assert!(!socket.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let (folder, socket) = folder();
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(8)).unwrap().stop().unwrap();
    std::fs::write(&socket, "precious").unwrap();
    let refused = BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(8));
    assert!(matches!(refused, Err(ChannelError::NotASocket(_))));
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
    let long = folder.path().join("x".repeat(120));
    let refused = BlkServer::start(config(&long, 1, PollPolicy::Events), MemoryBackend::new(8));
    assert!(matches!(refused, Err(ChannelError::PathTooLong(_))));
    let refused = BlkServer::start(
        config(&folder.path().join("no/such"), 1, PollPolicy::Events),
        MemoryBackend::new(8),
    );
    assert!(matches!(refused, Err(ChannelError::Io { .. })));
}

#[test]
fn a_configuration_out_of_bounds_is_refused() {
    let (_folder, socket) = folder();
    let good = config(&socket, 1, PollPolicy::Events);
    for bad in [
        tmem_channel::BlkConfig { queues: 0, ..good.clone() },
        tmem_channel::BlkConfig { queues: 17, ..good.clone() },
        tmem_channel::BlkConfig { queue_size: 100, ..good.clone() },
        tmem_channel::BlkConfig { queue_size: 2048, ..good.clone() },
        tmem_channel::BlkConfig { serial: "x".repeat(21), ..good.clone() },
    ] {
        assert!(matches!(BlkServer::start(bad, MemoryBackend::new(8)), Err(ChannelError::Invalid(_))));
    }
    assert!(matches!(BlkServer::start(good, MemoryBackend::new(0)), Err(ChannelError::Invalid(_))));
    assert!(!socket.exists());
}

#[test]
fn a_new_server_takes_up_what_the_last_one_left_in_the_ring() {
    let (_folder, socket) = folder();
    let backend = MemoryBackend::new(PAGES);
    let ram = {
        let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), backend.clone()).unwrap();
        let mut driver = Driver::connect(&socket, 1, 128, BOTH);
        for i in 0..5 {
            assert_eq!(driver.write(0, i * 8, &page(i)), OK);
        }
        server.stop().unwrap();
        // The guest goes on while nobody serves it.
        let (_, status_at) = driver.lay_out(0, OUT, 5 * 8, &page(5), 0);
        driver.publish(0, 0);
        driver.kick(0, 1);
        assert_eq!(driver.used_idx(0), 5);
        assert_eq!(driver.ram.read(status_at, 1), [UNTOUCHED]);
        driver.ram.clone()
    };
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), backend.clone()).unwrap();
    // A frontend that kept a wrong base, as after a lost GET_VRING_BASE: the used index counts.
    let mut driver = Driver::connect_with(&socket, 1, 128, BOTH, ram);
    driver.queues[0].next_avail = 6;
    driver.queues[0].next_used = 5;
    assert_eq!(driver.wait_used(0), (0, 1));
    assert_eq!(backend.page(5).unwrap().as_slice(), page(5));
    let (status, data) = driver.read(0, 0, PAGE_SIZE);
    assert_eq!((status, data), (OK, page(0)));
    server.stop().unwrap();
}

#[test]
fn frontends_come_and_go() {
    let (_folder, socket) = folder();
    let backend = MemoryBackend::new(PAGES);
    let server = BlkServer::start(config(&socket, 2, PollPolicy::Events), backend).unwrap();
    for round in 0..20 {
        let mut driver = Driver::connect(&socket, 2, 64, BOTH);
        assert_eq!(driver.write(round % 2, round as u64 * 8, &page(round as u64)), OK);
        assert_eq!(driver.read(0, 0, PAGE_SIZE).1, page(0));
    }
    eventually("listening again", || server.stats().state == ChannelState::Listening);
    assert_eq!(server.stats().connections, 20);
    assert!(server.stats().queues.iter().all(|queue| queue.state == QueueState::Stopped));
    server.stop().unwrap();
}

#[test]
fn get_vring_base_stops_a_queue_and_a_kick_starts_it_again() {
    let (_folder, socket) = folder();
    let backend = MemoryBackend::new(PAGES);
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), backend).unwrap();
    let mut driver = Driver::connect(&socket, 1, 16, BOTH);
    for i in 0..40 {
        assert_eq!(driver.write(0, i * 8, &page(i)), OK);
    }
    assert_eq!(driver.frontend.get_vring_base(0).unwrap(), 40);
    assert_eq!(server.stats().queues[0].state, QueueState::Stopped);
    driver.lay_out(0, OUT, 0, &page(99), 0);
    driver.publish(0, 0);
    driver.queues[0].kick.write(1).unwrap();
    assert_eq!(driver.frontend.get_vring_base(0).unwrap(), 40);
    assert_eq!(driver.used_idx(0), 40);
    driver.start(0);
    assert_eq!(driver.wait_used(0), (0, 1));
    // Disabled is stopped too.
    driver.frontend.set_vring_enable(0, false).unwrap();
    driver.lay_out(0, OUT, 8, &page(98), 0);
    driver.publish(0, 0);
    driver.queues[0].kick.write(1).unwrap();
    assert_eq!(server.stats().queues[0].state, QueueState::Stopped);
    assert_eq!(driver.used_idx(0), 41);
    driver.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(driver.wait_used(0), (0, 1));
    server.stop().unwrap();
}

#[test]
fn memory_can_change_under_running_queues() {
    let (_folder, socket) = folder();
    let backend = MemoryBackend::new(PAGES);
    let server =
        BlkServer::start(config(&socket, 1, PollPolicy::Adaptive { max_us: 200 }), backend.clone()).unwrap();
    let mut driver = Driver::connect(&socket, 1, 128, BOTH);
    let extra = Ram::new(1 << 20);
    let extra_at = 0x8000_0000;
    let region = VhostUserMemoryRegionInfo { guest_phys_addr: extra_at, ..extra.region() };
    assert!(driver.frontend.get_max_mem_slots().unwrap() >= 32);
    for round in 0..50u64 {
        assert_eq!(driver.write(0, round * 8, &page(round)), OK);
        // In the hot-plugged memory there is nothing to write to yet, then there is, then no more.
        for (plugged, expected) in [(false, 0), (true, PAGE_SIZE as u32 + 1), (false, 0)] {
            if plugged {
                driver.frontend.add_mem_region(&region).unwrap();
            }
            let (_, status_at) = driver.lay_out(0, IN, round * 8, &[], PAGE_SIZE);
            let desc = Desc { addr: extra_at, len: PAGE_SIZE as u32, flags: NEXT | WRITE, next: 2 };
            driver.set_desc(0, 1, desc);
            assert_eq!(driver.run_head(0, 0), expected);
            if plugged {
                assert_eq!(driver.ram.read(status_at, 1), [OK]);
                driver.frontend.remove_mem_region(&region).unwrap();
            }
        }
    }
    // SAFETY: the first page of a mapping that this test owns.
    let last = unsafe { std::slice::from_raw_parts(extra.host, PAGE_SIZE) };
    assert_eq!(last, page(49));
    // The whole table again, under way.
    driver.frontend.set_mem_table(&[driver.ram.region(), region]).unwrap();
    assert_eq!(driver.write(0, 0, &page(1)), OK);
    // A table without the rings breaks the queue and nothing else.
    driver.frontend.set_mem_table(&[region]).unwrap();
    assert_eq!(server.stats().state, ChannelState::Broken);
    assert_eq!(server.stats().queues[0].fault.unwrap().name(), "outside_memory");
    assert_eq!(driver.queues[0].err.read().unwrap(), 1);
    server.stop().unwrap();
}

#[test]
fn a_region_larger_than_its_file_is_refused() {
    let (_folder, socket) = folder();
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(PAGES)).unwrap();
    {
        let mut driver = Driver::connect(&socket, 1, 16, BOTH);
        let mut region = driver.ram.region();
        region.guest_phys_addr = 0x8000_0000;
        region.memory_size += 4096;
        assert!(driver.frontend.add_mem_region(&region).is_err());
    }
    let mut driver = Driver::connect(&socket, 1, 16, BOTH);
    assert_eq!(driver.write(0, 0, &page(1)), OK);
    server.stop().unwrap();
}

#[test]
fn broken_messages_cost_the_connection_and_nothing_else() {
    let (_folder, socket) = folder();
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(PAGES)).unwrap();
    let mut seed = 7u64;
    for round in 0..50 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // Request codes 1..=44, version 1, sizes that fit or do not, random bodies.
        for message in 0..8u32 {
            let body = &page(seed)[..(seed as usize % 300) & !7];
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut raw = Vec::new();
            raw.extend_from_slice(&((round + message * 7) % 44 + 1).to_le_bytes());
            raw.extend_from_slice(&(1u32 | if seed & 1 << 40 != 0 { 8 } else { 0 }).to_le_bytes());
            raw.extend_from_slice(&(body.len() as u32).to_le_bytes());
            raw.extend_from_slice(body);
            if stream.write_all(&raw).is_err() {
                break;
            }
        }
    }
    let mut driver = Driver::connect(&socket, 1, 16, BOTH);
    assert_eq!(driver.write(0, 0, &page(1)), OK);
    server.stop().unwrap();
}

#[test]
fn stop_does_not_wait_for_a_frontend_that_stalls() {
    let (_folder, socket) = folder();
    // Half a message.
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(8)).unwrap();
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[1, 0, 0]).unwrap();
    server.stop().unwrap();
    // A call descriptor whose counter is full, so that a write to it blocks.
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(8)).unwrap();
    let mut driver = Driver::connect(&socket, 1, 16, BOTH);
    // SAFETY: clears O_NONBLOCK on a descriptor of this test.
    unsafe { libc::fcntl(driver.queues[0].call.as_raw_fd(), libc::F_SETFL, 0) };
    let _ = driver.queues[0].call.write(u64::MAX - 3);
    driver.lay_out(0, OUT, 0, &page(1), 0);
    driver.publish(0, 0);
    driver.kick(0, 1);
    eventually("completed", || driver.used_idx(0) == 1);
    server.stop().unwrap();
    assert!(!socket.exists());
}

#[test]
fn polling_can_be_switched_while_running_and_ends_in_sleep() {
    let (_folder, socket) = folder();
    let backend = MemoryBackend::new(PAGES);
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), backend.clone()).unwrap();
    let mut driver = Driver::connect(&socket, 1, 128, BOTH);
    for (round, poll) in [
        PollPolicy::Adaptive { max_us: 20_000_000 },
        PollPolicy::Events,
        PollPolicy::Adaptive { max_us: 50 },
        PollPolicy::Events,
    ]
    .into_iter()
    .enumerate()
    {
        server.set_poll(poll);
        for i in 0..100 {
            assert_eq!(driver.write(0, i * 8, &page(i)), OK);
        }
        if round == 0 {
            // While the worker spins, no kick is asked for.
            driver.lay_out(0, OUT, 0, &page(1), 0);
            driver.publish(0, 0);
            assert!(!driver.kick(0, 1));
            driver.wait_used(0);
            assert!(server.stats().spin_hits > 0);
        }
    }
    let idles = backend.idles.load(Ordering::Relaxed);
    assert!(idles > 0);
    server.stop().unwrap();
}

/// A store that finds a bug in itself.
struct Buggy(Arc<MemoryBackend>);

impl PageBackend for Buggy {
    fn pages(&self) -> u64 {
        self.0.pages()
    }
    unsafe fn put(&self, index: u64, src: *const u8) -> PutResult {
        // SAFETY: same contract.
        unsafe { self.0.put(index, src) }
    }
    unsafe fn get(&self, index: u64, dst: *mut u8) -> tmem_channel::GetResult {
        // SAFETY: same contract.
        unsafe { self.0.get(index, dst) }
    }
    fn write_part(&self, index: u64, offset: usize, data: &[u8]) -> PutResult {
        self.0.write_part(index, offset, data)
    }
    fn flush(&self, _index: u64, _count: u64) {
        panic!("bug in the store");
    }
    fn idle(&self) {
        panic!("bug in the store's idle work");
    }
}

#[test]
fn a_bug_in_the_store_costs_one_queue() {
    let (_folder, socket) = folder();
    let backend = Arc::new(Buggy(MemoryBackend::new(PAGES)));
    let server = BlkServer::start(config(&socket, 2, PollPolicy::Events), backend).unwrap();
    let mut driver = Driver::connect(&socket, 2, 16, BOTH);
    assert_eq!(driver.write(1, 0, &page(1)), OK);
    driver.lay_out(0, DISCARD, 0, &ranges(&[(0, 8, 0)]), 0);
    driver.publish(0, 0);
    driver.kick(0, 1);
    eventually("broken", || server.stats().queues[0].state == QueueState::Broken);
    assert_eq!(server.stats().queues[0].fault.unwrap().name(), "panic");
    assert_eq!(driver.read(1, 0, PAGE_SIZE), (OK, page(1)));
    assert_eq!(server.stats().requests(Op::Discard), 0);
    server.stop().unwrap();
}
