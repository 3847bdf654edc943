// SPDX-License-Identifier: Apache-2.0
//! The control thread's end of a worker: starts it, has commands run between two batches, ends it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{MAILBOX_TOKEN, Shared, Slot, Worker};
use crate::event::{Event, EventSet};
use crate::poll::Window;
use crate::stats::{QueueCounters, WorkerCounters};

pub(super) type Command = Box<dyn FnOnce(&mut Worker) + Send>;

/// Commands for a worker.
pub(super) struct Mailbox {
    pub(super) waiting: AtomicBool,
    /// `None` once the worker has ended: nobody would answer.
    commands: Mutex<Option<VecDeque<Command>>>,
}

impl Mailbox {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<VecDeque<Command>>> {
        // A panic while the lock is held leaves a whole queue of commands: nothing to repair.
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker is gone: it died of a bug.
#[derive(Debug)]
pub(crate) struct WorkerGone;

/// The control thread's end of a worker.
pub(crate) struct WorkerHandle {
    mailbox: Arc<Mailbox>,
    wake: Event,
    pub(crate) counters: Arc<WorkerCounters>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Hangs up when the thread ends.
    ended: Mutex<mpsc::Receiver<()>>,
}

/// How long a worker may take to stop before something is done about it.
const STOP_PATIENCE: Duration = Duration::from_millis(100);

impl WorkerHandle {
    /// Starts a worker for the queues with these counters.
    pub(crate) fn spawn(
        name: String,
        shared: Arc<Shared>,
        queues: Vec<Arc<QueueCounters>>,
    ) -> std::io::Result<WorkerHandle> {
        let mailbox = Arc::new(Mailbox {
            waiting: AtomicBool::new(false),
            commands: Mutex::new(Some(VecDeque::new())),
        });
        let counters = Arc::new(WorkerCounters::default());
        let wake = Event::new()?;
        let events = EventSet::new()?;
        events.add(&wake, MAILBOX_TOKEN)?;
        let slots = queues
            .into_iter()
            .map(|counters| Slot { counters, running: None, broken_at: None, call: None, err: None })
            .collect();
        let mut worker = Worker {
            shared,
            slots,
            events,
            mailbox: mailbox.clone(),
            counters: counters.clone(),
            window: Window::default(),
        };
        let (alive, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _alive = alive;
            worker.run();
        })?;
        Ok(WorkerHandle {
            mailbox,
            wake,
            counters,
            thread: Mutex::new(Some(thread)),
            ended: Mutex::new(ended),
        })
    }

    /// Runs `command` on the worker between two batches and returns its answer.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, WorkerGone> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.mailbox.lock().as_mut().ok_or(WorkerGone)?.push_back(Box::new(move |worker| {
            // The caller waits below; it cannot have gone.
            let _ = sender.send(command(worker));
        }));
        self.mailbox.waiting.store(true, Ordering::Release);
        self.wake.signal();
        receiver.recv().map_err(|_| WorkerGone)
    }

    /// Makes a worker look at the stop flag or at a changed policy.
    pub(crate) fn wake(&self) {
        self.wake.signal();
    }

    /// The thread has ended.
    pub(crate) fn is_finished(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the thread to end; `false` when it died of a panic. Calls `unblock` when that takes long.
    pub(crate) fn join(&self, unblock: impl Fn()) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while ended.recv_timeout(STOP_PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            unblock();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.is_none_or(|thread| thread.join().is_ok())
    }
}
