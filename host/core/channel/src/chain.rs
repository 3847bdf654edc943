// SPDX-License-Identifier: Apache-2.0
//! Walks a descriptor chain into buffers proven to lie in guest memory. Nothing here knows what they mean.
//!
//! Everything in guest memory is hostile and may change between two looks, so each descriptor is copied exactly once
//! and all checks are made on the copy. Buffers become [`Segment`]s, host pointers proven to lie in one mapped region;
//! data in them is still the guest's to change, only their place and length are settled.
//!
//! The layout of a request over descriptors is free (virtio 1.2, section 2.7.4): devices see two strings of bytes, one
//! readable and one writable, wherever the descriptors split them.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::device::Call;
use crate::guest::{
    DESCRIPTOR_SIZE, Descriptor, PAGE_POINTER_ALIGN, Segment, Table, copy_from_guest, copy_to_guest, resolve,
};

/// Longest chain accepted, direct or indirect. QEMU's VIRTQUEUE_MAX_SIZE; a longer one cannot come from a
/// driver that honours what devices advertise.
pub const MAX_CHAIN: usize = 1024;

/// Makes a device's `Reason`: why a chain was refused. The reasons that hold for all devices come first.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        $crate::chain::reasons! {
            @all
            /// More descriptors than the table has: a loop.
            ChainTooLong = "chain_too_long",
            /// `next` points outside the descriptor table.
            NextOutOfRange = "next_out_of_range",
            /// INDIRECT flag without the feature.
            IndirectNotNegotiated = "indirect_not_negotiated",
            /// INDIRECT inside an indirect table.
            IndirectNested = "indirect_nested",
            /// INDIRECT together with NEXT.
            IndirectWithNext = "indirect_with_next",
            /// Indirect table empty, not a multiple of 16 bytes, or longer than accepted.
            IndirectLength = "indirect_length",
            /// A buffer of no bytes.
            ZeroLength = "zero_length",
            /// A buffer or indirect table that is not in guest memory.
            OutsideMemory = "outside_memory",
            /// A device-readable descriptor after a device-writable one.
            ReadableAfterWritable = "readable_after_writable",
            $($(#[$doc])* $variant = $name,)*
        }

        impl From<$crate::chain::ChainFault> for Reason {
            fn from(fault: $crate::chain::ChainFault) -> Reason {
                use $crate::chain::ChainFault;
                match fault {
                    ChainFault::TooLong => Reason::ChainTooLong,
                    ChainFault::NextOutOfRange => Reason::NextOutOfRange,
                    ChainFault::IndirectNotNegotiated => Reason::IndirectNotNegotiated,
                    ChainFault::IndirectNested => Reason::IndirectNested,
                    ChainFault::IndirectWithNext => Reason::IndirectWithNext,
                    ChainFault::IndirectLength => Reason::IndirectLength,
                    ChainFault::ZeroLength => Reason::ZeroLength,
                    ChainFault::OutsideMemory => Reason::OutsideMemory,
                    ChainFault::ReadableAfterWritable => Reason::ReadableAfterWritable,
                }
            }
        }
    };
    (@all $($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a chain was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];
            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($name,)*];

            /// Name used in counters and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }
        }

        impl From<Reason> for usize {
            fn from(reason: Reason) -> usize {
                reason as usize
            }
        }
    };
}
pub(crate) use reasons;

/// Why a chain does not hang together: nothing in it can be trusted, so there is no place for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFault {
    /// More descriptors than the table has: a loop.
    TooLong,
    /// `next` points outside the descriptor table.
    NextOutOfRange,
    /// INDIRECT flag without the feature.
    IndirectNotNegotiated,
    /// INDIRECT inside an indirect table.
    IndirectNested,
    /// INDIRECT together with NEXT.
    IndirectWithNext,
    /// Indirect table empty, not a multiple of 16 bytes, or longer than accepted.
    IndirectLength,
    /// A buffer of no bytes.
    ZeroLength,
    /// A buffer or indirect table that is not in guest memory.
    OutsideMemory,
    /// A device-readable descriptor after a device-writable one.
    ReadableAfterWritable,
}

/// The buffers of a chain. Scratch space of a queue, reused for every request so that none allocates.
#[derive(Debug)]
pub struct Buffers {
    pub(crate) readable: Vec<Segment>,
    pub(crate) writable: Vec<Segment>,
}

// SAFETY: the pointers in Buffers are leftovers between requests; they are only followed by the thread that
// walked the chain, while it holds the memory map.
unsafe impl Send for Buffers {}

impl Default for Buffers {
    fn default() -> Self {
        Buffers::new()
    }
}

impl Buffers {
    /// Scratch for the longest chain accepted.
    pub fn new() -> Buffers {
        Buffers { readable: Vec::with_capacity(MAX_CHAIN + 1), writable: Vec::with_capacity(MAX_CHAIN + 1) }
    }

    /// Collects the buffers of the chain that `call` is about.
    pub(crate) fn walk(&mut self, call: &Call<'_>) -> Result<(), ChainFault> {
        self.readable.clear();
        self.writable.clear();
        let mut table = *call.table;
        let mut index = usize::from(call.head);
        let mut in_indirect = false;
        let mut left = table.entries.min(MAX_CHAIN);
        loop {
            if left == 0 {
                return Err(ChainFault::TooLong);
            }
            left -= 1;
            let descriptor = table.read(index).ok_or(ChainFault::NextOutOfRange)?;
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                if !call.indirect {
                    return Err(ChainFault::IndirectNotNegotiated);
                }
                if in_indirect {
                    return Err(ChainFault::IndirectNested);
                }
                if descriptor.flags & VRING_DESC_F_NEXT != 0 {
                    return Err(ChainFault::IndirectWithNext);
                }
                let bytes = descriptor.len as usize;
                let entries = bytes / DESCRIPTOR_SIZE;
                if entries == 0 || !bytes.is_multiple_of(DESCRIPTOR_SIZE) || entries > MAX_CHAIN {
                    return Err(ChainFault::IndirectLength);
                }
                table = Table::resolve(call.mem, GuestAddress(descriptor.addr), entries)
                    .ok_or(ChainFault::OutsideMemory)?;
                index = 0;
                in_indirect = true;
                left = entries;
                continue;
            }
            self.push(call.mem, &descriptor)?;
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    fn push(&mut self, mem: &GuestMemoryMmap, descriptor: &Descriptor) -> Result<(), ChainFault> {
        let writable = descriptor.flags & VRING_DESC_F_WRITE != 0;
        if descriptor.len == 0 {
            return Err(ChainFault::ZeroLength);
        }
        if !writable && !self.writable.is_empty() {
            return Err(ChainFault::ReadableAfterWritable);
        }
        let segments = if writable { &mut self.writable } else { &mut self.readable };
        let mut addr = descriptor.addr;
        let mut left = descriptor.len as usize;
        // A buffer may span regions that follow each other in guest-physical space.
        loop {
            let (ptr, run) = resolve(mem, addr).ok_or(ChainFault::OutsideMemory)?;
            let len = run.min(left);
            if segments.len() > MAX_CHAIN {
                return Err(ChainFault::TooLong);
            }
            segments.push(Segment { ptr, len });
            left -= len;
            if left == 0 {
                return Ok(());
            }
            addr = addr.checked_add(len as u64).ok_or(ChainFault::OutsideMemory)?;
        }
    }

    /// Copies `out.len()` bytes off the front of the readable segments; `false` when there are fewer.
    pub(crate) fn take_readable(&mut self, out: &mut [u8]) -> bool {
        let mut filled = 0;
        let mut used = 0;
        for segment in &mut self.readable {
            let n = segment.len.min(out.len() - filled);
            // SAFETY: n <= segment.len, and the segment was proven to be mapped.
            unsafe {
                copy_from_guest(segment.ptr, &mut out[filled..filled + n]);
                segment.ptr = segment.ptr.add(n);
            }
            segment.len -= n;
            filled += n;
            if segment.len > 0 {
                break;
            }
            used += 1;
        }
        if filled < out.len() {
            return false;
        }
        self.readable.drain(..used);
        true
    }
}

/// Bytes of all segments together.
pub(crate) fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len as u64).sum()
}

/// Walks over the data of a request.
pub(crate) struct Cursor<'a> {
    segments: &'a [Segment],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(segments: &'a [Segment]) -> Cursor<'a> {
        Cursor { segments, offset: 0 }
    }

    /// The next `len` bytes, if they are in one piece and aligned well enough to be handed over in place.
    pub(crate) fn take_piece(&mut self, len: usize) -> Option<*mut u8> {
        let segment = self.segments.first()?;
        let ptr = segment.ptr.wrapping_add(self.offset);
        if segment.len - self.offset < len || !(ptr as usize).is_multiple_of(PAGE_POINTER_ALIGN) {
            return None;
        }
        self.advance(segment.len, len);
        Some(ptr)
    }

    fn advance(&mut self, segment_len: usize, bytes: usize) {
        self.offset += bytes;
        if self.offset == segment_len {
            self.segments = &self.segments[1..];
            self.offset = 0;
        }
    }

    /// Next run of at most `max` bytes.
    fn take_run(&mut self, max: usize) -> Option<(*mut u8, usize)> {
        let segment = self.segments.first()?;
        let len = (segment.len - self.offset).min(max);
        let ptr = segment.ptr.wrapping_add(self.offset);
        self.advance(segment.len, len);
        Some((ptr, len))
    }

    /// # Safety
    /// The segments must be mapped.
    pub(crate) unsafe fn copy_out(&mut self, mut out: &mut [u8]) {
        while let Some((ptr, len)) = (!out.is_empty()).then(|| self.take_run(out.len())).flatten() {
            let (now, rest) = out.split_at_mut(len);
            // SAFETY: take_run() gives a run inside a segment.
            unsafe { copy_from_guest(ptr, now) };
            out = rest;
        }
    }

    /// # Safety
    /// The segments must be mapped.
    pub(crate) unsafe fn copy_in(&mut self, mut data: &[u8]) {
        while let Some((ptr, len)) = (!data.is_empty()).then(|| self.take_run(data.len())).flatten() {
            let (now, rest) = data.split_at(len);
            // SAFETY: take_run() gives a run inside a segment.
            unsafe { copy_to_guest(now, ptr) };
            data = rest;
        }
    }
}
