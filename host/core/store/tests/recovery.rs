// SPDX-License-Identifier: Apache-2.0
//! What a new process finds: after a kill, after damage, after a cut.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tmem_store::{
    DENSE_OBJECT, Get, Handle, NO_CAP, PAGE_SIZE, PoolSpec, Put, Store, StoreError, StoreOptions,
};

const OPTIONS: StoreOptions = StoreOptions { limit: 256 << 20, accept_loss: false, maintenance: false };

fn page(seed: u64) -> Vec<u8> {
    common::page(seed, PAGE_SIZE)
}

fn put(h: &Handle, i: u32, seed: u64) -> Put {
    common::put(h, &DENSE_OBJECT, i, &common::page(seed, h.pool().page_size()))
}

fn get(h: &Handle, i: u32) -> (Get, Vec<u8>) {
    common::get(h, &DENSE_OBJECT, i)
}

fn swap(pages: u32) -> PoolSpec {
    PoolSpec::dense(pages)
}

fn large(pages: u32) -> PoolSpec {
    PoolSpec { page_size: LARGE_SIZE as u32, ..swap(pages) }
}

fn handle(store: &Store) -> Handle {
    store.handle(store.vm("vm").unwrap().id, store.pools()[0].id).unwrap()
}

fn large_handle(store: &Store) -> Handle {
    store.handle(store.vm("vm").unwrap().id, store.pools()[1].id).unwrap()
}

/// An arena with `pages` pages, closed.
fn filled(path: &Path, pages: u32) {
    let store = Store::open(path, OPTIONS).unwrap();
    let vm = store.vm_create("vm", 0, NO_CAP, 100).unwrap();
    store.pool_create(vm, swap(pages)).unwrap();
    let h = handle(&store);
    for i in 0..pages {
        assert_eq!(put(&h, i, u64::from(i)), Put::Stored);
    }
}

// What the victim is about to do and has done, by key, in a file both processes map.
const KEYS: usize = 3000;
const THREADS: usize = 2;
/// The last of them are pages of four units; 48 bits of their log are the seed, the rest says what
/// was written over a part of them.
const LARGE_KEYS: usize = 40;
const LARGE_SIZE: usize = 256 << 10;

/// Where a large page is written over, and with what.
fn part(log: u64) -> (usize, Vec<u8>) {
    let (offset, len) =
        ((log as usize).wrapping_mul(7919) % (LARGE_SIZE - 70_000), 1 + log as usize % 69_999);
    (offset, vec![(log >> 48) as u8; len])
}

/// What a key's log means.
fn content(key: usize, log: u64) -> Vec<u8> {
    if key < KEYS - LARGE_KEYS {
        return page(log);
    }
    let mut page = common::page(log & 0xffff_ffff_ffff, LARGE_SIZE);
    if log >> 48 != 0 {
        let (offset, bytes) = part(log);
        page[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    page
}

struct Log(*const AtomicU64);
// SAFETY: an array of atomics.
unsafe impl Sync for Log {}

impl Log {
    fn map(path: &Path) -> Self {
        let f = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        f.set_len((KEYS * 16) as u64).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&f);
        // SAFETY: a new shared mapping of a file of that size; leaked on purpose.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                KEYS * 16,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at.cast())
    }
    fn cell(&self, i: usize) -> &AtomicU64 {
        assert!(i < KEYS * 2);
        // SAFETY: inside the mapping.
        unsafe { &*self.0.add(i) }
    }
    fn intent(&self, key: usize) -> &AtomicU64 {
        self.cell(key * 2)
    }
    fn acked(&self, key: usize) -> &AtomicU64 {
        self.cell(key * 2 + 1)
    }
}

/// Not a test by itself: the process that `survives_kills` kills.
#[test]
fn victim() {
    let Ok(dir) = std::env::var("TMEM_TEST_VICTIM") else { return };
    let dir = Path::new(&dir);
    let store = Store::open(&dir.join("arena"), StoreOptions { maintenance: true, ..OPTIONS }).unwrap();
    let log = Log::map(&dir.join("log"));
    std::thread::scope(|s| {
        // Pages and units are moved all the time.
        s.spawn(|| {
            loop {
                store.maintain();
            }
        });
        for t in 0..THREADS {
            let (store, log) = (&store, &log);
            s.spawn(move || {
                let (small, large) = (handle(store), large_handle(store));
                let mut x = u64::from(std::process::id()) << 8 | (t as u64 + 1);
                loop {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    let of = if x.is_multiple_of(8) { KEYS - LARGE_KEYS..KEYS } else { 0..KEYS - LARGE_KEYS };
                    let key = of.start + (x >> 20) as usize % (of.len() / THREADS) * THREADS + t;
                    let (h, index) = if of.end == KEYS { (&large, key - of.start) } else { (&small, key) };
                    let index = index as u32;
                    let is = log.acked(key).load(Ordering::SeqCst);
                    let mut next = if x.is_multiple_of(10) { 0 } else { (x & 0xffff_ffff_ffff) | 1 };
                    let patch = of.end == KEYS && is != 0 && is >> 48 == 0 && x.is_multiple_of(3);
                    if patch {
                        next = is | 0x5a << 48;
                    }
                    log.intent(key).store(next, Ordering::SeqCst);
                    if patch {
                        let (offset, bytes) = part(next);
                        assert_eq!(common::write(h, &DENSE_OBJECT, index, offset, &bytes), Put::Stored);
                    } else if next == 0 {
                        h.flush_page(&DENSE_OBJECT, index);
                    } else {
                        assert_eq!(common::put(h, &DENSE_OBJECT, index, &content(key, next)), Put::Stored);
                    }
                    log.acked(key).store(next, Ordering::SeqCst);
                }
            });
        }
    });
}

struct Reaped(Child);
impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn survives_kills() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let arena = dir.path().join("arena");
    {
        let store = Store::open(&arena, OPTIONS).unwrap();
        let vm = store.vm_create("vm", 0, NO_CAP, 100).unwrap();
        store.pool_create(vm, swap(KEYS as u32)).unwrap();
        store.pool_create(vm, large(LARGE_KEYS as u32)).unwrap();
    }
    let log = Log::map(&dir.path().join("log"));
    let (mut leftovers, mut in_flight) = (0, 0);
    for round in 0..100u64 {
        let mut child = Reaped(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "victim"])
                .env("TMEM_TEST_VICTIM", dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let acked = || (0..KEYS).fold(0u64, |s, k| s.wrapping_add(log.acked(k).load(Ordering::SeqCst)));
        // At work: something was acknowledged; then a moment of this round's length.
        let (before, deadline) = (acked(), Instant::now() + Duration::from_secs(20));
        while acked() == before {
            assert!(
                Instant::now() < deadline && child.0.try_wait().unwrap().is_none(),
                "the victim does not work"
            );
            std::thread::yield_now();
        }
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_micros(500 + round * 131 % 7000) {
            std::hint::spin_loop();
        }
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        let store = Store::open(&arena, OPTIONS).unwrap();
        let r = store.recovery().clone();
        assert_eq!((r.lost_pages, r.unreadable, r.broken_entries), (0, 0, 0), "round {round}");
        leftovers += r.leftovers;
        let (small, large) = (handle(&store), large_handle(&store));
        for key in 0..KEYS {
            let (intent, acked) =
                (log.intent(key).load(Ordering::SeqCst), log.acked(key).load(Ordering::SeqCst));
            let (g, data) = match key.checked_sub(KEYS - LARGE_KEYS) {
                None => get(&small, key as u32),
                Some(index) => get(&large, index as u32),
            };
            let is = |log: u64| match log {
                0 => g == Get::Miss,
                log => g == Get::Hit && data == content(key, log),
            };
            in_flight += u64::from(intent != acked);
            assert!(is(acked) || is(intent), "round {round} key {key}: {g:?}");
            // What stands now is what counts for the next round.
            let now = if is(intent) { intent } else { acked };
            log.intent(key).store(now, Ordering::SeqCst);
            log.acked(key).store(now, Ordering::SeqCst);
        }
    }
    println!("100 kills: {in_flight} requests in flight, {leftovers} slots left over");
}

#[test]
fn damage_is_known_and_stays_known() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("arena");
    filled(&path, 500);
    // A flip in every 64th KiB of the blocks: data, headers, or nothing.
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    let mut at = 14 << 20;
    while at < len {
        let mut b = [0];
        file.read_exact_at(&mut b, at).unwrap();
        if b[0] != 0 {
            file.write_all_at(&[b[0] ^ 4], at).unwrap();
        }
        at += 1013;
    }
    let mut lost_before = None;
    for _ in 0..2 {
        let store = Store::open(&path, OPTIONS).unwrap();
        let r = store.recovery().clone();
        assert!(r.lost_pages + r.unreadable > 0);
        assert!(store.pools()[0].damaged());
        let h = handle(&store);
        let mut lost = 0;
        for i in 0..500 {
            match get(&h, i) {
                (Get::Hit, data) => assert!(data == page(u64::from(i)), "wrong data under {i}"),
                (Get::Lost, _) => lost += 1,
                other => panic!("page {i}: {:?}", other.0),
            }
        }
        assert!(lost > 0 && lost < 500);
        assert_eq!(*lost_before.get_or_insert(lost), lost, "the next process knows as much");
    }
    // A put makes a lost page whole again.
    let store = Store::open(&path, OPTIONS).unwrap();
    let h = handle(&store);
    for i in 0..500 {
        assert_eq!(put(&h, i, 7), Put::Stored);
        assert_eq!(get(&h, i), (Get::Hit, page(7)));
    }
}

#[test]
fn a_large_page_is_whole_or_lost() {
    const PAGES: u32 = 24;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("arena");
    for round in 0..12u64 {
        let _ = std::fs::remove_file(&path);
        {
            let store = Store::open(&path, OPTIONS).unwrap();
            let vm = store.vm_create("vm", 0, NO_CAP, 100).unwrap();
            store.pool_create(vm, swap(10)).unwrap();
            store.pool_create(vm, large(PAGES)).unwrap();
            let h = large_handle(&store);
            // Twice, so that there are slots with old bytes.
            (0..2 * PAGES).for_each(|i| assert_eq!(put(&h, i % PAGES, u64::from(i) * 4 + 1), Put::Stored));
        }
        // A flipped bit in one place in so many that are not zero.
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        let mut block = vec![0; 1 << 16];
        for at in ((14 << 20)..len).step_by(1 << 16).skip(round as usize % 3).step_by(3) {
            file.read_exact_at(&mut block, at).unwrap();
            // Also where the tables of heads are.
            let within = if round < 6 { 24 + round as usize * 37 } else { 31_000 + round as usize };
            if block[within] != 0 {
                file.write_all_at(&[block[within] ^ 1], at + within as u64).unwrap();
            }
        }
        let mut before = None;
        for _ in 0..2 {
            let store = Store::open(&path, OPTIONS).unwrap();
            let r = store.recovery();
            let suspect = r.lost_pages + r.unreadable > 0;
            let h = large_handle(&store);
            let answers: Vec<_> = (0..PAGES)
                .map(|i| {
                    let (g, data) = get(&h, i);
                    let right = common::page(u64::from(i + PAGES) * 4 + 1, LARGE_SIZE);
                    assert!(g == Get::Lost && suspect || g == Get::Hit && data == right, "page {i}: {g:?}");
                    // A part is of that page, or there is none.
                    let (g, data) = common::read(&h, &DENSE_OBJECT, i, 100_000, 100);
                    assert!(g == Get::Lost || data == right[100_000..100_100]);
                    g
                })
                .collect();
            let held = store.vm("vm").unwrap().account.held();
            assert_eq!(held, store.totals().slots);
            assert_eq!(*before.get_or_insert((answers.clone(), held)), (answers, held));
        }
        // What is lost can be put and flushed; what was held is given back.
        let store = Store::open(&path, OPTIONS).unwrap();
        let h = large_handle(&store);
        (0..PAGES).step_by(2).for_each(|i| assert_eq!(put(&h, i, 3), Put::Stored));
        assert!((0..PAGES).step_by(2).all(|i| get(&h, i) == (Get::Hit, common::page(3, LARGE_SIZE))));
        (0..PAGES).for_each(|i| _ = h.flush_page(&DENSE_OBJECT, i));
        assert_eq!((store.totals().slots, store.vm("vm").unwrap().account.held()), (0, 0));
    }
}

#[test]
fn truncated_is_refused_and_untouched() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("arena");
    filled(&path, 3000);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    let cut = len - (2 << 20);
    file.set_len(cut).unwrap();
    let error = Store::open(&path, OPTIONS).err().unwrap();
    assert_eq!(error.kind(), "arena-truncated");
    assert_eq!(file.metadata().unwrap().len(), cut);
    let store = Store::open(&path, StoreOptions { accept_loss: true, ..OPTIONS }).unwrap();
    let h = handle(&store);
    let lost = (0..3000)
        .filter(|&i| match get(&h, i) {
            (Get::Hit, data) => {
                assert!(data == page(u64::from(i)));
                false
            }
            (g, _) => {
                assert_eq!(g, Get::Lost, "page {i}: a page cut off must not read as zeroes");
                true
            }
        })
        .count();
    assert!(lost > 0 && lost < 3000);
}

#[test]
fn what_is_no_arena_is_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("arena");
    std::fs::write(&path, vec![7u8; 100_000]).unwrap();
    assert_eq!(Store::open(&path, OPTIONS).err().unwrap().kind(), "arena-corrupt");
    std::fs::write(&path, b"short").unwrap();
    assert_eq!(Store::open(&path, OPTIONS).err().unwrap().kind(), "arena-truncated");
    let missing = dir.path().join("no/such/folder/arena");
    assert!(matches!(Store::open(&missing, OPTIONS).err().unwrap(), StoreError::Io { .. }));
    let other = dir.path().join("other");
    let _held = Store::open(&other, OPTIONS).unwrap();
    assert_eq!(Store::open(&other, OPTIONS).err().unwrap().kind(), "arena-locked");
    // Another version's, refused as such.
    filled(&dir.path().join("old"), 10);
    let file = OpenOptions::new().write(true).open(dir.path().join("old")).unwrap();
    file.write_all_at(&[1], 8).unwrap();
    let error = Store::open(&dir.path().join("old"), OPTIONS).err().unwrap();
    assert!(error.kind() == "arena-format" && error.to_string().contains("has format 1"), "{error}");
    // A superblock that does not check.
    filled(&dir.path().join("third"), 10);
    let file = OpenOptions::new().write(true).open(dir.path().join("third")).unwrap();
    file.write_all_at(&[0xff], 20).unwrap();
    assert_eq!(Store::open(&dir.path().join("third"), OPTIONS).err().unwrap().kind(), "arena-corrupt");
}

#[test]
fn a_pool_that_was_being_destroyed_is_gone() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("arena");
    filled(&path, 100);
    // The pool table follows the superblock page and 2 MiB of VMs; its entry's magic says dying.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"tmemdyin", 4096 + (2 << 20)).unwrap();
    let store = Store::open(&path, OPTIONS).unwrap();
    assert_eq!(store.recovery().leftovers, 100);
    assert_eq!((store.recovery().lost_pages, store.recovery().unreadable), (0, 0));
    assert!(store.pools().is_empty());
    store.maintain();
    assert_eq!(store.totals().arena, 0);
    drop(store);
    assert_eq!(Store::open(&path, OPTIONS).unwrap().recovery().leftovers, 0);
}

#[test]
fn a_lost_pool_entry_damages_and_frees_nothing() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("arena");
    filled(&path, 100);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 8], 4096 + (2 << 20)).unwrap();
    let store = Store::open(&path, OPTIONS).unwrap();
    assert_eq!(store.recovery().unreadable, 100);
    let held = store.totals().arena;
    store.maintain();
    assert_eq!(store.totals().arena, held);
}
