// SPDX-License-Identifier: Apache-2.0
//! Recovery of an arena that was damaged anywhere.
//!
//! The input is a list of edits to a small valid arena: XOR of a byte somewhere, a run of bytes, a
//! cut. Opening either refuses in one line, or serves every page as it was, as lost, or (only for
//! pages whose record the edit turned to plain zeroes) not at all; it never panics, never serves a
//! page under another key, and the next opening agrees with the first.
//!
//! Run: `RUSTC_BOOTSTRAP=1 cargo fuzz run recovery -- -max_total_time=600 -detect_leaks=0` in `host/core/store`.
#![no_main]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tmem_store::{DENSE_OBJECT, Get, NO_CAP, PAGE_SIZE, PoolSpec, Put, Store, StoreOptions};

const PAGES: u32 = 160;
const OPTIONS: StoreOptions = StoreOptions { limit: 8 << 20, accept_loss: true, maintenance: false };

/// The third pool's pages are of two units.
const LARGE: u32 = 6;
const LARGE_SIZE: usize = 128 << 10;

fn pages(pool: u64) -> u32 {
    if pool == 2 { LARGE } else { PAGES }
}

fn page(pool: u64, i: u32) -> Vec<u8> {
    if pool == 2 {
        // Units of small pages that differ, so that the image stays small.
        return (0..LARGE_SIZE / PAGE_SIZE).flat_map(|n| page(3, i * 5 + 1 + n as u32 / 16)).collect();
    }
    let mut x = (u64::from(i) << 8 | pool | 1 << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut p = vec![0u8; PAGE_SIZE];
    for c in p[..[8, 200, 300, 2000, PAGE_SIZE][i as usize % 5]].chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        c.copy_from_slice(&x.to_le_bytes()[..c.len()]);
    }
    p
}

fn object(pool: u64, i: u32) -> [u64; 3] {
    if pool == 1 { [u64::from(i % 3), 5, 6] } else { DENSE_OBJECT }
}

/// The bytes of the valid arena where there are any: (offset, 4 KiB).
type Image = Vec<(u64, Vec<u8>)>;

struct Fixture {
    path: PathBuf,
    image: Image,
    len: u64,
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let path = Path::new("/dev/shm").join(format!("tmem-fuzz-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        {
            let store = Store::open(&path, OPTIONS).unwrap();
            let vm = store.vm_create("vm", 0, NO_CAP, 100).unwrap();
            let large = PoolSpec { page_size: LARGE_SIZE as u32, ..PoolSpec::dense(LARGE) };
            for (pool, spec) in [(0u64, PoolSpec::dense(PAGES)), (1, PoolSpec::sparse(true)), (2, large)] {
                let h = store.handle(vm, store.pool_create(vm, spec).unwrap()).unwrap();
                for i in 0..pages(pool) {
                    let p = page(pool, i);
                    // SAFETY: a page.
                    assert_eq!(unsafe { h.put(&object(pool, i), i, p.as_ptr()) }, Put::Stored);
                }
            }
        }
        let file = File::open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        let mut image = Vec::new();
        for offset in (0..len).step_by(4096) {
            let mut b = vec![0u8; 4096];
            file.read_exact_at(&mut b, offset).unwrap();
            if b.iter().any(|&x| x != 0) {
                image.push((offset, b));
            }
        }
        Fixture { path, image, len }
    })
}

/// Answers for all keys, in order; wrong data panics.
fn look(store: &Store) -> Option<Vec<Get>> {
    let vm = store.vm("vm").ok()?;
    let mut answers = Vec::new();
    for pool in store.pools() {
        let Ok(h) = store.handle(vm.id, pool.id) else { continue };
        let n = match (pool.spec.pages, pool.page_size()) {
            (None, _) => 1,
            (Some(_), PAGE_SIZE) => 0,
            (Some(_), _) => 2,
        };
        for i in 0..pages(n) {
            let mut p = vec![0u8; pool.page_size()];
            // SAFETY: a page.
            let g = unsafe { h.get(&object(n, i), i, p.as_mut_ptr()) };
            assert!(g != Get::Hit || p == page(n, i), "wrong data in pool {n} under {i}");
            answers.push(g);
        }
    }
    Some(answers)
}

fuzz_target!(|data: &[u8]| {
    let fixture = fixture();
    let _ = std::fs::remove_file(&fixture.path);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&fixture.path).unwrap();
    file.set_len(fixture.len).unwrap();
    for (offset, bytes) in &fixture.image {
        file.write_all_at(bytes, *offset).unwrap();
    }
    let mut zeroed = false;
    for edit in data.chunks_exact(6).take(64) {
        let place = u16::from_le_bytes([edit[1], edit[2]]) as usize;
        let (offset, bytes) = &fixture.image[place % fixture.image.len()];
        let within = u16::from_le_bytes([edit[3], edit[4]]) as usize % 4096;
        let mut run = bytes[within..].to_vec();
        run.truncate(1 + edit[0] as usize % 16);
        match edit[0] >> 6 {
            0 | 1 => run[..1].iter_mut().for_each(|b| *b ^= edit[5] | 1),
            2 => run.iter_mut().for_each(|b| *b = edit[5]),
            _ if edit[0] == 0xff => {
                file.set_len((u64::from(edit[5]) << 16 | place as u64).min(fixture.len)).unwrap();
                continue;
            }
            _ => run.iter_mut().for_each(|b| *b ^= edit[5] | 1),
        }
        zeroed |= run.iter().zip(&bytes[within..]).any(|(new, old)| *new == 0 && *old != 0);
        file.write_all_at(&run, offset + within as u64).unwrap();
    }
    let Ok(store) = Store::open(&fixture.path, OPTIONS) else { return };
    let first = look(&store);
    let suspect = store.pools().iter().any(|p| p.damaged());
    drop(store);
    if let Some(answers) = &first {
        // Something is missing: then the pools know, unless records were wiped to zeroes.
        let missing = answers.contains(&Get::Miss);
        assert!(!missing || zeroed, "a page vanished unnoticed");
        assert!(suspect || zeroed || answers.iter().all(|g| *g == Get::Hit));
    }
    let second = Store::open(&fixture.path, OPTIONS).ok().and_then(|s| look(&s));
    assert_eq!(first, second, "two openings disagree");
});
