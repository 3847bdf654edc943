// SPDX-License-Identifier: Apache-2.0
//! A fleet made, run for a while, and counted.
//!
//! Every vCPU has a thread of its own, as in any monitor; which of them runs is the kernel's
//! business. *Sync*: the thread that left the guest puts or gets the page and enters again. *Async*:
//! the guest signals an ioeventfd and halts, worker threads put or get, and wake it by irqfd.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{BackendSpec, Class, backends};
use super::crew::{self, Crew, Handed};
use super::guest::{computing, memory_len, program, write_trace};
use super::host::{Anonymous, allow_descriptors};
use super::member::{Counts, Member};
use super::trace::{Shape, trace};
use crate::clock::ticks;
use crate::error::{ExitError, Result};
use crate::machine::{Machine, Mode};
use crate::memory::Memory;
use crate::run::{register_ioevent, register_irq};
use crate::threads;

/// How requests are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// On the vCPU's thread.
    Sync,
    /// By worker threads.
    Async,
}

/// A fleet and what it does.
pub struct FleetSpec {
    /// Each guest's memory and accesses.
    pub shape: Shape,
    /// The guests.
    pub classes: Vec<Class>,
    /// What a guest computes between two requests, of CPU time.
    pub compute: Duration,
    /// How requests are served.
    pub channel: Channel,
    /// A vCPU's thread that ran for so long gives its CPU away at its next exit. `None`: it runs
    /// until the kernel takes the CPU from it.
    pub quantum: Option<Duration>,
    /// Worker threads of an asynchronous fleet.
    pub workers: usize,
    /// CPUs that all threads share.
    pub cpus: Vec<usize>,
    /// How long it is watched.
    pub time: Duration,
    /// Of the traces.
    pub seed: u64,
    /// What pages look like; a multiple of 4096 bytes.
    pub corpus: Arc<Vec<u8>>,
    /// Ticks in a second.
    pub hz: f64,
}

/// What became of one class.
#[derive(Debug, Clone, Default)]
pub struct ClassReport {
    /// Its name.
    pub name: String,
    /// Its VMs.
    pub vms: usize,
    /// Bytes of slots held per VM, at every look.
    pub held: Vec<f64>,
    /// Most bytes that one of its VMs held above its cap at any look.
    pub over_cap_bytes: u64,
    /// Puts refused over the cap.
    pub over_cap: u64,
    /// Puts refused for room.
    pub no_room: u64,
    /// Pages that were refused or evicted when they were wanted.
    pub missed: u64,
    /// Pages evicted.
    pub evicted: u64,
    /// Pages that came back different, or did not and should have.
    pub bad: u64,
}

/// What one run gave.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Seconds to make all VMs, ready to run.
    pub creation: f64,
    /// Host memory per VM, bytes: the guest's, KVM's and ours, without the pages stored.
    pub vm_memory: f64,
    /// Seconds watched.
    pub seconds: f64,
    /// Pages put or got meanwhile, for each VM.
    pub ops: Vec<u64>,
    /// CPU time of the process meanwhile, nanoseconds.
    pub cpu_ns: u64,
    /// Turns of the computing loop between two requests.
    pub loops: u32,
    /// Samples: nanoseconds from seeing a request to its answer.
    pub latency_ns: Vec<f64>,
    /// Samples: nanoseconds from one request of a VM to its next.
    pub interval_ns: Vec<f64>,
    /// Pages compared.
    pub verified: u64,
    /// By class.
    pub classes: Vec<ClassReport>,
    /// Pages of the store at the end, bytes of their slots and of their compressed data.
    pub stored: (u64, u64, u64),
}

/// A VM before its threads run.
struct Made {
    machine: Machine,
    kick: Arc<EventFd>,
    irq: EventFd,
}

/// Turns of a computing loop that are timed to learn how long one takes.
const TIMED_LOOPS: u32 = 2000;
/// Share of the time that is let pass before counting.
const WARM: f64 = 0.2;
/// How often the store's accounts are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Makes the fleet, runs it, and takes it down.
///
/// # Errors
/// The host lacks something, or a guest or the backend failed.
pub fn run(kvm: &Kvm, spec: &FleetSpec, backend: &BackendSpec) -> Result<Report> {
    let vms: usize = spec.classes.iter().map(|c| c.vms).sum();
    if vms == 0 || spec.cpus.is_empty() || spec.workers == 0 {
        return Err(ExitError::Invalid("a fleet has at least one VM, one CPU and one worker".into()));
    }
    threads::allow_kicks();
    // VM, vCPU and two eventfds each; what the process has open besides.
    allow_descriptors(4 * vms as u64 + 512)?;
    let loops = loops_for(kvm, spec)?;
    let before = Anonymous::now();
    let traces: Vec<_> = (0..vms).map(|i| trace(spec.shape, spec.seed ^ (i as u64) << 20)).collect();
    let longest = traces.iter().map(Vec::len).max().unwrap_or(0);

    let started = Instant::now();
    let made: Vec<Made> = traces
        .iter()
        .map(|ops| {
            let memory = Arc::new(Memory::new(memory_len(spec.shape.frames, longest))?);
            write_trace(&memory, spec.shape.frames, ops);
            make(kvm, spec, memory, ops.len(), loops)
        })
        .collect::<Result<_>>()?;
    let mut report = Report { creation: started.elapsed().as_secs_f64(), loops, ..Report::default() };

    let mut members = Vec::with_capacity(vms);
    let persistent = spec.classes.iter().flat_map(|c| std::iter::repeat_n(c.persistent, c.vms));
    let backends = backends(backend, &spec.classes, spec.shape.pages)?;
    for (i, ((made, backend), persistent)) in made.iter().zip(backends).zip(persistent).enumerate() {
        let member = Member::new(
            made.machine.memory.clone(),
            backend,
            spec.corpus.clone(),
            spec.shape,
            (i, vms),
            persistent,
        )
        .map_err(ExitError::Failed)?;
        members.push(member);
    }
    let counts: Vec<Arc<Counts>> = members.iter().map(|m| m.counts().clone()).collect();
    let accounts: Vec<_> = members
        .iter()
        .map(|m| m.backend().of_store().map(|(vm, pool)| (vm.account.clone(), pool.clone())))
        .collect();

    let quantum = spec.quantum.map(|q| (q.as_secs_f64() * spec.hz) as u64);
    let mut crew = Crew::new(spec.cpus.clone(), quantum);
    if let Err(e) = start(&mut crew, spec, made, members) {
        // That is the reason; what else goes wrong while the others end only follows from it.
        let _ = crew.end();
        return Err(e);
    }
    crew.go();
    std::thread::sleep(spec.time.mul_f64(WARM));

    let ops = || counts.iter().map(|c| c.ops.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let mut classes: Vec<ClassReport> = spec
        .classes
        .iter()
        .map(|c| ClassReport { name: c.name.clone(), vms: c.vms, ..ClassReport::default() })
        .collect();
    let first = ops();
    let cpu = threads::process_cpu_ns();
    crew.measure(true);
    let began = Instant::now();
    while began.elapsed() < spec.time && !crew.failed() {
        look(&accounts, &spec.classes, &mut classes);
        std::thread::sleep(LOOK.min(spec.time));
    }
    crew.measure(false);
    report.seconds = began.elapsed().as_secs_f64();
    report.cpu_ns = threads::process_cpu_ns() - cpu;
    report.ops = ops().iter().zip(&first).map(|(now, then)| now - then).collect();
    report.vm_memory = Anonymous::now().since(&before) as f64 / vms as f64;
    let members = crew.end()?;

    let ns = |t: &u64| *t as f64 * 1e9 / spec.hz;
    report.latency_ns = members.iter().flat_map(|m| m.latency.values().iter().map(ns)).collect();
    report.interval_ns = members.iter().flat_map(|m| m.interval.values().iter().map(ns)).collect();
    report.verified = counts.iter().map(|c| c.verified.load(Ordering::Relaxed)).sum();
    let mut at = 0;
    for class in &mut classes {
        tally(class, &counts[at..at + class.vms], &accounts[at..at + class.vms]);
        at += class.vms;
    }
    for (_, pool) in accounts.iter().flatten() {
        report.stored.0 += pool.holding.pages.load(Ordering::Relaxed);
        report.stored.1 += pool.holding.slots.load(Ordering::Relaxed);
        report.stored.2 += pool.holding.compressed.load(Ordering::Relaxed);
    }
    report.classes = classes;
    Ok(report)
}

type Accounts = Option<(Arc<tmem_store::quota::Account>, Arc<tmem_store::pool::Pool>)>;

/// What every class holds now.
fn look(accounts: &[Accounts], classes: &[Class], reports: &mut [ClassReport]) {
    let mut at = 0;
    for (class, report) in classes.iter().zip(reports) {
        let mut sum = 0;
        for (account, _) in accounts[at..at + class.vms].iter().flatten() {
            let held = account.held();
            sum += held;
            if let Some(cap) = class.cap {
                report.over_cap_bytes = report.over_cap_bytes.max(held.saturating_sub(cap));
            }
        }
        report.held.push(sum as f64 / class.vms.max(1) as f64);
        at += class.vms;
    }
}

fn tally(report: &mut ClassReport, counts: &[Arc<Counts>], accounts: &[Accounts]) {
    for c in counts {
        report.over_cap += c.over_cap.load(Ordering::Relaxed);
        report.no_room += c.no_room.load(Ordering::Relaxed);
        report.missed += c.missed.load(Ordering::Relaxed);
        report.bad += c.bad.load(Ordering::Relaxed);
    }
    for (_, pool) in accounts.iter().flatten() {
        report.evicted += pool.counters.evicted.load(Ordering::Relaxed);
    }
}

fn make(kvm: &Kvm, spec: &FleetSpec, memory: Arc<Memory>, ops: usize, loops: u32) -> Result<Made> {
    let waits = spec.channel == Channel::Async;
    let guest = program(spec.shape.frames, ops, loops, waits);
    let machine = Machine::new(kvm, Mode::Long, memory, &guest.code, waits.then_some(guest.handler))?;
    // Read edge-triggered through epoll, so the count is never read and may grow.
    let kick = EventFd::new(libc::EFD_NONBLOCK).map_err(ExitError::io("eventfd"))?;
    let irq = EventFd::new(libc::EFD_NONBLOCK).map_err(ExitError::io("eventfd"))?;
    if waits {
        register_ioevent(kvm, &machine, &kick)?;
        register_irq(kvm, &machine, &irq)?;
    }
    Ok(Made { machine, kick: Arc::new(kick), irq })
}

/// The machines and their members to their threads.
fn start(crew: &mut Crew, spec: &FleetSpec, made: Vec<Made>, members: Vec<Member>) -> Result<()> {
    match spec.channel {
        Channel::Sync => {
            for (made, member) in made.into_iter().zip(members) {
                crew.vcpu(made.machine, Some(member))?;
            }
        }
        Channel::Async => {
            let mut shares: Vec<Vec<Handed>> = (0..spec.workers).map(|_| Vec::new()).collect();
            for (i, (made, member)) in made.into_iter().zip(members).enumerate() {
                crew.vcpu(made.machine, None)?;
                shares[i % spec.workers].push(Handed { member, kick: made.kick, irq: made.irq, answered: 0 });
            }
            for share in shares {
                crew.worker(share)?;
            }
        }
    }
    Ok(())
}

/// How many turns of the computing loop take as long as `compute` says, here.
fn loops_for(kvm: &Kvm, spec: &FleetSpec) -> Result<u32> {
    if spec.compute.is_zero() {
        return Ok(0);
    }
    let cpu = spec.cpus[0];
    let exit = timed(kvm, cpu, 0)?;
    let with = timed(kvm, cpu, TIMED_LOOPS)?;
    let each = (with.saturating_sub(exit)).max(1) as f64 / f64::from(TIMED_LOOPS);
    let wanted = spec.compute.as_secs_f64() * spec.hz / each;
    Ok((wanted.round() as u32).max(1))
}

/// Ticks from one exit to the next of a guest that computes `loops` turns: the median of some.
fn timed(kvm: &Kvm, cpu: usize, loops: u32) -> Result<u64> {
    let machine = Machine::new(kvm, Mode::Long, Arc::new(Memory::new(0x20000)?), &computing(loops), None)?;
    crew::one_guest(machine, cpu, Duration::from_secs(5), |machine| {
        let mut took = Vec::new();
        let mut last = 0;
        for i in 0..12 {
            machine.vcpu.run().map_err(ExitError::kvm("KVM_RUN"))?;
            let now = ticks();
            if i > 0 {
                took.push(now - last);
            }
            last = now;
        }
        took.sort_unstable();
        Ok(took[took.len() / 2])
    })
}
