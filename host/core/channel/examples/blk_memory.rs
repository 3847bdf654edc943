// SPDX-License-Identifier: Apache-2.0
//! Serves a device of plain memory over vhost-user-blk, for trying the channel without a store:
//!
//! ```text
//! cargo run --release --example blk_memory -- /tmp/blk.sock [MIB] [POLL_US] [QUEUES] [null]
//! ```
//!
//! `null` keeps nothing: what the channel itself costs. Counters are printed when the input ends.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::process::ExitCode;
use std::sync::Arc;

use tmem_channel::{BlkConfig, BlkServer, GetResult, PAGE_SIZE, PageBackend, PollPolicy, PutResult};

/// A flat array of pages; absent pages are zero pages. Tearing between concurrent requests for the same page
/// is the guest's affair, as on a disk.
struct Flat {
    base: *mut u8,
    pages: u64,
    keep: bool,
}

// SAFETY: base is a private allocation, only copied from and to.
unsafe impl Send for Flat {}
// SAFETY: as above.
unsafe impl Sync for Flat {}

impl Flat {
    fn layout(pages: u64) -> Option<Layout> {
        let bytes = usize::try_from(pages).ok()?.checked_mul(PAGE_SIZE)?;
        Layout::from_size_align(bytes, PAGE_SIZE).ok().filter(|layout| layout.size() > 0)
    }

    fn new(pages: u64, keep: bool) -> Option<Flat> {
        let layout = Flat::layout(pages)?;
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        Some(Flat { base, pages, keep })
    }

    fn at(&self, index: u64) -> *mut u8 {
        // SAFETY: the channel keeps index below pages().
        unsafe { self.base.add(index as usize * PAGE_SIZE) }
    }
}

impl Drop for Flat {
    fn drop(&mut self) {
        if let Some(layout) = Flat::layout(self.pages) {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.base, layout) };
        }
    }
}

impl PageBackend for Flat {
    fn pages(&self) -> u64 {
        self.pages
    }

    unsafe fn put(&self, index: u64, src: *const u8) -> PutResult {
        if self.keep {
            // SAFETY: by contract of put().
            unsafe { std::ptr::copy_nonoverlapping(src, self.at(index), PAGE_SIZE) };
        }
        PutResult::Stored
    }

    unsafe fn get(&self, index: u64, dst: *mut u8) -> GetResult {
        if self.keep {
            // SAFETY: by contract of get().
            unsafe { std::ptr::copy_nonoverlapping(self.at(index), dst, PAGE_SIZE) };
        }
        GetResult::Hit
    }

    fn write_part(&self, index: u64, offset: usize, data: &[u8]) -> PutResult {
        // SAFETY: offset + data.len() is at most a page.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at(index).add(offset), data.len()) };
        PutResult::Stored
    }

    fn flush(&self, index: u64, count: u64) {
        // SAFETY: the channel keeps the range on the device.
        unsafe { self.at(index).write_bytes(0, count as usize * PAGE_SIZE) };
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(socket) = args.first() else {
        eprintln!("usage: blk_memory SOCKET [MIB] [POLL_US] [QUEUES] [null]");
        return ExitCode::from(2);
    };
    let number = |at: usize, default: u64| args.get(at).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let Some(backend) = Flat::new(number(1, 64) << 8, args.get(4).map(String::as_str) != Some("null")) else {
        eprintln!("blk_memory: the device must have at least 1 MiB and fit in memory");
        return ExitCode::from(2);
    };
    let poll = match number(2, 0) as u32 {
        0 => PollPolicy::Events,
        max_us => PollPolicy::Adaptive { max_us },
    };
    let config = BlkConfig {
        socket: socket.into(),
        queues: number(3, 1) as u16,
        queue_size: 128,
        poll,
        serial: "tmem-memory".into(),
        read_only: false,
    };
    match BlkServer::start(config, Arc::new(backend)) {
        Ok(server) => {
            println!("serving {socket}; end the input to stop");
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            println!("{:#?}", server.stats());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("blk_memory: {error}");
            ExitCode::FAILURE
        }
    }
}
