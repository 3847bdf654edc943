// SPDX-License-Identifier: Apache-2.0
//! Guest memory as the parser sees it: places that were proven to be mapped, and copies made once.
//!
//! All pointers here are valid only as long as the memory map they were resolved against lives; whoever keeps one
//! keeps the map too.

use std::sync::atomic::{AtomicU16, Ordering, fence};

/// A run of bytes, here in one mapped guest region: valid only as long as the memory map it was made from lives.
pub use tmem_engine::Segment;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Alignment, in bytes, that the channel promises for page pointers it hands to a store.
pub const PAGE_POINTER_ALIGN: usize = 8;

/// Bytes of `struct virtq_desc`.
pub(crate) const DESCRIPTOR_SIZE: usize = 16;

/// A descriptor table resolved to host memory.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    ptr: *const u8,
    pub(crate) entries: usize,
}

// SAFETY: a Table only reads guest memory; whoever holds it holds the memory map too.
unsafe impl Send for Table {}

/// A copy of one descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u32,
    pub(crate) next: usize,
}

impl Table {
    /// Resolves the table of `entries` descriptors at `addr`; `None` when it is not in one region.
    pub fn resolve(mem: &GuestMemoryMmap, addr: GuestAddress, entries: usize) -> Option<Table> {
        let bytes = entries.checked_mul(DESCRIPTOR_SIZE)?;
        let (ptr, run) = resolve(mem, addr.0)?;
        (run >= bytes).then_some(Table { ptr, entries })
    }

    /// Resolves one aligned little-endian u16 of a ring.
    pub(crate) fn resolve_u16(mem: &GuestMemoryMmap, addr: u64) -> Option<*const AtomicU16> {
        let (ptr, run) = resolve(mem, addr)?;
        let ptr = ptr.cast_const().cast::<AtomicU16>();
        (run >= 2 && ptr.is_aligned()).then_some(ptr)
    }

    /// Copies one descriptor; `None` outside the table.
    pub(crate) fn read(&self, index: usize) -> Option<Descriptor> {
        if index >= self.entries {
            return None;
        }
        let mut raw = [0u8; DESCRIPTOR_SIZE];
        // SAFETY: index < entries, and resolve() proved entries * 16 bytes mapped. The guest may write
        // meanwhile: any mixture of bytes is a descriptor to be checked, and it is read only here.
        unsafe { copy_from_guest(self.ptr.add(index * DESCRIPTOR_SIZE), &mut raw) };
        Some(Descriptor {
            addr: le64(&raw, 0),
            len: le32(&raw, 8),
            flags: u32::from(u16::from_le_bytes([raw[12], raw[13]])),
            next: usize::from(u16::from_le_bytes([raw[14], raw[15]])),
        })
    }
}

/// Host pointer of a guest-physical address and the bytes mapped from there to the end of its region.
pub(crate) fn resolve(mem: &GuestMemoryMmap, addr: u64) -> Option<(*mut u8, usize)> {
    let addr = GuestAddress(addr);
    let region = mem.find_region(addr)?;
    let offset = addr.0 - region.start_addr().0;
    let run = usize::try_from(region.len() - offset).ok()?;
    // SAFETY: find_region() proved offset < the region's length, which is mapped from as_ptr() on.
    Some((unsafe { region.as_ptr().add(offset as usize) }, run))
}

/// Copies out of guest memory, which the guest may write at the same time.
///
/// # Safety
/// `src` must be valid for reads of `dst.len()` bytes.
pub(crate) unsafe fn copy_from_guest(src: *const u8, dst: &mut [u8]) {
    // SAFETY: by contract. The fence keeps the compiler from reading the source again in place of the copy.
    unsafe { std::ptr::copy_nonoverlapping(src, dst.as_mut_ptr(), dst.len()) };
    fence_compiler();
}

/// Copies into guest memory, which the guest may read or write at the same time.
///
/// # Safety
/// `dst` must be valid for writes of `src.len()` bytes.
pub(crate) unsafe fn copy_to_guest(src: &[u8], dst: *mut u8) {
    // SAFETY: by contract.
    unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst, src.len()) };
    fence_compiler();
}

fn fence_compiler() {
    // An acquire-release fence costs nothing on x86 and is cheap elsewhere.
    fence(Ordering::AcqRel);
}

/// Little-endian at an offset.
pub(crate) fn le32(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

/// Little-endian at an offset.
pub(crate) fn le64(raw: &[u8], at: usize) -> u64 {
    u64::from(le32(raw, at)) | u64::from(le32(raw, at + 4)) << 32
}
