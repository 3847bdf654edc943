// SPDX-License-Identifier: Apache-2.0
//! What a tmem device counts: requests by operation, refusals by status, chains that are no requests.

use tmem_abi::{Op, Status};

use crate::chain::reasons;
use crate::device::Names;

reasons! {
    /// Fewer than 64 device-readable bytes: answered TMEM_BAD_LENGTH.
    RequestTooShort = "request_too_short",
    /// Fewer than 40 device-writable bytes: nothing is done, as nothing could be told.
    ReplyMissing = "reply_missing",
    /// A device-writable byte lies where a readable one lies: answered TMEM_BAD_LENGTH, as it could not be repeated.
    Overlap = "overlap",
}

const OPS: [&str; Op::ALL.len()] = [
    "new_pool",
    "destroy_pool",
    "new_page",
    "put",
    "get",
    "flush_page",
    "flush_object",
    "read",
    "write",
    "exchange",
    "hello",
];

/// All but TMEM_OK.
const STATUSES: [&str; Status::ALL.len() - 1] = [
    "miss",
    "no_room",
    "over_cap",
    "frozen",
    "lost",
    "bad_data",
    "bad_op",
    "bad_flags",
    "bad_pool",
    "bad_length",
    "bad_version",
    "not_negotiated",
    "not_permitted",
    "host_error",
];

/// What a tmem device counts.
pub(crate) static NAMES: Names =
    Names { device: "tmem", ops: &OPS, malformed: Reason::NAMES, refused: &STATUSES };

/// Index of an operation's counters.
pub fn op(op: Op) -> usize {
    match op {
        Op::Hello => OPS.len() - 1,
        op => op as usize - 1,
    }
}

/// Index of a status's counter; `None` for TMEM_OK.
pub fn status(status: Status) -> Option<usize> {
    match status as usize {
        0 => None,
        page @ 1..16 => Some(page - 1),
        request => Some(request - Status::BadOp as usize + Status::BadData as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_abis_in_their_order() {
        for (at, known) in Op::ALL.into_iter().enumerate() {
            assert_eq!((op(known), OPS[at]), (at, known.name().replace('-', "_").as_str()));
        }
        for (at, known) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status(known), at.checked_sub(1));
            if let Some(index) = status(known) {
                assert_eq!(STATUSES[index], known.name().replace('-', "_"));
            }
        }
    }
}
