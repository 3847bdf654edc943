// SPDX-License-Identifier: Apache-2.0
//! Restoring a pool from a file that somebody made up.
//!
//! The input is a list of records, whose checksums are made right unless it says otherwise, so that
//! what lies behind them is reached. A restore that is refused leaves an empty pool; one that is not
//! leaves as many pages as it says, each of which can be got.
//!
//! Run: `RUSTC_BOOTSTRAP=1 cargo fuzz run restore -- -max_total_time=600 -detect_leaks=0` in `host/core/store`.
#![no_main]

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use libfuzzer_sys::fuzz_target;
use tmem_store::{Get, Handle, NO_CAP, PAGE_SIZE, PoolSpec, Store, StoreOptions};
use twox_hash::XxHash3_64;

const PAGES: u32 = 64;

fn pools() -> &'static [(Handle, Option<u32>)] {
    static MADE: OnceLock<(Store, Vec<(Handle, Option<u32>)>)> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let path = PathBuf::from(format!("/dev/shm/tmem-fuzz-restore-{}", std::process::id()));
        let options = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };
        let store = Store::open(&path, options).expect("an arena");
        // Mapped by now, and gone with the process.
        std::fs::remove_file(&path).expect("the arena's name");
        let vm = store.vm_create("fuzz", 0, NO_CAP, 1).expect("a VM");
        let pool = |spec: PoolSpec| {
            (store.handle(vm, store.pool_create(vm, spec).expect("a pool")).expect("its handle"), spec.pages)
        };
        let all = vec![pool(PoolSpec::dense(PAGES)), pool(PoolSpec::sparse(true))];
        (store, all)
    });
    &made.1
}

fn head(pages: u32) -> Vec<u8> {
    let mut head = vec![0; 56];
    head[..8].copy_from_slice(b"TMEMPOOL");
    head[8] = 1;
    head[12..16].copy_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
    head[16..20].copy_from_slice(&pages.to_le_bytes());
    let check = XxHash3_64::oneshot(&head);
    head.extend(check.to_le_bytes());
    head
}

fn record(file: &mut Vec<u8>, kind: u8, encoding: u8, words: [u64; 3], index: u32, data: &[u8], right: bool) {
    let mut raw = [0u8; 48];
    (raw[0], raw[1]) = (kind, encoding);
    raw[4..8].copy_from_slice(&(data.len() as u32).to_le_bytes());
    for (at, w) in words.iter().enumerate() {
        raw[8 + at * 8..16 + at * 8].copy_from_slice(&w.to_le_bytes());
    }
    raw[32..36].copy_from_slice(&index.to_le_bytes());
    let check = XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&raw[..40]), data);
    raw[40..].copy_from_slice(&(check ^ u64::from(!right)).to_le_bytes());
    file.extend(raw);
    file.extend(data);
}

fuzz_target!(|input: &[u8]| {
    let Some((&first, mut rest)) = input.split_first() else { return };
    let (handle, pages) = &pools()[usize::from(first & 1)];
    let mut file = head(pages.unwrap_or(0).wrapping_add(u32::from(first >> 6)));
    let (mut put, mut gone) = (0u64, 0u64);
    let mut left = std::collections::HashSet::new();
    while let [kind, encoding, object, index, len, tail @ ..] = rest {
        let (data, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = tail;
        let key = ([u64::from(object & 3), 0, 0], u32::from(*index));
        match kind & 3 {
            0 | 1 => (put, _) = (put + 1, left.insert(key)),
            _ => (gone, _) = (gone + 1, left.remove(&key)),
        }
        let (kind, data) = if kind & 3 < 2 { (1, data) } else { (2 + (kind >> 7), &[][..]) };
        record(&mut file, kind, encoding & 3, key.0, key.1, data, encoding & 0xf0 != 0xf0);
    }
    record(&mut file, 3, 0, [put, gone, left.len() as u64], 0, &[], first & 0x30 != 0x30);
    file.truncate(file.len() - usize::from(first >> 1 & 7 == 7));
    let held = || handle.pool().holding.pages.load(Ordering::Relaxed);
    match handle.restore(&mut Cursor::new(&file)) {
        Err(_) => assert_eq!(held(), 0),
        Ok(saved) => {
            assert_eq!((saved.left, saved.left), (left.len() as u64, held()));
            for (object, index) in left {
                let mut page = vec![0u8; PAGE_SIZE];
                // SAFETY: a page of the pool.
                assert_eq!(unsafe { handle.get(&object, index, page.as_mut_ptr()) }, Get::Hit);
                handle.flush_page(&object, index);
            }
            assert_eq!(held(), 0);
        }
    }
});
