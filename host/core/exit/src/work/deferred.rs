// SPDX-License-Identifier: Apache-2.0
//! Copy now, compress later: the request ends with a copy, another thread puts the page.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::paging::{Ledger, Pool};
use super::{Extra, Site, Work, scatter};
use crate::error::{ExitError, Result};
use crate::memory::{Memory, PAGE};
use crate::threads;

/// Pages that may wait. A full queue makes the request wait: memory is bounded.
const SLOTS: usize = 1024;
/// Turns without work before the worker sleeps: some tens of microseconds.
const SPINS: u32 = 20_000;

struct Queue {
    staging: Memory,
    index: [UnsafeCell<u32>; SLOTS],
    /// Pages handed over, pages put.
    head: AtomicUsize,
    tail: AtomicUsize,
    asleep: AtomicBool,
    stop: AtomicBool,
    cpu_ns: AtomicU64,
}

// SAFETY: one producer writes a slot before it advances `head` (release), one consumer reads it
// after it saw that (acquire) and before it advances `tail`.
unsafe impl Sync for Queue {}

struct Deferred {
    queue: Arc<Queue>,
    worker: Option<JoinHandle<std::result::Result<(), String>>>,
    pool: Arc<Pool>,
    ledger: Ledger,
    backlog: usize,
}

impl Work for Deferred {
    fn run(&mut self, seq: u32) -> std::result::Result<(), String> {
        let (queue, pool) = (&*self.queue, &*self.pool);
        let head = queue.head.load(Ordering::Relaxed);
        while head - queue.tail.load(Ordering::Acquire) >= SLOTS {
            if self.worker.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err("the worker is gone".into());
            }
            std::hint::spin_loop();
        }
        let index = scatter(seq, pool.span);
        let source = pool.source(seq, index);
        let slot = head % SLOTS;
        // SAFETY: the slot is ours until `head` is advanced; a page of the guest into a staging page.
        unsafe {
            std::ptr::copy_nonoverlapping(pool.pages.page(source), queue.staging.at(slot * PAGE, PAGE), PAGE);
            *queue.index[slot].get() = index as u32;
        }
        self.ledger.set(index, source);
        queue.head.store(head + 1, Ordering::SeqCst);
        if queue.asleep.load(Ordering::SeqCst)
            && let Some(worker) = &self.worker
        {
            worker.thread().unpark();
        }
        self.backlog = self.backlog.max(head + 1 - queue.tail.load(Ordering::Relaxed));
        Ok(())
    }

    fn finish(&mut self) -> std::result::Result<Extra, String> {
        self.end()?;
        self.pool.check(|index| self.ledger.get(index))?;
        Ok(Extra { cpu_ns: self.queue.cpu_ns.load(Ordering::Relaxed), backlog: Some(self.backlog as u64) })
    }
}

impl Deferred {
    /// Lets the worker put what waits, and ends it.
    fn end(&mut self) -> std::result::Result<(), String> {
        let Some(worker) = self.worker.take() else { return Ok(()) };
        self.queue.stop.store(true, Ordering::SeqCst);
        worker.thread().unpark();
        threads::join(worker).map_err(|e| e.to_string())?
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        // An error was reported by `finish`, or the turn has failed anyway.
        let _ = self.end();
    }
}

fn work(queue: &Queue, pool: &Pool) -> std::result::Result<(), String> {
    let mut idle = 0;
    let began = threads::thread_cpu_ns();
    loop {
        let tail = queue.tail.load(Ordering::Relaxed);
        if tail == queue.head.load(Ordering::SeqCst) {
            if queue.stop.load(Ordering::SeqCst) {
                queue.cpu_ns.store(threads::thread_cpu_ns() - began, Ordering::Relaxed);
                return Ok(());
            }
            idle += 1;
            if idle < SPINS {
                std::hint::spin_loop();
                continue;
            }
            queue.asleep.store(true, Ordering::SeqCst);
            // Looked at again after saying so: a page handed over in between is not slept through.
            if tail == queue.head.load(Ordering::SeqCst) && !queue.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            queue.asleep.store(false, Ordering::SeqCst);
            idle = 0;
            continue;
        }
        idle = 0;
        let slot = tail % SLOTS;
        // SAFETY: the producer wrote the slot before it advanced `head`.
        let index = unsafe { *queue.index[slot].get() };
        pool.put(index as usize, queue.staging.at(slot * PAGE, PAGE))?;
        queue.tail.store(tail + 1, Ordering::Release);
    }
}

/// The work, with its thread running.
pub(super) fn make(site: &Site) -> Result<Box<dyn Work>> {
    let Some(cpu) = site.other_cpu else {
        return Err(ExitError::NotOffered("a second CPU is needed for the thread that compresses".into()));
    };
    let pool = Arc::new(Pool::of(site, false)?);
    let queue = Arc::new(Queue {
        staging: Memory::new(SLOTS * PAGE)?,
        index: [const { UnsafeCell::new(0) }; SLOTS],
        head: AtomicUsize::new(0),
        tail: AtomicUsize::new(0),
        asleep: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        cpu_ns: AtomicU64::new(0),
    });
    let worker = {
        let (queue, pool) = (queue.clone(), pool.clone());
        threads::spawn("tmem-deferred", Some(cpu), move || work(&queue, &pool))?
    };
    let ledger = Ledger::new(pool.span);
    Ok(Box::new(Deferred { queue, worker: Some(worker), pool, ledger, backlog: 0 }))
}
