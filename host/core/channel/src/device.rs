// SPDX-License-Identifier: Apache-2.0
//! Acts on parsed requests: turns sectors into pages and calls the [`PageBackend`].
//!
//! A page that lies in one piece of guest memory goes to the backend where it is. Pages that descriptors
//! split, and parts of pages, go through the bounce buffer of the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};

use crate::backend::{GetResult, PAGE_POINTER_ALIGN, PAGE_SIZE, PageBackend, PutResult, SECTOR_SIZE};
use crate::config::SERIAL_BYTES;
use crate::guest::{Segment, copy_from_guest, copy_to_guest};
use crate::ops::Op;
use crate::request::{Chain, Limits, Range, Request};
use crate::stats::{PageRefusal, QueueCounters};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

/// Pages flushed between two looks at the stop flag: bounds the time a discard can hold up a stop.
const FLUSH_CHUNK: u64 = 1 << 16;

/// The device that all queues of one server share. Immutable: needs no lock.
pub struct Device {
    backend: Arc<dyn PageBackend>,
    capacity: u64,
    read_only: bool,
    serial: [u8; SERIAL_BYTES],
    stop: Arc<AtomicBool>,
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

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Complete it with this status and number of data bytes written to the guest.
    Done {
        /// Virtio-blk status.
        status: u8,
        /// Data bytes written, without the status byte.
        written: u32,
    },
    /// The server is stopping: leave the request uncompleted, whoever serves the ring next repeats it.
    Abandoned,
}

impl Device {
    /// A device over `backend`; `stop` makes long requests give up.
    pub fn new(
        backend: Arc<dyn PageBackend>,
        read_only: bool,
        serial: &str,
        stop: Arc<AtomicBool>,
    ) -> Device {
        let mut padded = [0u8; SERIAL_BYTES];
        let len = serial.len().min(SERIAL_BYTES);
        padded[..len].copy_from_slice(&serial.as_bytes()[..len]);
        let capacity = backend.pages() * crate::backend::SECTORS_PER_PAGE;
        Device { backend, capacity, read_only, serial: padded, stop }
    }

    /// What the parser must know.
    pub fn limits(&self, indirect: bool) -> Limits {
        Limits { capacity: self.capacity, read_only: self.read_only, indirect }
    }

    /// The store's idle work.
    pub(crate) fn idle(&self) {
        self.backend.idle();
    }

    /// Carries out `request`, whose segments are in `chain`.
    ///
    /// # Safety
    /// The memory map that `chain` was parsed against must still be mapped.
    pub unsafe fn execute(
        &self,
        request: &Request,
        chain: &Chain,
        bounce: &mut Bounce,
        counters: &QueueCounters,
    ) -> Outcome {
        let mut cursor = Cursor { segments: chain.data(request.op), offset: 0 };
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
                    match self.clear(request.op, range, counters) {
                        Some(OK) => {}
                        Some(status) => return Outcome::Done { status, written: 0 },
                        None => return Outcome::Abandoned,
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
        Outcome::Done { status, written }
    }

    unsafe fn read(
        &self,
        request: &Request,
        cursor: &mut Cursor<'_>,
        bounce: &mut Bounce,
        counters: &QueueCounters,
    ) -> u8 {
        for part in Parts::new(request.sector, request.data_len) {
            let whole = if part.len == PAGE_SIZE { cursor.take_page() } else { None };
            let target = whole.unwrap_or(bounce.0.as_mut_ptr());
            // SAFETY: target is a page of guest memory the parser proved mapped, or the bounce buffer.
            let result = unsafe { self.backend.get(part.index, target) };
            match result {
                GetResult::Hit => {}
                // SAFETY: as above.
                GetResult::Miss => unsafe { target.write_bytes(0, PAGE_SIZE) },
                GetResult::Lost => {
                    counters.refuse_page(PageRefusal::Lost);
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
            let whole = if part.len == PAGE_SIZE { cursor.take_page() } else { None };
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
                counters.refuse_page(refusal);
                return IOERR;
            }
        }
        OK
    }

    /// Flushes the whole pages of a range and, for write-zeroes, zeroes what the range holds of the pages at
    /// its ends. A discard is advice: it leaves those alone. `None` when the server is stopping.
    fn clear(&self, op: Op, range: &Range, counters: &QueueCounters) -> Option<u8> {
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
                        counters.refuse_page(refusal);
                        return Some(IOERR);
                    }
                }
            }
        }
        if let Some((mut index, mut count)) = run {
            while count > 0 {
                if self.stop.load(Ordering::Relaxed) {
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

/// Walks over the data of a request.
struct Cursor<'a> {
    segments: &'a [Segment],
    offset: usize,
}

impl Cursor<'_> {
    /// The next page, if it is in one piece and aligned well enough to be handed over in place.
    fn take_page(&mut self) -> Option<*mut u8> {
        let segment = self.segments.first()?;
        let ptr = segment.ptr.wrapping_add(self.offset);
        if segment.len - self.offset < PAGE_SIZE || !(ptr as usize).is_multiple_of(PAGE_POINTER_ALIGN) {
            return None;
        }
        self.advance(segment.len, PAGE_SIZE);
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
    unsafe fn copy_out(&mut self, mut out: &mut [u8]) {
        while let Some((ptr, len)) = (!out.is_empty()).then(|| self.take_run(out.len())).flatten() {
            let (now, rest) = out.split_at_mut(len);
            // SAFETY: take_run() gives a run inside a segment.
            unsafe { copy_from_guest(ptr, now) };
            out = rest;
        }
    }

    /// # Safety
    /// The segments must be mapped.
    unsafe fn copy_in(&mut self, mut data: &[u8]) {
        while let Some((ptr, len)) = (!data.is_empty()).then(|| self.take_run(data.len())).flatten() {
            let (now, rest) = data.split_at(len);
            // SAFETY: take_run() gives a run inside a segment.
            unsafe { copy_to_guest(now, ptr) };
            data = rest;
        }
    }
}
