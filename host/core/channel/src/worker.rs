// SPDX-License-Identifier: Apache-2.0
//! The threads that serve queues.
//!
//! `vhost-user-backend` is not used: its ring threads sleep in epoll after each event and take a lock per
//! ring and event, so a bounded spin over several rings, a change of policy while running and a queue that
//! stops alone have no place in it. What it would do for the rings is done here in about the same space.
//!
//! A worker owns its rings; nothing on the path of a request is shared but counters. The control thread
//! reaches in only through the mailbox, whose commands run between two batches, so a memory map or a ring
//! never changes under a request, and no lock is taken per request.
//!
//! There are half as many workers as CPUs, at least one and at most one per queue: a worker that spins takes a
//! CPU from the guest's own vCPUs, and on two CPUs one thread that looks at all rings finds more work per
//! wake-up than two that compete for the second CPU.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;

use crate::device::DeviceModel;
use crate::event::{Event, EventSet};
use crate::poll::Window;
use crate::ring::{Fault, Ring, RingSetup, Served};
use crate::stats::{QueueCounters, QueueState, WorkerCounters};

mod handle;

use handle::Mailbox;
pub(crate) use handle::WorkerHandle;

const MAILBOX_TOKEN: u64 = u64::MAX;

/// How long after falling asleep a worker looks once more for what a notification should have told of: longer than
/// anything a CPU holds back, shorter than anybody notices.
const SECOND_LOOK: Duration = Duration::from_millis(10);
/// A kick that belongs to what the second look found comes within this time.
const GRACE: Duration = Duration::from_millis(1);

/// Panics after which a worker gives up instead of going on with its other queues.
const MAX_PANICS: u32 = 16;

/// What all workers of a server share.
pub(crate) struct Shared {
    pub(crate) device: Arc<dyn DeviceModel>,
    pub(crate) stop: AtomicBool,
    pub(crate) poll_us: AtomicU32,
}

/// A queue as the frontend set it up, ready to run.
pub(crate) struct QueueStart {
    pub(crate) setup: RingSetup,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) kick: Event,
    pub(crate) call: Option<Event>,
    pub(crate) err: Option<Event>,
}

struct Running {
    ring: Ring,
    kick: Event,
}

struct Slot {
    counters: Arc<QueueCounters>,
    running: Option<Running>,
    /// Where a broken ring stopped.
    broken_at: Option<u16>,
    call: Option<Event>,
    err: Option<Event>,
}

impl Slot {
    fn serve(&mut self, stop: &AtomicBool) -> Result<Served, Fault> {
        let Some(running) = &mut self.running else { return Ok(Served::default()) };
        catch_unwind(AssertUnwindSafe(|| running.ring.serve(&self.counters, stop)))
            .unwrap_or(Err(Fault::Panic))
    }

    fn has_work(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.ring.has_work())
    }

    fn interrupt(&self) {
        if let Some(call) = &self.call {
            call.signal();
            self.counters.interrupts.add(1);
        }
    }
}

/// State of a worker thread; slot `i` is queue `first + i * step`.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    events: EventSet,
    mailbox: Arc<Mailbox>,
    counters: Arc<WorkerCounters>,
    window: Window,
}

impl Worker {
    fn run(&mut self) {
        self.counters.adopt_thread();
        let mut panics = 0;
        // Rings are guarded one by one in Slot::serve(); this is for bugs in the loop itself.
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work())) {
            for slot in 0..self.slots.len() {
                self.break_queue(slot, Fault::Panic);
            }
            panics += 1;
            if panics >= MAX_PANICS {
                self.close_mailbox();
                std::panic::resume_unwind(panic);
            }
        }
        self.close_mailbox();
        for slot in &mut self.slots {
            slot.running = None;
            if slot.counters.snapshot().state == QueueState::Running {
                slot.counters.set_state(QueueState::Stopped);
            }
        }
    }

    /// Drops what waits in the mailbox and refuses more, so that senders learn that nobody will answer.
    fn close_mailbox(&mut self) {
        *self.mailbox.lock() = None;
    }

    fn work(&mut self) {
        let mut last_request = Instant::now();
        // A spin follows requests, never another sleep.
        let mut spun = true;
        loop {
            if self.mailbox.waiting.swap(false, Ordering::AcqRel) {
                self.run_commands();
            }
            if self.shared.stop.load(Ordering::Acquire) {
                return;
            }
            if self.serve_all() {
                last_request = Instant::now();
                spun = false;
                continue;
            }
            self.window.set_max(self.shared.poll_us.load(Ordering::Relaxed));
            if !spun && self.window.length() > 0 && self.spin(last_request) {
                continue;
            }
            self.sleep();
            spun = true;
        }
    }

    fn run_commands(&mut self) {
        // The lock is not held while a command runs.
        loop {
            let command = self.mailbox.lock().as_mut().and_then(VecDeque::pop_front);
            match command {
                Some(command) => command(self),
                None => return,
            }
        }
    }

    /// One batch of each ring; `true` when any had a request.
    fn serve_all(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            match slot.serve(&self.shared.stop) {
                Ok(served) => {
                    any |= served.completed > 0;
                    if served.interrupt {
                        slot.interrupt();
                    }
                }
                Err(fault) => self.break_queue(index, fault),
            }
        }
        any
    }

    fn has_work(&self) -> bool {
        self.slots.iter().any(Slot::has_work)
    }

    /// Looks for a request until the window is over; `true` when there is something to do.
    fn spin(&mut self, since: Instant) -> bool {
        let window = self.window.length();
        loop {
            if self.has_work() {
                self.window.hit();
                self.counters.spin_hits.add(1);
                return true;
            }
            if self.mailbox.waiting.load(Ordering::Relaxed) || self.shared.stop.load(Ordering::Relaxed) {
                return true;
            }
            std::hint::spin_loop();
            if since.elapsed().as_nanos() as u64 >= window {
                self.window.miss();
                self.counters.spin_misses.add(1);
                return false;
            }
        }
    }

    fn sleep(&mut self) {
        // Before kicks are asked for, so that a guest with a request meanwhile need not exit to kick.
        let idle = catch_unwind(AssertUnwindSafe(|| self.shared.device.idle()));
        if idle.is_err() && self.counters.panics.fetch_add(1, Ordering::Relaxed) == 0 {
            log::error!("the device's idle work panicked; this is logged once");
        }
        let mut busy = false;
        for index in 0..self.slots.len() {
            let wanted = match &mut self.slots[index].running {
                Some(running) => running.ring.want_kicks(),
                None => continue,
            };
            match wanted {
                Ok(slipped_in) => busy |= slipped_in,
                Err(fault) => self.break_queue(index, fault),
            }
        }
        if busy || self.mailbox.waiting.load(Ordering::Acquire) || self.shared.stop.load(Ordering::Acquire) {
            return;
        }
        if !self.wait(Some(SECOND_LOOK)) && !self.look_again() {
            self.wait(None);
        }
    }

    /// Sleeps until somebody signals; `false` when `limit` was over first.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let signalled = self.events.wait(limit, |token| {
            if let Some(slot) = usize::try_from(token).ok().and_then(|index| self.slots.get(index)) {
                slot.counters.kicks.add(1);
            }
        });
        if signalled {
            self.counters.wakeups.add(1);
        }
        signalled
    }

    /// Makes up for notifications that got lost on either side, see [`Ring::owes_interrupt`]: `true` when there is
    /// something to serve.
    fn look_again(&mut self) -> bool {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let Some(running) = &mut slot.running else { continue };
            match running.ring.owes_interrupt() {
                Ok(true) => {
                    slot.counters.late_interrupts.add(1);
                    slot.interrupt();
                }
                Ok(false) => {}
                Err(fault) => self.break_queue(index, fault),
            }
        }
        let late: Vec<usize> = (0..self.slots.len()).filter(|&index| self.slots[index].has_work()).collect();
        // Its kick may be on its way.
        if late.is_empty() || self.wait(Some(GRACE)) {
            return !late.is_empty();
        }
        for index in late {
            self.slots[index].counters.late_kicks.add(1);
        }
        true
    }

    /// Stops one queue because its ring makes no sense, and tells the frontend. Other queues go on.
    fn break_queue(&mut self, index: usize, fault: Fault) {
        let slot = &mut self.slots[index];
        let Some(running) = slot.running.take() else { return };
        self.events.remove(&running.kick);
        slot.broken_at = Some(running.ring.base());
        slot.counters.set_broken(fault);
        log::warn!("virtqueue stopped: {}", fault.name());
        if let Some(err) = &slot.err {
            err.signal();
        }
    }

    /// Starts a queue, or marks it broken when its ring is not in guest memory.
    pub(crate) fn start_queue(&mut self, index: usize, start: QueueStart) {
        self.stop_queue(index);
        let slot = &mut self.slots[index];
        slot.call = start.call;
        slot.err = start.err;
        let ring =
            Ring::start(start.setup, start.memory, self.shared.device.clone().queue()).and_then(|ring| {
                // EPERM: a descriptor that cannot be waited for.
                self.events.add(&start.kick, index as u64).map_err(|_| Fault::BadKick)?;
                Ok(ring)
            });
        match ring {
            Ok(ring) => {
                slot.running = Some(Running { ring, kick: start.kick });
                slot.counters.set_state(QueueState::Running);
                // A server that was killed between the used index and the interrupt owes the guest one.
                slot.interrupt();
            }
            Err(fault) => {
                slot.counters.set_broken(fault);
                log::warn!("virtqueue not started: {}", fault.name());
                if let Some(err) = &slot.err {
                    err.signal();
                }
            }
        }
    }

    /// Stops a queue; index of its next request, if it ran or broke.
    pub(crate) fn stop_queue(&mut self, index: usize) -> Option<u16> {
        let slot = &mut self.slots[index];
        slot.counters.set_state(QueueState::Stopped);
        let broken_at = slot.broken_at.take();
        let Some(running) = slot.running.take() else { return broken_at };
        self.events.remove(&running.kick);
        // Handed back clean: who serves the queue next must not take an old kick for a new one.
        running.kick.drain();
        Some(running.ring.base())
    }

    /// Replaces the call descriptor of a queue, which frontends do while it runs.
    pub(crate) fn set_call(&mut self, index: usize, call: Option<Event>) {
        let slot = &mut self.slots[index];
        slot.call = call;
        if slot.running.is_some() {
            // What was completed while there was no descriptor must not stay unnoticed.
            slot.interrupt();
        }
    }

    /// Replaces the error descriptor of a queue.
    pub(crate) fn set_err(&mut self, index: usize, err: Option<Event>) {
        self.slots[index].err = err;
    }

    /// Moves a running queue to a changed memory map; `None` when its ring is no longer in it.
    pub(crate) fn remap_queue(&mut self, index: usize, place: Option<(RingSetup, Arc<GuestMemoryMmap>)>) {
        let Some(running) = &mut self.slots[index].running else { return };
        let moved = match place {
            Some((setup, memory)) => running.ring.remap(setup, memory),
            None => Err(Fault::OutsideMemory),
        };
        if let Err(fault) = moved {
            self.break_queue(index, fault);
        }
    }
}
