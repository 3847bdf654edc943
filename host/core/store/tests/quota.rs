// SPDX-License-Identifier: Apache-2.0
//! Many VMs, one store: reservations, caps, weights, and who makes room for whom.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::vms::{CACHE, SWAP, get, noise, open, put, vm_with};
use tmem_store::{DENSE_OBJECT, Get, Handle, NO_CAP, PAGE_SIZE, PoolSpec, Put, QuotaChange};

#[test]
fn a_reservation_is_kept_when_all_else_is_full() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 16 << 20);
    let promised = vm_with(&store, "promised", 4 << 20, 100, SWAP);
    let greedy = vm_with(&store, "greedy", 0, 100, SWAP);
    let page = noise(1, PAGE_SIZE);
    let mut n = 0;
    while put(&greedy, 0, n, &page) == Put::Stored {
        n += 1;
    }
    assert!(u64::from(n) * 4112 > 11 << 20);
    assert_eq!(get(&greedy, 0, n).0, Get::Refused, "the guest was told: no zeroes");
    for i in 0..(4 << 20) / 4112 {
        assert_eq!(put(&promised, 0, i, &page), Put::Stored, "page {i} below the reservation");
    }
    assert!((0..n).all(|i| get(&greedy, 0, i) == (Get::Hit, page.clone())), "persistent pages stay");
    assert!(store.vm_create("late", 1 << 20, NO_CAP, 1).is_err());
}

#[test]
fn ephemeral_pages_make_room_and_the_heavier_vm_keeps_more() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 16 << 20);
    let light = vm_with(&store, "light", 0, 100, CACHE);
    let heavy = vm_with(&store, "heavy", 0, 300, CACHE);
    let page = noise(1, 3000);
    for i in 0..20_000 {
        assert_eq!(put(&light, 1, i, &page), Put::Stored);
        assert_eq!(put(&heavy, 1, i, &page), Put::Stored);
    }
    let held = |h: &Handle| h.vm().account.held() as f64;
    let share = held(&heavy) / held(&light);
    assert!((2.5..3.5).contains(&share), "weights 3:1 gave {share}");
    // The newest stay, the oldest went.
    assert_eq!(get(&light, 1, 19_999).0, Get::Hit);
    assert_eq!(get(&light, 1, 19_999).0, Get::Miss, "a private ephemeral get is exclusive");
    assert_eq!(get(&light, 1, 0).0, Get::Miss);
    // A swap disk takes the room that caches held.
    let swap = vm_with(&store, "swap", 0, 100, SWAP);
    for i in 0..4000 {
        assert_eq!(put(&swap, 0, i, &noise(2, PAGE_SIZE)), Put::Stored, "page {i}");
    }
    let t = store.totals();
    assert!(t.slots <= 16 << 20);
    assert_eq!(t.freeable, light.vm().account.held() + heavy.vm().account.held());
}

#[test]
fn large_pages_have_their_quota_and_make_room() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 32 << 20);
    // Nothing of it compresses.
    let random = |seed: u64, size: usize| {
        let mut r = common::Rng(seed * 2 + 1);
        (0..size / 8).flat_map(|_| r.next().to_le_bytes()).collect::<Vec<u8>>()
    };
    // What a disk of large pages may need at worst is enough, whatever is put over what.
    for (name, size, pages) in [("units", 256 << 10, 16u32), ("one slot", 64 << 10, 64)] {
        let worst = tmem_store::worst_case_bytes_of(u64::from(pages), size);
        let spec = PoolSpec { page_size: size as u32, ..PoolSpec::dense(pages) };
        let h = vm_with(&store, name, worst, 100, spec);
        store.vm_set(name, QuotaChange { cap: Some(worst), ..QuotaChange::default() }).unwrap();
        let greedy = vm_with(&store, &format!("greedy {name}"), 0, 100, PoolSpec::sparse(true));
        let page = noise(1, PAGE_SIZE);
        let mut n = 0;
        while put(&greedy, 0, n, &page) == Put::Stored {
            n += 1;
        }
        for i in 0..3 * pages {
            let page = random(u64::from(i), size);
            assert_eq!(common::put(&h, &DENSE_OBJECT, i % pages, &page), Put::Stored, "{name} {i}");
            let part = &page[..100];
            assert_eq!(common::write(&h, &DENSE_OBJECT, i % pages, 5000, part), Put::Stored, "{name} {i}");
        }
        assert_eq!(h.vm().account.held(), worst);
        // Over its cap, a page is refused whole, and what it had is given back.
        let change = QuotaChange { reservation: Some(0), cap: Some(worst / 2), ..QuotaChange::default() };
        store.vm_set(name, change).unwrap();
        let held = h.vm().account.held();
        let zeroes = vec![0; size];
        assert_eq!(common::put(&h, &DENSE_OBJECT, 0, &zeroes), Put::Stored, "smaller is no growth");
        assert_eq!(common::put(&h, &DENSE_OBJECT, 0, &random(1, size)), Put::OverCap);
        assert_eq!(common::get(&h, &DENSE_OBJECT, 0).0, Get::Refused);
        assert!(h.vm().account.held() < held);
        store.vm_remove(name).unwrap();
        store.vm_remove(&format!("greedy {name}")).unwrap();
        assert_eq!(store.totals().slots, 0);
    }
    // Many small pages make room for a large one, and large ones for small ones.
    let small = vm_with(&store, "small", 0, 100, CACHE);
    let large = vm_with(&store, "large", 0, 100, PoolSpec { page_size: 2 << 20, ..CACHE });
    for round in 0..3 {
        for i in 0..20_000 {
            assert_eq!(put(&small, 1, i, &noise(u64::from(i), 3000)), Put::Stored);
        }
        for i in 0..12 {
            let page = random(round, 2 << 20);
            assert_eq!(common::put(&large, &[1, 0, 0], i, &page), Put::Stored, "round {round} page {i}");
        }
        assert_eq!(common::get(&large, &[1, 0, 0], 11), (Get::Hit, random(round, 2 << 20)));
        assert!(store.totals().slots <= 32 << 20);
        assert_eq!(store.totals().freeable, store.totals().slots);
    }
    // A disk takes all of it.
    let spec = PoolSpec { page_size: 2 << 20, ..PoolSpec::dense(15) };
    let disk = vm_with(&store, "disk", 0, 100, spec);
    (0..15).for_each(|i| assert_eq!(common::put(&disk, &DENSE_OBJECT, i, &random(9, 2 << 20)), Put::Stored));
}

#[test]
fn quota_arguments_are_checked() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 16 << 20);
    store.vm_create("a", 0, NO_CAP, 1).unwrap();
    assert_eq!(store.vm_create("a", 0, NO_CAP, 1).err().unwrap().kind(), "exists");
    assert_eq!(store.vm_create("b", 2, 1, 1).err().unwrap().kind(), "invalid");
    assert_eq!(store.vm_create("b", 0, NO_CAP, 0).err().unwrap().kind(), "invalid");
    assert_eq!(store.vm_create("b", 0, 100, 1).err().unwrap().kind(), "invalid");
    assert_eq!(store.vm_create(&"x".repeat(64), 0, NO_CAP, 1).err().unwrap().kind(), "invalid");
    assert_eq!(store.vm_create("b", 1 << 40, NO_CAP, 1).err().unwrap().kind(), "no-space");
    let change = QuotaChange { reservation: Some(1 << 40), ..QuotaChange::default() };
    assert_eq!(store.vm_set("a", change).err().unwrap().kind(), "no-space");
    assert_eq!(store.vm_remove("nobody").err().unwrap().kind(), "not-found");
    let a = store.vm("a").unwrap().id;
    let bad = PoolSpec { persistent: false, ..SWAP };
    assert_eq!(store.pool_create(a, bad).err().unwrap().kind(), "invalid");
}

#[test]
fn promises_that_come_and_go_at_once_add_up() {
    const EACH: i64 = 64 << 10;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(dir.path(), 16 << 20);
    store.vm_create("a", 1 << 20, NO_CAP, 1).unwrap();
    let promise = |bytes| store.vm_set("a", QuotaChange { promise: bytes, ..QuotaChange::default() });
    // Guests' pools on two channels, and an operator who changes what the VM has besides.
    std::thread::scope(|s| {
        for step in [EACH, 2 * EACH, -EACH] {
            s.spawn(move || {
                for _ in 0..500 {
                    promise(step).unwrap();
                    promise(-step).unwrap();
                }
                promise(step).unwrap();
            });
        }
    });
    let account = || store.vm("a").unwrap();
    assert_eq!(account().account.reservation(), (1 << 20) + 2 * EACH as u64);
    // More than there is, or than the cap allows, changes nothing; less than nothing is nothing.
    assert_eq!(promise(1 << 30).err().unwrap().kind(), "no-space");
    store.vm_set("a", QuotaChange { cap: Some(2 << 20), ..QuotaChange::default() }).unwrap();
    assert_eq!(promise(1 << 20).err().unwrap().kind(), "invalid");
    assert_eq!(account().account.reservation(), (1 << 20) + 2 * EACH as u64);
    promise(i64::MIN).unwrap();
    assert_eq!(account().account.reservation(), 0);
}
