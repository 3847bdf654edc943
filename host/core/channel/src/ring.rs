// SPDX-License-Identifier: Apache-2.0
//! One running virtqueue: takes chains off the available ring, has them carried out by the device's handler, and
//! publishes each on the used ring before it takes the next.
//!
//! Completion in order is what makes a killed server survivable without any in-flight log: the used index
//! in guest memory says exactly which requests are done. So what a device does for a request has to bear being done
//! twice in a row: its successor repeats the one that was under way.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::config::MAX_QUEUE_SIZE;
use crate::device::{Call, Outcome, QueueHandler};
use crate::guest::Table;
use crate::stats::QueueCounters;

/// Feature bits that every device has by its rings.
pub(crate) const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Requests completed before the guest is told, when more are waiting: lets the guest work on the first ones
/// while the rest of a deep batch is served, and costs at most an eighth of an interrupt for each.
pub(crate) const BATCH: usize = 8;

/// The same bound in time, for large requests: also how soon a worker looks at its mailbox again.
const BATCH_TIME: Duration = Duration::from_micros(100);

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a queue was stopped: its ring made no sense.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Fault { $($(#[$doc])* $variant,)* }

        impl Fault {
            const ALL: &'static [Fault] = &[$(Fault::$variant,)*];

            /// Name used in logs and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$variant => $name,)* }
            }

            pub(crate) fn from_code(code: u8) -> Option<Fault> {
                Fault::ALL.get(usize::from(code)).copied()
            }
        }
    };
}

faults! {
    /// Size zero, not a power of two or too large.
    BadSize = "bad_size",
    /// Descriptor table, available or used ring not in guest memory, or misaligned.
    OutsideMemory = "outside_memory",
    /// The available index is more than a queue ahead.
    AvailIndex = "avail_index",
    /// A head that is no descriptor.
    HeadIndex = "head_index",
    /// The kick descriptor cannot be waited for.
    BadKick = "bad_kick",
    /// A bug in the channel or the store: caught at the queue's boundary.
    Panic = "panic",
}

/// Where a ring lies and what was negotiated for it. Addresses are guest-physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSetup {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring (driver area).
    pub avail: u64,
    /// Used ring (device area).
    pub used: u64,
    /// VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_RING_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

impl RingSetup {
    /// A ring that lies nowhere.
    pub const EMPTY: RingSetup =
        RingSetup { size: 0, desc: 0, avail: 0, used: 0, event_idx: false, indirect: false };
}

/// What a call of [`Ring::serve`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests completed.
    pub completed: usize,
    /// The guest wants to be told.
    pub interrupt: bool,
}

/// A virtqueue that is being served.
pub struct Ring {
    setup: RingSetup,
    queue: Queue,
    table: Table,
    // Points into `mem`, which outlives it.
    avail_idx: *const AtomicU16,
    mem: Arc<GuestMemoryMmap>,
    handler: Box<dyn QueueHandler>,
    kicks_wanted: bool,
    /// Used index when the guest was last told.
    told: Wrapping<u16>,
}

// SAFETY: avail_idx points into the mapping that `mem` keeps alive, and is only read atomically.
unsafe impl Send for Ring {}

impl Ring {
    /// Checks that the ring lies in `mem` and starts behind what its used index says is done.
    ///
    /// The base a frontend sends is not consulted: this device completes in order, so the used index is the
    /// truth, also after a predecessor was killed (libvhost-user does the same for devices that process in order).
    pub fn start(
        setup: RingSetup,
        mem: Arc<GuestMemoryMmap>,
        handler: Box<dyn QueueHandler>,
    ) -> Result<Ring, Fault> {
        let (queue, table, avail_idx) = Ring::place(&setup, &mem)?;
        let told = Wrapping(0);
        let mut ring = Ring { setup, queue, table, avail_idx, mem, handler, kicks_wanted: true, told };
        let done = ring.queue.used_idx(&*ring.mem, Ordering::Acquire).map_err(|_| Fault::OutsideMemory)?;
        ring.queue.set_next_used(done.0);
        ring.queue.set_next_avail(done.0);
        // Whoever starts a ring interrupts, too.
        ring.told = done;
        Ok(ring)
    }

    fn place(setup: &RingSetup, mem: &GuestMemoryMmap) -> Result<(Queue, Table, *const AtomicU16), Fault> {
        let mut queue = Queue::new(MAX_QUEUE_SIZE).map_err(|_| Fault::BadSize)?;
        queue.try_set_size(setup.size).map_err(|_| Fault::BadSize)?;
        queue
            .try_set_desc_table_address(GuestAddress(setup.desc))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(setup.avail)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(setup.used)))
            .map_err(|_| Fault::OutsideMemory)?;
        queue.set_event_idx(setup.event_idx);
        queue.set_ready(true);
        if !queue.is_valid(mem) {
            return Err(Fault::OutsideMemory);
        }
        let table = Table::resolve(mem, GuestAddress(setup.desc), usize::from(setup.size));
        let idx = setup.avail.checked_add(2).and_then(|at| Table::resolve_u16(mem, at));
        match (table, idx) {
            (Some(table), Some(idx)) => Ok((queue, table, idx)),
            _ => Err(Fault::OutsideMemory),
        }
    }

    /// Moves a running ring to a changed memory map, at the same guest-physical addresses.
    pub fn remap(&mut self, setup: RingSetup, mem: Arc<GuestMemoryMmap>) -> Result<(), Fault> {
        let (mut queue, table, avail_idx) = Ring::place(&setup, &mem)?;
        queue.set_next_avail(self.queue.next_avail());
        queue.set_next_used(self.queue.next_used());
        self.setup = setup;
        self.queue = queue;
        self.table = table;
        self.avail_idx = avail_idx;
        self.mem = mem;
        Ok(())
    }

    /// Index of the next request, as GET_VRING_BASE reports it.
    pub fn base(&self) -> u16 {
        self.queue.next_avail()
    }

    /// A request is waiting, or the index jumped. One load.
    #[inline]
    pub fn has_work(&self) -> bool {
        // SAFETY: place() proved two aligned bytes of `mem` there, which is still mapped.
        let idx = unsafe { &*self.avail_idx }.load(Ordering::Acquire);
        u16::from_le(idx) != self.queue.next_avail()
    }

    /// Serves at most [`BATCH`] requests; long ones may be given up when `stop` is set.
    pub fn serve(&mut self, counters: &QueueCounters, stop: &AtomicBool) -> Result<Served, Fault> {
        let mut served = Served::default();
        if !self.has_work() {
            return Ok(served);
        }
        if self.kicks_wanted {
            self.kicks_wanted = false;
            self.queue.disable_notification(&*self.mem).map_err(|_| Fault::OutsideMemory)?;
        }
        let start = Instant::now();
        let mut before = start;
        while served.completed < BATCH {
            let Some(head) = self.pop()? else { break };
            let call = Call {
                mem: &self.mem,
                table: &self.table,
                head,
                indirect: self.setup.indirect,
                stop,
                counters,
            };
            let Outcome::Done { written, work } = self.handler.handle(&call) else {
                self.queue.go_to_previous_position();
                break;
            };
            self.queue.add_used(&*self.mem, head, written).map_err(|_| Fault::HeadIndex)?;
            served.completed += 1;
            let now = Instant::now();
            if let Some(work) = work {
                counters.served(work, now.duration_since(before).as_nanos() as u64);
            }
            before = now;
            if now.duration_since(start) > BATCH_TIME {
                break;
            }
        }
        if served.completed > 0 {
            counters.batches.add(1);
            served.interrupt = self.wants_interrupt()?;
        }
        Ok(served)
    }

    /// Head of the next chain.
    fn pop(&mut self) -> Result<Option<u16>, Fault> {
        // The iterator checks the distance of the available index on each creation.
        let chain = self.queue.iter(&*self.mem).map_err(|_| Fault::AvailIndex)?.next();
        match chain {
            Some(chain) if chain.head_index() < self.setup.size => Ok(Some(chain.head_index())),
            Some(_) => Err(Fault::HeadIndex),
            None => Ok(None),
        }
    }

    fn wants_interrupt(&mut self) -> Result<bool, Fault> {
        let mut wanted = self.queue.needs_notification(&*self.mem).map_err(|_| Fault::OutsideMemory)?;
        if wanted && !self.setup.event_idx {
            // virtio-queue knows only the event index; without it the driver speaks through the flag.
            wanted = self.flag_allows()?;
        }
        if wanted {
            self.told = Wrapping(self.queue.next_used());
        }
        Ok(wanted)
    }

    fn flag_allows(&self) -> Result<bool, Fault> {
        Ok(u32::from(self.load(self.setup.avail)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    fn load(&self, at: u64) -> Result<u16, Fault> {
        let value: u16 =
            self.mem.load(GuestAddress(at), Ordering::Relaxed).map_err(|_| Fault::OutsideMemory)?;
        Ok(u16::from_le(value))
    }

    /// Asked a while after the last request, when whatever the guest wrote has long arrived: it waits for one that was
    /// done before it said so, and was not told. `true` once for each such request.
    ///
    /// Both sides write first and look second, so one of the two sees the other; unless the guest's CPU lets its look
    /// overtake its write. QEMU's TCG does, with a single vCPU: its `lock` instructions are no barriers there
    /// (`do_nonatomic_op` in tcg/tcg-op-ldst.c).
    pub fn owes_interrupt(&mut self) -> Result<bool, Fault> {
        let used = Wrapping(self.queue.next_used());
        let owed = if self.setup.event_idx {
            // The avail ring's last word: flags, index and one entry a descriptor are before it.
            let event = Wrapping(self.load(self.setup.avail + 4 + 2 * u64::from(self.setup.size))?);
            used - event - Wrapping(1) < used - self.told
        } else {
            used != self.told && self.flag_allows()?
        };
        if owed {
            self.told = used;
        }
        Ok(owed)
    }

    /// Asks for kicks again. `true` when a request slipped in: then do not sleep.
    pub fn want_kicks(&mut self) -> Result<bool, Fault> {
        self.kicks_wanted = true;
        self.queue.enable_notification(&*self.mem).map_err(|_| Fault::OutsideMemory)
    }
}
