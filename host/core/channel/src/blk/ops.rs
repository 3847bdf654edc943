// SPDX-License-Identifier: Apache-2.0
//! The operations of a block device, the reasons for which a request is refused, and their names.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP};

use crate::chain::reasons;
use crate::device::Names;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Op {
    /// Read: get.
    In = 0,
    /// Write: put.
    Out = 1,
    /// Write barrier; every completed put is already kept.
    Flush = 2,
    /// Serial number of the device.
    GetId = 3,
    /// Flush page for ranges.
    Discard = 4,
    /// Flush page for ranges, with zeroes written to partial pages.
    WriteZeroes = 5,
}

impl From<Op> for usize {
    fn from(op: Op) -> usize {
        op as usize
    }
}

impl Op {
    /// Number of operations.
    pub const COUNT: usize = 6;
    /// All operations, in the order of their counters.
    pub const ALL: [Op; Op::COUNT] = [Op::In, Op::Out, Op::Flush, Op::GetId, Op::Discard, Op::WriteZeroes];

    /// Their names, in the same order.
    pub const NAMES: [&str; Op::COUNT] = ["in", "out", "flush", "get_id", "discard", "write_zeroes"];

    /// Name used in counters and metrics.
    pub fn name(self) -> &'static str {
        Op::NAMES[self as usize]
    }
}

reasons! {
    /// Fewer than 16 device-readable bytes.
    HeaderTooShort = "header_too_short",
    /// No device-writable byte for the status.
    StatusMissing = "status_missing",
    /// Data to be read where it must be written, or the other way round.
    WrongDirection = "wrong_direction",
    /// Data is no multiple of a sector, or too short for the operation.
    DataLength = "data_length",
    /// More data than one request may carry.
    TooLarge = "too_large",
    /// Beyond the end of the device.
    BeyondCapacity = "beyond_capacity",
    /// A write to a read-only device.
    ReadOnly = "read_only",
    /// An operation that is not served.
    UnsupportedOp = "unsupported_op",
    /// Too many ranges in one discard or write-zeroes.
    TooManyRanges = "too_many_ranges",
    /// A reserved or meaningless flag in a range.
    RangeFlags = "range_flags",
}

impl Reason {
    /// Status byte that tells the driver.
    pub fn status(self) -> u8 {
        match self {
            Reason::UnsupportedOp | Reason::RangeFlags => VIRTIO_BLK_S_UNSUPP as u8,
            _ => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}

/// Why the store did not take or give a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum PageRefusal {
    /// The host has no memory left for this VM.
    NoRoom = 0,
    /// The VM has reached its cap.
    OverCap = 1,
    /// The VM is frozen.
    Frozen = 2,
    /// The store failed.
    Failed = 3,
    /// A page kept once is lost.
    Lost = 4,
}

impl From<PageRefusal> for usize {
    fn from(why: PageRefusal) -> usize {
        why as usize
    }
}

impl PageRefusal {
    /// Number of reasons.
    pub const COUNT: usize = 5;
    /// All reasons, in the order of their counters.
    pub const ALL: [PageRefusal; PageRefusal::COUNT] = [
        PageRefusal::NoRoom,
        PageRefusal::OverCap,
        PageRefusal::Frozen,
        PageRefusal::Failed,
        PageRefusal::Lost,
    ];
    /// Their names, in the same order.
    pub const NAMES: [&str; PageRefusal::COUNT] = ["no_room", "over_cap", "frozen", "failed", "lost"];

    /// Name used in counters and metrics.
    pub fn name(self) -> &'static str {
        PageRefusal::NAMES[self as usize]
    }
}

/// What a block device counts.
pub(crate) static NAMES: Names =
    Names { device: "blk", ops: &Op::NAMES, malformed: Reason::NAMES, refused: &PageRefusal::NAMES };
