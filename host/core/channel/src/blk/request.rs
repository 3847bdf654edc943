// SPDX-License-Identifier: Apache-2.0
//! Parses a descriptor chain into a typed [`Request`] or a typed [`Refusal`]. Nothing here acts.
//!
//! The request header is copied exactly once and all checks are made on the copy. It is the first 16 device-readable
//! bytes, the status the last device-writable byte, wherever the descriptors split them.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::backend::SECTOR_SIZE;
use super::config::{MAX_RANGES, SERIAL_BYTES};
use super::ops::{Op, Reason};
use crate::chain::{Buffers, total};
use crate::device::Call;
use crate::guest::{Segment, le32, le64};

/// Most data bytes one request may carry: bounds the time between two looks at the control mailbox, to some tens of
/// milliseconds.
pub const MAX_DATA: u64 = 32 << 20;

/// Bytes of `struct virtio_blk_req` before the data (virtio 1.2, section 5.2.6): type, reserved, sector.
const HEADER_SIZE: usize = 16;

/// Bytes of `struct virtio_blk_discard_write_zeroes`: sector, num_sectors, flags.
const RANGE_SIZE: usize = 16;

/// The place of the status byte; same lifetime as [`Segment`].
#[derive(Clone, Copy, Debug)]
pub struct StatusByte(*mut u8);

impl StatusByte {
    /// A byte the caller proved to be mapped.
    pub(crate) fn at(ptr: *mut u8) -> StatusByte {
        StatusByte(ptr)
    }

    /// Writes the status.
    ///
    /// # Safety
    /// The memory map the chain was parsed against must still be mapped.
    pub unsafe fn write(self, status: u8) {
        // SAFETY: the parser proved the byte to be in a mapped, writable region, which by contract of this
        // function is still mapped. Volatile: the guest reads it concurrently.
        unsafe { self.0.write_volatile(status) }
    }
}

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
}

/// Scratch space of a queue, reused for every request so that none allocates.
#[derive(Debug, Default)]
pub struct Chain {
    buffers: Buffers,
    ranges: Vec<Range>,
}

impl Chain {
    /// Scratch for the longest chain accepted.
    pub fn new() -> Chain {
        Chain { buffers: Buffers::new(), ranges: Vec::with_capacity(MAX_RANGES) }
    }

    /// Data of the request: device-readable for writes, device-writable for reads.
    pub(crate) fn data(&self, op: Op) -> &[Segment] {
        match op {
            Op::In | Op::GetId => &self.buffers.writable,
            _ => &self.buffers.readable,
        }
    }

    /// Ranges of a discard or write-zeroes.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Parses the chain that `call` is about.
    pub(crate) fn parse(&mut self, call: &Call<'_>, limits: &Limits) -> Result<Request, Refusal> {
        self.ranges.clear();
        // A chain that does not hang together has no trustworthy last byte: no status.
        self.buffers.walk(call).map_err(|fault| Refusal { reason: fault.into(), status: None })?;
        let status = self.take_status();
        let parsed = match status {
            Some(status) => self.interpret(limits, status),
            None => Err(Reason::StatusMissing),
        };
        parsed.map_err(|reason| Refusal { reason, status })
    }

    /// Cuts the status byte, the last writable byte, off the writable segments.
    fn take_status(&mut self) -> Option<StatusByte> {
        let last = self.buffers.writable.last_mut()?;
        last.len -= 1;
        // SAFETY: the segment had at least one byte, so its last byte is inside it.
        let status = StatusByte::at(unsafe { last.ptr.add(last.len) });
        if last.len == 0 {
            self.buffers.writable.pop();
        }
        Some(status)
    }

    fn interpret(&mut self, limits: &Limits, status: StatusByte) -> Result<Request, Reason> {
        let mut header = [0u8; HEADER_SIZE];
        if !self.buffers.take_readable(&mut header) {
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
        let readable = total(&self.buffers.readable);
        let writable = total(&self.buffers.writable);
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
            if !self.buffers.take_readable(&mut raw) {
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
