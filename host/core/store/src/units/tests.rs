// SPDX-License-Identifier: Apache-2.0
//! Large pages, cut short and damaged in every place that matters.
use super::*;
use crate::index::Stand;
use crate::ops::DENSE_OBJECT;
use crate::{Get, Handle, NO_CAP, PoolSpec, Put, Store, StoreOptions};

const PAGE: usize = 256 << 10;
const OPTIONS: StoreOptions = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };

fn page(seed: u64) -> Vec<u8> {
    let mut x = seed;
    let noise = std::iter::repeat_with(|| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 56) as u8
    });
    noise.take(PAGE).collect()
}

fn open(path: &std::path::Path) -> (Store, Handle) {
    let store = Store::open(path, OPTIONS).unwrap();
    if store.recovery().fresh {
        let vm = store.vm_create("vm", 0, NO_CAP, 100).unwrap();
        store.pool_create(vm, PoolSpec { page_size: PAGE as u32, ..PoolSpec::dense(4) }).unwrap();
    }
    let h = store.handle(store.vms()[0].id, store.pools()[0].id).unwrap();
    (store, h)
}

fn put(h: &Handle, seed: u64) {
    // SAFETY: a page.
    assert_eq!(unsafe { h.put(&DENSE_OBJECT, 1, page(seed).as_ptr()) }, Put::Stored);
}

fn is(h: &Handle, seed: u64) -> bool {
    let mut out = vec![0; PAGE];
    // SAFETY: a page.
    let answer = unsafe { h.get(&DENSE_OBJECT, 1, out.as_mut_ptr()) };
    answer == Get::Hit && out == page(seed)
}

/// The process dies in the middle of `act`, between two stores; what the next finds.
fn cut(act: impl FnOnce(&Handle, u64)) -> u64 {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("arena");
    let (store, h) = open(&path);
    put(&h, 1);
    put(&h, 2);
    let Some(Stand::Page(slot)) = h.pool.index.with(&DENSE_OBJECT, 1, |e| e.stand) else { panic!() };
    act(&h, slot);
    drop((h, store));
    let (store, h) = open(&path);
    let r = store.recovery().clone();
    assert_eq!((r.pages, r.lost_pages, r.unreadable), (1, 0, 0));
    assert_eq!(h.vm().account.held(), store.totals().slots);
    let newer = is(&h, 3);
    assert!(newer || is(&h, 2));
    h.flush_page(&DENSE_OBJECT, 1);
    store.maintain();
    let t = store.totals();
    assert_eq!((t.slots, t.arena), (0, 0), "nothing is left behind");
    r.leftovers + 100 * u64::from(newer)
}

/// Units of page 3, `headers` of them published.
fn draft<'a>(h: &'a Handle, headers: usize) -> Draft<'a> {
    let mut draft = Draft::new(&h.inner);
    for unit in page(3).chunks(UNIT_MAX) {
        let encoded = Encoded { encoding: Encoding::Raw, data: unit.as_ptr(), len: UNIT_MAX };
        // SAFETY: a unit.
        assert!(unsafe { draft.write(&h.pool, &DENSE_OBJECT, 1, &encoded) });
    }
    let n = std::mem::replace(&mut draft.n, headers);
    draft.publish();
    draft.n = n;
    // What died gives nothing back.
    draft.done = true;
    draft
}

#[test]
fn a_put_that_was_cut_short_is_done_or_was_not() {
    for headers in 0..=4 {
        let left = cut(|h, _| drop(draft(h, headers)));
        assert_eq!(left, headers as u64, "without a head, {headers} units");
    }
    // The head stands; that and the units of the page before are not cleared yet.
    let left = cut(|h, old| {
        let header = h.inner.arena.header(old).unwrap();
        let header = SlotHeader { seq: crate::layout::next_seq(header.seq), ..header };
        let to = h.inner.alloc.alloc(CLASSES.of(header.slot_len())).unwrap();
        let mut table = draft(h, 4);
        let head = table.head();
        // SAFETY: a slot of ours.
        unsafe { h.inner.arena.write_slot(to, header, None, head.data) };
    });
    // The head and the four units before it.
    assert_eq!(left, 100 + 1 + 4);
}

#[test]
fn a_move_that_was_cut_short_keeps_the_unit() {
    for told in [false, true] {
        let left = cut(|h, slot| {
            // SAFETY: nobody else is there.
            let head = unsafe { h.inner.head(&h.pool, slot) }.unwrap();
            let at = h.inner.unit(&head, 2).unwrap();
            let to = h.inner.alloc.alloc(CLASSES.of(at.header.slot_len())).unwrap();
            // SAFETY: as above.
            unsafe {
                let data = h.inner.unit_data(&at).unwrap();
                h.inner.arena.write_slot(to, at.header, None, data.as_ptr());
                if told {
                    h.inner.unit_moved(&head, 2, to);
                }
            }
        });
        assert_eq!(left, 1);
    }
}

#[test]
fn a_table_leads_nowhere_else() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (_store, h) = open(&dir.path().join("arena"));
    put(&h, 1);
    let Some(Stand::Page(slot)) = h.pool.index.with(&DENSE_OBJECT, 1, |e| e.stand) else { panic!() };
    // SAFETY: nobody else is there.
    let head = unsafe { h.inner.head(&h.pool, slot) }.unwrap();
    let right = h.inner.unit(&head, 1).unwrap().slot;
    let other = h.inner.unit(&head, 2).unwrap().slot;
    for wrong in [0, 8, slot, other, right + 8, right ^ 1, 1 << 40, u64::MAX, !7] {
        // SAFETY: as above.
        unsafe { h.inner.unit_moved(&head, 1, wrong) };
        // SAFETY: as above.
        let now = unsafe { h.inner.head(&h.pool, slot) }.unwrap();
        assert!(h.inner.unit(&now, 1).is_none(), "{wrong:#x}");
    }
    assert!(!is(&h, 1));
    h.flush_page(&DENSE_OBJECT, 1);
    put(&h, 2);
    assert!(is(&h, 2));
}
