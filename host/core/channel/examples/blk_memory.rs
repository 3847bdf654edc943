// SPDX-License-Identifier: Apache-2.0
//! Serves a device over vhost-user-blk from a plain file, for trying the channel without a store:
//!
//! ```text
//! cargo run --release --example blk_memory -- /tmp/blk.sock [MIB] [POLL_US] [QUEUES] [null | FILE]
//! ```
//!
//! Without FILE the pages lie in an unnamed file in memory; a FILE outlives the process, so that it can be killed
//! and started again under a guest. `null` keeps nothing: what the channel itself costs. Counters are printed when
//! the input ends.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;

use tmem_channel::{BlkConfig, BlkServer, GetResult, PAGE_SIZE, PageBackend, PollPolicy, PutResult};

struct Flat {
    file: Option<File>,
    pages: u64,
}

impl Flat {
    fn open(place: Option<&str>, pages: u64) -> io::Result<Flat> {
        let file = match place {
            Some("null") => return Ok(Flat { file: None, pages }),
            Some(path) => File::options().read(true).write(true).create(true).truncate(false).open(path)?,
            None => {
                // SAFETY: a C string; the descriptor is checked before it is owned.
                let fd = unsafe { libc::memfd_create(c"pages".as_ptr(), libc::MFD_CLOEXEC) };
                if fd < 0 {
                    return Err(io::Error::last_os_error());
                }
                // SAFETY: fd was just made and belongs to nobody else.
                unsafe { File::from_raw_fd(fd) }
            }
        };
        file.set_len(pages * PAGE_SIZE as u64)?;
        Ok(Flat { file: Some(file), pages })
    }

    fn write(&self, at: u64, data: &[u8]) -> PutResult {
        match self.file.as_ref().map(|file| file.write_all_at(data, at)) {
            Some(Err(_)) => PutResult::Failed,
            _ => PutResult::Stored,
        }
    }
}

impl PageBackend for Flat {
    fn pages(&self) -> u64 {
        self.pages
    }

    unsafe fn put(&self, index: u64, src: *const u8) -> PutResult {
        // SAFETY: by contract of put(); only the kernel reads through the slice.
        let page = unsafe { std::slice::from_raw_parts(src, PAGE_SIZE) };
        self.write(index * PAGE_SIZE as u64, page)
    }

    unsafe fn get(&self, index: u64, dst: *mut u8) -> GetResult {
        let Some(file) = &self.file else { return GetResult::Hit };
        // SAFETY: by contract of get(); only the kernel writes through the slice.
        let page = unsafe { std::slice::from_raw_parts_mut(dst, PAGE_SIZE) };
        match file.read_exact_at(page, index * PAGE_SIZE as u64) {
            Ok(()) => GetResult::Hit,
            Err(_) => GetResult::Lost,
        }
    }

    fn write_part(&self, index: u64, offset: usize, data: &[u8]) -> PutResult {
        self.write(index * PAGE_SIZE as u64 + offset as u64, data)
    }

    fn flush(&self, index: u64, count: u64) {
        for page in index..index + count {
            self.write(page * PAGE_SIZE as u64, &[0; PAGE_SIZE]);
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(socket) = args.first() else {
        eprintln!("usage: blk_memory SOCKET [MIB] [POLL_US] [QUEUES] [null | FILE]");
        return ExitCode::from(2);
    };
    let number = |at: usize, default: u64| args.get(at).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let backend = match Flat::open(args.get(4).map(String::as_str), number(1, 64) << 8) {
        Ok(backend) => backend,
        Err(error) => {
            eprintln!("blk_memory: cannot make the file for the pages: {error}");
            return ExitCode::FAILURE;
        }
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
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            println!("{:#?}", server.stats());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("blk_memory: {error}");
            ExitCode::FAILURE
        }
    }
}
