// SPDX-License-Identifier: Apache-2.0
//! A guest's memory: an anonymous mapping that starts at guest physical address 0.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{ExitError, Result};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Memory of one guest. Whoever runs a vCPU on it keeps it alive (an `Arc`).
///
/// A guest may write to it at any moment, so it is only reached through raw pointers and atomics.
pub struct Memory {
    base: *mut u8,
    len: usize,
}

// SAFETY: plain memory; shared access goes through raw pointers and atomics only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` bytes (a multiple of a page), zeroed, taken from the host when touched.
    ///
    /// # Errors
    /// The host has no address space left.
    pub fn new(len: usize) -> Result<Self> {
        let len = len.next_multiple_of(PAGE);
        // SAFETY: a new private mapping; no pointer is passed in.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(ExitError::io("no memory for a guest")(io::Error::last_os_error()));
        }
        Ok(Self { base: base.cast(), len })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a guest has memory.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The host's address of `address` with `len` bytes behind it. Panics outside: addresses are
    /// this crate's own constants and masks, never a guest's unchecked word.
    pub fn at(&self, address: usize, len: usize) -> *mut u8 {
        assert!(address <= self.len && len <= self.len - address, "outside of the guest's memory");
        // SAFETY: just checked.
        unsafe { self.base.add(address) }
    }

    /// Copies `bytes` to `address`.
    pub fn write(&self, address: usize, bytes: &[u8]) {
        // SAFETY: `at` checks the range, and the source is no guest memory.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(address, bytes.len()), bytes.len()) };
    }

    /// Writes a little-endian word of eight bytes.
    pub fn write_u64(&self, address: usize, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    /// The word at `address` (a multiple of four), as both sides see it while the guest runs.
    pub fn word(&self, address: usize) -> &AtomicU32 {
        assert!(address.is_multiple_of(4));
        // SAFETY: in bounds, aligned, alive as long as self; x86 makes aligned words atomic for
        // the guest as well.
        unsafe { AtomicU32::from_ptr(self.at(address, 4).cast()) }
    }

    /// The word at `address`, acquired.
    pub fn load(&self, address: usize) -> u32 {
        self.word(address).load(Ordering::Acquire)
    }

    /// Stores the word at `address`, released.
    pub fn store(&self, address: usize, value: u32) {
        self.word(address).store(value, Ordering::Release);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
