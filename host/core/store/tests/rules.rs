// SPDX-License-Identifier: Apache-2.0
//! The six rules and every operation, against a plain model, with crashes in between.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::{Rng, get, pack, page, put, read, write};
use tmem_store::{
    Codec, DENSE_OBJECT, Exchanged, Get, Handle, NO_CAP, PageAt, PoolSpec, Put, Store, StoreOptions,
};

const OPTIONS: StoreOptions = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };
/// What VM b may hold.
const CAP: u64 = 3 << 20;

/// A VM's use of a pool: indices that the test uses are below `indices`.
struct Use {
    vm: &'static str,
    spec: PoolSpec,
    indices: u32,
}

const fn at(vm: &'static str, indices: u32, spec: PoolSpec) -> Use {
    Use { vm, spec, indices }
}

const SHARED: PoolSpec = PoolSpec { shared: Some([7; 16]), ..PoolSpec::sparse(false) };

const SMALL: &[Use] = &[
    at("a", 4096, PoolSpec::dense(4096)),
    at("a", 512, PoolSpec { codec: Codec::Zstd, ..PoolSpec::dense(512) }),
    at("a", 300, PoolSpec::sparse(true)),
    at("a", 300, PoolSpec::sparse(false)),
    at("b", 4096, PoolSpec::dense(4096)),
    at("b", 100, PoolSpec { codec: Codec::None, ..PoolSpec::dense(100) }),
    at("a", 200, SHARED),
    at("b", 200, SHARED),
];

const LZ4_64K: PoolSpec = PoolSpec { page_size: 64 << 10, ..PoolSpec::dense(40) };
const PACKED: PoolSpec = PoolSpec { packed: true, ..PoolSpec::sparse(true) };
const ZSTD_PACKED: PoolSpec = PoolSpec { codec: Codec::Zstd, page_size: 16 << 10, ..PACKED };

/// Other page sizes, and pages that come compressed.
const LARGE: &[Use] = &[
    at("a", 40, LZ4_64K),
    at("a", 12, PoolSpec { page_size: 2 << 20, pages: Some(12), ..LZ4_64K }),
    at("a", 8, PoolSpec { page_size: 256 << 10, codec: Codec::Zstd, ..PoolSpec::sparse(true) }),
    at("a", 20, PoolSpec { page_size: 8 << 10, ..PoolSpec::sparse(false) }),
    at("b", 20, PoolSpec { page_size: 128 << 10, ..PoolSpec::sparse(true) }),
    at("b", 4, PoolSpec { page_size: 512 << 10, codec: Codec::None, pages: Some(4), ..LZ4_64K }),
    at("a", 8, PoolSpec { page_size: 128 << 10, ..SHARED }),
    at("b", 8, PoolSpec { page_size: 128 << 10, ..SHARED }),
    at("a", 40, PACKED),
    at("a", 40, ZSTD_PACKED),
    at("a", 4, PoolSpec { page_size: 256 << 10, ..PACKED }),
];

/// Number of the store's pool, object, index.
type Key = (u16, [u64; 3], u32);

struct Run {
    path: PathBuf,
    uses: &'static [Use],
    /// `None` only while a crash is played.
    store: Option<Store>,
    pools: Vec<u16>,
    handles: Vec<Handle>,
    rng: Rng,
    model: HashMap<Key, Vec<u8>>,
    frozen: HashMap<String, bool>,
    over_cap: u64,
}

/// One key, and the way to it.
#[derive(Clone)]
struct Place {
    h: Handle,
    key: Key,
}

impl Place {
    fn object(&self) -> &[u64; 3] {
        &self.key.1
    }
    fn index(&self) -> u32 {
        self.key.2
    }
    fn exclusive(&self) -> bool {
        !self.h.pool().spec.persistent && self.h.pool().spec.shared.is_none()
    }
}

impl Run {
    fn new(path: &Path, uses: &'static [Use], seed: u64) -> Self {
        let store = Store::open(path, OPTIONS).unwrap();
        store.vm_create("a", 8 << 20, NO_CAP, 100).unwrap();
        store.vm_create("b", 0, CAP, 100).unwrap();
        for u in uses {
            u.spec.shared.iter().for_each(|&uuid| store.shared_authorise(u.vm, uuid, true).unwrap());
        }
        let pool = |u: &Use| store.pool_create(store.vm(u.vm).unwrap().id, u.spec).unwrap();
        let pools = uses.iter().map(pool).collect();
        let mut run = Self {
            path: path.into(),
            uses,
            store: Some(store),
            pools,
            handles: Vec::new(),
            rng: Rng(seed),
            model: HashMap::new(),
            frozen: HashMap::new(),
            over_cap: 0,
        };
        run.reach();
        run
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn reach(&mut self) {
        let vm = |u: &Use| self.store().vm(u.vm).unwrap().id;
        let handle = |(u, &p): (&Use, &u16)| self.store().handle(vm(u), p).unwrap();
        self.handles = self.uses.iter().zip(&self.pools).map(handle).collect();
    }

    /// The process dies and another takes over: the store has nothing to write back.
    fn crash(&mut self) {
        self.handles.clear();
        self.store = None;
        let store = Store::open(&self.path, OPTIONS).unwrap();
        let r = store.recovery();
        assert_eq!((r.lost_pages, r.unreadable, r.broken_entries, r.leftovers), (0, 0, 0, 0));
        self.store = Some(store);
        self.reach();
    }

    fn place(&mut self, which: usize) -> Place {
        let h = self.handles[which].clone();
        let dense = h.pool().spec.pages.is_some();
        let object = if dense { DENSE_OBJECT } else { [self.rng.below(5), 0, 1 << 63] };
        let index = self.rng.below(u64::from(self.uses[which].indices)) as u32;
        Place { key: (h.pool().id, object, index), h }
    }

    fn is_frozen(&self, p: &Place) -> bool {
        self.frozen.get(&p.h.vm().name).copied().unwrap_or(false)
    }

    /// Checks an answer to a put of `data` and brings the model up to date.
    fn settle(&mut self, p: &Place, answer: Put, data: Vec<u8>) {
        match answer {
            Put::Stored => {
                assert!(!self.is_frozen(p), "frozen: puts are refused");
                self.model.insert(p.key, data);
                return;
            }
            Put::Frozen => assert!(self.is_frozen(p)),
            Put::OverCap => {
                assert_eq!(p.h.vm().name, "b", "only b has a cap");
                self.over_cap += 1;
            }
            other => panic!("{other:?}"),
        }
        self.model.remove(&p.key);
    }

    /// Checks an answer to a get.
    fn check(&mut self, p: &Place, answer: Get, data: &[u8]) {
        match (answer, self.model.get(&p.key)) {
            (Get::Hit, Some(kept)) => assert!(data == kept, "wrong data"),
            (Get::Miss | Get::Refused, None) => assert!(data.iter().all(|&b| b == 0xee), "touched"),
            // Nothing is short here, so ephemeral pages stay too.
            (g, m) => panic!("{g:?} where the model has {} of pool {}", m.is_some(), p.key.0),
        }
        if p.exclusive() {
            self.model.remove(&p.key);
        }
    }

    fn fresh_page(&mut self, p: &Place) -> Vec<u8> {
        page(self.rng.next(), p.h.pool().page_size())
    }

    /// A range of a page of `size` bytes, often small, sometimes to its end or empty.
    fn range(&mut self, size: usize) -> (usize, usize) {
        let offset = self.rng.below(size as u64 + 1) as usize;
        let most = if self.rng.below(2) == 0 { 600 } else { size };
        (offset, (self.rng.below(most as u64 + 1) as usize).min(size - offset))
    }

    fn put(&mut self, p: &Place) {
        let data = self.fresh_page(p);
        let answer = put(&p.h, p.object(), p.index(), &data);
        self.settle(p, answer, data);
    }

    /// A page that comes compressed, or something else that does.
    fn put_packed(&mut self, p: &Place) {
        let (spec, data) = (p.h.pool().spec, self.fresh_page(p));
        let mut packed = pack(spec.codec, &data);
        let good = spec.packed && packed.len() < data.len() && self.rng.below(4) > 0;
        if !good {
            match self.rng.below(4) {
                0 => packed.truncate(packed.len() / 2),
                1 => packed.push(0x55),
                2 => packed = pack(spec.codec, &data[..data.len() / 2]),
                _ => packed = pack(spec.codec, &data.repeat(2)),
            }
        }
        // SAFETY: as long as it says.
        let answer = unsafe { p.h.put_packed(p.object(), p.index(), packed.as_ptr(), packed.len()) };
        if good || self.is_frozen(p) {
            return self.settle(p, answer, data);
        }
        assert_eq!(answer, Put::BadData);
        self.model.remove(&p.key);
    }

    fn new_page(&mut self, p: &Place) {
        let answer = p.h.new_page(p.object(), p.index());
        self.settle(p, answer, vec![0; p.h.pool().page_size()]);
    }

    fn get(&mut self, p: &Place) {
        let (answer, data) = get(&p.h, p.object(), p.index());
        self.check(p, answer, &data);
    }

    fn read(&mut self, p: &Place) {
        let size = p.h.pool().page_size();
        let (offset, len) = self.range(size);
        let (answer, data) = read(&p.h, p.object(), p.index(), offset, len);
        match (answer, self.model.get(&p.key)) {
            (Get::Hit, Some(kept)) => assert!(data == kept[offset..offset + len], "wrong part"),
            (Get::Miss | Get::Refused, None) => {}
            (g, m) => panic!("{g:?} where the model has {}", m.is_some()),
        }
        let outside =
            [(size + 1, 0), (size, 1), (size - 1, 2), (0, size + 1), (usize::MAX, 2), (2, usize::MAX)];
        let (offset, len) = outside[self.rng.below(6) as usize];
        // SAFETY: refused before anything is written.
        let answer = unsafe { p.h.read(p.object(), p.index(), offset, len, std::ptr::dangling_mut()) };
        assert_eq!(answer, Get::BadRange);
        // SAFETY: refused before anything is read.
        let answer = unsafe { p.h.write(p.object(), p.index(), offset, len, std::ptr::dangling()) };
        assert_eq!(answer, Put::BadRange);
    }

    fn write(&mut self, p: &Place, as_disk: bool) {
        let size = p.h.pool().page_size();
        let (offset, len) = self.range(size);
        let part = page(self.rng.next(), 4096);
        let part: Vec<u8> = part.iter().copied().cycle().take(len).collect();
        let answer = if as_disk {
            p.h.write_part(p.object(), p.index(), offset, &part)
        } else {
            write(&p.h, p.object(), p.index(), offset, &part)
        };
        let known = self.model.get(&p.key).cloned();
        match answer {
            Put::Missing => assert!(known.is_none() && !as_disk),
            // To a disk, a key whose last put failed is lost, not zeroes.
            Put::Lost => assert!(known.is_none() && as_disk),
            answer => {
                assert!(known.is_some() || as_disk || answer != Put::Stored);
                let mut whole = known.unwrap_or_else(|| vec![0; size]);
                whole[offset..offset + len].copy_from_slice(&part);
                self.settle(p, answer, whole);
            }
        }
    }

    /// A put and a get in one, of one frame; the two keys may be one.
    fn exchange(&mut self, p: &Place) {
        let g = if self.rng.below(8) == 0 { p.clone() } else { self.place_in(p) };
        let data = self.fresh_page(p);
        let mut frame = data.clone();
        // SAFETY: a page, for both.
        let Exchanged { put, get } = unsafe {
            let at = frame.as_mut_ptr();
            p.h.exchange((p.object(), p.index()), at, (g.object(), g.index()), at)
        };
        self.settle(p, put, data.clone());
        match get {
            None => assert!(put != Put::Stored && frame == data, "the only copy"),
            Some(Get::Hit) => self.check(&g, Get::Hit, &frame),
            Some(other) => {
                assert!(frame == data, "touched");
                self.check(&g, other, &[]);
            }
        }
    }

    /// Another key of the same pool and VM.
    fn place_in(&mut self, p: &Place) -> Place {
        let which = self.handles.iter().position(|h| h.pool().id == p.key.0 && h.vm().id == p.h.vm().id);
        self.place(which.unwrap())
    }

    /// Several keys, some of them perhaps twice: as if one after the other.
    fn batch(&mut self, p: &Place) {
        let n = 1 + self.rng.below(20) as usize;
        let places: Vec<_> = (0..n).map(|_| self.place_in(p)).collect();
        let key = |p: &Place, at| PageAt { object: *p.object(), index: p.index(), at };
        if self.rng.below(2) == 0 {
            let data: Vec<_> = places.iter().map(|p| self.fresh_page(p)).collect();
            let pages: Vec<_> = places.iter().zip(&data).map(|(p, d)| key(p, d.as_ptr())).collect();
            let mut answers = vec![Put::NoPool; n];
            // SAFETY: a page each.
            unsafe { p.h.put_many(&pages, &mut answers) };
            for ((p, d), a) in places.iter().zip(data).zip(answers) {
                self.settle(p, a, d);
            }
        } else {
            let mut data = vec![vec![0xeeu8; p.h.pool().page_size()]; n];
            let frames = data.iter_mut().map(|d| d.as_mut_ptr());
            let pages: Vec<_> = places
                .iter()
                .zip(frames)
                .map(|(p, at)| PageAt { object: *p.object(), index: p.index(), at })
                .collect();
            let mut answers = vec![Get::NoPool; n];
            // SAFETY: a page each.
            unsafe { p.h.get_many(&pages, &mut answers) };
            for ((p, d), a) in places.iter().zip(data).zip(answers) {
                self.check(p, a, &d);
            }
        }
    }

    fn flush_object(&mut self, p: &Place) {
        let (pool, object, _) = p.key;
        if p.h.pool().spec.pages.is_none() {
            let n = self.model.keys().filter(|k| k.0 == pool && k.1 == object).count();
            assert_eq!(p.h.flush_object(&object), n as u64);
            self.model.retain(|k, _| k.0 != pool || k.1 != object);
        }
    }

    /// Destroys and makes again a private pool.
    fn remake(&mut self, which: usize, p: &Place) {
        let (vm, spec) = (p.h.vm().id, p.h.pool().spec);
        if spec.shared.is_some() {
            return;
        }
        self.store().pool_destroy(vm, p.key.0).unwrap();
        let data = self.fresh_page(p);
        assert_eq!(put(&p.h, p.object(), p.index(), &data), Put::NoPool);
        assert_eq!(p.h.new_page(p.object(), p.index()), Put::NoPool);
        assert_eq!(write(&p.h, p.object(), p.index(), 3, b"x"), Put::NoPool);
        assert_eq!(get(&p.h, p.object(), p.index()).0, Get::NoPool);
        assert_eq!(read(&p.h, p.object(), p.index(), 3, 1).0, Get::NoPool);
        self.model.retain(|k, _| k.0 != p.key.0);
        self.pools[which] = self.store().pool_create(vm, spec).unwrap();
        self.reach();
    }

    fn no_such_index(&mut self, which: usize, p: &Place) {
        if let Some(pages) = self.uses[which].spec.pages {
            let data = self.fresh_page(p);
            assert_eq!(put(&p.h, &DENSE_OBJECT, pages, &data), Put::NoPool);
            assert_eq!(put(&p.h, &[1, 0, 0], p.index(), &data), Put::NoPool);
        }
    }

    fn step(&mut self) {
        let which = self.rng.below(self.uses.len() as u64) as usize;
        let p = self.place(which);
        match self.rng.below(1000) {
            0..400 => self.put(&p),
            400..410 => self.new_page(&p),
            410..420 => self.put_packed(&p),
            420..700 => self.get(&p),
            700..760 => self.read(&p),
            760..800 => self.write(&p, false),
            800..820 => self.write(&p, true),
            820..860 => self.exchange(&p),
            860..880 => self.batch(&p),
            880..965 => {
                let was = self.model.remove(&p.key).is_some();
                assert_eq!(p.h.flush_page(p.object(), p.index()), was);
            }
            965..975 => self.flush_object(&p),
            975..980 => {
                let vm = p.h.vm().name.clone();
                let frozen = !self.is_frozen(&p) && self.rng.below(4) == 0;
                self.store().vm_freeze(&vm, frozen).unwrap();
                self.frozen.insert(vm, frozen);
            }
            980..983 => {
                drop(p);
                self.crash();
            }
            983..986 => drop(self.store().maintain()),
            986 => self.remake(which, &p),
            _ => self.no_such_index(which, &p),
        }
    }

    fn check_totals(&self) {
        let t = self.store().totals();
        assert_eq!(t.pages, self.model.len() as u64);
        let held: u64 = self.store().vms().iter().map(|v| v.account.held()).sum();
        let shared = self.store().pools();
        let shared = shared.iter().filter(|p| p.spec.shared.is_some());
        assert_eq!(held + shared.map(|p| p.account.held()).sum::<u64>(), t.slots);
        assert!(self.store().vm("b").unwrap().account.held() <= CAP);
    }

    /// All gone: all memory back.
    fn end(self) {
        self.store().vm_remove("a").unwrap();
        self.store().vm_remove("b").unwrap();
        self.store().maintain();
        let t = self.store().totals();
        assert_eq!((t.pages, t.slots, t.compressed, t.arena), (0, 0, 0, 0));
        assert_eq!(t.free, t.limit as i64);
    }
}

/// How often the cap was met.
fn run(uses: &'static [Use], steps: u64, seed: u64) -> u64 {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut run = Run::new(&dir.path().join("arena"), uses, seed);
    for step in 0..steps {
        run.step();
        if step % 50_000 == 0 {
            run.check_totals();
        }
    }
    run.check_totals();
    let over_cap = run.over_cap;
    run.end();
    over_cap
}

/// Steps of a run: fewer while one looks for something else.
fn steps(default: u64) -> u64 {
    std::env::var("TMEM_MODEL_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[test]
fn agrees_with_the_model() {
    let steps = steps(1_000_000);
    assert!(run(SMALL, steps, 0x5eed) > 0 || steps < 1_000_000, "the cap was never met");
}

#[test]
fn agrees_with_the_model_from_other_seeds() {
    for seed in 1..=8 {
        run(SMALL, 20_000, seed * 7919);
    }
}

#[test]
fn pages_of_all_sizes_agree_with_the_model() {
    let steps = steps(20_000);
    let over_cap: u64 = (1..=4).map(|seed| run(LARGE, steps / 4, seed * 104_729)).sum();
    assert!(over_cap > 0 || steps < 20_000, "the cap was never met");
}
