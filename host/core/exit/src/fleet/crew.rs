// SPDX-License-Identifier: Apache-2.0
//! The threads of a fleet: one for each vCPU, and workers; how they start together and end.

use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::guest::NUMBER;
use super::member::Member;
use crate::clock::ticks;
use crate::error::{ExitError, Result};
use crate::machine::{Machine, PORT, place};
use crate::run::unexpected;
use crate::threads::{self, ImmediateExit};

/// How long all vCPUs together may take to come back.
const GRACE: Duration = Duration::from_secs(20);
/// Slice of a vCPU's thread that gives way at its exits. With the kernel's own (some milliseconds) the
/// others are not due yet when it does, and it comes on again at once.
const SLICE: Duration = Duration::from_micros(200);
/// How often a worker without requests looks whether it is over.
const IDLE_MS: i32 = 20;

/// A guest that a worker serves.
pub struct Handed {
    pub member: Member,
    pub kick: Arc<EventFd>,
    pub irq: EventFd,
    /// Number of the last request that was answered.
    pub answered: u32,
}

/// What a vCPU's thread answers; the machine too, so that its mapping lives until it is joined.
type Vcpu = JoinHandle<(Machine, Option<Member>)>;

/// Where threads wait until all are there.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while !*open {
            open = self.opened.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The threads.
pub struct Crew {
    cpus: Arc<Vec<usize>>,
    quantum: Option<u64>,
    stop: Arc<AtomicBool>,
    measuring: Arc<AtomicBool>,
    gate: Arc<Gate>,
    failure: Arc<Mutex<Option<ExitError>>>,
    vcpus: Vec<(Vcpu, ImmediateExit)>,
    workers: Vec<JoinHandle<Vec<Member>>>,
}

impl Crew {
    /// Nobody yet; all will share `cpus`. `quantum`: ticks after which a vCPU's thread gives way.
    pub fn new(cpus: Vec<usize>, quantum: Option<u64>) -> Self {
        Self {
            cpus: Arc::new(cpus),
            quantum,
            stop: Arc::default(),
            measuring: Arc::default(),
            gate: Arc::default(),
            failure: Arc::default(),
            vcpus: Vec::new(),
            workers: Vec::new(),
        }
    }

    /// A thread that runs a vCPU, and serves it where `member` is given.
    pub fn vcpu(&mut self, mut machine: Machine, mut member: Option<Member>) -> Result<()> {
        let immediate = ImmediateExit::of(&mut machine.vcpu);
        let quantum = self.quantum;
        let thread = self.spawn("tmem-vcpu", move |stop, measuring| {
            let answer = catch_unwind(AssertUnwindSafe(|| match &mut member {
                Some(member) => serve_own(&mut machine, member, quantum, stop, measuring),
                None => run_only(&mut machine, stop),
            }));
            ((machine, member), flatten(answer))
        })?;
        self.vcpus.push((thread, immediate));
        Ok(())
    }

    /// A thread that serves guests.
    pub fn worker(&mut self, mut share: Vec<Handed>) -> Result<()> {
        let thread = self.spawn("tmem-worker", move |stop, measuring| {
            let answer = catch_unwind(AssertUnwindSafe(|| serve_others(&mut share, stop, measuring)));
            (share.into_iter().map(|h| h.member).collect::<Vec<_>>(), flatten(answer))
        })?;
        self.workers.push(thread);
        Ok(())
    }

    fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce(&AtomicBool, &AtomicBool) -> (T, Result<()>) + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let (cpus, gate) = (self.cpus.clone(), self.gate.clone());
        let (stop, measuring, failure) = (self.stop.clone(), self.measuring.clone(), self.failure.clone());
        threads::spawn(name, None, move || {
            // Not bound is slower to measure, not wrong.
            let _ = threads::pin(&cpus);
            gate.pass();
            let (kept, answer) = body(&stop, &measuring);
            if let (Err(e), Ok(mut first)) = (answer, failure.lock()) {
                first.get_or_insert(e);
                stop.store(true, Ordering::SeqCst);
            }
            kept
        })
    }

    /// All threads begin.
    pub fn go(&self) {
        self.gate.open();
    }

    /// Whether samples are taken from now on.
    pub fn measure(&self, on: bool) {
        self.measuring.store(on, Ordering::Relaxed);
    }

    /// Whether a thread has given up.
    pub fn failed(&self) -> bool {
        self.failure.lock().is_ok_and(|f| f.is_some())
    }

    /// Ends all threads. The members, in no particular order.
    ///
    /// # Errors
    /// The first thing that went wrong in any thread.
    pub fn end(self) -> Result<Vec<Member>> {
        self.stop.store(true, Ordering::SeqCst);
        // Should not all have come together, those that did must not wait for ever.
        self.gate.open();
        let mut members = Vec::new();
        for worker in self.workers {
            members.extend(threads::join(worker)?);
        }
        let end = Instant::now() + GRACE;
        let mut pause = Duration::from_millis(2);
        while self.vcpus.iter().any(|(thread, _)| !thread.is_finished()) {
            if Instant::now() > end {
                // Joining would wait for ever; the process can only end with these threads.
                return Err(ExitError::Hung("a guest of the fleet never came back from KVM_RUN".into()));
            }
            for (thread, immediate) in self.vcpus.iter().filter(|(thread, _)| !thread.is_finished()) {
                immediate.set();
                threads::kick(thread.as_pthread_t());
            }
            // A thousand threads need some time to see it; more signals would only take it from them.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(250));
        }
        for (thread, _) in self.vcpus {
            let (machine, member) = threads::join(thread)?;
            drop(machine);
            members.extend(member);
        }
        match self.failure.lock() {
            Ok(mut failure) => failure.take().map_or(Ok(members), Err),
            Err(_) => Err(ExitError::Failed("a thread of the fleet panicked".into())),
        }
    }
}

fn flatten(answer: std::thread::Result<Result<()>>) -> Result<()> {
    answer.unwrap_or_else(|_| Err(ExitError::Failed("a thread of the fleet panicked".into())))
}

fn serve_own(
    machine: &mut Machine,
    member: &mut Member,
    quantum: Option<u64>,
    stop: &AtomicBool,
    measuring: &AtomicBool,
) -> Result<()> {
    if quantum.is_some() {
        // Without it giving way still works, only less often.
        let _ = threads::set_slice(SLICE);
    }
    let mut since = ticks();
    loop {
        let word = match machine.vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, &[a, b, c, d])) => u32::from_le_bytes([a, b, c, d]),
            Err(e) if e.errno() == libc::EINTR && stop.load(Ordering::Relaxed) => return Ok(()),
            Err(e) if e.errno() == libc::EINTR => continue,
            other => return Err(unexpected("fleet", other)),
        };
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        member.serve(word, measuring.load(Ordering::Relaxed)).map_err(ExitError::Failed)?;
        if quantum.is_some_and(|q| ticks() - since > q) {
            std::thread::yield_now();
            since = ticks();
        }
    }
}

fn run_only(machine: &mut Machine, stop: &AtomicBool) -> Result<()> {
    loop {
        match machine.vcpu.run() {
            Err(e) if e.errno() == libc::EINTR && stop.load(Ordering::Relaxed) => return Ok(()),
            Err(e) if e.errno() == libc::EINTR => {}
            other => return Err(unexpected("fleet", other)),
        }
    }
}

fn serve_others(share: &mut [Handed], stop: &AtomicBool, measuring: &AtomicBool) -> Result<()> {
    let epoll = Epoll::new().map_err(ExitError::io("epoll"))?;
    for (i, handed) in share.iter().enumerate() {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, i as u64);
        epoll.ctl(ControlOperation::Add, handed.kick.as_raw_fd(), event).map_err(ExitError::io("epoll"))?;
    }
    let mut events = vec![EpollEvent::default(); 64];
    while !stop.load(Ordering::Relaxed) {
        let n = match epoll.wait(IDLE_MS, &mut events) {
            Ok(n) => n,
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => 0,
            Err(e) => return Err(ExitError::io("epoll")(e)),
        };
        for event in &events[..n] {
            let handed = &mut share[event.data() as usize];
            let memory = handed.member.memory().clone();
            let number = memory.load(NUMBER);
            if number == handed.answered {
                continue;
            }
            let word = memory.load(place::REQUEST);
            handed.member.serve(word, measuring.load(Ordering::Relaxed)).map_err(ExitError::Failed)?;
            handed.answered = number;
            memory.store(place::ANSWER, number);
            handed.irq.write(1).map_err(ExitError::io("irqfd"))?;
        }
    }
    Ok(())
}

/// Runs `body` on a vCPU of its own thread, called back after `time`.
pub fn one_guest<T: Send + 'static>(
    machine: Machine,
    cpu: usize,
    time: Duration,
    body: impl FnOnce(&mut Machine) -> Result<T> + Send + 'static,
) -> Result<T> {
    crate::run::guarded("fleet", machine, cpu, Instant::now() + time, body)
}
