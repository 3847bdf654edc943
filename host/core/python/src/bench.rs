// SPDX-License-Identifier: Apache-2.0
//! Timing loops for the benches: no Python inside a sample. A sample is nanoseconds a page, the
//! mean over one batch of pages, so that the clock (some 25 ns) does not count.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use pyo3::prelude::*;
use tmem_store::codec::{Encoding, Scratch};
use tmem_store::{Codec, DENSE_OBJECT, Get, PAGE_SIZE, PoolId, Put};

use crate::error::core_error;
use crate::store::PyStore;

fn invalid(message: impl Into<String>) -> PyErr {
    core_error("invalid", message.into())
}

/// Pages aligned as a block device wants them.
struct Pages {
    base: *mut u8,
    count: usize,
}

// SAFETY: plain memory that only its owner touches.
unsafe impl Send for Pages {}

impl Pages {
    fn layout(count: usize) -> Result<std::alloc::Layout, String> {
        std::alloc::Layout::from_size_align(count.max(1) * PAGE_SIZE, PAGE_SIZE).map_err(|e| e.to_string())
    }

    fn zeroed(count: usize) -> Result<Self, String> {
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(Self::layout(count)?) };
        if base.is_null() { Err("no memory".into()) } else { Ok(Self { base, count }) }
    }

    fn of(bytes: &[u8]) -> PyResult<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(PAGE_SIZE) {
            return Err(invalid("pages must be one or more of 4096 bytes"));
        }
        let pages = Self::zeroed(bytes.len() / PAGE_SIZE).map_err(invalid)?;
        // SAFETY: just allocated with that size.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pages.base, bytes.len()) };
        Ok(pages)
    }

    fn at(&self, i: usize) -> *mut u8 {
        // SAFETY: reduced to the count.
        unsafe { self.base.add(i % self.count * PAGE_SIZE) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Ok(layout) = Self::layout(self.count) {
            // SAFETY: allocated with this layout.
            unsafe { std::alloc::dealloc(self.base, layout) };
        }
    }
}

/// Runs `f(i)` for `rounds` batches; nanoseconds a page for each batch.
fn samples(
    rounds: usize,
    batch: usize,
    mut f: impl FnMut(usize) -> Result<(), String>,
) -> Result<Vec<f64>, String> {
    let mut out = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let t = Instant::now();
        for i in 0..batch {
            f(round * batch + i)?;
        }
        out.push(t.elapsed().as_nanos() as f64 / batch as f64);
    }
    Ok(out)
}

/// The `i`-th of `n` in an order that visits each once: an odd multiplier modulo a power of two,
/// or a multiplier coprime to `n` by construction for others.
fn scattered(i: usize, n: usize) -> usize {
    // A prime above 2^32, so coprime to every n below it.
    const PRIME: u128 = 4_294_967_311;
    ((i as u128 % n as u128) * PRIME % n as u128) as usize
}

fn check(rounds: usize, batch: usize) -> PyResult<()> {
    if rounds == 0 || batch == 0 {
        return Err(invalid("rounds and batch must be at least 1"));
    }
    Ok(())
}

/// put, get or flush through the store. Indices run over `span` (default: the pool's capacity)
/// in sequence or scattered; page `index` is `pages[index % n]`.
#[pyfunction]
#[pyo3(signature = (store, pool, pages, *, op, rounds, batch, order = "sequential", span = None, start = 0))]
#[allow(clippy::too_many_arguments)] // One keyword argument each, as Python callers see it.
pub fn bench_store(
    py: Python<'_>,
    store: &PyStore,
    pool: PoolId,
    pages: &[u8],
    op: &str,
    rounds: usize,
    batch: usize,
    order: &str,
    span: Option<u32>,
    start: usize,
) -> PyResult<Vec<f64>> {
    check(rounds, batch)?;
    let handle = store.handle(pool)?;
    let Some(capacity) = handle.pool().spec.pages else {
        return Err(invalid("bench_store wants a dense pool"));
    };
    if handle.pool().page_size() != PAGE_SIZE {
        return Err(invalid("bench_store wants pages of 4096 bytes"));
    }
    let span = span.unwrap_or(capacity).min(capacity) as usize;
    if span == 0 {
        return Err(invalid("span must be at least 1"));
    }
    let pages = Pages::of(pages)?;
    let random = match order {
        "sequential" => false,
        "random" => true,
        _ => return Err(invalid("order is sequential or random")),
    };
    let place = move |i: usize| {
        let i = i + start;
        if random { scattered(i, span) } else { i % span }
    };
    let op = op.to_owned();
    py.detach(move || match op.as_str() {
        "put" => samples(rounds, batch, |i| {
            let index = place(i);
            // SAFETY: a page of ours.
            match unsafe { handle.put(&DENSE_OBJECT, index as u32, pages.at(index)) } {
                Put::Stored => Ok(()),
                other => Err(format!("put of page {index} was refused: {other:?}")),
            }
        }),
        "get" => {
            let out = Pages::zeroed(1)?;
            samples(rounds, batch, |i| {
                let index = place(i);
                // SAFETY: a page of ours.
                match unsafe { handle.get(&DENSE_OBJECT, index as u32, out.at(0)) } {
                    Get::Hit => Ok(()),
                    other => Err(format!("get of page {index} answered {other:?}")),
                }
            })
        }
        "flush" => samples(rounds, batch, |i| {
            handle.flush_page(&DENSE_OBJECT, place(i) as u32);
            Ok(())
        }),
        "verify" => {
            let out = Pages::zeroed(1)?;
            samples(rounds, batch, |i| {
                let index = place(i);
                // SAFETY: pages of ours, compared after the get.
                let same = unsafe {
                    handle.get(&DENSE_OBJECT, index as u32, out.at(0)) == Get::Hit
                        && std::slice::from_raw_parts(out.at(0), PAGE_SIZE)
                            == std::slice::from_raw_parts(pages.at(index), PAGE_SIZE)
                };
                if same { Ok(()) } else { Err(format!("page {index} came back different")) }
            })
        }
        _ => Err("op is put, get, flush or verify".into()),
    })
    .map_err(invalid)
}

/// Bare compression of the same pages, nothing kept: "lz4" is LZ4_compress_default as everybody
/// calls it, "lz4-reused" the call that reuses its state, as the store does, "zstd" one context at
/// the store's level, "memcpy" a copy.
#[pyfunction]
#[pyo3(signature = (pages, *, codec, op, rounds, batch))]
pub fn bench_codec(
    py: Python<'_>,
    pages: &[u8],
    codec: &str,
    op: &str,
    rounds: usize,
    batch: usize,
) -> PyResult<Vec<f64>> {
    check(rounds, batch)?;
    let pages = Pages::of(pages)?;
    let (codec, op) = (codec.to_owned(), op.to_owned());
    py.detach(move || match (codec.as_str(), op.as_str()) {
        ("memcpy", "compress" | "decompress") => {
            let out = Pages::zeroed(1)?;
            samples(rounds, batch, |i| {
                // SAFETY: pages of ours, apart from each other.
                unsafe { std::ptr::copy_nonoverlapping(pages.at(i), out.at(0), PAGE_SIZE) };
                std::hint::black_box(out.at(0));
                Ok(())
            })
        }
        ("lz4", "compress") => {
            let out = Pages::zeroed(2)?;
            samples(rounds, batch, |i| {
                // SAFETY: sizes as given.
                let n = unsafe {
                    lz4_sys::LZ4_compress_default(
                        pages.at(i).cast(),
                        out.base.cast(),
                        PAGE_SIZE as c_int,
                        2 * PAGE_SIZE as c_int,
                    )
                };
                if n > 0 { Ok(()) } else { Err("lz4 failed".into()) }
            })
        }
        ("lz4-reused" | "zstd", "compress") => {
            let codec = if codec == "zstd" { Codec::Zstd } else { Codec::Lz4 };
            let mut scratch = Scratch::new();
            samples(rounds, batch, |i| {
                // SAFETY: a page of ours.
                std::hint::black_box(unsafe { scratch.compress(codec, pages.at(i)) });
                Ok(())
            })
        }
        ("lz4" | "lz4-reused" | "zstd", "decompress") => {
            let codec = if codec == "zstd" { Codec::Zstd } else { Codec::Lz4 };
            let mut scratch = Scratch::new();
            let packed: Vec<(Encoding, Vec<u8>)> = (0..pages.count)
                .map(|i| {
                    // SAFETY: a page of ours.
                    match unsafe { scratch.compress(codec, pages.at(i)) } {
                        Some((encoding, data)) => (encoding, data.to_vec()),
                        // SAFETY: as above.
                        None => (Encoding::Raw, unsafe {
                            std::slice::from_raw_parts(pages.at(i), PAGE_SIZE).to_vec()
                        }),
                    }
                })
                .collect();
            let out = Pages::zeroed(1)?;
            samples(rounds, batch, |i| {
                let (encoding, data) = &packed[i % packed.len()];
                // SAFETY: a page of ours.
                if unsafe { scratch.decompress(*encoding, data, out.at(0)) } {
                    Ok(())
                } else {
                    Err("decompression failed".into())
                }
            })
        }
        _ => Err("codec is lz4, lz4-reused, zstd or memcpy, op compress or decompress".into()),
    })
    .map_err(invalid)
}

/// 4 KiB pwrite or pread with O_DIRECT on a block device or file, one at a time; page `i` lies at
/// `i * 4096`.
#[pyfunction]
#[pyo3(signature = (path, pages, *, op, rounds, batch))]
pub fn bench_block(
    py: Python<'_>,
    path: &str,
    pages: &[u8],
    op: &str,
    rounds: usize,
    batch: usize,
) -> PyResult<Vec<f64>> {
    check(rounds, batch)?;
    let pages = Pages::of(pages)?;
    let write = match op {
        "put" => true,
        "get" => false,
        _ => return Err(invalid("op is put or get")),
    };
    let path = path.to_owned();
    py.detach(move || {
        let file = OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(&path)?;
        let out = Pages::zeroed(1).map_err(io::Error::other)?;
        samples(rounds, batch, |i| {
            let offset = (i % pages.count * PAGE_SIZE) as libc::off_t;
            transfer(&file, if write { pages.at(i) } else { out.at(0) }, offset, write)
                .map_err(|e| e.to_string())
        })
        .map_err(io::Error::other)
    })
    .map_err(|e| core_error("io", format!("{op} on the block device: {e}")))
}

fn transfer(file: &File, page: *mut u8, offset: libc::off_t, write: bool) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: a page of ours.
    let n = unsafe {
        if write {
            libc::pwrite(fd, page.cast(), PAGE_SIZE, offset)
        } else {
            libc::pread(fd, page.cast(), PAGE_SIZE, offset)
        }
    };
    match usize::try_from(n) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(PAGE_SIZE) => Ok(()),
        Ok(n) => Err(io::Error::other(format!("{n} bytes of a page"))),
    }
}
