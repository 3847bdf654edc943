// SPDX-License-Identifier: Apache-2.0
//! Every operation over a real vhost-user socket, from a driver that plays by the rules.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use tmem_channel::{BlkServer, ChannelState, Op, PAGE_SIZE, PageRefusal, PollPolicy, PutResult};

const PAGES: u64 = 4096;
const BOTH: u64 = EVENT_IDX | INDIRECT_DESC;

#[test]
fn pages_written_are_read_back_and_pages_never_written_are_zero() {
    for (poll, features) in [
        (PollPolicy::Events, BOTH),
        (PollPolicy::Events, 0),
        (PollPolicy::Adaptive { max_us: 50 }, BOTH),
        (PollPolicy::Adaptive { max_us: 50 }, 0),
    ] {
        let (_folder, socket) = folder();
        let backend = MemoryBackend::new(PAGES);
        let server = BlkServer::start(config(&socket, 2, poll), backend.clone()).unwrap();
        let mut driver = Driver::connect(&socket, 2, 128, features);
        for i in 0..300u64 {
            let queue = (i % 2) as usize;
            assert_eq!(driver.write(queue, i * 8, &page(i)), OK);
        }
        for i in 0..300u64 {
            let (status, data) = driver.read(((i + 1) % 2) as usize, i * 8, PAGE_SIZE);
            assert_eq!(status, OK);
            assert_eq!(data, page(i));
        }
        driver.ram.write(driver.queues[0].buffers + 0x1000, &[7; PAGE_SIZE]);
        assert_eq!(driver.read(0, (PAGES - 1) * 8, PAGE_SIZE), (OK, vec![0; PAGE_SIZE]));
        let stats = server.stats();
        assert_eq!(stats.state, ChannelState::Connected);
        assert_eq!(stats.requests(Op::Out), 300);
        assert_eq!(stats.requests(Op::In), 301);
        assert_eq!(stats.queues.iter().map(|q| q.bounced_pages).sum::<u64>(), 0);
        assert_eq!(stats.queues[0].latency[Op::Out as usize].iter().sum::<u64>(), 150);
        assert!(stats.latency_ns(Op::Out) > 0);
        server.stop().unwrap();
        assert!(!socket.exists());
    }
}

#[test]
fn a_refused_put_is_an_io_error_and_counted_by_reason() {
    let (_folder, socket) = folder();
    let backend = MemoryBackend::new(PAGES);
    let answers = [PutResult::NoRoom, PutResult::OverCap, PutResult::Frozen, PutResult::Failed];
    for (i, answer) in answers.iter().enumerate() {
        backend.refuse.lock().unwrap().insert(i as u64, *answer);
    }
    backend.lost.lock().unwrap().push(9);
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), backend.clone()).unwrap();
    let mut driver = Driver::connect(&socket, 1, 128, BOTH);
    for i in 0..4 {
        assert_eq!(driver.write(0, i * 8, &page(i)), IOERR);
    }
    assert_eq!(driver.read(0, 9 * 8, PAGE_SIZE).0, IOERR);
    assert_eq!(driver.write(0, 4 * 8, &page(4)), OK);
    let stats = server.stats();
    for reason in PageRefusal::ALL {
        assert_eq!(stats.refused(reason), 1, "{}", reason.name());
    }
    server.stop().unwrap();
}

#[test]
fn queues_are_shared_out_over_workers() {
    for workers in [1, 2, 3, 5] {
        let (_folder, socket) = folder();
        let backend = MemoryBackend::new(PAGES);
        let config = config(&socket, 5, PollPolicy::Adaptive { max_us: 20 });
        let server = BlkServer::start_with(config, backend, workers).unwrap();
        assert_eq!(server.stats().workers, workers);
        let mut driver = Driver::connect(&socket, 5, 16, BOTH);
        for i in 0..50u64 {
            assert_eq!(driver.write((i % 5) as usize, i * 8, &page(i)), OK);
        }
        for i in 0..50u64 {
            assert_eq!(driver.read(((i + 2) % 5) as usize, i * 8, PAGE_SIZE), (OK, page(i)));
        }
        assert!(server.stats().queues.iter().all(|queue| queue.requests[Op::Out as usize] == 10));
        server.stop().unwrap();
    }
}
