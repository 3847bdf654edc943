// SPDX-License-Identifier: Apache-2.0
//! What put and get of pages cost against bare lz4 of the same pages, rounds interleaved.
//!
//! `cargo run --release -p tmem-store --example cost [FILE]`: pages of FILE, else made ones that
//! compress about 2:1. Medians, nanoseconds a page.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::time::Instant;

use tmem_store::codec::Scratch;
use tmem_store::{Codec, DENSE_OBJECT, Get, NO_CAP, PAGE_SIZE, PoolSpec, Put, Store, StoreOptions};

const PAGES: usize = 4096;
const ROUNDS: usize = 15;

fn made() -> Vec<u8> {
    let mut x = 88172645463325252u64;
    let mut all = vec![0u8; PAGES * PAGE_SIZE];
    for page in all.chunks_mut(PAGE_SIZE) {
        for c in page[..PAGE_SIZE / 2].chunks_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            c.copy_from_slice(&x.to_le_bytes());
        }
    }
    all
}

fn time(f: impl FnOnce()) -> f64 {
    let t = Instant::now();
    f();
    t.elapsed().as_nanos() as f64 / PAGES as f64
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn main() {
    let mut data = match std::env::args().nth(1) {
        Some(path) => std::fs::read(path).unwrap(),
        None => made(),
    };
    while data.len() < PAGES * PAGE_SIZE {
        data.extend_from_within(..);
    }
    data.truncate(PAGES * PAGE_SIZE);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = StoreOptions { limit: 1 << 30, accept_loss: false, maintenance: false };
    let store = Store::open(&dir.path().join("arena"), options).unwrap();
    let vm = store.vm_create("vm", 0, NO_CAP, 100).unwrap();
    let spec = PoolSpec::dense(PAGES as u32);
    let h = store.handle(vm, store.pool_create(vm, spec).unwrap()).unwrap();
    let mut scratch = Scratch::new();
    let packed: Vec<_> = data
        .chunks(PAGE_SIZE)
        .map(|p| {
            // SAFETY: a page.
            unsafe { scratch.compress(Codec::Lz4, p.as_ptr()) }.map(|(e, d)| (e, d.to_vec()))
        })
        .collect();
    let mut out = vec![0u8; PAGE_SIZE];
    let (mut bare, mut put, mut unbare, mut get) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        bare.push(time(|| {
            for p in data.chunks(PAGE_SIZE) {
                // SAFETY: a page.
                std::hint::black_box(unsafe { scratch.compress(Codec::Lz4, p.as_ptr()) });
            }
        }));
        put.push(time(|| {
            for (i, p) in data.chunks(PAGE_SIZE).enumerate() {
                // SAFETY: a page.
                assert_eq!(unsafe { h.put(&DENSE_OBJECT, i as u32, p.as_ptr()) }, Put::Stored);
            }
        }));
        unbare.push(time(|| {
            for (encoding, d) in packed.iter().flatten() {
                // SAFETY: a page.
                assert!(unsafe { scratch.decompress(*encoding, d, out.as_mut_ptr()) });
            }
        }));
        get.push(time(|| {
            for i in 0..PAGES {
                // SAFETY: a page.
                assert_eq!(unsafe { h.get(&DENSE_OBJECT, i as u32, out.as_mut_ptr()) }, Get::Hit);
            }
        }));
    }
    let best = |v: &[f64]| v.iter().copied().fold(f64::MAX, f64::min);
    println!(
        "put {:.0} over lz4 {:.0}: {:.3} (best {:.3})",
        median(put.clone()),
        median(bare.clone()),
        median(put.clone()) / median(bare.clone()),
        best(&put) / best(&bare)
    );
    println!(
        "get {:.0} over lz4 {:.0}: {:.3} (best {:.3})",
        median(get.clone()),
        median(unbare.clone()),
        median(get.clone()) / median(unbare.clone()),
        best(&get) / best(&unbare)
    );
}
