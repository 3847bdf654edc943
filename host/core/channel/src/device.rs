// SPDX-License-Identifier: Apache-2.0
//! What a device is to the rest of the channel: everything that depends on its virtio id lies behind these traits.
//!
//! A device is shared by all queues and immutable but for what it guards itself. Each running queue has a handler of
//! its own, with the scratch space that makes requests free of allocations; one dynamic call takes a chain to it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vm_memory::GuestMemoryMmap;

use crate::guest::Table;
use crate::stats::QueueCounters;

/// Names of what a device counts. A counter's index is its place in these lists.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// Short name of the device, for threads.
    pub device: &'static str,
    /// Operations.
    pub ops: &'static [&'static str],
    /// Why chains are malformed.
    pub malformed: &'static [&'static str],
    /// Why a request is refused, or the store does not take or give a page.
    pub refused: &'static [&'static str],
}

/// A virtio device that is served on a socket.
pub trait DeviceModel: Send + Sync + 'static {
    /// Names of its counters.
    fn names(&self) -> &'static Names;

    /// Feature bits of this device (virtio 1.2: 0 to 23 and 50 to 127); those of rings and of vhost-user come on top.
    fn features(&self) -> u64;

    /// The configuration space; what lies behind its end reads as zero.
    fn config_space(&self) -> Vec<u8>;

    /// The driver, or the frontend for it, writes to the configuration space: any offset, any bytes.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// The frontend is gone, or resets the device: what was agreed on with the driver is void.
    fn reset(&self) {}

    /// Whether the frontend is asked to tell of resets. Without, it only stops the queues, as it does for a pause.
    fn wants_resets(&self) -> bool {
        false
    }

    /// A handler for one queue that starts.
    fn queue(self: Arc<Self>) -> Box<dyn QueueHandler>;

    /// Called by a worker when its queues are drained and before it sleeps: work that no guest waits for.
    fn idle(&self) {}
}

/// A descriptor chain to be carried out, and where it lies.
pub struct Call<'a> {
    /// The guest's memory, mapped for the whole call.
    pub mem: &'a GuestMemoryMmap,
    /// Descriptor table of the queue.
    pub table: &'a Table,
    /// First descriptor of the chain, inside the table.
    pub head: u16,
    /// VIRTIO_RING_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// The server is stopping: long work may be abandoned.
    pub stop: &'a AtomicBool,
    /// Counters of the queue.
    pub counters: &'a QueueCounters,
}

/// What a chain turned out to be: for the counters of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Index in [`Names::ops`].
    pub op: usize,
    /// Bytes of data asked for.
    pub bytes: u64,
}

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Complete it.
    Done {
        /// Bytes written to the guest.
        written: u32,
        /// What was carried out, with whatever answer; `None` for a chain that was no request.
        work: Option<Work>,
    },
    /// The server is stopping: leave the chain uncompleted, whoever serves the ring next repeats it.
    Abandoned,
}

/// Carries out the chains of one queue, one after the other.
pub trait QueueHandler: Send {
    /// Carries out one chain. Whatever the guest wrote there, this neither panics nor touches anything but this VM.
    fn handle(&mut self, call: &Call<'_>) -> Outcome;
}
