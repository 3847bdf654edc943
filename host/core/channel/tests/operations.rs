// SPDX-License-Identifier: Apache-2.0
//! All operations in all layouts of descriptors, and what a driver may not do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;

use common::*;
use tmem_channel::{BlkServer, ChannelState, Op, PAGE_SIZE, PollPolicy, QueueState, Reason};

const PAGES: u64 = 1 << 14;
const BOTH: u64 = EVENT_IDX | INDIRECT_DESC;

struct Bed {
    _folder: tempfile::TempDir,
    backend: Arc<MemoryBackend>,
    server: BlkServer,
    driver: Driver,
}

fn bed(queues: u16, features: u64) -> Bed {
    let (folder, socket) = folder();
    let backend = MemoryBackend::new(PAGES);
    let server = BlkServer::start(config(&socket, queues, PollPolicy::Events), backend.clone()).unwrap();
    let driver = Driver::connect(&socket, queues, 64, features);
    Bed { _folder: folder, backend, server, driver }
}

#[test]
fn the_configuration_space_says_what_the_device_can_do() {
    let mut bed = bed(2, BOTH);
    let space = bed.driver.config_space();
    let le32 = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), PAGES * 8);
    assert_eq!(le32(12), 126, "seg_max");
    assert_eq!(le32(20), 4096, "blk_size");
    assert_eq!(space[32], 0, "wce: write-through");
    assert_eq!(u16::from_le_bytes(space[34..36].try_into().unwrap()), 2, "num_queues");
    assert_eq!(u64::from(le32(36)), PAGES * 8, "max_discard_sectors");
    assert_eq!(le32(40), 256, "max_discard_seg");
    assert_eq!(le32(44), 8, "discard_sector_alignment");
    assert_eq!(space[56], 1, "write_zeroes_may_unmap");
}

#[test]
fn get_id_flush_and_unknown_operations() {
    let mut bed = bed(1, BOTH);
    let driver = &mut bed.driver;
    let (status, len) = driver.request(0, GET_ID, 0, &[], 20);
    assert_eq!((status, len), (OK, 21));
    let id = driver.ram.read(driver.queues[0].buffers + 0x1000, 20);
    assert_eq!(&id, b"tmem-test\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(driver.request(0, GET_ID, 0, &[], 19), (IOERR, 1));
    assert_eq!(driver.request(0, FLUSH, 0, &[], 0), (OK, 1));
    for kind in [2, 3, 5, 14, 15, 26, 0x8000_0000, u32::MAX] {
        assert_eq!(driver.request(0, kind, 0, &[], 0), (UNSUPP, 1), "type {kind}");
    }
    assert_eq!(bed.server.stats().malformed(Reason::UnsupportedOp), 8);
}

#[test]
fn parts_of_pages_and_requests_of_many_pages() {
    let mut bed = bed(1, BOTH);
    let driver = &mut bed.driver;
    let mut disk = vec![0u8; 256 * PAGE_SIZE];
    for (sector, sectors, seed) in
        [(0u64, 512usize, 1u64), (3, 1, 2), (7, 2, 3), (13, 30, 4), (8, 8, 5), (1000, 1048, 6)]
    {
        let data: Vec<u8> =
            (0..=sectors / 8).flat_map(|i| page(seed * 1000 + i as u64)).take(sectors * 512).collect();
        assert_eq!(driver.write(0, sector, &data), OK);
        disk[sector as usize * 512..][..data.len()].copy_from_slice(&data);
    }
    for (sector, sectors) in [(0u64, 2048usize), (5, 6), (4, 4), (2047, 1), (9, 111)] {
        let (status, data) = driver.read(0, sector, sectors * 512);
        assert_eq!(status, OK);
        assert!(data == disk[sector as usize * 512..][..sectors * 512], "sector {sector}");
    }
    assert!(bed.server.stats().queues[0].bounced_pages > 0);
}

/// Splits a request over descriptors at the given lengths: header, data and status run into each other.
fn scattered(
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    out: &[u8],
    writes: usize,
    cuts: &[usize],
) -> (u8, Vec<u8>) {
    let base = driver.queues[0].buffers;
    let mut bytes = Driver::header(kind, sector).to_vec();
    bytes.extend_from_slice(out);
    let mut at = base;
    let mut index = 0;
    let mut cut = cuts.iter().cycle();
    let mut lay = |driver: &Driver, content: &[u8], flags: u16, last: bool| -> Vec<(u64, usize)> {
        let mut pieces = Vec::new();
        let mut left = content;
        while !left.is_empty() {
            let n = (*cut.next().unwrap()).min(left.len());
            driver.ram.write(at, &left[..n]);
            let more = if last && n == left.len() { 0 } else { NEXT };
            driver.set_desc(0, index, Desc { addr: at, len: n as u32, flags: flags | more, next: index + 1 });
            pieces.push((at, n));
            index += 1;
            at += n as u64 + 5;
            left = &left[n..];
        }
        pieces
    };
    lay(driver, &bytes, 0, false);
    let pieces = lay(driver, &vec![UNTOUCHED; writes + 1], WRITE, true);
    driver.run_head(0, 0);
    let mut data: Vec<u8> = pieces.iter().flat_map(|(at, n)| driver.ram.read(*at, *n)).collect();
    let status = data.pop().unwrap();
    (status, data)
}

#[test]
fn descriptors_may_split_anything_anywhere() {
    let mut bed = bed(1, BOTH);
    for cuts in [&[7usize, 1000, 1][..], &[4096], &[5000, 3], &[16, 4096, 8192], &[8193], &[333]] {
        let data: Vec<u8> = (0..3).flat_map(|i| page(cuts.len() as u64 * 10 + i)).collect();
        assert_eq!(scattered(&mut bed.driver, OUT, 80, &data, 0, cuts).0, OK);
        let (status, read) = scattered(&mut bed.driver, IN, 80, &[], data.len(), cuts);
        assert_eq!(status, OK);
        assert!(read == data, "{cuts:?}");
    }
    assert_eq!(
        scattered(&mut bed.driver, GET_ID, 0, &[], 20, &[3]),
        (OK, b"tmem-test\0\0\0\0\0\0\0\0\0\0\0".to_vec())
    );
}

#[test]
fn indirect_tables_work_and_are_refused_when_wrong() {
    let mut bed = bed(1, BOTH);
    let driver = &mut bed.driver;
    let table = driver.queues[0].buffers + 0x10_0000;
    let build = |driver: &mut Driver, len: u32, flags: u16| {
        let (_, status_at) = driver.lay_out(0, OUT, 0, &page(1), 0);
        for i in 0..3u64 {
            let raw = driver.ram.read(driver.queues[0].desc + i * 16, 16);
            driver.ram.write(table + i * 16, &raw);
        }
        driver.set_desc(0, 5, Desc { addr: table, len, flags, next: 0 });
        status_at
    };
    let status_at = build(driver, 48, INDIRECT);
    assert_eq!(driver.run_head(0, 5), 1);
    assert_eq!(driver.ram.read(status_at, 1), [OK]);
    // The write flag of an indirect descriptor is ignored (virtio 1.2, section 2.7.7).
    build(driver, 48, INDIRECT | WRITE);
    assert_eq!(driver.run_head(0, 5), 1);
    // A direct descriptor may lead to an indirect one.
    build(driver, 32, INDIRECT);
    let header = driver.queues[0].buffers;
    driver.set_desc(0, 9, Desc { addr: header, len: 16, flags: NEXT, next: 5 });
    driver.set_desc(0, 5, Desc { addr: table + 16, len: 32, flags: INDIRECT, next: 0 });
    driver.write_desc(table + 16, Desc { addr: header + 0x1000, len: 4096, flags: NEXT, next: 1 });
    assert_eq!(driver.run_head(0, 9), 1);

    let refused = |driver: &mut Driver| {
        assert_eq!(driver.run_head(0, 5), 0);
        assert_eq!(driver.ram.read(status_at, 1), [UNTOUCHED]);
    };
    for len in [0, 15, 17, 47, 16 * 1025, u32::MAX, !15] {
        build(driver, len, INDIRECT);
        refused(driver);
    }
    build(driver, 48, INDIRECT | NEXT);
    refused(driver);
    build(driver, 48, INDIRECT);
    driver.write_desc(table, Desc { addr: table, len: 48, flags: INDIRECT, next: 0 });
    refused(driver);
    build(driver, 48, INDIRECT);
    driver.write_desc(table + 16, Desc { addr: header, len: 16, flags: NEXT, next: 3 });
    refused(driver);
    build(driver, 48, INDIRECT);
    driver.write_desc(table + 16, Desc { addr: header, len: 16, flags: NEXT, next: 0 });
    refused(driver);
    build(driver, 48, INDIRECT);
    driver.set_desc(0, 5, Desc { addr: GUEST_BASE - 16, len: 48, flags: INDIRECT, next: 0 });
    refused(driver);
    let stats = bed.server.stats();
    assert_eq!(stats.malformed(Reason::IndirectLength), 7);
    assert_eq!(stats.malformed(Reason::IndirectWithNext), 1);
    assert_eq!(stats.malformed(Reason::IndirectNested), 1);
    assert_eq!(stats.malformed(Reason::NextOutOfRange), 1);
    assert_eq!(stats.malformed(Reason::ChainTooLong), 1);
    assert_eq!(stats.malformed(Reason::OutsideMemory), 1);
    assert_eq!(stats.state, ChannelState::Connected);
}

#[test]
fn indirect_tables_need_the_feature() {
    let mut bed = bed(1, EVENT_IDX);
    let at = bed.driver.queues[0].buffers;
    bed.driver.set_desc(0, 0, Desc { addr: at, len: 48, flags: INDIRECT, next: 0 });
    assert_eq!(bed.driver.run_head(0, 0), 0);
    assert_eq!(bed.server.stats().malformed(Reason::IndirectNotNegotiated), 1);
}

#[test]
fn chains_that_make_no_sense_are_refused_and_the_queue_goes_on() {
    let mut bed = bed(1, BOTH);
    let driver = &mut bed.driver;
    let base = driver.queues[0].buffers;
    let data = base + 0x1000;
    // What is changed about a good one-page write, the used length, the status, the reason.
    type Change = fn(&Driver, u64, u64);
    let cases: &[(Change, u32, u8, Reason)] = &[
        (
            |d, h, _| d.set_desc(0, 1, Desc { addr: h, len: 16, flags: NEXT, next: 0 }),
            0,
            UNTOUCHED,
            Reason::ChainTooLong,
        ),
        (
            |d, h, _| d.set_desc(0, 1, Desc { addr: h, len: 16, flags: NEXT, next: 64 }),
            0,
            UNTOUCHED,
            Reason::NextOutOfRange,
        ),
        (
            |d, _, a| d.set_desc(0, 1, Desc { addr: a, len: 0, flags: NEXT, next: 2 }),
            0,
            UNTOUCHED,
            Reason::ZeroLength,
        ),
        (
            |d, _, _| d.set_desc(0, 1, Desc { addr: 0, len: 4096, flags: NEXT, next: 2 }),
            0,
            UNTOUCHED,
            Reason::OutsideMemory,
        ),
        (
            |d, _, _| d.set_desc(0, 1, Desc { addr: u64::MAX - 10, len: 4096, flags: NEXT, next: 2 }),
            0,
            UNTOUCHED,
            Reason::OutsideMemory,
        ),
        (
            |d, _, a| d.set_desc(0, 1, Desc { addr: a, len: u32::MAX, flags: NEXT, next: 2 }),
            0,
            UNTOUCHED,
            Reason::OutsideMemory,
        ),
        (
            |d, h, _| d.set_desc(0, 0, Desc { addr: h, len: 16, flags: NEXT | WRITE, next: 1 }),
            0,
            UNTOUCHED,
            Reason::ReadableAfterWritable,
        ),
        (
            |d, h, _| d.set_desc(0, 2, Desc { addr: h, len: 1, flags: 0, next: 0 }),
            0,
            UNTOUCHED,
            Reason::StatusMissing,
        ),
        (
            |d, h, _| d.set_desc(0, 0, Desc { addr: h, len: 15, flags: NEXT, next: 2 }),
            1,
            IOERR,
            Reason::HeaderTooShort,
        ),
        (
            |d, _, a| d.set_desc(0, 1, Desc { addr: a, len: 4096, flags: NEXT | WRITE, next: 2 }),
            1,
            IOERR,
            Reason::WrongDirection,
        ),
        (
            |d, _, a| d.set_desc(0, 1, Desc { addr: a, len: 4095, flags: NEXT, next: 2 }),
            1,
            IOERR,
            Reason::DataLength,
        ),
        (
            |d, h, _| d.set_desc(0, 0, Desc { addr: h, len: 16, flags: NEXT, next: 2 }),
            1,
            IOERR,
            Reason::DataLength,
        ),
        (|d, h, _| d.ram.write(h, &Driver::header(OUT, PAGES * 8)), 1, IOERR, Reason::BeyondCapacity),
        (|d, h, _| d.ram.write(h, &Driver::header(OUT, PAGES * 8 - 7)), 1, IOERR, Reason::BeyondCapacity),
        (|d, h, _| d.ram.write(h, &Driver::header(OUT, u64::MAX)), 1, IOERR, Reason::BeyondCapacity),
        (|d, h, _| d.ram.write(h, &Driver::header(OUT, u64::MAX - 7)), 1, IOERR, Reason::BeyondCapacity),
        (|d, h, _| d.ram.write(h, &Driver::header(IN, 0)), 1, IOERR, Reason::WrongDirection),
        (|d, h, _| d.ram.write(h, &Driver::header(FLUSH, 0)), 1, IOERR, Reason::WrongDirection),
    ];
    for (number, (change, len, status, reason)) in cases.iter().enumerate() {
        let before = bed.server.stats().malformed(*reason);
        let (_, status_at) = driver.lay_out(0, OUT, 8, &page(1), 0);
        change(driver, base, data);
        assert_eq!(driver.run_head(0, 0), *len, "case {number}");
        assert_eq!(driver.ram.read(status_at, 1), [*status], "case {number}");
        assert_eq!(bed.server.stats().malformed(*reason), before + 1, "case {number}");
        assert_eq!(driver.request(0, FLUSH, 0, &[], 0), (OK, 1), "case {number}");
    }
    assert_eq!(bed.backend.page(1), None, "nothing was written");
    assert_eq!(bed.server.stats().state, ChannelState::Connected);
}

#[test]
fn ranges_are_flushed_zeroed_or_refused() {
    let mut bed = bed(1, BOTH);
    for i in 0..64 {
        assert_eq!(bed.driver.write(0, i * 8, &page(i)), OK);
    }
    let driver = &mut bed.driver;
    let refused: &[(u32, Vec<u8>, u8, Reason)] = &[
        (DISCARD, ranges(&[(0, 8, 1)]), UNSUPP, Reason::RangeFlags),
        (DISCARD, ranges(&[(0, 8, 2)]), UNSUPP, Reason::RangeFlags),
        (WRITE_ZEROES, ranges(&[(0, 8, 2)]), UNSUPP, Reason::RangeFlags),
        (DISCARD, ranges(&[(PAGES * 8, 8, 0)]), IOERR, Reason::BeyondCapacity),
        (DISCARD, ranges(&[(0, u32::MAX, 0)]), IOERR, Reason::BeyondCapacity),
        (DISCARD, ranges(&[(u64::MAX, 8, 0)]), IOERR, Reason::BeyondCapacity),
        (DISCARD, ranges(&[(0, PAGES as u32 * 8, 0), (0, 8, 0)]), IOERR, Reason::TooLarge),
        (DISCARD, ranges(&[(0, 8, 0)])[..15].to_vec(), IOERR, Reason::DataLength),
        (DISCARD, Vec::new(), IOERR, Reason::DataLength),
        (DISCARD, ranges(&vec![(0, 8, 0); 257]), IOERR, Reason::TooManyRanges),
    ];
    for (kind, data, status, reason) in refused {
        let before = bed.server.stats().malformed(*reason);
        assert_eq!(driver.request(0, *kind, 0, data, 0), (*status, 1), "{}", reason.name());
        assert_eq!(bed.server.stats().malformed(*reason), before + 1, "{}", reason.name());
    }
    assert_eq!(bed.backend.data.lock().unwrap().len(), 64);
    // Whole pages go; a discard leaves partial ones alone.
    assert_eq!(driver.request(0, DISCARD, 0, &ranges(&[(8, 16, 0), (40, 12, 0)]), 0).0, OK);
    for (index, present) in [(0, true), (1, false), (2, false), (3, true), (5, false), (6, true)] {
        assert_eq!(bed.backend.page(index).is_some(), present, "page {index}");
    }
    // Write-zeroes zeroes partial ones.
    assert_eq!(driver.request(0, WRITE_ZEROES, 0, &ranges(&[(83, 12, 1), (97, 2, 0)]), 0).0, OK);
    let mut expected: Vec<u8> = (10..13).flat_map(page).collect();
    expected[3 * 512..15 * 512].fill(0);
    expected[17 * 512..19 * 512].fill(0);
    assert_eq!(driver.read(0, 80, 3 * PAGE_SIZE), (OK, expected));
    assert_eq!(driver.request(0, WRITE_ZEROES, 0, &ranges(&[(0, 5, 0)]), 0).0, OK);
    // The whole device at once.
    assert_eq!(driver.request(0, DISCARD, 0, &ranges(&[(0, PAGES as u32 * 8, 0)]), 0), (OK, 1));
    assert!(bed.backend.data.lock().unwrap().is_empty());
    assert_eq!(bed.server.stats().requests(Op::Discard), 2);
}

#[test]
fn a_read_only_device_refuses_whatever_writes() {
    let (_folder, socket) = folder();
    let mut config = config(&socket, 1, PollPolicy::Events);
    config.read_only = true;
    let server = BlkServer::start(config, MemoryBackend::new(PAGES)).unwrap();
    let mut driver = Driver::connect(&socket, 1, 64, BOTH);
    assert_eq!(driver.write(0, 0, &page(1)), IOERR);
    assert_eq!(driver.request(0, DISCARD, 0, &ranges(&[(0, 8, 0)]), 0).0, IOERR);
    assert_eq!(driver.read(0, 0, PAGE_SIZE), (OK, vec![0; PAGE_SIZE]));
    assert_eq!(server.stats().malformed(Reason::ReadOnly), 2);
    server.stop().unwrap();
}

#[test]
fn deep_queues_complete_in_order_with_few_interrupts() {
    for features in [0, BOTH] {
        let mut bed = bed(1, features);
        let driver = &mut bed.driver;
        let base = driver.queues[0].buffers;
        for round in 0..200u64 {
            for i in 0..21u16 {
                let header = base + u64::from(i) * 64;
                let data = base + 0x1000 + u64::from(i) * 4096;
                driver.ram.write(header, &Driver::header(OUT, (round * 21 + u64::from(i)) * 8));
                driver.ram.write(data, &[round as u8 ^ i as u8; PAGE_SIZE]);
                driver.ram.write(header + 32, &[UNTOUCHED]);
                driver.set_desc(0, i * 3, Desc { addr: header, len: 16, flags: NEXT, next: i * 3 + 1 });
                driver.set_desc(0, i * 3 + 1, Desc { addr: data, len: 4096, flags: NEXT, next: i * 3 + 2 });
                driver.set_desc(0, i * 3 + 2, Desc { addr: header + 32, len: 1, flags: WRITE, next: 0 });
                driver.publish(0, i * 3);
            }
            driver.kick(0, 21);
            for i in 0..21u32 {
                assert_eq!(driver.wait_used(0), (i * 3, 1));
                assert_eq!(driver.ram.read(base + u64::from(i) * 64 + 32, 1), [OK]);
            }
        }
        let stats = bed.server.stats();
        assert_eq!(stats.requests(Op::Out), 4200);
        assert!(stats.queues[0].interrupts <= 4200 / 2, "{} interrupts", stats.queues[0].interrupts);
        for i in 0..4200u64 {
            assert_eq!(bed.backend.page(i).unwrap()[0], (i / 21) as u8 ^ (i % 21) as u8);
        }
    }
}

#[test]
fn a_broken_ring_stops_its_queue_alone_and_recovers_when_set_up_again() {
    type Break = fn(&mut Driver);
    let cases: &[(Break, &str)] = &[
        (|d| d.publish(0, 64), "head_index"),
        (|d| d.publish(0, u16::MAX), "head_index"),
        (
            |d| {
                let vq = &d.queues[0];
                d.ram
                    .u16(vq.avail + 2)
                    .store(vq.next_avail.wrapping_add(65), std::sync::atomic::Ordering::Release);
            },
            "avail_index",
        ),
        (
            |d| {
                let vq = &d.queues[0];
                d.ram
                    .u16(vq.avail + 2)
                    .store(vq.next_avail.wrapping_sub(1), std::sync::atomic::Ordering::Release);
            },
            "avail_index",
        ),
    ];
    let mut bed = bed(2, BOTH);
    for (break_it, fault) in cases {
        let driver = &mut bed.driver;
        assert_eq!(driver.write(0, 0, &page(1)), OK);
        let good = driver.queues[0].next_used;
        break_it(driver);
        driver.queues[0].kick.write(1).unwrap();
        eventually("broken", || bed.server.stats().state == ChannelState::Broken);
        let stats = bed.server.stats();
        assert_eq!(stats.queues[0].fault.unwrap().name(), *fault);
        assert_eq!(stats.queues[1].state, QueueState::Running);
        eventually("told", || driver.queues[0].err.read().is_ok());
        // The other queue goes on.
        assert_eq!(driver.write(1, 8, &page(2)), OK);
        assert_eq!(driver.used_idx(0), good);
        // Stopped by the frontend and set up again, it is as new.
        use vhost::VhostBackend;
        let base = driver.frontend.get_vring_base(0).unwrap() as u16;
        assert!(base == good || base == good.wrapping_add(1));
        driver.queues[0].next_avail = good;
        driver.ram.u16(driver.queues[0].avail + 2).store(good, std::sync::atomic::Ordering::Release);
        driver.start(0);
        assert_eq!(bed.server.stats().state, ChannelState::Connected);
        assert_eq!(driver.read(0, 0, PAGE_SIZE), (OK, page(1)));
    }
}

#[test]
fn rings_outside_memory_break_the_queue_not_the_connection() {
    use vhost::{VhostBackend, VringConfigData};
    let mut bed = bed(2, BOTH);
    let host = bed.driver.ram.host as u64;
    let end = host + bed.driver.ram.size as u64;
    for (desc, avail, used) in [
        (0x10, host + 0x8000, host + 0xa000),
        (host, end - 4, host + 0xa000),
        (host, host + 0x8000, end - 4),
        (end - 16, host + 0x8000, host + 0xa000),
        (!15, !1, !3),
    ] {
        let addresses = VringConfigData {
            queue_max_size: 64,
            queue_size: 64,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        bed.driver.frontend.set_vring_addr(0, &addresses).unwrap();
        assert_eq!(bed.server.stats().queues[0].fault.unwrap().name(), "outside_memory");
        assert_eq!(bed.driver.write(1, 8, &page(2)), OK);
    }
    bed.driver.start(0);
    assert_eq!(bed.driver.write(0, 8, &page(2)), OK);
}
