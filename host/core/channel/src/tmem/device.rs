// SPDX-License-Identifier: Apache-2.0
//! The device and its queues: chains become requests to the engine, answers go back.

use std::sync::Arc;

use tmem_abi::wire::{REPLY_SIZE, REQUEST_SIZE, VERSION};
use tmem_abi::{Header, Reply, Status};
use tmem_engine::{Scratch, Session};

use super::F_MQ;
use super::ops::{self, NAMES, Reason};
use crate::chain::{Buffers, Cursor, total};
use crate::device::{Call, DeviceModel, Names, Outcome, QueueHandler, Work};
use crate::guest::Segment;

/// Bytes of `struct virtio_tmem_config`.
const CONFIG_BYTES: usize = 16;

/// The device that all queues of one server share: a channel of a VM.
pub struct Device {
    session: Arc<Session>,
    queues: u16,
}

impl Device {
    /// A device with so many queues.
    pub fn new(session: Arc<Session>, queues: u16) -> Device {
        Device { session, queues }
    }
}

impl DeviceModel for Device {
    fn names(&self) -> &'static Names {
        &NAMES
    }

    fn features(&self) -> u64 {
        u64::from(self.queues > 1) << F_MQ
    }

    fn config_space(&self) -> Vec<u8> {
        let mut space = Vec::with_capacity(CONFIG_BYTES);
        space.extend_from_slice(&VERSION.to_le_bytes());
        space.extend_from_slice(&u32::from(self.queues).to_le_bytes());
        space.extend_from_slice(&self.session.engine().features().to_le_bytes());
        space
    }

    fn reset(&self) {
        self.session.reset();
    }

    fn wants_resets(&self) -> bool {
        true
    }

    fn queue(self: Arc<Self>) -> Box<dyn QueueHandler> {
        Box::new(Handler {
            session: self.session.clone(),
            buffers: Buffers::new(),
            scratch: Box::new(Scratch::new()),
        })
    }

    fn idle(&self) {
        self.session.engine().idle();
    }
}

/// One queue of the device.
struct Handler {
    session: Arc<Session>,
    buffers: Buffers,
    scratch: Box<Scratch>,
}

impl QueueHandler for Handler {
    fn handle(&mut self, call: &Call<'_>) -> Outcome {
        let counters = call.counters;
        let bad = match self.buffers.walk(call) {
            // The reply is first in the writable part: what was found of it up to the fault will do.
            Err(fault) => Some(Reason::from(fault)),
            Ok(()) if overlap(&self.buffers.readable, &self.buffers.writable) => Some(Reason::Overlap),
            Ok(()) => None,
        };
        if let Some(reason) = bad {
            counters.malformed(reason);
            return Outcome::Done { written: self.refuse(call), work: None };
        }
        let sent = total(&self.buffers.readable);
        if sent < REQUEST_SIZE as u64 {
            counters.malformed(Reason::RequestTooShort);
        }
        // SAFETY: walk() proved that all pieces are mapped, which they stay during the call. Regions are mapped for
        // reading and writing.
        let served = unsafe {
            self.session.serve_told(&self.buffers.readable, &self.buffers.writable, &mut self.scratch)
        };
        let Some(served) = served else {
            counters.malformed(Reason::ReplyMissing);
            return Outcome::Done { written: 0, work: None };
        };
        if let Some(status) = ops::status(served.status) {
            counters.refuse(status);
        }
        let bytes = sent.saturating_sub(REQUEST_SIZE as u64) + (served.length - REPLY_SIZE) as u64;
        let work = served.op.map(|op| Work { op: ops::op(op), bytes });
        Outcome::Done { written: served.length as u32, work }
    }
}

impl Handler {
    /// Answers a chain that is no request, if there is room; bytes written.
    fn refuse(&self, call: &Call<'_>) -> u32 {
        let Buffers { readable, writable } = &self.buffers;
        if total(writable) < REPLY_SIZE as u64 {
            return 0;
        }
        let mut cookie = 0;
        if total(readable) >= REQUEST_SIZE as u64 {
            let mut raw = [0; REQUEST_SIZE];
            // SAFETY: walk() proved that these pieces are mapped, which they stay during the call.
            unsafe { Cursor::new(readable).copy_out(&mut raw) };
            cookie = Header::decode(&raw).cookie;
        }
        let reply = Reply::refusal(Status::BadLength, cookie);
        // SAFETY: as above.
        unsafe { Cursor::new(writable).copy_in(&reply.encode()) };
        if let Some(status) = ops::status(reply.status) {
            call.counters.refuse(status);
        }
        REPLY_SIZE as u32
    }
}

/// True when any piece of one list shares a byte with one of the other. A chain has at most 1024 descriptors, so this
/// is a few comparisons for a driver's chains and some 100 µs for the worst.
fn overlap(readable: &[Segment], writable: &[Segment]) -> bool {
    let span = |s: &Segment| (s.ptr as usize, s.ptr as usize + s.len);
    readable.iter().any(|r| {
        let (start, end) = span(r);
        writable.iter().map(span).any(|(from, to)| start < to && from < end)
    })
}
