// SPDX-License-Identifier: Apache-2.0
//! One frontend's connection: vhost-user messages become state of vrings and commands for workers.
//!
//! A vring runs once it has a size, addresses, memory, a kick descriptor, and is enabled, in whatever order
//! they come: QEMU, Cloud Hypervisor and libblkio differ. Whatever is changed under a running vring goes
//! through its worker, between two batches.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost::vhost_user::{Error, Result};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::DeviceModel;
use crate::event::Event;
use crate::memory::{Memory, MemoryError, mapped_bytes};
use crate::ring::{RING_FEATURES, RingSetup};
use crate::worker::{QueueStart, Worker, WorkerHandle};

mod messages;

/// What a session needs of its server.
pub(crate) struct Home {
    /// Path of the socket, for logs.
    pub(crate) socket: PathBuf,
    pub(crate) queues: u16,
    pub(crate) device: Arc<dyn DeviceModel>,
    pub(crate) workers: Vec<WorkerHandle>,
    /// The frontend's call and error descriptors: what a worker could block on.
    pub(crate) calls: Mutex<Vec<Event>>,
}

impl Home {
    /// Takes the counts of all call and error descriptors, so that a write to them goes through.
    pub(crate) fn drain_calls(&self) {
        for call in self.calls().iter() {
            call.drain();
        }
    }

    fn calls(&self) -> MutexGuard<'_, Vec<Event>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the descriptors that are in use now.
    fn remember_calls(&self, vrings: &[Vring]) {
        *self.calls() =
            vrings.iter().flat_map(|vring| [vring.call.clone(), vring.err.clone()]).flatten().collect();
    }

    /// Worker and slot that serve a queue.
    fn place(&self, queue: usize) -> (&WorkerHandle, usize) {
        let n = self.workers.len();
        (&self.workers[queue % n], queue / n)
    }

    fn on_worker<R: Send + 'static>(
        &self,
        queue: usize,
        command: impl FnOnce(&mut Worker, usize) -> R + Send + 'static,
    ) -> Result<R> {
        let (worker, slot) = self.place(queue);
        worker.call(move |worker| command(worker, slot)).map_err(|_| Error::BackendInternalError)
    }
}

#[derive(Clone, Copy)]
struct Addresses {
    desc: u64,
    avail: u64,
    used: u64,
}

#[derive(Default)]
struct Vring {
    size: u16,
    base: u16,
    addresses: Option<Addresses>,
    kick: Option<Event>,
    call: Option<Event>,
    err: Option<Event>,
    enabled: bool,
    running: bool,
}

/// State of one connection.
pub(crate) struct Session {
    home: Arc<Home>,
    features: u64,
    memory: Memory,
    vrings: Vec<Vring>,
}

impl Session {
    pub(crate) fn new(home: Arc<Home>) -> Session {
        let vrings = (0..home.queues).map(|_| Vring::default()).collect();
        Session { home, features: 0, memory: Memory::default(), vrings }
    }

    fn stop_all(&mut self) {
        for queue in 0..self.vrings.len() {
            let base = self.stop(queue).unwrap_or(None);
            let vring = &mut self.vrings[queue];
            vring.base = base.unwrap_or(vring.base);
            vring.kick = None;
        }
    }

    /// Stops every vring, and forgets what was agreed on with the driver.
    pub(crate) fn end(&mut self) {
        self.stop_all();
        self.home.device.reset();
    }

    fn offered(&self) -> u64 {
        RING_FEATURES | self.home.device.features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn vring(&mut self, index: u32) -> Result<(usize, &mut Vring)> {
        let queue = index as usize;
        let vring = self.vrings.get_mut(queue).ok_or(Error::InvalidParam)?;
        Ok((queue, vring))
    }

    fn setup(&self, vring: &Vring) -> Option<RingSetup> {
        let addresses = vring.addresses?;
        Some(RingSetup {
            size: vring.size,
            desc: self.memory.guest_address(addresses.desc)?,
            avail: self.memory.guest_address(addresses.avail)?,
            used: self.memory.guest_address(addresses.used)?,
            event_idx: self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            indirect: self.features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0,
        })
    }

    /// Starts a vring that has all it needs.
    fn start_if_ready(&mut self, queue: usize) -> Result<()> {
        let vring = &self.vrings[queue];
        if vring.running || !vring.enabled || vring.addresses.is_none() || vring.size == 0 {
            return Ok(());
        }
        let (Some(kick), Some(memory)) = (vring.kick.clone(), self.memory.map()) else { return Ok(()) };
        // Addresses outside the memory become a broken queue, not a broken connection.
        let nowhere = RingSetup {
            size: vring.size,
            desc: u64::MAX,
            avail: u64::MAX,
            used: u64::MAX,
            ..RingSetup::EMPTY
        };
        let start = QueueStart {
            setup: self.setup(vring).unwrap_or(nowhere),
            memory,
            kick,
            call: vring.call.clone(),
            err: vring.err.clone(),
        };
        self.home.on_worker(queue, move |worker, slot| worker.start_queue(slot, start))?;
        self.vrings[queue].running = true;
        Ok(())
    }

    fn stop(&mut self, queue: usize) -> Result<Option<u16>> {
        self.vrings[queue].running = false;
        self.home.on_worker(queue, move |worker, slot| worker.stop_queue(slot))
    }

    /// Makes a changed memory map the one in use, also for vrings that run.
    fn adopt(&mut self, memory: std::result::Result<Memory, MemoryError>) -> Result<()> {
        self.memory = memory.map_err(|error| {
            log::warn!("{}: {error}", self.home.socket.display());
            Error::InvalidParam
        })?;
        if let Some(map) = self.memory.map() {
            log::debug!("guest memory: {} MiB mapped", mapped_bytes(&map) >> 20);
        }
        for queue in 0..self.vrings.len() {
            if self.vrings[queue].running {
                let place = self.setup(&self.vrings[queue]).zip(self.memory.map());
                self.home.on_worker(queue, move |worker, slot| worker.remap_queue(slot, place))?;
            } else {
                self.start_if_ready(queue)?;
            }
        }
        Ok(())
    }
}
