// SPDX-License-Identifier: Apache-2.0
//! What a block device is told, and what it tells the driver about itself.

use std::path::PathBuf;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};

use super::backend::{PAGE_SIZE, SECTORS_PER_PAGE};
use super::request::MAX_DATA;
use crate::config::{ChannelError, MAX_QUEUE_SIZE, PollPolicy, ServerConfig};

/// Most ranges in one discard or write-zeroes request (Linux sends at most 256 in one).
pub const MAX_RANGES: usize = 256;
/// Longest serial, from virtio 1.2, section 5.2.6.
pub const SERIAL_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of the configuration space that carry something; the rest reads as zero.
pub(crate) const CONFIG_BYTES: usize = 60;
/// Offset of `wce` in the configuration space, its only writable field.
pub(crate) const CONFIG_WCE_OFFSET: usize = 32;
/// Largest segment advertised, in bytes. With [`SEG_MAX`] it bounds a request of a driver that plays by the rules
/// below [`MAX_DATA`].
const SIZE_MAX: u32 = 256 << 10;
/// Most data segments advertised: QEMU's own queue size defaults to 128, less header and status.
const SEG_MAX: u16 = 126;

const _: () = assert!(SIZE_MAX as u64 * (SEG_MAX as u64) < MAX_DATA);

/// One block device and where to serve it.
#[derive(Clone, Debug)]
pub struct BlkConfig {
    /// Path of the socket; made with mode 0600.
    pub socket: PathBuf,
    /// Queues offered, 1..=16.
    pub queues: u16,
    /// Queue size the limits in the configuration space are made for, a power of two, 4..=1024. What the frontend
    /// then chooses may be any power of two up to 1024.
    pub queue_size: u16,
    /// When to look for requests.
    pub poll: PollPolicy,
    /// Serial number that the guest sees, at most 20 bytes.
    pub serial: String,
    /// Refuse writes.
    pub read_only: bool,
}

impl BlkConfig {
    pub(crate) fn check(&self, pages: u64) -> Result<(), ChannelError> {
        if !self.queue_size.is_power_of_two() || !(4..=MAX_QUEUE_SIZE).contains(&self.queue_size) {
            return Err(ChannelError::Invalid("queue_size must be a power of two from 4 to 1024"));
        }
        if self.serial.len() > SERIAL_BYTES {
            return Err(ChannelError::Invalid("serial must be at most 20 bytes"));
        }
        if pages == 0 || pages > u64::MAX / PAGE_SIZE as u64 {
            return Err(ChannelError::Invalid("the device must have at least one page and fewer than 2^52"));
        }
        Ok(())
    }

    pub(crate) fn server(&self) -> ServerConfig {
        ServerConfig { socket: self.socket.clone(), queues: self.queues, poll: self.poll }
    }

    /// Feature bits of the device.
    pub(crate) fn features(&self) -> u64 {
        let bits = [
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            // The device starts write-through (wce = 0): a completed put is kept, so a driver that reads the
            // field sends no flushes.
            VIRTIO_BLK_F_CONFIG_WCE,
        ];
        let mut features = bits.iter().fold(0u64, |all, bit| all | 1 << bit);
        if self.queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        if self.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        }
        features
    }

    /// `struct virtio_blk_config` (virtio 1.2, section 5.2.4), up to `write_zeroes_may_unmap` and its padding.
    pub(crate) fn config_space(&self, pages: u64, wce: bool) -> [u8; CONFIG_BYTES] {
        let capacity = pages * SECTORS_PER_PAGE;
        let seg_max = SEG_MAX.min(self.queue_size - 2);
        // One request may cover the device, as far as 32 bits go, in whole pages.
        let range_max = capacity.min(u64::from(u32::MAX) & !(SECTORS_PER_PAGE - 1)) as u32;
        let mut space = [0u8; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &capacity.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &u32::from(seg_max).to_le_bytes());
        // 16: geometry, not offered.
        put(20, &(PAGE_SIZE as u32).to_le_bytes());
        // 24: physical_block_exp 0, 25: alignment_offset 0.
        put(26, &1u16.to_le_bytes());
        put(28, &1u32.to_le_bytes());
        put(CONFIG_WCE_OFFSET, &[u8::from(wce)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &range_max.to_le_bytes());
        put(40, &(MAX_RANGES as u32).to_le_bytes());
        put(44, &(SECTORS_PER_PAGE as u32).to_le_bytes());
        put(48, &range_max.to_le_bytes());
        put(52, &(MAX_RANGES as u32).to_le_bytes());
        put(56, &[1]);
        space
    }
}
