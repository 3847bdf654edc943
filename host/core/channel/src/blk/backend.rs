// SPDX-License-Identifier: Apache-2.0
//! What a block channel needs of a page store, and nothing more.

/// Bytes of one page: the unit in which the store keeps data.
pub const PAGE_SIZE: usize = 4096;

/// Bytes of one sector: the unit in which virtio-blk addresses (virtio 1.2, section 5.2.4).
pub const SECTOR_SIZE: usize = 512;

/// Sectors of one page.
pub const SECTORS_PER_PAGE: u64 = (PAGE_SIZE / SECTOR_SIZE) as u64;

/// The store's answer to a put. Everything but `Stored` becomes `VIRTIO_BLK_S_IOERR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutResult {
    /// The page is kept and can be got until it is flushed or put over.
    Stored,
    /// The host has no memory left for this VM.
    NoRoom,
    /// The VM has reached its cap.
    OverCap,
    /// The VM is frozen: puts are refused.
    Frozen,
    /// The store failed internally.
    Failed,
}

/// The store's answer to a get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetResult {
    /// The destination holds the page.
    Hit,
    /// No such page; the destination is untouched and the guest reads zeroes.
    Miss,
    /// The page was kept once and is lost; the guest gets an I/O error, never wrong data.
    Lost,
}

/// A store of pages as one block device sees it: page `index` is sectors `8 * index .. 8 * index + 8`.
///
/// Called from several worker threads at once. Pointers are aligned to [`crate::guest::PAGE_POINTER_ALIGN`] and may
/// point straight into guest memory, which the guest can change at any time.
pub trait PageBackend: Send + Sync + 'static {
    /// Size of the device in pages. Read once, when the server starts.
    fn pages(&self) -> u64;

    /// Keeps one page.
    ///
    /// # Safety
    /// `src` is valid for reads of [`PAGE_SIZE`] bytes; the guest may change them meanwhile.
    unsafe fn put(&self, index: u64, src: *const u8) -> PutResult;

    /// Gives one page back.
    ///
    /// # Safety
    /// `dst` is valid for writes of [`PAGE_SIZE`] bytes; the guest may read or change them meanwhile.
    unsafe fn get(&self, index: u64, dst: *mut u8) -> GetResult;

    /// Read-modify-write of a part of a page, atomic against other requests for this page.
    /// `offset + data.len() <= PAGE_SIZE`, both multiples of [`SECTOR_SIZE`].
    fn write_part(&self, index: u64, offset: usize, data: &[u8]) -> PutResult;

    /// Flush page for `count` pages from `index` on (discard, write-zeroes).
    fn flush(&self, index: u64, count: u64);

    /// Called by a worker when its queues are drained and before it sleeps: work that no guest waits for.
    fn idle(&self) {}
}
