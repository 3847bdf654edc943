// SPDX-License-Identifier: Apache-2.0
//! Parses a descriptor chain into a typed [`Request`] or a typed [`Refusal`]. Nothing here acts.
//!
//! Everything in guest memory is hostile and may change between two looks, so each descriptor and the
//! request header are copied exactly once and all checks are made on the copy. Buffers become
//! [`Segment`]s, host pointers proven to lie in one mapped region; data in them is still the guest's to
//! change, only their place and length are settled.
//!
//! The layout of buffers over descriptors is free (virtio 1.2, section 2.7.4): the header is the first 16
//! device-readable bytes, the status the last device-writable byte, wherever the descriptors split them.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::backend::SECTOR_SIZE;
use crate::config::{MAX_RANGES, SERIAL_BYTES};
use crate::guest::{
    DESCRIPTOR_SIZE, Descriptor, Segment, StatusByte, Table, copy_from_guest, le32, le64, resolve,
};
use crate::ops::{Op, Reason};

/// Longest chain accepted, direct or indirect. QEMU's VIRTQUEUE_MAX_SIZE; a longer one cannot come from a
/// driver that honours the advertised seg_max.
pub const MAX_CHAIN: usize = 1024;

/// Most data bytes one request may carry: bounds the time between two looks at the control mailbox, to some tens of
/// milliseconds.
pub const MAX_DATA: u64 = 32 << 20;

/// Bytes of `struct virtio_blk_req` before the data (virtio 1.2, section 5.2.6): type, reserved, sector.
const HEADER_SIZE: usize = 16;

/// Bytes of `struct virtio_blk_discard_write_zeroes`: sector, num_sectors, flags.
const RANGE_SIZE: usize = 16;

/// One range of a discard or write-zeroes, in sectors, proven to be on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// Number of sectors; may be 0.
    pub count: u64,
}

/// A request that passed every check. Its data and ranges lie in the [`Chain`] that was parsed.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// First sector; 0 when the operation has none.
    pub sector: u64,
    /// Bytes of data, a multiple of 512 for reads and writes.
    pub data_len: u64,
    /// Where the result goes.
    pub status: StatusByte,
}

/// A chain that is not served. It is a reply, not an error: the queue goes on.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Where to say so, when the chain has a place for it.
    pub status: Option<StatusByte>,
}

/// What the parser must know of the device and of the features negotiated.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the device in sectors.
    pub capacity: u64,
    /// Refuse writes.
    pub read_only: bool,
    /// VIRTIO_RING_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

/// Scratch space of a queue, reused for every request so that none allocates.
#[derive(Debug)]
pub struct Chain {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    ranges: Vec<Range>,
}

// SAFETY: the pointers in a Chain are leftovers between requests; they are only followed by the thread that
// parsed the request, while it holds the memory map.
unsafe impl Send for Chain {}

impl Default for Chain {
    fn default() -> Self {
        Chain::new()
    }
}

impl Chain {
    /// Scratch for the longest chain accepted.
    pub fn new() -> Chain {
        Chain {
            readable: Vec::with_capacity(MAX_CHAIN + 1),
            writable: Vec::with_capacity(MAX_CHAIN + 1),
            ranges: Vec::with_capacity(MAX_RANGES),
        }
    }

    /// Data of the request: device-readable for writes, device-writable for reads.
    pub(crate) fn data(&self, op: Op) -> &[Segment] {
        match op {
            Op::In | Op::GetId => &self.writable,
            _ => &self.readable,
        }
    }

    /// Ranges of a discard or write-zeroes.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Parses the chain that starts at descriptor `head` of `table`.
    pub fn parse(
        &mut self,
        mem: &GuestMemoryMmap,
        table: &Table,
        head: u16,
        limits: &Limits,
    ) -> Result<Request, Refusal> {
        self.readable.clear();
        self.writable.clear();
        self.ranges.clear();
        // A chain that does not hang together has no trustworthy last byte: no status.
        self.walk(mem, table, head, limits.indirect).map_err(|reason| Refusal { reason, status: None })?;
        let status = self.take_status();
        let parsed = match status {
            Some(status) => self.interpret(limits, status),
            None => Err(Reason::StatusMissing),
        };
        parsed.map_err(|reason| Refusal { reason, status })
    }

    fn walk(
        &mut self,
        mem: &GuestMemoryMmap,
        table: &Table,
        head: u16,
        indirect_ok: bool,
    ) -> Result<(), Reason> {
        let mut table = *table;
        let mut index = usize::from(head);
        let mut in_indirect = false;
        let mut left = table.entries.min(MAX_CHAIN);
        loop {
            if left == 0 {
                return Err(Reason::ChainTooLong);
            }
            left -= 1;
            let descriptor = table.read(index).ok_or(Reason::NextOutOfRange)?;
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                if !indirect_ok {
                    return Err(Reason::IndirectNotNegotiated);
                }
                if in_indirect {
                    return Err(Reason::IndirectNested);
                }
                if descriptor.flags & VRING_DESC_F_NEXT != 0 {
                    return Err(Reason::IndirectWithNext);
                }
                let bytes = descriptor.len as usize;
                let entries = bytes / DESCRIPTOR_SIZE;
                if entries == 0 || !bytes.is_multiple_of(DESCRIPTOR_SIZE) || entries > MAX_CHAIN {
                    return Err(Reason::IndirectLength);
                }
                table = Table::resolve(mem, GuestAddress(descriptor.addr), entries)
                    .ok_or(Reason::OutsideMemory)?;
                index = 0;
                in_indirect = true;
                left = entries;
                continue;
            }
            self.push(mem, &descriptor)?;
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    fn push(&mut self, mem: &GuestMemoryMmap, descriptor: &Descriptor) -> Result<(), Reason> {
        let writable = descriptor.flags & VRING_DESC_F_WRITE != 0;
        if descriptor.len == 0 {
            return Err(Reason::ZeroLength);
        }
        if !writable && !self.writable.is_empty() {
            return Err(Reason::ReadableAfterWritable);
        }
        let segments = if writable { &mut self.writable } else { &mut self.readable };
        let mut addr = descriptor.addr;
        let mut left = descriptor.len as usize;
        // A buffer may span regions that follow each other in guest-physical space.
        loop {
            let (ptr, run) = resolve(mem, addr).ok_or(Reason::OutsideMemory)?;
            let len = run.min(left);
            if segments.len() > MAX_CHAIN {
                return Err(Reason::ChainTooLong);
            }
            segments.push(Segment { ptr, len });
            left -= len;
            if left == 0 {
                return Ok(());
            }
            addr = addr.checked_add(len as u64).ok_or(Reason::OutsideMemory)?;
        }
    }

    /// Cuts the status byte, the last writable byte, off the writable segments.
    fn take_status(&mut self) -> Option<StatusByte> {
        let last = self.writable.last_mut()?;
        last.len -= 1;
        // SAFETY: the segment had at least one byte, so its last byte is inside it.
        let status = StatusByte::at(unsafe { last.ptr.add(last.len) });
        if last.len == 0 {
            self.writable.pop();
        }
        Some(status)
    }

    /// Copies `out.len()` bytes off the front of the readable segments.
    fn take_readable(&mut self, out: &mut [u8]) -> bool {
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

    fn interpret(&mut self, limits: &Limits, status: StatusByte) -> Result<Request, Reason> {
        let mut header = [0u8; HEADER_SIZE];
        if !self.take_readable(&mut header) {
            return Err(Reason::HeaderTooShort);
        }
        let kind = le32(&header, 0);
        let sector = le64(&header, 8);
        let op = match kind {
            VIRTIO_BLK_T_IN => Op::In,
            VIRTIO_BLK_T_OUT => Op::Out,
            VIRTIO_BLK_T_FLUSH => Op::Flush,
            VIRTIO_BLK_T_GET_ID => Op::GetId,
            VIRTIO_BLK_T_DISCARD => Op::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Op::WriteZeroes,
            _ => return Err(Reason::UnsupportedOp),
        };
        let readable = total(&self.readable);
        let writable = total(&self.writable);
        if readable > MAX_DATA || writable > MAX_DATA {
            return Err(Reason::TooLarge);
        }
        let (data_len, other) = match op {
            Op::In | Op::GetId => (writable, readable),
            _ => (readable, writable),
        };
        if other != 0 {
            return Err(Reason::WrongDirection);
        }
        if limits.read_only && matches!(op, Op::Out | Op::Discard | Op::WriteZeroes) {
            return Err(Reason::ReadOnly);
        }
        let mut request = Request { op, sector, data_len, status };
        match op {
            Op::In | Op::Out => {
                if data_len == 0 || data_len % SECTOR_SIZE as u64 != 0 {
                    return Err(Reason::DataLength);
                }
                check_range(sector, data_len / SECTOR_SIZE as u64, limits.capacity)?;
            }
            Op::Flush => {
                if data_len != 0 {
                    return Err(Reason::WrongDirection);
                }
                request.sector = 0;
            }
            Op::GetId => {
                if data_len < SERIAL_BYTES as u64 {
                    return Err(Reason::DataLength);
                }
                request.sector = 0;
            }
            Op::Discard | Op::WriteZeroes => {
                request.sector = 0;
                self.take_ranges(op, data_len, limits)?;
            }
        }
        Ok(request)
    }

    fn take_ranges(&mut self, op: Op, data_len: u64, limits: &Limits) -> Result<(), Reason> {
        let count = data_len / RANGE_SIZE as u64;
        if count == 0 || !data_len.is_multiple_of(RANGE_SIZE as u64) {
            return Err(Reason::DataLength);
        }
        if count > MAX_RANGES as u64 {
            return Err(Reason::TooManyRanges);
        }
        let mut sum = 0u64;
        for _ in 0..count {
            let mut raw = [0u8; RANGE_SIZE];
            if !self.take_readable(&mut raw) {
                return Err(Reason::DataLength);
            }
            let range = Range { sector: le64(&raw, 0), count: u64::from(le32(&raw, 8)) };
            let flags = le32(&raw, 12);
            // virtio 1.2, section 5.2.6.2: reserved bits, and unmap in a discard, are answered UNSUPP.
            let known = if op == Op::WriteZeroes { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
            if flags & !known != 0 {
                return Err(Reason::RangeFlags);
            }
            check_range(range.sector, range.count, limits.capacity)?;
            // Ranges that overlap so much that they exceed the device are work for work's sake.
            sum += range.count;
            if sum > limits.capacity {
                return Err(Reason::TooLarge);
            }
            self.ranges.push(range);
        }
        Ok(())
    }
}

fn check_range(sector: u64, count: u64, capacity: u64) -> Result<(), Reason> {
    match sector.checked_add(count) {
        Some(end) if end <= capacity => Ok(()),
        _ => Err(Reason::BeyondCapacity),
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len as u64).sum()
}
