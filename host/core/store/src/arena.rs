// SPDX-License-Identifier: Apache-2.0
//! The arena: one mapped file in shared memory that outlives the process.
//!
//! Only this file knows about the mapping. Everything above it works with offsets: a *table offset*
//! into the head of the file, or a *data offset* from the start of the blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use twox_hash::XxHash3_64;

use crate::error::{Result, StoreError};
use crate::layout::{
    self, BLOCK_SIZE, BLOCK_TABLE, BlockEntry, DATA, FORMAT_VERSION, MAGIC, MAX_BLOCKS, OS_PAGE,
};

/// Linux 5.14: fault a range in for writing, with an error instead of SIGBUS when memory is short.
const MADV_POPULATE_READ: i32 = 22;
const MADV_POPULATE_WRITE: i32 = 23;
/// Linux 6.1: put a range into a huge page now, whatever the file system's own policy is.
const MADV_COLLAPSE: i32 = 25;

const SB_VERSION: usize = 8;
const SB_UUID: usize = 16;
const SB_SALT: usize = 32;
const SB_CHECK: usize = 40;
const SB_GROWN: usize = 48;

/// The mapped file. All access to slots goes through it.
pub(crate) struct Arena {
    file: LockedFile,
    path: PathBuf,
    base: *mut u8,
    map_len: usize,
    max_blocks: u32,
    grown: AtomicU32,
    /// Blocks that were there whole when the file was opened; the rest were cut off.
    present: u32,
    populated: AtomicU64,
    uuid: [u8; 16],
    pub secret: [u8; 192],
    fresh: bool,
}

// SAFETY: the mapping is plain shared memory; who may touch which bytes is decided by the
// allocator (a slot belongs to one key) and the locks of the index, not by this type.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Opens the file, or makes it. `max_blocks` bounds how far this process may grow it.
    /// `accept_loss`: a file shorter than it should be is taken as it is.
    pub fn open(path: &Path, max_blocks: u64, accept_loss: bool) -> Result<Self> {
        let shown = path.display();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::io(format!("cannot open arena {shown}")))?;
        // SAFETY: plain system call on our descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(StoreError::Locked { path: path.into() });
        }
        let file = LockedFile(file);
        let len = file.metadata().map_err(StoreError::io(format!("cannot read arena {shown}")))?.len();
        let mut head = [0u8; 64];
        if len > 0 && file.read_exact_at(&mut head, 0).is_err() {
            return Err(StoreError::Truncated { path: path.into(), have: len, want: DATA });
        }
        // A creation that was cut short leaves an empty head: nothing was ever promised from it.
        let fresh = len == 0 || (len == DATA && head.iter().all(|&b| b == 0));
        let salt;
        let uuid;
        let mut grown = 0;
        let mut present = u32::MAX;
        if fresh {
            file.set_len(DATA).map_err(StoreError::io(format!("cannot size arena {shown}")))?;
            let mut random = [0u8; 24];
            File::open("/dev/urandom")
                .and_then(|f| f.read_exact_at(&mut random, 0))
                .map_err(StoreError::io("cannot read /dev/urandom"))?;
            let (a, b) = random.split_at(16);
            uuid = a.try_into().unwrap_or([0; 16]);
            salt = u64::from_le_bytes(b.try_into().unwrap_or([0; 8]));
        } else {
            let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or([0; 8]));
            if word(0) != MAGIC {
                return Err(StoreError::Corrupt {
                    path: path.into(),
                    what: "not an arena (wrong magic)".into(),
                });
            }
            if word(SB_VERSION) != u64::from(FORMAT_VERSION) {
                return Err(StoreError::Format {
                    path: path.into(),
                    have: word(SB_VERSION),
                    want: FORMAT_VERSION,
                });
            }
            if word(SB_CHECK) != XxHash3_64::oneshot(&head[..SB_CHECK]) {
                return Err(StoreError::Corrupt {
                    path: path.into(),
                    what: "the superblock's checksum is wrong".into(),
                });
            }
            uuid = head[SB_UUID..SB_UUID + 16].try_into().unwrap_or([0; 16]);
            salt = word(SB_SALT);
            grown = word(SB_GROWN);
            if grown > MAX_BLOCKS {
                return Err(StoreError::Corrupt {
                    path: path.into(),
                    what: format!("{grown} blocks are more than the format allows"),
                });
            }
            let want = DATA + grown * BLOCK_SIZE;
            if len < want {
                if !accept_loss || len < DATA {
                    return Err(StoreError::Truncated { path: path.into(), have: len, want });
                }
                present = ((len - DATA) / BLOCK_SIZE) as u32;
            }
        }
        let max_blocks = max_blocks.clamp(grown.max(1), MAX_BLOCKS);
        let map_len = (DATA + max_blocks * BLOCK_SIZE) as usize;
        let base = map(&file, map_len).map_err(StoreError::io(format!("cannot map arena {shown}")))?;
        let arena = Self {
            file,
            path: path.into(),
            base,
            map_len,
            max_blocks: max_blocks as u32,
            grown: AtomicU32::new(grown as u32),
            present: present.min(grown as u32),
            populated: AtomicU64::new(0),
            uuid,
            secret: secret(salt),
            fresh,
        };
        if fresh {
            arena.write_superblock(salt)?;
        }
        Ok(arena)
    }

    fn write_superblock(&self, salt: u64) -> Result<()> {
        self.populate_table(0, OS_PAGE)?;
        let mut head = [0u8; SB_CHECK];
        head[..8].copy_from_slice(&MAGIC.to_le_bytes());
        head[SB_VERSION..SB_VERSION + 8].copy_from_slice(&u64::from(FORMAT_VERSION).to_le_bytes());
        head[SB_UUID..SB_UUID + 16].copy_from_slice(&self.uuid);
        head[SB_SALT..SB_SALT + 8].copy_from_slice(&salt.to_le_bytes());
        // SAFETY: the first page was populated just now and is at least 64 bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(head[8..].as_ptr(), self.base.add(8), SB_CHECK - 8);
            layout::store(self.base.add(SB_CHECK), XxHash3_64::oneshot(&head));
            layout::store(self.base, MAGIC);
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if this process made the file.
    pub fn fresh(&self) -> bool {
        self.fresh
    }

    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Blocks the file has.
    pub fn grown(&self) -> u32 {
        self.grown.load(Ordering::Acquire)
    }

    /// Blocks that were there whole at opening.
    pub fn present(&self) -> u32 {
        self.present
    }

    /// Makes the blocks that were cut off empty ones. Their loss was recorded before.
    pub fn replace_missing(&self) -> Result<()> {
        let grown = self.grown();
        if self.present == grown {
            return Ok(());
        }
        let shown = self.path.display();
        let cut = DATA + u64::from(self.present) * BLOCK_SIZE;
        // Shorter first: what is left of a block that was cut in two goes as well.
        self.file
            .set_len(cut)
            .and_then(|()| self.file.set_len(DATA + u64::from(grown) * BLOCK_SIZE))
            .map_err(StoreError::io(format!("cannot extend arena {shown}")))?;
        for block in self.present..grown {
            self.set_block_entry(block, BlockEntry { class: None, populated: 0 });
        }
        Ok(())
    }

    /// Blocks the file may have.
    pub fn max_blocks(&self) -> u32 {
        self.max_blocks
    }

    /// Bytes of memory behind the blocks, by our own count.
    pub fn populated_bytes(&self) -> u64 {
        self.populated.load(Ordering::Relaxed) * OS_PAGE
    }

    /// Bytes of memory the file system holds for the file: the kernel's count.
    pub fn file_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.blocks() * 512)
    }

    /// Bytes the file system could still give.
    pub fn available_bytes(&self) -> u64 {
        // SAFETY: zeroed is a valid statvfs; the call fills it.
        let mut s: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: our descriptor and our buffer.
        if unsafe { libc::fstatvfs(self.file.as_raw_fd(), &raw mut s) } != 0 {
            return 0;
        }
        s.f_bavail * s.f_frsize
    }

    fn table(&self, offset: u64, len: u64) -> *mut u8 {
        assert!(offset + len <= DATA, "table access outside the head of the arena");
        // SAFETY: checked against the head, which is always mapped and inside the file.
        unsafe { self.base.add(offset as usize) }
    }

    /// Memory behind a part of the tables, so that a store cannot fault.
    pub fn populate_table(&self, offset: u64, len: u64) -> Result<()> {
        let from = offset / OS_PAGE * OS_PAGE;
        let to = (offset + len).next_multiple_of(OS_PAGE);
        let at = self.table(from, to - from);
        self.madvise(at, to - from, MADV_POPULATE_WRITE).map_err(|e| self.no_space(&e))
    }

    fn no_space(&self, e: &io::Error) -> StoreError {
        StoreError::NoSpace(format!("no memory left for arena {}: {e}", self.path.display()))
    }

    /// A word of the tables. `offset` is 8-aligned.
    pub fn table_load(&self, offset: u64) -> u64 {
        // SAFETY: inside the head; alignment by the layout's constants.
        unsafe { layout::load(self.table(offset, 8)) }
    }

    /// Sets a word of the tables, which was populated before.
    pub fn table_store(&self, offset: u64, value: u64) {
        // SAFETY: as above.
        unsafe { layout::store(self.table(offset, 8), value) };
    }

    /// Copies table bytes out, through the file: reading a hole of it through the mapping would
    /// put memory behind it. What cannot be read reads as free.
    pub fn table_read(&self, offset: u64, out: &mut [u8]) {
        if self.file.read_exact_at(out, offset).is_err() {
            out.fill(0);
        }
    }

    /// Copies bytes into the tables, which were populated before.
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let at = self.table(offset, data.len() as u64);
        // SAFETY: inside the head; entries are guarded by the lock of their table.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len()) };
    }

    pub fn block_entry(&self, block: u32) -> Option<BlockEntry> {
        BlockEntry::unpack(self.table_load(BLOCK_TABLE + u64::from(block) * 8), block)
    }

    pub fn set_block_entry(&self, block: u32, entry: BlockEntry) {
        self.table_store(BLOCK_TABLE + u64::from(block) * 8, entry.pack(block));
    }

    /// Adds one block to the file. The caller serialises growth. `None`: no more address space.
    pub fn grow(&self) -> Option<u32> {
        let block = self.grown.load(Ordering::Relaxed);
        if block >= self.max_blocks
            || self.file.set_len(DATA + u64::from(block + 1) * BLOCK_SIZE).is_err()
            || self.populate_table(BLOCK_TABLE + u64::from(block) * 8, 8).is_err()
        {
            return None;
        }
        self.set_block_entry(block, BlockEntry { class: None, populated: 0 });
        self.table_store(SB_GROWN as u64, u64::from(block) + 1);
        self.grown.store(block + 1, Ordering::Release);
        Some(block)
    }

    /// Faults pages `from..to` of a block in and accounts them. Fails when memory is short.
    pub fn populate(&self, block: u32, from: u16, to: u16) -> io::Result<()> {
        let at = self.data(u64::from(block) * BLOCK_SIZE + u64::from(from) * OS_PAGE);
        let len = u64::from(to - from) * OS_PAGE;
        self.madvise(at, len, MADV_POPULATE_WRITE)?;
        self.populated.fetch_add(u64::from(to - from), Ordering::Relaxed);
        Ok(())
    }

    /// Maps pages that the file already has (recovery), in one call instead of a fault each.
    pub fn map_existing(&self, block: u32, pages: u16) -> io::Result<()> {
        self.populated.fetch_add(u64::from(pages), Ordering::Relaxed);
        if pages == 0 {
            return Ok(());
        }
        let at = self.data(u64::from(block) * BLOCK_SIZE);
        self.madvise(at, u64::from(pages) * OS_PAGE, MADV_POPULATE_READ)
    }

    fn madvise(&self, at: *mut u8, len: u64, advice: i32) -> io::Result<()> {
        loop {
            // SAFETY: the range is inside our mapping and, by growth, inside the file.
            if unsafe { libc::madvise(at.cast(), len as usize, advice) } == 0 {
                return Ok(());
            }
            let e = io::Error::last_os_error();
            match e.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                // What populating answers where an access would raise SIGBUS: no room.
                Some(libc::EFAULT) => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                _ => return Err(e),
            }
        }
    }

    /// Puts a full block into one huge page. False: the kernel does not, or has none to give.
    pub fn collapse(&self, block: u32) -> bool {
        let at = self.data(u64::from(block) * BLOCK_SIZE);
        // SAFETY: a whole block of our mapping; its contents stay as they are.
        unsafe { libc::madvise(at.cast(), BLOCK_SIZE as usize, MADV_COLLAPSE) == 0 }
    }

    /// Gives memory back to the host: pages `from..populated` of a block, which hold nothing.
    pub fn punch(&self, block: u32, from: u16, populated: u16) -> io::Result<()> {
        let offset = u64::from(from) * OS_PAGE;
        // SAFETY: plain system call on our descriptor.
        let r = unsafe {
            libc::fallocate(
                self.file.as_raw_fd(),
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                (DATA + u64::from(block) * BLOCK_SIZE + offset) as libc::off_t,
                (BLOCK_SIZE - offset) as libc::off_t,
            )
        };
        if r != 0 {
            return Err(io::Error::last_os_error());
        }
        self.populated.fetch_sub(u64::from(populated - from), Ordering::Relaxed);
        Ok(())
    }

    /// Address of a data offset.
    #[inline]
    pub fn data(&self, offset: u64) -> *mut u8 {
        debug_assert!((DATA + offset) < self.map_len as u64);
        // SAFETY: offsets come from the allocator, which hands out only grown blocks.
        unsafe { self.base.add((DATA + offset) as usize) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: our mapping, unmapped once.
        unsafe { libc::munmap(self.base.cast(), self.map_len) };
    }
}

/// The arena's file, locked by this process. Closing it would not be enough to unlock: a child that
/// is just being forked has the descriptor for a moment, too.
struct LockedFile(File);

impl std::ops::Deref for LockedFile {
    type Target = File;
    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // SAFETY: plain system call on our descriptor.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

/// Maps the file with its blocks on 2 MiB boundaries, as huge pages need it. Beyond the file's end
/// it is only address space.
fn map(file: &File, len: usize) -> io::Result<*mut u8> {
    let (slack, null) = (BLOCK_SIZE as usize, std::ptr::null_mut());
    // SAFETY: a new reservation; nothing is replaced.
    let room = unsafe {
        libc::mmap(
            null,
            len + slack,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if room == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = (room as usize).next_multiple_of(slack) - room as usize;
    // SAFETY: `before` is at most `slack`, so all of it lies in the reservation, which is ours: its
    // middle is replaced, its ends are given back.
    unsafe {
        let at = room.cast::<u8>().add(before);
        let base = libc::mmap(
            at.cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED,
            file.as_raw_fd(),
            0,
        );
        if base == libc::MAP_FAILED {
            let e = io::Error::last_os_error();
            libc::munmap(room, len + slack);
            return Err(e);
        }
        if before > 0 {
            libc::munmap(room, before);
        }
        let end = len.next_multiple_of(OS_PAGE as usize);
        if slack > before {
            libc::munmap(at.add(end).cast(), slack - before);
        }
        Ok(base.cast())
    }
}

/// The keyed secret of the checksum: splitmix64 from the arena's salt (Steele et al., OOPSLA'14).
/// Bytes of an earlier arena or a guest's page cannot pass for a slot of this one.
fn secret(salt: u64) -> [u8; 192] {
    let mut out = [0u8; 192];
    let mut x = salt;
    for chunk in out.chunks_exact_mut(8) {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = x;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ z >> 31).to_le_bytes());
    }
    out
}
