// SPDX-License-Identifier: Apache-2.0
//! The other side of a channel: a vhost-user frontend with a driver that writes every byte of its rings itself, so that
//! it can also write wrong ones. What it says is in `blk` and `tmem`.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use tmem_channel::PAGE_SIZE;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

mod blk;
pub mod tmem;

#[allow(unused_imports)]
pub use blk::*;

pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a condition that must come true.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(DEADLINE, condition), "not in time: {what}");
}

/// Whether a condition comes true in time.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// What bytes hold before the device writes them.
pub const UNTOUCHED: u8 = 0xee;

pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;

/// Guest-physical address of the memory: not zero, so that offsets and addresses cannot be mixed up.
pub const GUEST_BASE: u64 = 0x10_0000;

/// Guest memory in a memfd.
pub struct Ram {
    pub fd: std::fs::File,
    pub host: *mut u8,
    pub size: usize,
}

// SAFETY: a plain shared mapping.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    pub fn new(size: usize) -> Ram {
        // SAFETY: memfd_create with a C string; the descriptor is new.
        let fd =
            unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        fd.set_len(size as u64).unwrap();
        // SAFETY: a fresh shared mapping of the file.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        assert_ne!(host, libc::MAP_FAILED);
        Ram { fd, host: host.cast(), size }
    }

    fn at(&self, addr: u64, len: usize) -> *mut u8 {
        let offset = (addr - GUEST_BASE) as usize;
        assert!(offset + len <= self.size);
        // SAFETY: just checked.
        unsafe { self.host.add(offset) }
    }

    pub fn write(&self, addr: u64, data: &[u8]) {
        // SAFETY: at() checks the bounds.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at(addr, data.len()), data.len()) }
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        // SAFETY: at() checks the bounds.
        unsafe { std::ptr::copy_nonoverlapping(self.at(addr, len), out.as_mut_ptr(), len) };
        out
    }

    pub fn u16(&self, addr: u64) -> &AtomicU16 {
        // SAFETY: in bounds and aligned; all other accesses to ring indices are atomic too.
        unsafe { &*self.at(addr, 2).cast::<AtomicU16>() }
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE,
            memory_size: self.size as u64,
            userspace_addr: self.host as u64,
            mmap_offset: 0,
            mmap_handle: self.fd.as_raw_fd(),
        }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped in new(), and nobody uses it any more.
        unsafe { libc::munmap(self.host.cast(), self.size) };
    }
}

/// Driver side of one virtqueue.
pub struct Vq {
    pub index: usize,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// Free guest memory for buffers of this queue.
    pub buffers: u64,
    pub next_avail: u16,
    pub next_used: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
}

pub const BUFFERS: usize = 2 << 20;
const QUEUE_SPAN: u64 = 0x1_0000 + BUFFERS as u64;

/// A connected driver.
pub struct Driver {
    pub frontend: Frontend,
    pub ram: Arc<Ram>,
    pub queues: Vec<Vq>,
    pub features: u64,
}

#[derive(Clone, Copy)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Driver {
    pub fn connect(socket: &Path, queues: u16, size: u16, features: u64) -> Driver {
        let ram = Arc::new(Ram::new(queues as usize * QUEUE_SPAN as usize + 0x1000));
        Driver::connect_with(socket, queues, size, features, ram)
    }

    /// Connects with memory that may hold rings of an earlier connection.
    pub fn connect_with(socket: &Path, queues: u16, size: u16, features: u64, ram: Arc<Ram>) -> Driver {
        let frontend = Frontend::connect(socket, u64::from(queues)).unwrap();
        let mut driver = Driver { frontend, ram, queues: Vec::new(), features: 0 };
        driver.negotiate(features);
        driver.frontend.set_mem_table(&[driver.ram.region()]).unwrap();
        for index in 0..usize::from(queues) {
            let at = GUEST_BASE + index as u64 * QUEUE_SPAN;
            let vq = Vq {
                index,
                size,
                desc: at,
                avail: at + 0x8000,
                used: at + 0xa000,
                buffers: at + 0x1_0000,
                next_avail: 0,
                next_used: 0,
                kick: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
                call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
                err: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            };
            driver.queues.push(vq);
            driver.start(index);
        }
        driver
    }

    fn negotiate(&mut self, features: u64) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_ne!(offered & 1 << 32, 0, "VERSION_1");
        let protocol = frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(
                protocol
                    & (VhostUserProtocolFeatures::MQ
                        | VhostUserProtocolFeatures::CONFIG
                        | VhostUserProtocolFeatures::REPLY_ACK
                        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                        | VhostUserProtocolFeatures::RESET_DEVICE),
            )
            .unwrap();
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        self.features = features | 1 << 32 | 1 << 30;
        assert_eq!(self.features & !offered, 0);
        frontend.set_features(self.features).unwrap();
    }

    /// Sets a vring up in the order in which QEMU does.
    pub fn start(&mut self, index: usize) {
        let host = self.ram.host as u64;
        let vq = &self.queues[index];
        let user = |addr: u64| addr - GUEST_BASE + host;
        self.frontend.set_vring_num(index, vq.size).unwrap();
        self.frontend.set_vring_base(index, vq.next_avail).unwrap();
        let addresses = VringConfigData {
            queue_max_size: vq.size,
            queue_size: vq.size,
            flags: 0,
            desc_table_addr: user(vq.desc),
            used_ring_addr: user(vq.used),
            avail_ring_addr: user(vq.avail),
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &addresses).unwrap();
        self.frontend.set_vring_err(index, &vq.err).unwrap();
        self.frontend.set_vring_kick(index, &vq.kick).unwrap();
        self.frontend.set_vring_call(index, &vq.call).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    pub fn config_space(&mut self) -> Vec<u8> {
        let (_, space) = self.frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).unwrap();
        space
    }

    pub fn set_desc(&self, queue: usize, index: u16, desc: Desc) {
        self.write_desc(self.queues[queue].desc + u64::from(index) * 16, desc);
    }

    pub fn write_desc(&self, at: u64, desc: Desc) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&desc.addr.to_le_bytes());
        raw[8..12].copy_from_slice(&desc.len.to_le_bytes());
        raw[12..14].copy_from_slice(&desc.flags.to_le_bytes());
        raw[14..].copy_from_slice(&desc.next.to_le_bytes());
        self.ram.write(at, &raw);
    }

    /// Makes a head available, without a kick.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let vq = &mut self.queues[queue];
        let slot = vq.avail + 4 + 2 * u64::from(vq.next_avail % vq.size);
        self.ram.u16(slot).store(head, Ordering::Relaxed);
        vq.next_avail = vq.next_avail.wrapping_add(1);
        self.ram.u16(vq.avail + 2).store(vq.next_avail, Ordering::Release);
    }

    /// Kicks if the device wants to be kicked.
    pub fn kick(&mut self, queue: usize, added: u16) -> bool {
        let vq = &self.queues[queue];
        fence(Ordering::SeqCst);
        let wanted = if self.features & EVENT_IDX != 0 {
            let event = self.ram.u16(vq.used + 4 + 8 * u64::from(vq.size)).load(Ordering::Relaxed);
            vq.next_avail.wrapping_sub(event).wrapping_sub(1) < added
        } else {
            self.ram.u16(vq.used).load(Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            vq.kick.write(1).unwrap();
        }
        wanted
    }

    pub fn used_idx(&self, queue: usize) -> u16 {
        self.ram.u16(self.queues[queue].used + 2).load(Ordering::Acquire)
    }

    /// Waits for the next used element, by interrupt: (head, length).
    pub fn wait_used(&mut self, queue: usize) -> (u32, u32) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if self.used_idx(queue) != self.queues[queue].next_used {
                break;
            }
            // Ask for an interrupt, look again, sleep.
            let vq = &self.queues[queue];
            self.ram.u16(vq.avail + 4 + 2 * u64::from(vq.size)).store(vq.next_used, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.used_idx(queue) != vq.next_used {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no completion in time");
            let mut poll = libc::pollfd { fd: vq.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            unsafe { libc::poll(&mut poll, 1, left.as_millis() as i32) };
            let _ = vq.call.read();
        }
        let vq = &mut self.queues[queue];
        let raw = self.ram.read(vq.used + 4 + 8 * u64::from(vq.next_used % vq.size), 8);
        vq.next_used = vq.next_used.wrapping_add(1);
        (u32::from_le_bytes(raw[..4].try_into().unwrap()), u32::from_le_bytes(raw[4..].try_into().unwrap()))
    }

    /// Submits head `head`, waits, checks that it is what came back, returns the used length.
    pub fn run_head(&mut self, queue: usize, head: u16) -> u32 {
        self.publish(queue, head);
        self.kick(queue, 1);
        let (id, len) = self.wait_used(queue);
        assert_eq!(id, u32::from(head));
        len
    }
}

pub fn page(seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..PAGE_SIZE)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// A folder for sockets, gone at the end of the test.
pub fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("blk.sock");
    (folder, socket)
}
