// SPDX-License-Identifier: Apache-2.0
//! Random requests, well-formed and not, against a plain model of a disk, over a ring without threads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use proptest::prelude::*;
use tmem_channel::blk::device::Device;
use tmem_channel::device::DeviceModel;
use tmem_channel::ring::{Ring, RingSetup};
use tmem_channel::stats::QueueCounters;
use tmem_channel::{PAGE_SIZE, PollPolicy};
use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

const PAGES: u64 = 16;
const DISK: usize = PAGES as usize * PAGE_SIZE;
const SIZE: u16 = 64;
/// Where buffers are laid out: before, over and behind the point where two regions touch.
const HEAP: u64 = 0x9_8000;
const SPLIT: u64 = 0xa_0000;
const END: u64 = 0x10_0000;

#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    /// Sectors of data, or numbers of sectors of ranges.
    sectors: u32,
    seed: u64,
    flags: u32,
    /// Lengths at which buffers are cut into descriptors.
    cuts: Vec<u16>,
    /// Leave the status byte out.
    mute: bool,
    /// Bytes missing from the data.
    short: u16,
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![
        4 => Just(IN), 4 => Just(OUT), 1 => Just(FLUSH), 1 => Just(GET_ID), 2 => Just(DISCARD), 2 => Just(WRITE_ZEROES),
        1 => any::<u32>(),
    ];
    let sector = prop_oneof![8 => 0u64..128, 4 => (0u64..16).prop_map(|p| p * 8), 1 => any::<u64>()];
    let sectors = prop_oneof![4 => 0u32..40, 4 => Just(8u32), 1 => 100u32..140];
    let cuts = prop::collection::vec(prop_oneof![1u16..600, Just(4096u16), Just(8192u16)], 1..4);
    let flags = prop_oneof![6 => Just(0u32), 2 => Just(1u32), 1 => any::<u32>()];
    let short = prop_oneof![12 => Just(0u16), 1 => 1u16..600];
    (kind, sector, sectors, any::<u64>(), flags, cuts, prop::bool::weighted(0.05), short).prop_map(
        |(kind, sector, sectors, seed, flags, cuts, mute, short)| Ask {
            kind,
            sector,
            sectors,
            seed,
            flags,
            cuts,
            mute,
            short,
        },
    )
}

/// What a disk would answer: status and data read, or `None` when there is no place for an answer.
fn expected(disk: &mut [u8], ask: &Ask, out: &[u8], writes: usize) -> (u8, Vec<u8>) {
    let span = |sector: u64, sectors: u64| {
        let end = sector.checked_add(sectors).filter(|end| *end <= PAGES * 8)?;
        Some(sector as usize * 512..end as usize * 512)
    };
    let failed = (IOERR, Vec::new());
    match ask.kind {
        IN | OUT => {
            let len = out.len() + writes;
            if len == 0 || !len.is_multiple_of(512) {
                return failed;
            }
            let Some(span) = span(ask.sector, len as u64 / 512) else { return failed };
            if ask.kind == IN {
                return (OK, disk[span].to_vec());
            }
            disk[span].copy_from_slice(out);
            (OK, Vec::new())
        }
        FLUSH => (OK, Vec::new()),
        GET_ID if writes < 20 => failed,
        GET_ID => (OK, b"model\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
        DISCARD | WRITE_ZEROES => {
            if out.is_empty() || !out.len().is_multiple_of(16) {
                return failed;
            }
            if ask.flags & !u32::from(ask.kind == WRITE_ZEROES) != 0 {
                return (UNSUPP, Vec::new());
            }
            let Some(mut span) = span(ask.sector, u64::from(ask.sectors)) else { return failed };
            if ask.kind == DISCARD {
                span = span.start.next_multiple_of(PAGE_SIZE)..span.end / PAGE_SIZE * PAGE_SIZE;
            }
            if span.start < span.end {
                disk[span].fill(0);
            }
            (OK, Vec::new())
        }
        _ => (UNSUPP, Vec::new()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_device_behaves_like_a_disk(asks in prop::collection::vec(ask(), 1..40), event_idx: bool) {
        let ranges = [(GuestAddress(0), SPLIT as usize), (GuestAddress(SPLIT), (END - SPLIT) as usize)];
        let mem: Arc<GuestMemoryMmap> = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let queue = MockSplitQueue::new(&*mem, SIZE);
        let backend = MemoryBackend::new(PAGES);
        let config = tmem_channel::BlkConfig {
            serial: "model".into(),
            ..config(Path::new(""), 1, PollPolicy::Events)
        };
        let device = Arc::new(Device::new(config, backend.clone()).unwrap());
        let counters = QueueCounters::new(device.names());
        let stop = AtomicBool::new(false);
        let setup = RingSetup {
            size: SIZE,
            desc: queue.desc_table_addr().0,
            avail: queue.avail_addr().0,
            used: queue.used_addr().0,
            event_idx,
            indirect: true,
        };
        let mut ring = Ring::start(setup, mem.clone(), device.queue()).unwrap();
        let mut disk = vec![0u8; DISK];
        for (number, ask) in asks.iter().enumerate() {
            let number = number as u16;
            let mut out = match ask.kind {
                OUT => (0..=ask.sectors / 8).flat_map(|i| page(ask.seed ^ u64::from(i))).take(ask.sectors as usize * 512).collect(),
                DISCARD | WRITE_ZEROES => common::ranges(&[(ask.sector, ask.sectors, ask.flags)]),
                _ => Vec::new(),
            };
            out.truncate(out.len().saturating_sub(usize::from(ask.short)));
            let mut writes = match ask.kind {
                IN => ask.sectors as usize * 512,
                GET_ID => 20,
                _ => 0,
            };
            writes = writes.saturating_sub(usize::from(ask.short));

            // Header and data run into each other, as do data and status.
            let mut readable = Driver::header(ask.kind, ask.sector).to_vec();
            readable.extend_from_slice(&out);
            let mut descriptors = Vec::new();
            let mut at = HEAP + ask.seed % 4096 / 8 * 8;
            let mut cuts = ask.cuts.iter().cycle();
            let mut lay = |content: &[u8], flags: u16| {
                let mut places = Vec::new();
                let mut left = content;
                while !left.is_empty() {
                    // Few enough descriptors for the table.
                    let n = usize::from(*cuts.next().unwrap()).max(content.len() / 20).min(left.len());
                    mem.write_slice(&left[..n], GuestAddress(at)).unwrap();
                    descriptors.push((at, n as u32, flags));
                    places.push((at, n));
                    at += n as u64;
                    left = &left[n..];
                }
                places
            };
            lay(&readable, 0);
            let writable = if ask.mute { 0 } else { writes + 1 };
            let places = lay(&vec![UNTOUCHED; writable], WRITE);
            prop_assume!(descriptors.len() < usize::from(SIZE));
            for (i, (addr, len, flags)) in descriptors.iter().enumerate() {
                let more = if i + 1 < descriptors.len() { NEXT } else { 0 };
                let desc = split::Descriptor::new(*addr, *len, flags | more, i as u16 + 1);
                queue.desc_table().store(i as u16, RawDescriptor::from(desc)).unwrap();
            }
            queue.avail().ring().ref_at(usize::from(number % SIZE)).unwrap().store(0u16.to_le());
            queue.avail().idx().store((number + 1).to_le());
            prop_assert!(ring.has_work());
            let served = ring.serve(&counters, &stop).unwrap();
            prop_assert_eq!(served.completed, 1);
            prop_assert!(!ring.has_work());
            let used: u16 = mem.load(queue.used_addr().unchecked_add(2), Ordering::Acquire).unwrap();
            prop_assert_eq!(used, number + 1);
            let slot = queue.used_addr().unchecked_add(4 + u64::from(number % SIZE) * 8);
            let element: [u32; 2] = mem.read_obj(slot).unwrap();
            prop_assert_eq!(element[0], 0);
            if ask.mute {
                prop_assert_eq!(element[1], 0);
                continue;
            }
            let (status, data) = expected(&mut disk, ask, &out, writes);
            let mut written = Vec::new();
            for (at, n) in places {
                let mut piece = vec![0; n];
                mem.read_slice(&mut piece, GuestAddress(at)).unwrap();
                written.extend(piece);
            }
            prop_assert_eq!(written.pop(), Some(status));
            if status == OK {
                prop_assert_eq!(element[1] as usize, data.len() + 1);
                prop_assert!(written[..data.len()] == data[..]);
            } else {
                prop_assert!(written.iter().all(|byte| *byte == UNTOUCHED));
            }
        }
        for index in 0..PAGES {
            let kept = backend.page(index).unwrap_or([0; PAGE_SIZE]);
            prop_assert!(kept[..] == disk[index as usize * PAGE_SIZE..][..PAGE_SIZE], "page {}", index);
        }
    }
}
