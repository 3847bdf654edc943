// SPDX-License-Identifier: Apache-2.0
//! Pools to a file and back: every page, also while they change; and files that are refused whole.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tmem_store::{Get, Handle, NO_CAP, PoolSpec, Put, Saved, Store, StoreOptions};

fn open(dir: &Path, name: &str, limit: u64) -> Store {
    Store::open(&dir.join(name), StoreOptions { limit, accept_loss: false, maintenance: true }).unwrap()
}

fn pool(store: &Store, name: &str, spec: PoolSpec) -> Handle {
    let vm = store.vm_create(name, 0, NO_CAP, 100).unwrap();
    store.handle(vm, store.pool_create(vm, spec).unwrap()).unwrap()
}

/// Zeroes, text that compresses, noise: by its number, and changed with `version`.
fn page(size: usize, n: u64, version: u64) -> Vec<u8> {
    let mut x = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let random = match n % 4 {
        0 => 0,
        1 => size,
        _ => size / 3,
    };
    let mut p = vec![version as u8; size];
    for c in p[..random].chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        c.copy_from_slice(&x.to_le_bytes()[..c.len()]);
    }
    p
}

fn put(h: &Handle, object: [u64; 3], i: u32, data: &[u8]) {
    // SAFETY: a page of the pool.
    assert_eq!(unsafe { h.put(&object, i, data.as_ptr()) }, Put::Stored);
}

fn get(h: &Handle, object: [u64; 3], i: u32) -> Option<Vec<u8>> {
    let mut p = vec![0u8; h.pool().page_size()];
    // SAFETY: a page of the pool.
    (unsafe { h.get(&object, i, p.as_mut_ptr()) } == Get::Hit).then_some(p)
}

fn saved(h: &Handle) -> Vec<u8> {
    let mut file = Vec::new();
    h.save(&mut file, 3, || Ok(())).unwrap();
    file
}

const DENSE: PoolSpec = PoolSpec::dense(1000);

#[test]
fn every_page_comes_back_in_another_store() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (one, two) = (open(dir.path(), "one", 64 << 20), open(dir.path(), "two", 64 << 20));
    let large = PoolSpec { page_size: 128 << 10, ..PoolSpec::sparse(true) };
    for (name, spec, objects) in
        [("dense", DENSE, 1), ("sparse", PoolSpec::sparse(true), 3), ("large", large, 2)]
    {
        let (from, to) = (pool(&one, name, spec), pool(&two, name, spec));
        let size = from.pool().page_size();
        let keys: Vec<_> = (0..objects).flat_map(|o| (0..50).map(move |i| ([o, 0, o * 7], i * 3))).collect();
        for (n, (object, i)) in keys.iter().enumerate() {
            put(&from, *object, *i, &page(size, n as u64, 1));
        }
        let file = saved(&from);
        let told = to.restore(&mut Cursor::new(&file)).unwrap();
        assert_eq!((told.pages, told.gone, told.left), (keys.len() as u64, 0, keys.len() as u64));
        for (n, (object, i)) in keys.iter().enumerate() {
            assert_eq!(get(&to, *object, *i), Some(page(size, n as u64, 1)), "{name}");
            assert_eq!(get(&from, *object, *i), Some(page(size, n as u64, 1)));
        }
        assert!(to.restore(&mut Cursor::new(&file)).is_err(), "it is not empty any more");
    }
}

#[test]
fn what_changes_meanwhile_is_in_the_file_as_it_stood_at_the_end() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (one, two) = (open(dir.path(), "one", 64 << 20), open(dir.path(), "two", 64 << 20));
    let (from, to) = (pool(&one, "web", DENSE), pool(&two, "web", DENSE));
    for i in 0..800 {
        put(&from, [0; 3], i, &page(4096, u64::from(i), 0));
    }
    let stop = AtomicBool::new(false);
    let mut file = Vec::new();
    let told = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut version = 1;
            while !stop.load(Relaxed) {
                for i in (0..1000).step_by(3) {
                    // Changed, made, and taken away.
                    match i % 2 {
                        _ if stop.load(Relaxed) => break,
                        0 => put(&from, [0; 3], i, &page(4096, u64::from(i), version)),
                        _ => drop(from.flush_page(&[0; 3], i)),
                    }
                }
                version += 1;
            }
        });
        // The guest stands still before the last pass.
        let told = from.save(&mut file, 4, || {
            stop.store(true, Relaxed);
            guest.join().unwrap();
            assert!(from.flush_page(&[0; 3], 4));
            Ok(())
        });
        told.unwrap()
    });
    assert!(told.passes >= 2 && told.gone > 0, "{told:?}");
    assert_eq!(to.restore(&mut Cursor::new(&file)).unwrap().left, told.left);
    for i in 0..1000 {
        assert_eq!(get(&to, [0; 3], i), get(&from, [0; 3], i), "page {i}");
    }
}

#[test]
fn what_is_damaged_anywhere_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), "arena", 64 << 20);
    let (from, to) = (pool(&store, "a", DENSE), pool(&store, "b", DENSE));
    for i in 0..8 {
        put(&from, [0; 3], i * 100, &page(4096, u64::from(i), 5));
    }
    let file = saved(&from);
    let refused = |file: &[u8]| {
        let found = to.restore(&mut Cursor::new(file));
        assert!(found.is_err());
        assert_eq!(to.pool().holding.pages.load(Relaxed), 0);
    };
    for at in (0..file.len()).step_by(13).chain(file.len() - 48..file.len()) {
        let mut bad = file.clone();
        bad[at] ^= 1 << (at % 8);
        refused(&bad);
        refused(&file[..at]);
    }
    refused(&[file.as_slice(), b"x"].concat());
    refused(&[&file[..file.len() - 48], &file[64..]].concat());
    refused(b"");
    assert_eq!(to.restore(&mut Cursor::new(&file)).unwrap().left, 8);
}

#[test]
fn pools_of_another_kind_take_none_of_it() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), "arena", 32 << 20);
    let from = pool(&store, "from", DENSE);
    for i in 0..500 {
        put(&from, [0; 3], i, &page(4096, 1, u64::from(i)));
    }
    let file = saved(&from);
    let large = PoolSpec { page_size: 8192, ..DENSE };
    for (name, spec) in [
        ("small", PoolSpec::dense(999)),
        ("sparse", PoolSpec::sparse(true)),
        ("large", large),
        ("cache", PoolSpec::sparse(false)),
    ] {
        assert!(pool(&store, name, spec).restore(&mut Cursor::new(&file)).is_err(), "{name}");
    }
    assert!(pool(&store, "cache2", PoolSpec::sparse(false)).save(&mut Vec::new(), 1, || Ok(())).is_err());
    // Without room: nothing stays.
    let vm = store.vm_create("capped", 0, 1 << 20, 100).unwrap();
    let capped = store.handle(vm, store.pool_create(vm, PoolSpec::dense(2000)).unwrap()).unwrap();
    let error = capped.restore(&mut Cursor::new(&file)).unwrap_err();
    assert_eq!(error.kind(), "no-space");
    assert_eq!((capped.vm().account.held(), capped.pool().holding.pages.load(Relaxed)), (0, 0));
    let bigger = pool(&store, "bigger", PoolSpec::dense(2000));
    assert_eq!(
        bigger.restore(&mut Cursor::new(&file)).unwrap(),
        Saved { pages: 500, left: 500, ..Saved::default() }
    );
}
