// SPDX-License-Identifier: Apache-2.0
//! An in-memory backend for a block device, and requests of a virtio-blk driver.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tmem_channel::{BlkConfig, GetResult, PAGE_SIZE, PageBackend, PollPolicy, PutResult};

use super::{BUFFERS, Desc, Driver, NEXT, UNTOUCHED, WRITE};

/// Pages in a map; answers can be forced per page.
#[derive(Default)]
pub struct MemoryBackend {
    pub pages: u64,
    pub data: Mutex<HashMap<u64, Box<[u8; PAGE_SIZE]>>>,
    pub refuse: Mutex<HashMap<u64, PutResult>>,
    pub lost: Mutex<Vec<u64>>,
    pub panics: Mutex<Vec<u64>>,
    pub idles: AtomicU64,
    pub flushes: AtomicU64,
}

impl MemoryBackend {
    pub fn new(pages: u64) -> Arc<MemoryBackend> {
        Arc::new(MemoryBackend { pages, ..Default::default() })
    }

    pub fn page(&self, index: u64) -> Option<[u8; PAGE_SIZE]> {
        self.data.lock().unwrap().get(&index).map(|page| **page)
    }
}

impl PageBackend for MemoryBackend {
    fn pages(&self) -> u64 {
        self.pages
    }

    unsafe fn put(&self, index: u64, src: *const u8) -> PutResult {
        assert!(index < self.pages);
        assert!(!self.panics.lock().unwrap().contains(&index), "told to panic");
        if let Some(answer) = self.refuse.lock().unwrap().get(&index) {
            self.data.lock().unwrap().remove(&index);
            return *answer;
        }
        let mut page = Box::new([0; PAGE_SIZE]);
        // SAFETY: by contract of put().
        unsafe { std::ptr::copy_nonoverlapping(src, page.as_mut_ptr(), PAGE_SIZE) };
        self.data.lock().unwrap().insert(index, page);
        PutResult::Stored
    }

    unsafe fn get(&self, index: u64, dst: *mut u8) -> GetResult {
        assert!(index < self.pages);
        if self.lost.lock().unwrap().contains(&index) {
            return GetResult::Lost;
        }
        match self.data.lock().unwrap().get(&index) {
            Some(page) => {
                // SAFETY: by contract of get().
                unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), dst, PAGE_SIZE) };
                GetResult::Hit
            }
            None => GetResult::Miss,
        }
    }

    fn write_part(&self, index: u64, offset: usize, data: &[u8]) -> PutResult {
        assert!(index < self.pages && offset + data.len() <= PAGE_SIZE);
        let mut pages = self.data.lock().unwrap();
        let page = pages.entry(index).or_insert_with(|| Box::new([0; PAGE_SIZE]));
        page[offset..offset + data.len()].copy_from_slice(data);
        PutResult::Stored
    }

    fn flush(&self, index: u64, count: u64) {
        assert!(index + count <= self.pages);
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.data.lock().unwrap().retain(|at, _| *at < index || *at >= index + count);
    }

    fn idle(&self) {
        self.idles.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn config(socket: &Path, queues: u16, poll: PollPolicy) -> BlkConfig {
    BlkConfig {
        socket: socket.to_owned(),
        queues,
        queue_size: 128,
        poll,
        serial: "tmem-test".into(),
        read_only: false,
    }
}

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

impl Driver {
    pub fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    /// Writes a well-formed request: header at `buffers`, data one page behind, status at the end. Returns the
    /// guest address of the data and of the status. Data longer than the buffer area is the caller's bug.
    pub fn lay_out(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        data: &[u8],
        device_writes: usize,
    ) -> (u64, u64) {
        let base = self.queues[queue].buffers;
        let data_at = base + 0x1000;
        let len = data.len().max(device_writes);
        let status_at = base + BUFFERS as u64 - 16;
        assert!(data_at + len as u64 <= status_at);
        self.ram.write(base, &Driver::header(kind, sector));
        self.ram.write(data_at, data);
        self.ram.write(status_at, &[UNTOUCHED]);
        let mut next = 1;
        self.set_desc(queue, 0, Desc { addr: base, len: 16, flags: NEXT, next });
        if len > 0 {
            let flags = NEXT | if device_writes > 0 { WRITE } else { 0 };
            self.set_desc(queue, 1, Desc { addr: data_at, len: len as u32, flags, next: 2 });
            next = 2;
        }
        self.set_desc(queue, next, Desc { addr: status_at, len: 1, flags: WRITE, next: 0 });
        (data_at, status_at)
    }

    /// One request from start to end: status and used length.
    pub fn request(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        data: &[u8],
        device_writes: usize,
    ) -> (u8, u32) {
        let (_, status_at) = self.lay_out(queue, kind, sector, data, device_writes);
        let len = self.run_head(queue, 0);
        (self.ram.read(status_at, 1)[0], len)
    }

    pub fn write(&mut self, queue: usize, sector: u64, data: &[u8]) -> u8 {
        self.request(queue, OUT, sector, data, 0).0
    }

    pub fn read(&mut self, queue: usize, sector: u64, len: usize) -> (u8, Vec<u8>) {
        let (status, _) = self.request(queue, IN, sector, &[], len);
        let data = self.ram.read(self.queues[queue].buffers + 0x1000, len);
        (status, data)
    }
}

pub fn ranges(list: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (sector, count, flags) in list {
        out.extend_from_slice(&sector.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
    }
    out
}
