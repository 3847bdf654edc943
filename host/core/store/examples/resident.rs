// SPDX-License-Identifier: Apache-2.0
//! Random gets of a store that holds many pages, one at a time and in batches, against a small one.
//!
//! `cargo run --release -p tmem-store --example resident [PAGES]` (default 2 million: 2 GB of memory
//! while it runs). Medians over rounds that alternate, nanoseconds a page.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::time::Instant;

use tmem_store::{DENSE_OBJECT, Get, Handle, NO_CAP, PAGE_SIZE, PageAt, PoolSpec, Put, Store, StoreOptions};

const SMALL: usize = 10_000;
const GETS: usize = 1 << 16;
const ROUNDS: usize = 9;
const BATCHES: [usize; 4] = [1, 4, 16, 128];

/// 704 random bytes, again and again: what decodes fast, so that memory shows.
fn page(i: usize, page: &mut [u8]) {
    let mut x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for c in page[..704].chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        c.copy_from_slice(&x.to_le_bytes());
    }
    let (start, rest) = page.split_at_mut(704);
    rest.chunks_mut(704).for_each(|c| c.copy_from_slice(&start[..c.len()]));
}

fn filled(store: &Store, name: &str, pages: usize) -> Handle {
    let vm = store.vm_create(name, 0, NO_CAP, 100).unwrap();
    let h = store.handle(vm, store.pool_create(vm, PoolSpec::dense(pages as u32)).unwrap()).unwrap();
    let mut p = vec![0u8; PAGE_SIZE];
    for i in 0..pages {
        page(i, &mut p);
        // SAFETY: a page.
        assert_eq!(unsafe { h.put(&DENSE_OBJECT, i as u32, p.as_ptr()) }, Put::Stored);
    }
    h
}

/// Nanoseconds a page of random gets, `batch` at a time (1: by `get`).
fn gets(h: &Handle, pages: usize, batch: usize, x: &mut u64, frames: &mut [u8]) -> f64 {
    let mut next = || {
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        ((*x >> 16) % pages as u64) as u32
    };
    let mut answers = vec![Get::Miss; batch];
    let t = Instant::now();
    for _ in 0..GETS / batch {
        if batch == 1 {
            // SAFETY: a page.
            assert_eq!(unsafe { h.get(&DENSE_OBJECT, next(), frames.as_mut_ptr()) }, Get::Hit);
            continue;
        }
        let batch: Vec<_> = frames
            .chunks_mut(PAGE_SIZE)
            .take(batch)
            .map(|f| PageAt { object: DENSE_OBJECT, index: next(), at: f.as_mut_ptr() })
            .collect();
        // SAFETY: a page each.
        unsafe { h.get_many(&batch, &mut answers) };
        assert!(answers.iter().all(|a| *a == Get::Hit));
    }
    t.elapsed().as_nanos() as f64 / GETS as f64
}

fn main() {
    let pages = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2_000_000usize);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = StoreOptions { limit: 64 << 30, accept_loss: false, maintenance: false };
    let store = Store::open(&dir.path().join("arena"), options).unwrap();
    let pools = [(filled(&store, "small", SMALL), SMALL), (filled(&store, "large", pages), pages)];
    store.maintain();
    let mut frames = vec![0u8; 128 * PAGE_SIZE];
    let mut seen = vec![vec![Vec::new(); BATCHES.len()]; 2];
    let mut x = 1u64;
    for _ in 0..ROUNDS {
        for (which, (h, n)) in pools.iter().enumerate() {
            for (b, &batch) in BATCHES.iter().enumerate() {
                seen[which][b].push(gets(h, *n, batch, &mut x, &mut frames));
            }
        }
    }
    let median = |v: &[f64]| {
        let mut v = v.to_vec();
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    for (b, batch) in BATCHES.iter().enumerate() {
        let (small, large) = (median(&seen[0][b]), median(&seen[1][b]));
        println!(
            "get, {batch:3} at a time: {SMALL} pages {small:.0}, {pages} pages {large:.0}: {:.2}",
            large / small
        );
    }
}
