// SPDX-License-Identifier: Apache-2.0
//! Many VMs in one store.

use std::path::Path;

use tmem_store::{Get, Handle, NO_CAP, PAGE_SIZE, PoolSpec, Put, Store, StoreOptions};

pub const SWAP: PoolSpec = PoolSpec::dense(100_000);
pub const CACHE: PoolSpec = PoolSpec::sparse(false);

pub fn open(dir: &Path, limit: u64) -> Store {
    let options = StoreOptions { limit, accept_loss: false, maintenance: true };
    Store::open(&dir.join("arena"), options).unwrap()
}

pub fn noise(seed: u64, random: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut p = vec![0u8; PAGE_SIZE];
    for c in p[..random].chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        c.copy_from_slice(&x.to_le_bytes()[..c.len()]);
    }
    p
}

pub fn put(h: &Handle, object: u64, i: u32, page: &[u8]) -> Put {
    super::put(h, &[object, 0, 0], i, page)
}

pub fn get(h: &Handle, object: u64, i: u32) -> (Get, Vec<u8>) {
    super::get(h, &[object, 0, 0], i)
}

pub fn vm_with(store: &Store, name: &str, reservation: u64, weight: u32, spec: PoolSpec) -> Handle {
    let vm = store.vm_create(name, reservation, NO_CAP, weight).unwrap();
    if let Some(uuid) = spec.shared {
        store.shared_authorise(name, uuid, true).unwrap();
    }
    store.handle(vm, store.pool_create(vm, spec).unwrap()).unwrap()
}
