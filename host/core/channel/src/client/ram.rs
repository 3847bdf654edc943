// SPDX-License-Identifier: Apache-2.0
//! Memory shared with the server, as a guest's would be.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vhost::VhostUserMemoryRegionInfo;

/// Guest-physical address of the first byte: not 0, so that offsets and addresses cannot be mixed up.
pub(super) const GUEST_BASE: u64 = 0x10_0000;

/// A memfd and its mapping.
pub(super) struct Ram {
    file: File,
    host: *mut u8,
    size: usize,
}

// SAFETY: a plain shared mapping, which moves with its owner.
unsafe impl Send for Ram {}

impl Ram {
    pub(super) fn new(size: usize) -> io::Result<Ram> {
        // SAFETY: a C string; the descriptor is checked before it is owned.
        let fd = unsafe { libc::memfd_create(c"tmem-client".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just made and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(size as u64)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping of a file that is as long.
        let host = unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED, fd, 0) };
        if host == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Ram { file, host: host.cast(), size })
    }

    pub(super) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE,
            memory_size: self.size as u64,
            userspace_addr: self.host as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// The frontend's address of a guest-physical one.
    pub(super) fn user(&self, at: u64) -> u64 {
        at - GUEST_BASE + self.host as u64
    }

    fn place(&self, at: u64, len: usize) -> *mut u8 {
        let offset = (at - GUEST_BASE) as usize;
        assert!(offset + len <= self.size, "the layout of the client's memory is its own");
        // SAFETY: just checked.
        unsafe { self.host.add(offset) }
    }

    pub(super) fn write(&self, at: u64, data: &[u8]) {
        // SAFETY: place() checks the bounds; the server may read meanwhile, which is its own business.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.place(at, data.len()), data.len()) };
    }

    pub(super) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        // SAFETY: place() checks the bounds.
        unsafe { std::ptr::copy_nonoverlapping(self.place(at, len), out.as_mut_ptr(), len) };
        out
    }

    pub(super) fn u16(&self, at: u64) -> &AtomicU16 {
        // SAFETY: in bounds, aligned by the layout, and mapped for as long as `self` lives.
        unsafe { &*self.place(at, 2).cast::<AtomicU16>() }
    }

    pub(super) fn u32(&self, at: u64) -> u32 {
        // SAFETY: in bounds and aligned by the layout.
        unsafe { &*self.place(at, 4).cast::<AtomicU32>() }.load(Ordering::Relaxed)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped in new(); nothing that was handed out outlives `self`.
        unsafe { libc::munmap(self.host.cast(), self.size) };
    }
}
