// SPDX-License-Identifier: Apache-2.0
//! What all targets share: guest memory, a ring in it, input, and serving the ring under a watchful eye.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tmem_channel::Fault;
use tmem_channel::ring::Ring;
use tmem_channel::stats::QueueCounters;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

pub const REGION: usize = 64 << 10;
/// Two regions that touch in guest-physical space, one apart, and one for the rings that no descriptor points to:
/// a request that reads data over its own ring could not be checked from outside.
pub const BASES: [u64; 4] = [0x1_0000, 0x2_0000, 0x8_0000, RINGS];
pub const DESC: u64 = 0x1_0000;
pub const RINGS: u64 = 0x10_0000;
pub const AVAIL: u64 = RINGS + 0x1000;
pub const USED: u64 = RINGS + 0x2000;
pub const SIZE: u16 = 32;

/// Regions between inaccessible pages: an access past an end is a crash, not a silent read of something else.
pub fn memory() -> &'static Arc<GuestMemoryMmap> {
    static MEMORY: OnceLock<Arc<GuestMemoryMmap>> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let regions = BASES
            .iter()
            .map(|base| {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                // SAFETY: a fresh anonymous mapping; its middle is made accessible and handed over for good.
                let region = unsafe {
                    let map = libc::mmap(std::ptr::null_mut(), REGION * 3, libc::PROT_NONE, flags, -1, 0);
                    assert_ne!(map, libc::MAP_FAILED);
                    let middle = map.cast::<u8>().add(REGION);
                    let access = libc::PROT_READ | libc::PROT_WRITE;
                    assert_eq!(libc::mprotect(middle.cast(), REGION, access), 0);
                    MmapRegion::build_raw(middle, REGION, access, flags).unwrap()
                };
                GuestRegionMmap::new(region, GuestAddress(*base)).unwrap()
            })
            .collect();
        Arc::new(GuestMemoryMmap::from_regions(regions).unwrap())
    })
}

pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }
    pub fn u64(&mut self) -> u64 {
        (0..8).fold(0, |all, i| all | u64::from(self.u8()) << (8 * i))
    }

    /// How far the available index moves, each time; an input that ends early is still served.
    pub fn steps(&mut self) -> [u16; 4] {
        [(); 4].map(|()| match self.u8() {
            0xff => self.u16(),
            n => u16::from(n) % (SIZE + 1),
        })
    }

    /// An address that is near something, or anything; `common` is where most lie.
    pub fn address(&mut self, common: u64) -> u64 {
        match self.u8() % 8 {
            0 => match self.u64() {
                rings if (RINGS..RINGS + REGION as u64).contains(&rings) => !rings,
                anything => anything,
            },
            1 => 0x8_0000 + u64::from(self.u16()),
            2 => DESC + u64::from(self.u8()) * 16,
            3 => 0x3_0000 - u64::from(self.u8()) * 64,
            _ => common + u64::from(self.u16()) % 0x1_c000 / 16 * 16,
        }
    }
}

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub struct Link {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Link {
    pub fn bytes(&self) -> [u8; 16] {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&self.addr.to_le_bytes());
        raw[8..12].copy_from_slice(&self.len.to_le_bytes());
        raw[12..14].copy_from_slice(&self.flags.to_le_bytes());
        raw[14..].copy_from_slice(&self.next.to_le_bytes());
        raw
    }
}

/// Serves the ring as the available index moves; every chain has to come back once and in order, and `check` agrees
/// with its slot of the used ring. `wild_heads`: heads may lie outside the table.
pub fn drive(
    mem: &GuestMemoryMmap,
    ring: &mut Ring,
    counters: &QueueCounters,
    start: u16,
    steps: &[u16],
    wild_heads: bool,
    mut check: impl FnMut(u64),
) {
    let stop = AtomicBool::new(false);
    let mut done = start;
    for ahead in steps {
        let avail = done.wrapping_add(*ahead);
        mem.write_obj(avail, GuestAddress(AVAIL + 2)).unwrap();
        while ring.has_work() {
            let before = ring.base();
            let result = ring.serve(counters, &stop);
            let used: u16 = mem.load(GuestAddress(USED + 2), Ordering::Relaxed).unwrap();
            let completed = used.wrapping_sub(before);
            for i in 0..completed {
                // In order, each head once.
                let slot = u64::from(before.wrapping_add(i) % SIZE);
                let head: u16 = mem.read_obj(GuestAddress(AVAIL + 4 + slot * 2)).unwrap();
                let id: u32 = mem.read_obj(GuestAddress(USED + 4 + slot * 8)).unwrap();
                assert_eq!(u32::from(head), id);
                check(slot);
            }
            match result {
                Ok(served) => {
                    assert!(served.completed > 0, "work that is not done spins for ever");
                    assert_eq!(served.completed, usize::from(completed));
                    assert_eq!(ring.base(), used);
                }
                Err(fault) => {
                    let jumped = avail.wrapping_sub(before) > SIZE;
                    assert!(
                        fault == Fault::AvailIndex && jumped || fault == Fault::HeadIndex && wild_heads,
                        "{fault:?}"
                    );
                    return;
                }
            }
            done = used;
        }
        let _ = ring.want_kicks();
    }
}
