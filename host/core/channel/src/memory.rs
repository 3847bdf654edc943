// SPDX-License-Identifier: Apache-2.0
//! The guest's memory as the frontend shares it: files mapped at guest-physical addresses.
//!
//! A mapped file that is shorter than its mapping raises SIGBUS when it is touched, which would kill every VM
//! of the process. So a region is refused when its file does not hold it at the time it is shared. What
//! remains: a frontend that truncates the file *later*, or shares a file whose pages never arrive (FUSE). Files sealed
//! against shrinking (QEMU's memory-backend-memfd does that by default) cannot be truncated; others are noted in the
//! log, and the frontend, which is the VM's own QEMU and not its guest, has to be trusted that far.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

/// Most regions: QEMU with hot-plugged memory asks for this many at most.
pub(crate) const MAX_REGIONS: usize = 509;

/// Why a region was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error(
        "guest memory region of {size} bytes at file offset {offset} is larger than its file of {file} bytes"
    )]
    FileTooShort { size: u64, offset: u64, file: u64 },
    #[error("guest memory region cannot be mapped: {0}")]
    Map(String),
    #[error("guest memory regions overlap or are too many")]
    Layout,
    #[error("no such guest memory region")]
    Unknown,
}

/// One region as the frontend describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionSpec {
    pub(crate) guest: u64,
    pub(crate) size: u64,
    /// Address in the frontend's own address space: ring addresses come as these.
    pub(crate) user: u64,
    pub(crate) offset: u64,
}

#[derive(Clone)]
struct Region {
    spec: RegionSpec,
    map: Arc<GuestRegionMmap>,
}

/// All regions of one frontend.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    regions: Vec<Region>,
    map: Option<Arc<GuestMemoryMmap>>,
}

impl Memory {
    /// The table of SET_MEM_TABLE.
    pub(crate) fn from_table(table: Vec<(RegionSpec, File)>) -> Result<Memory, MemoryError> {
        let mut regions = Vec::with_capacity(table.len());
        for (spec, file) in table {
            regions.push(map_region(spec, file)?);
        }
        Memory::assemble(regions)
    }

    /// ADD_MEM_REG.
    pub(crate) fn with(&self, spec: RegionSpec, file: File) -> Result<Memory, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(map_region(spec, file)?);
        Memory::assemble(regions)
    }

    /// REM_MEM_REG: guest address, user address and size name the region.
    pub(crate) fn without(&self, guest: u64, user: u64, size: u64) -> Result<Memory, MemoryError> {
        let mut regions = self.regions.clone();
        let at = regions
            .iter()
            .position(|r| r.spec.guest == guest && r.spec.user == user && r.spec.size == size)
            .ok_or(MemoryError::Unknown)?;
        regions.remove(at);
        Memory::assemble(regions)
    }

    fn assemble(mut regions: Vec<Region>) -> Result<Memory, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::Layout);
        }
        regions.sort_by_key(|region| region.spec.guest);
        let map = if regions.is_empty() {
            None
        } else {
            let maps = regions.iter().map(|region| region.map.clone()).collect();
            Some(Arc::new(GuestMemoryMmap::from_arc_regions(maps).map_err(|_| MemoryError::Layout)?))
        };
        Ok(Memory { regions, map })
    }

    /// The map that descriptors are resolved against.
    pub(crate) fn map(&self) -> Option<Arc<GuestMemoryMmap>> {
        self.map.clone()
    }

    /// Guest-physical address of an address in the frontend's address space.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.spec.user)?;
            (offset < region.spec.size).then(|| region.spec.guest.checked_add(offset)).flatten()
        })
    }
}

fn map_region(spec: RegionSpec, file: File) -> Result<Region, MemoryError> {
    let len = file.metadata().map_err(|e| MemoryError::Map(e.to_string()))?.len();
    let end = spec.offset.checked_add(spec.size);
    if end.is_none_or(|end| end > len) {
        return Err(MemoryError::FileTooShort { size: spec.size, offset: spec.offset, file: len });
    }
    // SAFETY: fcntl on an open descriptor; F_GET_SEALS takes no argument.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        log::debug!(
            "guest memory file is not sealed against shrinking: its owner could truncate it under us"
        );
    }
    let size = usize::try_from(spec.size).map_err(|_| MemoryError::Layout)?;
    let map = MmapRegion::from_file(FileOffset::new(file, spec.offset), size)
        .map_err(|e| MemoryError::Map(e.to_string()))?;
    let map = GuestRegionMmap::new(map, GuestAddress(spec.guest)).ok_or(MemoryError::Layout)?;
    Ok(Region { spec, map: Arc::new(map) })
}

/// Total bytes mapped, for logs.
pub(crate) fn mapped_bytes(map: &GuestMemoryMmap) -> u64 {
    map.iter().map(|region| region.len()).sum()
}
