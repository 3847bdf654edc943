// SPDX-License-Identifier: Apache-2.0
//! A page written to and read from a file on a disk: past the page cache, through it, and through
//! io_uring.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use io_uring::{IoUring, opcode, types};

use super::{Pages, Site, Work, scatter};
use crate::error::{ExitError, Result};
use crate::memory::PAGE;

/// A file whose pages have all been written once, so that every read goes to the disk.
#[derive(Clone)]
pub struct DiskSite {
    path: PathBuf,
    pages: usize,
}

impl DiskSite {
    /// Fills `path` with `pages` pages: page `i` is page `i` of the corpus.
    ///
    /// # Errors
    /// No room, no permission, or a file system that knows no O_DIRECT.
    pub fn new(path: &Path, pages: usize, corpus: &Pages) -> Result<Self> {
        let what = || format!("cannot write {}", path.display());
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .map_err(ExitError::io(what()))?;
        for i in 0..pages {
            transfer(&file, corpus.page(i), i, true).map_err(ExitError::io(what()))?;
        }
        file.sync_all().map_err(ExitError::io(what()))?;
        Ok(Self { path: path.into(), pages })
    }

    fn open(&self, direct: bool) -> Result<File> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&self.path)
            .map_err(ExitError::io(format!("cannot open {}", self.path.display())))
    }
}

/// Page `index` of the file to or from `page`.
pub(crate) fn transfer(file: &File, page: *mut u8, index: usize, write: bool) -> io::Result<()> {
    // SAFETY: a page of the guest's memory; no guest touches it while the host does.
    let bytes = unsafe { std::slice::from_raw_parts_mut(page, PAGE) };
    let at = (index * PAGE) as u64;
    if write { file.write_all_at(bytes, at) } else { file.read_exact_at(bytes, at) }
}

struct Plain {
    file: File,
    pages: Pages,
    count: usize,
    write: bool,
    last: usize,
}

impl Work for Plain {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        self.last = scatter(seq, self.count);
        let page = if self.write { self.pages.page(self.last) } else { self.pages.frame(0) };
        transfer(&self.file, page, self.last, self.write).map_err(|e| format!("the disk file: {e}"))
    }

    fn finish(&mut self) -> std::result::Result<super::Extra, String> {
        check(&self.file, &self.pages, self.last)
    }
}

/// The page last asked for, read again and compared.
fn check(file: &File, pages: &Pages, last: usize) -> std::result::Result<super::Extra, String> {
    transfer(file, pages.frame(0), last, false).map_err(|e| format!("the disk file: {e}"))?;
    if pages.same(0, last) {
        Ok(super::Extra::default())
    } else {
        Err(format!("page {last} of the disk file came back different from what was written"))
    }
}

struct Uring {
    ring: IoUring,
    plain: Plain,
}

impl Work for Uring {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        let p = &mut self.plain;
        p.last = scatter(seq, p.count);
        let fd = types::Fd(p.file.as_raw_fd());
        let at = (p.last * PAGE) as u64;
        let entry = if p.write {
            opcode::Write::new(fd, p.pages.page(p.last), PAGE as u32).offset(at).build()
        } else {
            opcode::Read::new(fd, p.pages.frame(0), PAGE as u32).offset(at).build()
        };
        let failed = |e: io::Error| format!("io_uring: {e}");
        // SAFETY: page and file outlive the request: it is waited for right here.
        unsafe { self.ring.submission().push(&entry) }.map_err(|e| format!("io_uring: {e}"))?;
        self.ring.submit_and_wait(1).map_err(failed)?;
        match self.ring.completion().next().map(|done| done.result()) {
            Some(n) if n == PAGE as i32 => Ok(()),
            Some(n) if n < 0 => Err(failed(io::Error::from_raw_os_error(-n))),
            other => Err(format!("io_uring: {other:?} bytes of a page")),
        }
    }

    fn finish(&mut self) -> std::result::Result<super::Extra, String> {
        self.plain.finish()
    }
}

/// The work of that name, if it is one of this file's.
pub(super) fn make(site: &Site, name: &str) -> Option<Result<Box<dyn Work>>> {
    let (way, op) = name.split_once('-')?;
    if !matches!(way, "disk" | "cached" | "uring") || !matches!(op, "write" | "read") {
        return None;
    }
    Some(build(site, way, op == "write"))
}

fn build(site: &Site, way: &str, write: bool) -> Result<Box<dyn Work>> {
    let disk = site.disk.as_ref().ok_or_else(|| ExitError::NotOffered("no disk file was given".into()))?;
    let file = disk.open(way != "cached")?;
    if way == "cached" {
        // All of it in the page cache beforehand, so that a read is a copy out of it.
        for i in 0..disk.pages {
            transfer(&file, site.pages.frame(0), i, false).map_err(ExitError::io("reading the disk file"))?;
        }
    }
    let plain = Plain { file, pages: site.pages.clone(), count: disk.pages, write, last: 0 };
    if way != "uring" {
        return Ok(Box::new(plain));
    }
    let ring = IoUring::new(8).map_err(|e| {
        ExitError::NotOffered(format!(
            "io_uring is not to be had here: {e} (kernel.io_uring_disabled, seccomp?)"
        ))
    })?;
    Ok(Box::new(Uring { ring, plain }))
}
