// SPDX-License-Identifier: Apache-2.0
//! Acts on parsed requests: turns sectors into pages and calls the [`PageBackend`].
//!
//! A page that lies in one piece of guest memory goes to the backend where it is. Pages that descriptors
//! split, and parts of pages, go through the bounce buffer of the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};

use super::backend::{GetResult, PAGE_SIZE, PageBackend, PutResult, SECTOR_SIZE};
use super::config::{BlkConfig, CONFIG_WCE_OFFSET, SERIAL_BYTES};
use super::ops::{NAMES, Op, PageRefusal};
use super::request::{Chain, Limits, Range, Request};
use crate::chain::Cursor;
use crate::config::ChannelError;
use crate::device::{Call, DeviceModel, Names, Outcome, QueueHandler, Work};
use crate::stats::QueueCounters;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

/// Pages flushed between two looks at the stop flag: bounds the time a discard can hold up a stop.
const FLUSH_CHUNK: u64 = 1 << 16;

/// The device that all queues of one server share.
pub struct Device {
    backend: Arc<dyn PageBackend>,
    config: BlkConfig,
    pages: u64,
    limits: Limits,
    serial: [u8; SERIAL_BYTES],
    /// The driver's choice of write-back; kept only to be read again.
    wce: AtomicBool,
}

/// Buffer for pages that cannot be handed over in place.
#[repr(align(4096))]
pub struct Bounce([u8; PAGE_SIZE]);

impl Bounce {
    /// A zeroed buffer on the heap.
    pub fn new() -> Box<Bounce> {
        Box::new(Bounce([0; PAGE_SIZE]))
    }
}

/// One queue of the device.
struct Handler {
    device: Arc<Device>,
    chain: Chain,
    bounce: Box<Bounce>,
}

impl DeviceModel for Device {
    fn names(&self) -> &'static Names {
        &NAMES
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn config_space(&self) -> Vec<u8> {
        self.config.config_space(self.pages, self.wce.load(Ordering::Relaxed)).to_vec()
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        // Only `wce` may be written; frontends may write the whole structure back.
        if let Some(wce) = CONFIG_WCE_OFFSET.checked_sub(offset).and_then(|at| data.get(at)) {
            self.wce.store(*wce != 0, Ordering::Relaxed);
        }
    }

    fn queue(self: Arc<Self>) -> Box<dyn QueueHandler> {
        Box::new(Handler { device: self, chain: Chain::new(), bounce: Bounce::new() })
    }

    fn idle(&self) {
        self.backend.idle();
    }
}

impl QueueHandler for Handler {
    fn handle(&mut self, call: &Call<'_>) -> Outcome {
        match self.chain.parse(call, &self.device.limits) {
            Ok(request) => {
                // SAFETY: the chain was parsed against the call's memory, which is mapped during the call.
                let done = unsafe { self.device.execute(&request, &self.chain, &mut self.bounce, call) };
                let Some((status, written)) = done else { return Outcome::Abandoned };
                // SAFETY: as above.
                unsafe { request.status.write(status) };
                let work = Work { op: request.op.into(), bytes: request.data_len };
                Outcome::Done { written: written.saturating_add(1), work: Some(work) }
            }
            Err(refusal) => {
                call.counters.malformed(refusal.reason);
                let written = match refusal.status {
                    Some(status) => {
                        // SAFETY: as above.
                        unsafe { status.write(refusal.reason.status()) };
                        1
                    }
                    None => 0,
                };
                Outcome::Done { written, work: None }
            }
        }
    }
}

impl Device {
    /// The device that `config` describes, with its pages in `backend`.
    ///
    /// # Errors
    /// [`ChannelError::Invalid`] when the configuration is out of bounds.
    pub fn new(config: BlkConfig, backend: Arc<dyn PageBackend>) -> Result<Device, ChannelError> {
        let pages = backend.pages();
        config.check(pages)?;
        let mut serial = [0u8; SERIAL_BYTES];
        let len = config.serial.len().min(SERIAL_BYTES);
        serial[..len].copy_from_slice(&config.serial.as_bytes()[..len]);
        let limits =
            Limits { capacity: pages * super::backend::SECTORS_PER_PAGE, read_only: config.read_only };
        Ok(Device { backend, config, pages, limits, serial, wce: AtomicBool::new(false) })
    }

    /// Carries out `request`, whose segments are in `chain`: status and data bytes written, or `None` when the server
    /// is stopping.
    ///
    /// # Safety
    /// The memory map that `chain` was parsed against must still be mapped.
    unsafe fn execute(
        &self,
        request: &Request,
        chain: &Chain,
        bounce: &mut Bounce,
        call: &Call<'_>,
    ) -> Option<(u8, u32)> {
        let counters = call.counters;
        let mut cursor = Cursor::new(chain.data(request.op));
        let status = match request.op {
            // SAFETY: (all three) the caller keeps the memory map, hence the cursor's segments, alive.
            Op::In => unsafe { self.read(request, &mut cursor, bounce, counters) },
            // SAFETY: as above.
            Op::Out => unsafe { self.write(request, &mut cursor, bounce, counters) },
            // Every completed put is kept by the store: nothing is left to be flushed.
            Op::Flush => OK,
            Op::GetId => {
                // SAFETY: as above; the parser proved at least SERIAL_BYTES.
                unsafe { cursor.copy_in(&self.serial) };
                OK
            }
            Op::Discard | Op::WriteZeroes => {
                for range in chain.ranges() {
                    let status = self.clear(request.op, range, call)?;
                    if status != OK {
                        return Some((status, 0));
                    }
                }
                OK
            }
        };
        let written = match request.op {
            Op::In if status == OK => request.data_len as u32,
            Op::GetId => SERIAL_BYTES as u32,
            _ => 0,
        };
        Some((status, written))
    }

    unsafe fn read(
        &self,
        request: &Request,
        cursor: &mut Cursor<'_>,
        bounce: &mut Bounce,
        counters: &QueueCounters,
    ) -> u8 {
        for part in Parts::new(request.sector, request.data_len) {
            let whole = if part.len == PAGE_SIZE { cursor.take_piece(PAGE_SIZE) } else { None };
            let target = whole.unwrap_or(bounce.0.as_mut_ptr());
            // SAFETY: target is a page of guest memory the parser proved mapped, or the bounce buffer.
            let result = unsafe { self.backend.get(part.index, target) };
            match result {
                GetResult::Hit => {}
                // SAFETY: as above.
                GetResult::Miss => unsafe { target.write_bytes(0, PAGE_SIZE) },
                GetResult::Lost => {
                    counters.refuse(PageRefusal::Lost);
                    return IOERR;
                }
            }
            if whole.is_some() {
                counters.direct_pages.add(1);
            } else {
                counters.bounced_pages.add(1);
                // SAFETY: the parser proved data_len bytes of segments; the parts add up to it.
                unsafe { cursor.copy_in(&bounce.0[part.offset..part.offset + part.len]) };
            }
        }
        OK
    }

    unsafe fn write(
        &self,
        request: &Request,
        cursor: &mut Cursor<'_>,
        bounce: &mut Bounce,
        counters: &QueueCounters,
    ) -> u8 {
        for part in Parts::new(request.sector, request.data_len) {
            let whole = if part.len == PAGE_SIZE { cursor.take_piece(PAGE_SIZE) } else { None };
            let result = if let Some(source) = whole {
                counters.direct_pages.add(1);
                // SAFETY: source is a page of guest memory the parser proved mapped.
                unsafe { self.backend.put(part.index, source) }
            } else {
                counters.bounced_pages.add(1);
                let buffer = &mut bounce.0[..part.len];
                // SAFETY: the parser proved data_len bytes of segments; the parts add up to it.
                unsafe { cursor.copy_out(buffer) };
                if part.len == PAGE_SIZE {
                    // SAFETY: the bounce buffer is a page.
                    unsafe { self.backend.put(part.index, bounce.0.as_ptr()) }
                } else {
                    self.backend.write_part(part.index, part.offset, buffer)
                }
            };
            // The rest of a refused write is left as it was: the guest was told that the request failed.
            if let Some(refusal) = PageRefusal::of(result) {
                counters.refuse(refusal);
                return IOERR;
            }
        }
        OK
    }

    /// Flushes the whole pages of a range and, for write-zeroes, zeroes what the range holds of the pages at
    /// its ends. A discard is advice: it leaves those alone. `None` when the server is stopping.
    fn clear(&self, op: Op, range: &Range, call: &Call<'_>) -> Option<u8> {
        const ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        let mut run: Option<(u64, u64)> = None;
        let start = range.sector * SECTOR_SIZE as u64;
        let end = start + range.count * SECTOR_SIZE as u64;
        let first = start.div_ceil(PAGE_SIZE as u64);
        let last = end / PAGE_SIZE as u64;
        if first < last {
            run = Some((first, last - first));
        }
        if op == Op::WriteZeroes {
            let edges = match run {
                Some(_) => [(start, first * PAGE_SIZE as u64), (last * PAGE_SIZE as u64, end)],
                None => {
                    let middle = (last * PAGE_SIZE as u64).clamp(start, end);
                    [(start, middle), (middle, end)]
                }
            };
            for (from, to) in edges {
                if from < to {
                    let offset = (from % PAGE_SIZE as u64) as usize;
                    let zeroes = &ZEROES[..(to - from) as usize];
                    let result = self.backend.write_part(from / PAGE_SIZE as u64, offset, zeroes);
                    if let Some(refusal) = PageRefusal::of(result) {
                        call.counters.refuse(refusal);
                        return Some(IOERR);
                    }
                }
            }
        }
        if let Some((mut index, mut count)) = run {
            while count > 0 {
                if call.stop.load(Ordering::Relaxed) {
                    return None;
                }
                let chunk = count.min(FLUSH_CHUNK);
                self.backend.flush(index, chunk);
                index += chunk;
                count -= chunk;
            }
        }
        Some(OK)
    }
}

impl PageRefusal {
    fn of(result: PutResult) -> Option<PageRefusal> {
        match result {
            PutResult::Stored => None,
            PutResult::NoRoom => Some(PageRefusal::NoRoom),
            PutResult::OverCap => Some(PageRefusal::OverCap),
            PutResult::Frozen => Some(PageRefusal::Frozen),
            PutResult::Failed => Some(PageRefusal::Failed),
        }
    }
}

/// The part of one page that a request touches.
struct Part {
    index: u64,
    offset: usize,
    len: usize,
}

/// Splits `len` bytes from `sector` on at page boundaries.
struct Parts {
    position: u64,
    left: u64,
}

impl Parts {
    fn new(sector: u64, len: u64) -> Parts {
        Parts { position: sector * SECTOR_SIZE as u64, left: len }
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.left == 0 {
            return None;
        }
        let offset = (self.position % PAGE_SIZE as u64) as usize;
        let len = (PAGE_SIZE - offset).min(self.left.min(PAGE_SIZE as u64) as usize);
        let part = Part { index: self.position / PAGE_SIZE as u64, offset, len };
        self.position += len as u64;
        self.left -= len as u64;
        Some(part)
    }
}
