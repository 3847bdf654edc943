// SPDX-License-Identifier: Apache-2.0
//! The operations of a block device, and the reasons for which a request is refused.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP};

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

impl Op {
    /// Number of operations.
    pub const COUNT: usize = 6;
    /// All operations, in the order of their counters.
    pub const ALL: [Op; Op::COUNT] = [Op::In, Op::Out, Op::Flush, Op::GetId, Op::Discard, Op::WriteZeroes];

    /// Name used in counters and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Op::In => "in",
            Op::Out => "out",
            Op::Flush => "flush",
            Op::GetId => "get_id",
            Op::Discard => "discard",
            Op::WriteZeroes => "write_zeroes",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a chain was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];
            /// Number of reasons.
            pub const COUNT: usize = Reason::ALL.len();

            /// Name used in counters and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }
        }
    };
}

reasons! {
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
