// SPDX-License-Identifier: Apache-2.0
//! Many VMs, one store: shared pools, threads, and memory that follows what is kept.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use common::vms::{CACHE, SWAP, get, noise, open, put, vm_with};
use tmem_store::{Codec, DENSE_OBJECT, Get, NO_CAP, PAGE_SIZE, PoolSpec, Put, Store};

/// Sets a flag at the end of a scope, also when an assertion ends it: nobody waits for ever.
struct Raise<'a>(&'a AtomicBool);
impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_pool_that_is_flushed_stays_and_gives_its_memory_back() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 16 << 20);
    for spec in [SWAP, CACHE, PoolSpec::sparse(true)] {
        let name = format!("{:?}{}", spec.pages, spec.persistent);
        let (one, other) =
            (vm_with(&store, &name, 0, 100, spec), vm_with(&store, &format!("o{name}"), 0, 1, spec));
        for i in 0..100 {
            assert_eq!(put(&one, 0, i, &noise(1, PAGE_SIZE)), Put::Stored);
            assert_eq!(put(&other, 0, i, &noise(2, PAGE_SIZE)), Put::Stored);
        }
        assert_eq!(store.pool_flush(one.pool().id).unwrap(), 100);
        assert_eq!(store.pool_flush(one.pool().id).unwrap(), 0);
        assert_eq!((one.vm().account.held(), one.vm().account.freeable()), (0, 0));
        assert!((0..100).all(|i| get(&one, 0, i).0 == Get::Miss && get(&other, 0, i).0 == Get::Hit));
        assert_eq!(put(&one, 0, 7, &noise(3, PAGE_SIZE)), Put::Stored);
        assert_eq!(get(&one, 0, 7), (Get::Hit, noise(3, PAGE_SIZE)));
    }
    assert!(store.pool_flush(99).is_err());
}

#[test]
fn a_shared_pool_is_one_pool_and_outlives_a_member() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 16 << 20);
    let spec = PoolSpec { shared: Some([3; 16]), ..CACHE };
    let a = vm_with(&store, "a", 0, 100, spec);
    let b = vm_with(&store, "b", 0, 100, spec);
    let page = noise(5, 1000);
    assert_eq!(put(&a, 9, 1, &page), Put::Stored);
    assert_eq!(get(&b, 9, 1), (Get::Hit, page.clone()));
    assert_eq!(get(&b, 9, 1), (Get::Hit, page.clone()), "a shared get takes nothing away");
    store.vm_remove("a").unwrap();
    assert_eq!(get(&b, 9, 1), (Get::Hit, page));
    store.vm_remove("b").unwrap();
    assert_eq!(store.totals().pages, 0);
}

#[test]
fn a_shared_pool_wants_authorisation_that_is_remembered() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let uuid = |n: u8| [n; 16];
    let spec = |n| PoolSpec { shared: Some(uuid(n)), ..CACHE };
    let mut store = open(dir.path(), 16 << 20);
    for name in ["a", "b"] {
        store.vm_create(name, 0, NO_CAP, 100).unwrap();
    }
    let id = |store: &Store, name: &str| store.vm(name).unwrap().id;
    let refused = |store: &Store, name: &str, n| {
        store.pool_create(id(store, name), spec(n)).err().is_some_and(|e| e.kind() == "not-authorised")
    };
    assert!(refused(&store, "a", 3), "not by default");
    store.shared_authorise("a", uuid(3), true).unwrap();
    store.shared_authorise("a", uuid(3), true).unwrap();
    assert!(refused(&store, "a", 4) && refused(&store, "b", 3), "one VM, one uuid");
    store.pool_create(id(&store, "a"), spec(3)).unwrap();
    for n in 0..15 {
        store.shared_authorise("b", uuid(100 + n), true).unwrap();
    }
    store.shared_authorise("b", uuid(3), true).unwrap();
    assert_eq!(store.shared_authorise("b", uuid(4), true).err().unwrap().kind(), "no-space");
    store.shared_authorise("b", uuid(107), false).unwrap();
    store.shared_authorise("b", uuid(107), false).unwrap();
    store.shared_authorise("b", uuid(4), true).unwrap();
    assert_eq!(store.shared_authorise("c", uuid(4), true).err().unwrap().kind(), "not-found");
    for _ in 0..2 {
        drop(store);
        store = open(dir.path(), 16 << 20);
        let mut now = store.vm("b").unwrap().authorised();
        now.sort_unstable();
        let all = (0..15).map(|n| 100 + n).filter(|n| *n != 107);
        assert_eq!(now, [3, 4].into_iter().chain(all).map(uuid).collect::<Vec<_>>());
        assert!(refused(&store, "b", 107));
        store.pool_create(id(&store, "b"), spec(3)).unwrap();
    }
    // Taken away: no new pool; what was joined stays until it is left.
    store.shared_authorise("b", uuid(3), false).unwrap();
    let pool = store.pools()[0].id;
    assert!(store.handle(id(&store, "b"), pool).is_ok());
    store.pool_destroy(id(&store, "b"), pool).unwrap();
    assert!(refused(&store, "b", 3));
    // A new VM in an old one's place of the table has nothing of it.
    store.vm_remove("a").unwrap();
    store.vm_create("a", 0, NO_CAP, 100).unwrap();
    assert!(refused(&store, "a", 3) && store.vm("a").unwrap().authorised().is_empty());
}

#[test]
fn threads_of_two_vms_on_one_key_space() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 64 << 20);
    let a = vm_with(&store, "a", 0, 100, SWAP);
    let b = vm_with(&store, "b", 0, 100, SWAP);
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let h = if t % 2 == 0 { &a } else { &b };
            let owner = t % 2;
            s.spawn(move || {
                let mut x = t + 1;
                for _ in 0..60_000 {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    // Both threads of a VM fight over few keys; a page says key and owner.
                    let i = (x % 97) as u32;
                    let mut page = noise(x, (x >> 32) as usize % PAGE_SIZE);
                    page[..8].copy_from_slice(&u64::from(i).to_le_bytes());
                    page[8..16].copy_from_slice(&owner.to_le_bytes());
                    match x % 5 {
                        0 => drop(h.flush_page(&DENSE_OBJECT, i)),
                        1 | 2 => assert_eq!(put(h, 0, i, &page), Put::Stored),
                        _ => {
                            let (g, data) = get(h, 0, i);
                            if g == Get::Hit {
                                assert_eq!(data[..8], u64::from(i).to_le_bytes());
                                assert_eq!(data[8..16], owner.to_le_bytes());
                            } else {
                                assert_eq!(g, Get::Miss);
                            }
                        }
                    }
                }
            });
        }
        s.spawn(|| (0..300).for_each(|_| _ = store.maintain()));
    });
    let sum: u64 = store.vms().iter().map(|v| v.account.held()).sum();
    assert_eq!(sum, store.totals().slots);
}

#[test]
fn units_of_two_puts_never_meet() {
    const SIZE: usize = 192 << 10;
    const UNIT: usize = 64 << 10;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 64 << 20);
    let spec = PoolSpec { page_size: 256 << 10, ..PoolSpec::dense(7) };
    let disk = vm_with(&store, "disk", 0, 100, spec);
    let cache = vm_with(&store, "cache", 0, 100, PoolSpec { page_size: 256 << 10, ..CACHE });
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let workers: Vec<_> = (0..4u64)
            .map(|t| {
                let h = if t % 2 == 0 { &disk } else { &cache };
                s.spawn(move || {
                    let mut x = t + 1;
                    let mut page = vec![0u8; 256 << 10];
                    for _ in 0..1500 {
                        x ^= x << 13;
                        x ^= x >> 7;
                        x ^= x << 17;
                        let i = (x % 7) as u32;
                        // Each unit starts with the same two words: key and put.
                        let mark = [u64::from(i).to_le_bytes(), x.to_le_bytes()].concat();
                        match (x >> 32) % 6 {
                            0 => _ = h.flush_page(&DENSE_OBJECT, i),
                            1 | 2 => {
                                for (n, unit) in page.chunks_mut(UNIT).enumerate() {
                                    unit[16..4112]
                                        .copy_from_slice(&noise(x + n as u64, (x >> 40) as usize % 4000));
                                    unit[..16].copy_from_slice(&mark);
                                }
                                assert_eq!(common::put(h, &DENSE_OBJECT, i, &page), Put::Stored);
                            }
                            3 => {
                                let p = common::write(h, &DENSE_OBJECT, i, SIZE - 100, &[x as u8; 90]);
                                assert!(p == Put::Stored || p == Put::Missing);
                            }
                            4 => {
                                let (g, part) = common::read(h, &DENSE_OBJECT, i, UNIT, UNIT + 16);
                                assert!(g == Get::Miss || g == Get::Hit && part[..16] == part[UNIT..]);
                            }
                            _ => {
                                let (g, data) = common::get(h, &DENSE_OBJECT, i);
                                if g == Get::Hit {
                                    assert_eq!(data[..8], u64::from(i).to_le_bytes());
                                    assert!(data.chunks(UNIT).all(|u| u[..16] == data[..16]), "mixed");
                                } else {
                                    assert_eq!(g, Get::Miss);
                                }
                            }
                        }
                    }
                })
            })
            .collect();
        s.spawn(|| {
            while !stop.load(Relaxed) {
                store.maintain();
            }
        });
        let joined: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        stop.store(true, Relaxed);
        joined.into_iter().for_each(|j| j.unwrap());
    });
    let sum: u64 = store.vms().iter().map(|v| v.account.held()).sum();
    assert_eq!(sum, store.totals().slots);
    assert!(disk.pool().counters.snapshot().contains(&("lost", 0)));
    store.vm_remove("disk").unwrap();
    store.vm_remove("cache").unwrap();
    store.maintain();
    assert_eq!((store.totals().slots, store.totals().arena), (0, 0));
}

#[test]
fn threads_put_while_a_pool_is_destroyed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 64 << 20);
    let keeper = vm_with(&store, "keeper", 0, 100, CACHE);
    for _ in 0..50 {
        let vm = store.vm_create("brief", 0, NO_CAP, 100).unwrap();
        let pool = store.pool_create(vm, PoolSpec { pages: Some(500), ..SWAP }).unwrap();
        std::thread::scope(|s| {
            for t in 0..2 {
                let h = store.handle(vm, pool).unwrap();
                s.spawn(move || {
                    let page = noise(t, 1500);
                    let mut i = 0;
                    while put(&h, 0, i % 500, &page) == Put::Stored {
                        i += 1;
                    }
                });
            }
            store.vm_remove("brief").unwrap();
        });
        assert_eq!(store.totals().slots, keeper.vm().account.held());
    }
}

#[test]
fn memory_follows_what_is_kept() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 256 << 20);
    let h = vm_with(&store, "vm", 0, 100, SWAP);
    let n = 64 * 256;
    let overhead = || {
        let t = store.totals();
        let held = (t.file + t.index) as f64;
        (held - 24.0 * t.pages as f64) / t.compressed as f64
    };
    for i in 0..n {
        put(&h, 0, i, &noise(u64::from(i), 1000 + (i as usize * 37) % 2500));
    }
    assert!(overhead() <= 1.06, "fresh: {}", overhead());
    // Overwritten with other sizes, in no order.
    for i in 0..3 * n {
        let at = (u64::from(i) * 2_654_435_761 % u64::from(n)) as u32;
        put(&h, 0, at, &noise(u64::from(i), 500 + (i as usize * 97) % 3000));
    }
    store.maintain();
    assert!(overhead() <= 1.06, "after churn: {}", overhead());
    for i in 0..n {
        h.flush_page(&DENSE_OBJECT, i);
    }
    store.maintain();
    let t = store.totals();
    assert_eq!((t.arena, t.index), (0, 0));
    assert!(t.file < 64 << 10, "{} bytes stay", t.file);
}

#[test]
fn memory_follows_large_pages() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 256 << 20);
    for size in [64 << 10, 512 << 10] {
        let spec = PoolSpec { page_size: size as u32, ..PoolSpec::dense(((64 << 20) / size) as u32) };
        let h = vm_with(&store, &format!("{size}"), 0, 100, spec);
        let n = spec.pages.unwrap();
        let page = |seed: u32| {
            let mut p = vec![0u8; size];
            for (i, c) in p.chunks_mut(PAGE_SIZE).enumerate() {
                let seed = u64::from(seed) * 1000 + i as u64;
                c.copy_from_slice(&noise(seed, 500 + (seed as usize * 97) % 3000));
            }
            p
        };
        for i in 0..n {
            common::put(&h, &DENSE_OBJECT, i, &page(i));
        }
        for i in 0..2 * n {
            let at = (u64::from(i) * 2_654_435_761 % u64::from(n)) as u32;
            assert_eq!(common::put(&h, &DENSE_OBJECT, at, &page(i + n)), Put::Stored);
        }
        store.maintain();
        let t = store.totals();
        let overhead = (t.file + t.index) as f64 / t.compressed as f64;
        println!("pages of {size}: {overhead:.3} after churn");
        assert!(overhead <= 1.10, "pages of {size} after churn: {overhead}");
        (0..n).for_each(|i| assert!(h.flush_page(&DENSE_OBJECT, i)));
        store.maintain();
        assert_eq!(store.totals().arena, 0);
    }
}

#[test]
fn a_page_that_changes_while_it_is_put_harms_nobody() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 64 << 20);
    for codec in [Codec::Lz4, Codec::Zstd, Codec::None] {
        let h = vm_with(&store, codec.name(), 0, 100, PoolSpec { codec, ..SWAP });
        // Guest memory: shared, written by another thread without any agreement.
        let guest: Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(0)).collect();
        let stop = AtomicBool::new(false);
        let (mut hits, mut lost) = (0, 0);
        std::thread::scope(|s| {
            let _end = Raise(&stop);
            s.spawn(|| {
                let mut x = 1u64;
                while !stop.load(Relaxed) {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    let v = if x.is_multiple_of(3) { x } else { 0 };
                    guest[x as usize % 512].store(v, Relaxed);
                }
            });
            for i in 0..20_000 {
                // SAFETY: valid for the whole call; that it changes is the point.
                let p = unsafe { h.put(&DENSE_OBJECT, i % 50, guest.as_ptr().cast()) };
                assert_eq!(p, Put::Stored);
                match get(&h, 0, i % 50).0 {
                    Get::Hit => hits += 1,
                    Get::Lost => lost += 1,
                    other => panic!("{codec:?}: {other:?}"),
                }
            }
        });
        println!("{codec:?}: {lost} of {} pages did not decode", hits + lost);
        assert!(hits > 50 * lost, "{codec:?}: {lost} lost, {hits} not");
        // Its neighbours and the key itself are as good as before.
        let page = noise(3, 2000);
        assert!((0..50).all(|i| put(&h, 0, i, &page) == Put::Stored));
        assert!((0..50).all(|i| get(&h, 0, i) == (Get::Hit, page.clone())));
    }
}
