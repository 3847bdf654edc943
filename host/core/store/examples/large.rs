// SPDX-License-Identifier: Apache-2.0
//! What page sizes, byte ranges and pages that come compressed cost and save.
//!
//! `cargo run --release -p tmem-store --example large FILE`: pages of FILE, 16 MiB of it. Medians
//! over rounds that alternate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::time::Instant;

use tmem_store::{Codec, DENSE_OBJECT, Get, Handle, NO_CAP, PAGE_SIZE, PoolSpec, Put, Store, StoreOptions};

const ALL: usize = 16 << 20;
const ROUNDS: usize = 7;
const SIZES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 2 << 20];

fn time(n: usize, f: impl FnOnce()) -> f64 {
    let t = Instant::now();
    f();
    t.elapsed().as_nanos() as f64 / n as f64
}

fn median(v: &mut [f64]) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn lz4(unit: &[u8], out: &mut [u8]) -> usize {
    let (src, dst) = (unit.as_ptr().cast(), out.as_mut_ptr().cast());
    // SAFETY: lengths as they are.
    unsafe { lz4_sys::LZ4_compress_default(src, dst, unit.len() as i32, out.len() as i32) as usize }
}

/// Ratio if units of that size were compressed by themselves.
fn ratio(data: &[u8], unit: usize, codec: Codec) -> f64 {
    let mut out = vec![0u8; 3 << 20];
    let sum: usize = data
        .chunks(unit)
        .map(|c| {
            let n = if codec == Codec::Lz4 {
                lz4(c, &mut out)
            } else {
                // SAFETY: lengths as they are.
                unsafe {
                    zstd_sys::ZSTD_compress(out.as_mut_ptr().cast(), out.len(), c.as_ptr().cast(), c.len(), 1)
                }
            };
            n.min(c.len())
        })
        .sum();
    data.len() as f64 / sum as f64
}

struct Arm {
    h: Handle,
    size: usize,
    put: Vec<f64>,
    get: Vec<f64>,
    read: Vec<f64>,
    write: Vec<f64>,
}

impl Arm {
    fn new(store: &Store, size: usize, spec: PoolSpec) -> Self {
        let vm = store.vm_create(&format!("vm-{size}-{}", spec.packed), 0, NO_CAP, 100).unwrap();
        let h = store.handle(vm, store.pool_create(vm, spec).unwrap()).unwrap();
        Self { h, size, put: vec![], get: vec![], read: vec![], write: vec![] }
    }

    fn round(&mut self, data: &[u8], x: &mut u64) {
        let (h, size, n) = (&self.h, self.size, ALL / self.size);
        let mut out = vec![0u8; size];
        let per = ALL / PAGE_SIZE;
        self.put.push(time(per, || {
            for (i, p) in data.chunks(size).enumerate() {
                // SAFETY: a page.
                assert_eq!(unsafe { h.put(&DENSE_OBJECT, i as u32, p.as_ptr()) }, Put::Stored);
            }
        }));
        self.get.push(time(per, || {
            for i in 0..n {
                // SAFETY: a page.
                assert_eq!(unsafe { h.get(&DENSE_OBJECT, i as u32, out.as_mut_ptr()) }, Get::Hit);
            }
        }));
        let mut any = || {
            *x ^= *x << 13;
            *x ^= *x >> 7;
            *x ^= *x << 17;
            ((*x >> 20) as usize % n, (*x >> 40) as usize % size / 64 * 64)
        };
        self.read.push(time(1000, || {
            for _ in 0..1000 {
                let (i, at) = any();
                // SAFETY: 64 bytes.
                let g = unsafe { h.read(&DENSE_OBJECT, i as u32, at, 64, out.as_mut_ptr()) };
                assert_eq!(g, Get::Hit);
            }
        }));
        self.write.push(time(300, || {
            for _ in 0..300 {
                let (i, at) = any();
                // SAFETY: 64 bytes.
                let p = unsafe { h.write(&DENSE_OBJECT, i as u32, at, 64, out.as_ptr()) };
                assert_eq!(p, Put::Stored);
            }
        }));
    }
}

fn main() {
    let mut data = std::fs::read(std::env::args().nth(1).expect("FILE")).unwrap();
    while data.len() < ALL {
        data.extend_from_within(..);
    }
    data.truncate(ALL);
    for size in SIZES {
        let [a, b] = [Codec::Lz4, Codec::Zstd].map(|c| ratio(&data, size, c));
        println!("units of {:4} KiB: lz4 {a:.3}, zstd {b:.3}", size >> 10);
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = StoreOptions { limit: 2 << 30, accept_loss: false, maintenance: false };
    let store = Store::open(&dir.path().join("arena"), options).unwrap();
    let dense = |size: usize| PoolSpec { page_size: size as u32, ..PoolSpec::dense((ALL / size) as u32) };
    let mut arms: Vec<_> = SIZES.iter().map(|&size| Arm::new(&store, size, dense(size))).collect();
    let packed = Arm::new(&store, PAGE_SIZE, PoolSpec { packed: true, ..dense(PAGE_SIZE) });
    let mut out = vec![0u8; 2 * PAGE_SIZE];
    let pages: Vec<_> = data
        .chunks(PAGE_SIZE)
        .map(|p| {
            let n = lz4(p, &mut out);
            out[..n].to_vec()
        })
        .filter(|p| p.len() < PAGE_SIZE)
        .collect();
    let (mut x, mut checked) = (1u64, vec![]);
    for _ in 0..ROUNDS {
        arms.iter_mut().for_each(|arm| arm.round(&data, &mut x));
        checked.push(time(pages.len(), || {
            for (i, p) in pages.iter().enumerate() {
                // SAFETY: as long as it says.
                let put = unsafe { packed.h.put_packed(&DENSE_OBJECT, i as u32, p.as_ptr(), p.len()) };
                assert_eq!(put, Put::Stored);
            }
        }));
    }
    for arm in &mut arms {
        let holding = &arm.h.pool().holding;
        let slots = holding.slots.load(std::sync::atomic::Ordering::Relaxed);
        println!(
            "pages of {:4} KiB: put {:.0}, get {:.0} ns for 4 KiB; 64 bytes: read {:.0} ns, write {:.0} ns; ratio {:.3}",
            arm.size >> 10,
            median(&mut arm.put),
            median(&mut arm.get),
            median(&mut arm.read),
            median(&mut arm.write),
            ALL as f64 / slots as f64,
        );
    }
    println!("put_packed: {:.0} ns a page of 4 KiB", median(&mut checked));
}
