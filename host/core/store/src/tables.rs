// SPDX-License-Identifier: Apache-2.0
//! VMs and pools in the head of the arena, so that a new agent knows whose the pages are.
//!
//! An entry's fixed part is checksummed and becomes valid with its last store, the magic. Fields
//! that change later (quota, codec, members) are single words outside the checksum.

use twox_hash::XxHash3_64;

use crate::arena::Arena;
use crate::codec::{Codec, PAGE_MAX, PAGE_SIZE};
use crate::error::{Result, StoreError};
use crate::layout::{MAX_POOLS, MAX_VMS, POOL_ENTRY, POOL_TABLE, VM_ENTRY, VM_TABLE};
use crate::pool::{PoolId, PoolSpec, VmId};

const LIVE: u64 = u64::from_le_bytes(*b"tmemlive");
/// Being destroyed: what it still has is cleared at recovery.
const DYING: u64 = u64::from_le_bytes(*b"tmemdyin");

/// Longest VM name, bytes.
pub const NAME_MAX: usize = 63;
/// VMs that can use one shared pool.
pub const MEMBERS_MAX: usize = 16;
/// Shared pools that a VM can be authorised for, as in Xen.
pub const AUTHORISED_MAX: usize = 16;

// VM entry: magic 0, check 8, name length 16, name 24..87; words that change from 96. Uuids from 256:
// which places are in use is the low half of the word at 120, a checksum of those its high half, so
// that one store of one word adds a uuid or takes it away.
const VM_FIXED: usize = 96;
const VM_RESERVATION: u64 = 96;
const VM_CAP: u64 = 104;
const VM_WEIGHT_FROZEN: u64 = 112;
const VM_AUTHORISED: u64 = 120;
const VM_UUIDS: u64 = 256;

// Pool entry: magic 0, check 8, flags 16, pages 24, uuid 32..48; words that change from 48.
const POOL_FIXED: usize = 48;
const POOL_CODEC_DAMAGED: u64 = 48;
const POOL_MEMBERS: u64 = 56;
const NO_MEMBER: u16 = u16::MAX;

const FLAG_PERSISTENT: u64 = 1;
const FLAG_SHARED: u64 = 2;
const FLAG_DENSE: u64 = 4;
const FLAG_PACKED: u64 = 8;
/// Page size: 4096 << these 4 bits.
const ORDER_SHIFT: u32 = 8;

/// A VM's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmRecord {
    pub name: String,
    pub reservation: u64,
    pub cap: u64,
    pub weight: u32,
    pub frozen: bool,
    /// Shared pools that it may join.
    pub authorised: Vec<[u8; 16]>,
}

/// A pool's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolRecord {
    pub spec: PoolSpec,
    pub members: Vec<VmId>,
    pub damaged: bool,
    pub dying: bool,
}

/// What stands in one place of a table.
pub(crate) enum Place<T> {
    Free,
    Taken(T),
    /// Its checksum is wrong.
    Broken,
}

fn vm_at(id: VmId) -> u64 {
    VM_TABLE + id as u64 * VM_ENTRY as u64
}

fn pool_at(id: PoolId) -> u64 {
    POOL_TABLE + id as u64 * POOL_ENTRY as u64
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut w = [0; 8];
    w.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(w)
}

pub(crate) fn read_vm(arena: &Arena, id: VmId) -> Place<VmRecord> {
    let mut e = [0u8; VM_ENTRY];
    arena.table_read(vm_at(id), &mut e);
    parse_vm(&e)
}

/// All VMs' places in one read.
pub(crate) fn read_vms(arena: &Arena) -> Vec<Place<VmRecord>> {
    let mut all = vec![0u8; MAX_VMS * VM_ENTRY];
    arena.table_read(VM_TABLE, &mut all);
    all.chunks_exact(VM_ENTRY).map(parse_vm).collect()
}

fn parse_vm(e: &[u8]) -> Place<VmRecord> {
    if word(e, 0) == 0 {
        return Place::Free;
    }
    let len = word(e, 16) as usize;
    if word(e, 0) != LIVE || word(e, 8) != XxHash3_64::oneshot(&e[16..VM_FIXED]) || len > NAME_MAX {
        return Place::Broken;
    }
    let Ok(name) = std::str::from_utf8(&e[24..24 + len]) else { return Place::Broken };
    let changing = word(e, VM_WEIGHT_FROZEN as usize);
    Place::Taken(VmRecord {
        name: name.into(),
        reservation: word(e, VM_RESERVATION as usize),
        cap: word(e, VM_CAP as usize),
        weight: changing as u32,
        frozen: changing >> 32 & 1 != 0,
        authorised: authorised(e).into_iter().map(|(_, uuid)| uuid).collect(),
    })
}

/// Places and uuids that a VM is authorised for: none if they do not check.
fn authorised(e: &[u8]) -> Vec<(usize, [u8; 16])> {
    let state = word(e, VM_AUTHORISED as usize);
    let places = e[VM_UUIDS as usize..].chunks_exact(16).take(AUTHORISED_MAX).enumerate();
    let all: Vec<_> = places
        .filter(|(place, _)| state >> place & 1 != 0)
        .map(|(place, uuid)| {
            let mut copy = [0; 16];
            copy.copy_from_slice(uuid);
            (place, copy)
        })
        .collect();
    if state == authorised_word(&all) { all } else { Vec::new() }
}

fn authorised_word(all: &[(usize, [u8; 16])]) -> u64 {
    if all.is_empty() {
        return 0;
    }
    let bits = all.iter().fold(0u64, |bits, (place, _)| bits | 1 << place);
    let mut bytes = bits.to_le_bytes().to_vec();
    all.iter().for_each(|(_, uuid)| bytes.extend(uuid));
    bits | XxHash3_64::oneshot(&bytes) >> 32 << 32
}

/// Adds a uuid to those that a VM is authorised for, or takes it away. False: there is no place.
pub(crate) fn authorise(arena: &Arena, id: VmId, uuid: &[u8; 16], allow: bool) -> bool {
    let at = vm_at(id);
    let mut e = [0u8; VM_ENTRY];
    arena.table_read(at, &mut e);
    let mut all = authorised(&e);
    let had = all.iter().position(|(_, u)| u == uuid);
    match (had, allow) {
        (Some(_), true) | (None, false) => return true,
        (Some(i), false) => drop(all.remove(i)),
        (None, true) => {
            let Some(place) = (0..AUTHORISED_MAX).find(|p| all.iter().all(|(used, _)| used != p)) else {
                return false;
            };
            // A place that is not in use may hold anything.
            arena.table_write(at + VM_UUIDS + place as u64 * 16, uuid);
            all.push((place, *uuid));
            all.sort_unstable();
        }
    }
    arena.table_store(at + VM_AUTHORISED, authorised_word(&all));
    true
}

pub(crate) fn write_vm(arena: &Arena, id: VmId, vm: &VmRecord) -> Result<()> {
    if vm.name.is_empty() || vm.name.len() > NAME_MAX {
        return Err(StoreError::Invalid(format!(
            "a VM's name has 1 to {NAME_MAX} bytes, not {}",
            vm.name.len()
        )));
    }
    let at = vm_at(id);
    arena.populate_table(at, VM_ENTRY as u64)?;
    update_vm(arena, id, vm);
    // Nothing of who had this place before.
    arena.table_store(at + VM_AUTHORISED, 0);
    let mut e = [0u8; VM_FIXED];
    e[16..24].copy_from_slice(&(vm.name.len() as u64).to_le_bytes());
    e[24..24 + vm.name.len()].copy_from_slice(vm.name.as_bytes());
    arena.table_write(at + 16, &e[16..]);
    arena.table_store(at + 8, XxHash3_64::oneshot(&e[16..]));
    arena.table_store(at, LIVE);
    Ok(())
}

/// Writes what may change of a VM, but for what it is authorised for.
pub(crate) fn update_vm(arena: &Arena, id: VmId, vm: &VmRecord) {
    let at = vm_at(id);
    arena.table_store(at + VM_RESERVATION, vm.reservation);
    arena.table_store(at + VM_CAP, vm.cap);
    arena.table_store(at + VM_WEIGHT_FROZEN, u64::from(vm.weight) | u64::from(vm.frozen) << 32);
}

pub(crate) fn clear_vm(arena: &Arena, id: VmId) {
    arena.table_store(vm_at(id), 0);
}

pub(crate) fn read_pool(arena: &Arena, id: PoolId) -> Place<PoolRecord> {
    let mut e = [0u8; POOL_ENTRY];
    arena.table_read(pool_at(id), &mut e);
    parse_pool(&e)
}

/// All pools' places in one read.
pub(crate) fn read_pools(arena: &Arena) -> Vec<Place<PoolRecord>> {
    let mut all = vec![0u8; MAX_POOLS * POOL_ENTRY];
    arena.table_read(POOL_TABLE, &mut all);
    all.chunks_exact(POOL_ENTRY).map(parse_pool).collect()
}

fn parse_pool(e: &[u8]) -> Place<PoolRecord> {
    let magic = word(e, 0);
    if magic == 0 {
        return Place::Free;
    }
    let changing = word(e, POOL_CODEC_DAMAGED as usize);
    let codec = Codec::from_byte(changing as u8);
    let (Some(codec), true, true) =
        (codec, magic == LIVE || magic == DYING, word(e, 8) == XxHash3_64::oneshot(&e[16..POOL_FIXED]))
    else {
        return Place::Broken;
    };
    let flags = word(e, 16);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&e[32..48]);
    let page_size = PAGE_SIZE << (flags >> ORDER_SHIFT & 0xf);
    if page_size > PAGE_MAX {
        return Place::Broken;
    }
    let members = e[POOL_MEMBERS as usize..POOL_MEMBERS as usize + MEMBERS_MAX * 2]
        .chunks_exact(2)
        .map(|c| u16::from_le_bytes([c[0], c[1]]))
        .filter(|&m| m != NO_MEMBER)
        .collect();
    Place::Taken(PoolRecord {
        spec: PoolSpec {
            persistent: flags & FLAG_PERSISTENT != 0,
            shared: (flags & FLAG_SHARED != 0).then_some(uuid),
            name: (flags & FLAG_SHARED == 0 && uuid != [0; 16]).then_some(uuid),
            pages: (flags & FLAG_DENSE != 0).then_some(word(e, 24) as u32),
            codec,
            page_size: page_size as u32,
            packed: flags & FLAG_PACKED != 0,
        },
        members,
        damaged: changing >> 8 & 1 != 0,
        dying: magic == DYING,
    })
}

pub(crate) fn write_pool(arena: &Arena, id: PoolId, pool: &PoolRecord) -> Result<()> {
    let at = pool_at(id);
    arena.populate_table(at, POOL_ENTRY as u64)?;
    update_pool(arena, id, pool);
    let mut e = [0u8; POOL_FIXED];
    let spec = &pool.spec;
    let flag = |on: bool, bit: u64| if on { bit } else { 0 };
    let flags = flag(spec.persistent, FLAG_PERSISTENT)
        | flag(spec.shared.is_some(), FLAG_SHARED)
        | flag(spec.pages.is_some(), FLAG_DENSE)
        | flag(spec.packed, FLAG_PACKED)
        | u64::from((spec.page_size as usize / PAGE_SIZE).trailing_zeros()) << ORDER_SHIFT;
    e[16..24].copy_from_slice(&flags.to_le_bytes());
    e[24..32].copy_from_slice(&u64::from(spec.pages.unwrap_or(0)).to_le_bytes());
    e[32..48].copy_from_slice(&spec.shared.or(spec.name).unwrap_or_default());
    arena.table_write(at + 16, &e[16..]);
    arena.table_store(at + 8, XxHash3_64::oneshot(&e[16..]));
    arena.table_store(at, LIVE);
    Ok(())
}

/// Writes what may change of a pool.
pub(crate) fn update_pool(arena: &Arena, id: PoolId, pool: &PoolRecord) {
    let at = pool_at(id);
    arena.table_store(at + POOL_CODEC_DAMAGED, pool.spec.codec as u64 | u64::from(pool.damaged) << 8);
    let mut members = [NO_MEMBER; MEMBERS_MAX];
    for (place, &m) in members.iter_mut().zip(&pool.members) {
        *place = m;
    }
    for (i, four) in members.chunks_exact(4).enumerate() {
        let w = four.iter().rev().fold(0u64, |w, &m| (w << 16) | u64::from(m));
        arena.table_store(at + POOL_MEMBERS + i as u64 * 8, w);
    }
}

pub(crate) fn mark_dying(arena: &Arena, id: PoolId) {
    arena.table_store(pool_at(id), DYING);
}

pub(crate) fn clear_pool(arena: &Arena, id: PoolId) {
    arena.table_store(pool_at(id), 0);
}

/// Numbers a table has.
pub(crate) fn vm_ids() -> impl Iterator<Item = VmId> {
    0..MAX_VMS as VmId
}

pub(crate) fn pool_ids() -> impl Iterator<Item = PoolId> {
    0..MAX_POOLS as PoolId
}
