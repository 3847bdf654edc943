// SPDX-License-Identifier: Apache-2.0
//! The six rules, against a plain model, with crashes in between.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::path::Path;

use tmem_store::{Codec, DENSE_OBJECT, Get, Handle, NO_CAP, PAGE_SIZE, PoolSpec, Put, Store, StoreOptions};

const OPTIONS: StoreOptions = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };

/// xorshift64*: small, seeded, good enough to choose operations.
struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A page of one of four kinds: filled with a word, about 4:1, about 1.5:1, random.
fn page(seed: u64) -> Vec<u8> {
    let mut r = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let random = match seed % 4 {
        0 => return seed.to_le_bytes().repeat(PAGE_SIZE / 8),
        1 => 900,
        2 => 2600,
        _ => PAGE_SIZE,
    };
    let mut p = vec![0u8; PAGE_SIZE];
    p[..random].chunks_mut(8).for_each(|c| {
        let w = r.next().to_le_bytes();
        c.copy_from_slice(&w[..c.len()]);
    });
    p
}

fn put(h: &Handle, o: &[u64; 3], i: u32, p: &[u8]) -> Put {
    assert_eq!(p.len(), PAGE_SIZE);
    // SAFETY: a page.
    unsafe { h.put(o, i, p.as_ptr()) }
}

fn get(h: &Handle, o: &[u64; 3], i: u32) -> (Get, Vec<u8>) {
    let mut p = vec![0xeeu8; PAGE_SIZE];
    // SAFETY: a page.
    let g = unsafe { h.get(o, i, p.as_mut_ptr()) };
    (g, p)
}

fn open(path: &Path) -> Store {
    Store::open(path, OPTIONS).unwrap()
}

fn dense(pages: u32, codec: Codec) -> PoolSpec {
    PoolSpec { persistent: true, shared: None, pages: Some(pages), codec }
}

fn sparse(persistent: bool, shared: Option<[u8; 16]>) -> PoolSpec {
    PoolSpec { persistent, shared, pages: None, codec: Codec::Lz4 }
}

type Key = (usize, [u64; 3], u32);

struct World {
    store: Store,
    handles: Vec<Handle>,
    pools: Vec<(u16, u16)>,
}

impl World {
    fn new(path: &Path) -> Self {
        let store = open(path);
        let a = store.vm_create("a", 8 << 20, NO_CAP, 100).unwrap();
        let b = store.vm_create("b", 0, 2 << 20, 100).unwrap();
        let uuid = Some([7; 16]);
        let shared = store.pool_create(a, sparse(false, uuid)).unwrap();
        assert_eq!(store.pool_create(b, sparse(false, uuid)).unwrap(), shared);
        let pools = vec![
            (a, store.pool_create(a, dense(4096, Codec::Lz4)).unwrap()),
            (a, store.pool_create(a, dense(512, Codec::Zstd)).unwrap()),
            (a, store.pool_create(a, sparse(true, None)).unwrap()),
            (a, store.pool_create(a, sparse(false, None)).unwrap()),
            (b, store.pool_create(b, dense(4096, Codec::Lz4)).unwrap()),
            (b, store.pool_create(b, dense(100, Codec::None)).unwrap()),
            (a, shared),
            (b, shared),
        ];
        let mut w = Self { store, handles: Vec::new(), pools };
        w.reach();
        w
    }

    fn reach(&mut self) {
        self.handles = self.pools.iter().map(|&(v, p)| self.store.handle(v, p).unwrap()).collect();
    }

    /// The process dies and another takes over: nothing is flushed or closed in order.
    fn crash(&mut self, path: &Path) {
        self.handles.clear();
        // Dropping unmaps and unlocks only; the store has no state to write back.
        let fresh = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
        let old = std::mem::replace(&mut self.store, open(fresh.path()));
        drop(old);
        self.store = open(path);
        let r = self.store.recovery();
        assert_eq!((r.lost_pages, r.unreadable, r.broken_entries, r.leftovers), (0, 0, 0, 0));
        self.reach();
    }
}

fn run(steps: u64, seed: u64) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("arena");
    let mut w = World::new(&path);
    let mut rng = Rng(seed);
    // The model: what each key holds. The shared pool is one for both its members (6 and 7).
    let mut model: HashMap<Key, u64> = HashMap::new();
    let mut frozen = [false; 2];
    let mut refused = 0u64;
    let limits = [4096u64, 512, 300, 300, 4096, 100, 200, 200];
    for step in 0..steps {
        let which = rng.below(8) as usize;
        let pool = if which == 7 { 6 } else { which };
        let h = w.handles[which].clone();
        let is_dense = h.pool().spec.pages.is_some();
        let persistent = h.pool().spec.persistent;
        let object = if is_dense { DENSE_OBJECT } else { [rng.below(5), 0, 1 << 63] };
        let index = rng.below(limits[which]) as u32;
        let key = (pool, object, index);
        let vm = usize::from(h.vm().name == "b");
        match rng.below(1000) {
            0..480 => {
                let seed = rng.next();
                match put(&h, &object, index, &page(seed)) {
                    Put::Stored => {
                        assert!(!frozen[vm], "frozen: puts are refused");
                        model.insert(key, seed);
                    }
                    Put::Frozen => {
                        assert!(frozen[vm]);
                        model.remove(&key);
                    }
                    Put::OverCap => {
                        assert_eq!(h.vm().name, "b", "only b has a cap");
                        refused += 1;
                        model.remove(&key);
                    }
                    other => panic!("step {step}: {other:?}"),
                }
            }
            480..850 => {
                let (g, data) = get(&h, &object, index);
                match (g, model.get(&key)) {
                    (Get::Hit, Some(&seed)) => assert!(data == page(seed), "step {step}: wrong data"),
                    (Get::Miss | Get::Refused, None) => {}
                    // Nothing is short here, so ephemeral pages stay too.
                    (g, m) => panic!("step {step}: {g:?} where the model has {m:?}, pool {pool}"),
                }
                if !persistent && pool != 6 {
                    model.remove(&key);
                }
            }
            850..950 => {
                assert_eq!(h.flush_page(&object, index), model.remove(&key).is_some());
            }
            950..970 => {
                let part = [rng.next() as u8; 512];
                let offset = rng.below(8) as usize * 512;
                let known = model.get(&key).map(|&s| page(s));
                let put_back = match h.write_part(&object, index, offset, &part) {
                    Put::Stored => {
                        let mut whole = known.unwrap_or_else(|| vec![0; PAGE_SIZE]);
                        whole[offset..offset + 512].copy_from_slice(&part);
                        let (g, data) = get(&h, &object, index);
                        assert_eq!(g, Get::Hit);
                        assert!(data == whole, "step {step}: partial write");
                        true
                    }
                    Put::Lost => false,
                    Put::OverCap | Put::Frozen => false,
                    other => panic!("step {step}: {other:?}"),
                };
                let seed = rng.next();
                if put_back && put(&h, &object, index, &page(seed)) == Put::Stored {
                    model.insert(key, seed);
                } else {
                    h.flush_page(&object, index);
                    model.remove(&key);
                }
            }
            970..975 => {
                if !is_dense {
                    let n = model.keys().filter(|k| k.0 == pool && k.1 == object).count();
                    assert_eq!(h.flush_object(&object), n as u64);
                    model.retain(|k, _| k.0 != pool || k.1 != object);
                }
            }
            975..980 => {
                frozen[vm] = !frozen[vm] && rng.below(4) == 0;
                w.store.vm_freeze(&h.vm().name, frozen[vm]).unwrap();
            }
            980..983 => {
                drop(h);
                w.crash(&path);
            }
            983..986 => {
                w.store.maintain();
            }
            986 => {
                // Destroy and make again one of the private pools.
                if which < 6 {
                    let (vm, id) = w.pools[which];
                    let spec = h.pool().spec;
                    w.store.pool_destroy(vm, id).unwrap();
                    assert_eq!(put(&h, &object, index, &page(1)), Put::NoPool);
                    assert_eq!(get(&h, &object, index).0, Get::NoPool);
                    model.retain(|k, _| k.0 != which);
                    w.pools[which].1 = w.store.pool_create(vm, spec).unwrap();
                    w.reach();
                }
            }
            _ => {
                if is_dense {
                    assert_eq!(put(&h, &object, limits[which] as u32, &page(3)), Put::NoPool);
                    assert_eq!(put(&h, &[1, 0, 0], index, &page(3)), Put::NoPool);
                }
            }
        }
        if step % 50_000 == 0 {
            check_totals(&w, &model);
        }
    }
    check_totals(&w, &model);
    assert!(steps < 100_000 || refused > 0, "the cap was never met");
    // All gone: all memory back.
    w.store.vm_remove("a").unwrap();
    w.store.vm_remove("b").unwrap();
    w.store.maintain();
    let t = w.store.totals();
    assert_eq!((t.pages, t.slots, t.compressed, t.arena), (0, 0, 0, 0));
    assert_eq!(t.free, t.limit as i64);
}

fn check_totals(w: &World, model: &HashMap<Key, u64>) {
    let t = w.store.totals();
    assert_eq!(t.pages, model.len() as u64);
    let held: u64 = w.store.vms().iter().map(|v| v.account.held()).sum();
    let shared = w.handles[6].pool().account.held();
    assert_eq!(held + shared, t.slots);
    assert!(w.store.vm("b").unwrap().account.held() <= 2 << 20);
}

#[test]
fn agrees_with_the_model() {
    let steps = std::env::var("TMEM_MODEL_STEPS").ok().and_then(|s| s.parse().ok());
    run(steps.unwrap_or(1_000_000), 0x5eed);
}

#[test]
fn agrees_with_the_model_from_other_seeds() {
    for seed in 1..=8 {
        run(20_000, seed * 7919);
    }
}
