// SPDX-License-Identifier: Apache-2.0
//! Serves a ring made of arbitrary bytes; see ../README.md.
#![no_main]

mod shared;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use shared::*;
use tmem_channel::blk::device::Device;
use tmem_channel::device::DeviceModel;
use tmem_channel::ring::{Ring, RingSetup};
use tmem_channel::stats::QueueCounters;
use tmem_channel::{BlkConfig, GetResult, PAGE_SIZE, PageBackend, PollPolicy, PutResult};
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 64;
/// Where request headers lie; read as data, each is a range of a discard.
const HEADERS: u64 = 0x1_4000;
/// Where status bytes lie.
const STATUS: u64 = 0x1_5000;
/// Where indirect tables lie.
const TABLES: u64 = 0x1_6000;

/// Keeps pages, checks what it is asked, and lets the guest meddle while it is.
struct Backend {
    pages: Mutex<HashMap<u64, Vec<u8>>>,
    /// Places and values the guest writes while a request is served.
    meddle: Mutex<Vec<(u16, u8)>>,
}

impl Backend {
    fn meddle(&self) {
        if let Some((at, value)) = self.meddle.lock().unwrap().pop() {
            // Descriptors, headers and buffers.
            let at = if at < 0x1000 { DESC + u64::from(at) } else { HEADERS + u64::from(at) % 0xc000 };
            memory().write_obj(value, GuestAddress(at)).unwrap();
        }
    }
}

impl PageBackend for Backend {
    fn pages(&self) -> u64 {
        PAGES
    }
    unsafe fn put(&self, index: u64, src: *const u8) -> PutResult {
        assert!(index < PAGES && src.cast::<u64>().is_aligned());
        self.meddle();
        // SAFETY: by contract of put(): this is what the fuzzer is to prove wrong.
        let page = unsafe { std::slice::from_raw_parts(src, PAGE_SIZE) }.to_vec();
        if index % 13 == 7 {
            self.pages.lock().unwrap().remove(&index);
            return PutResult::NoRoom;
        }
        self.pages.lock().unwrap().insert(index, page);
        PutResult::Stored
    }
    unsafe fn get(&self, index: u64, dst: *mut u8) -> GetResult {
        assert!(index < PAGES && dst.cast::<u64>().is_aligned());
        self.meddle();
        if index % 17 == 3 {
            return GetResult::Lost;
        }
        match self.pages.lock().unwrap().get(&index) {
            // SAFETY: by contract of get().
            Some(page) => unsafe { dst.copy_from_nonoverlapping(page.as_ptr(), PAGE_SIZE) },
            None => return GetResult::Miss,
        }
        GetResult::Hit
    }
    fn write_part(&self, index: u64, offset: usize, data: &[u8]) -> PutResult {
        assert!(index < PAGES && offset + data.len() <= PAGE_SIZE && !data.is_empty());
        assert!(offset % 512 == 0 && data.len() % 512 == 0);
        self.meddle();
        let mut pages = self.pages.lock().unwrap();
        let page = pages.entry(index).or_insert_with(|| vec![0; PAGE_SIZE]);
        page[offset..offset + data.len()].copy_from_slice(data);
        PutResult::Stored
    }
    fn flush(&self, index: u64, count: u64) {
        assert!(count > 0 && index + count <= PAGES);
        self.pages.lock().unwrap().retain(|at, _| *at < index || *at >= index + count);
    }
}

/// Descriptors of virtio-blk requests.
trait Blk {
    fn length(&mut self) -> u32;
    fn wild(&mut self) -> Link;
    fn table(&mut self, entries: u16, types: &[u32]) -> (Vec<u8>, Vec<u16>);
}

impl Blk for Input<'_> {
    fn length(&mut self) -> u32 {
        match self.u8() % 8 {
            0 => match self.u8() % 4 {
                0 => self.u64() as u32,
                1 => u32::from(self.u8()),
                2 => 16,
                _ => 1,
            },
            1 | 2 => u32::from(self.u16() % 300) * 16,
            5 | 6 => u32::from(self.u8() % 40) * 512,
            _ => 4096,
        }
    }

    fn wild(&mut self) -> Link {
        Link {
            addr: self.address(HEADERS),
            len: self.length(),
            flags: self.u16() % 16,
            next: self.u16() % 64,
        }
    }

    /// Fills a table of `entries` descriptors, mostly with whole requests of which a part may be wrong, so that the
    /// fuzzer gets past the first check. Returns the table and where chains begin.
    fn table(&mut self, entries: u16, types: &[u32]) -> (Vec<u8>, Vec<u16>) {
        let mut links: Vec<Link> = Vec::new();
        let mut heads = Vec::new();
        while links.len() < usize::from(entries) {
            let shape = self.u8();
            heads.push(links.len() as u16);
            let first = links.len();
            match shape % 8 {
                0 => links.push(self.wild()),
                1 => links.push(Link {
                    addr: TABLES + u64::from(shape >> 7) * 0x1000,
                    len: u32::from(self.u8() % 17) * 16,
                    flags: INDIRECT,
                    next: 0,
                }),
                _ => {
                    let slot = self.u8() % 25;
                    let kind = types.get(usize::from(slot)).copied().unwrap_or(0);
                    links.push(Link { addr: HEADERS + u64::from(slot) * 16, len: 16, flags: NEXT, next: 0 });
                    let write = if matches!(kind, 0 | 8) { WRITE } else { 0 };
                    for _ in 0..shape >> 6 {
                        links.push(Link {
                            addr: self.address(HEADERS),
                            len: self.length(),
                            flags: NEXT | write,
                            next: 0,
                        });
                    }
                    links.push(Link { addr: STATUS + u64::from(slot), len: 1, flags: WRITE, next: 0 });
                    for at in first..links.len() {
                        links[at].next = at as u16 + 1;
                    }
                }
            }
            if shape & 0x38 == 0 {
                let at = first + usize::from(self.u8()) % (links.len() - first);
                links[at] = self.wild();
            }
        }
        let table = links.iter().take(usize::from(entries)).flat_map(Link::bytes).collect();
        (table, heads)
    }
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
    let mut types = Vec::new();
    for slot in 0..24 {
        let kind = if mode & 2 == 0 {
            [0, 1, 1, 4, 8, 11, 13, 0][usize::from(input.u8() % 8)]
        } else {
            u32::from(input.u8())
        };
        let sector = if mode & 4 == 0 { u64::from(input.u16() % 520) } else { input.u64() };
        mem.write_obj(u64::from(kind), GuestAddress(HEADERS + slot * 16)).unwrap();
        mem.write_obj(sector, GuestAddress(HEADERS + slot * 16 + 8)).unwrap();
        types.push(kind);
    }
    let (table, heads) = input.table(SIZE, &types);
    mem.write_slice(&table, GuestAddress(DESC)).unwrap();
    for at in 0..u64::from(mode >> 6) {
        let (table, _) = input.table(16, &types);
        mem.write_slice(&table, GuestAddress(TABLES + at * 0x1000)).unwrap();
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

    let backend = Arc::new(Backend { pages: Mutex::default(), meddle: Mutex::default() });
    for _ in 0..input.u8() % 16 {
        let place = (input.u16(), input.u8());
        backend.meddle.lock().unwrap().push(place);
    }
    let config = BlkConfig {
        socket: PathBuf::new(),
        queues: 1,
        queue_size: 128,
        poll: PollPolicy::Events,
        serial: "fuzz".into(),
        read_only: mode & 16 != 0,
    };
    let device = Arc::new(Device::new(config, backend).unwrap());
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
    drive(mem, &mut ring, &counters, start, &steps, mode & 8 != 0, |_| ());
});
