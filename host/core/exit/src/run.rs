// SPDX-License-Identifier: Apache-2.0
//! One turn: a kind of exit, a piece of work, and as many samples as asked for.
//!
//! Every turn has a deadline: on some hosts some exits never come back. A guest that hangs is called
//! out of KVM_RUN by a signal, and the turn answers [`ExitError::Hung`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuExit};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::{ExitError, Result};
use crate::kinds::{Hypercall, Kind, LOOP, program};
use crate::machine::{DEVICE, DONE_PORT, IRQ, Machine, Mode, PORT, REAL_MEMORY, place};
use crate::memory::Memory;
use crate::samples::{Amount, Samples};
use crate::threads::{self, ImmediateExit};
use crate::work::{Extra, Work};

/// How long a called-back vCPU may take.
const GRACE: Duration = Duration::from_secs(3);
/// What a turn may take beyond the time asked for: setting up, and a slow last sample.
const SLACK: Duration = Duration::from_secs(2);

/// What one turn gave.
pub struct Turn {
    /// The samples.
    pub samples: Samples,
    /// CPU time of all threads that took part, nanoseconds per operation, warm-up included.
    pub cpu_ns: f64,
    /// What the work says besides.
    pub extra: Extra,
}

/// Where and on what a turn runs.
pub struct Stage<'a> {
    /// KVM.
    pub kvm: &'a Kvm,
    /// Memory of 64-bit guests.
    pub memory: Arc<Memory>,
    /// CPU of the vCPU's thread (and of bare work), and of the thread that serves.
    pub cpus: (usize, Option<usize>),
    /// The hypercall instruction of this host's vendor.
    pub hypercall: Hypercall,
}

type Boxed = Box<dyn Work>;

/// Runs one turn. Work of kinds that do not leave the kernel must be "nothing": nobody does it.
///
/// # Errors
/// The host lacks something ([`ExitError::NotOffered`]), the guest hangs, the work fails.
pub fn turn(stage: &Stage<'_>, kind: Kind, work: Boxed, amount: Amount) -> Result<Turn> {
    threads::allow_kicks();
    match kind.mode() {
        None => bare(stage.cpus.0, work, amount),
        Some(mode) => {
            if kind.served() && stage.cpus.1.is_none() && kind != Kind::IrqfdSleep {
                return Err(ExitError::NotOffered("two CPUs are needed: guest and server both spin".into()));
            }
            let memory = match mode {
                Mode::Real => Arc::new(Memory::new(REAL_MEMORY)?),
                Mode::Long => stage.memory.clone(),
            };
            let guest = program(kind, stage.hypercall);
            let interrupts = kind.needs_irqchip().then_some(guest.handler);
            let machine = Machine::new(stage.kvm, mode, memory, &guest.code, interrupts)?;
            if kind.served() {
                served(stage, kind, machine, work, amount)
            } else if kind.loops() {
                looped(stage, kind, machine, amount)
            } else {
                user(stage, kind, machine, work, amount)
            }
        }
    }
}

/// The work alone, in a thread on `cpu`.
pub(crate) fn bare(cpu: usize, mut work: Boxed, amount: Amount) -> Result<Turn> {
    let thread = threads::spawn("tmem-bare", Some(cpu), move || {
        let mut samples = Samples::new(amount, 1);
        let before = threads::thread_cpu_ns();
        for seq in 0.. {
            if !samples.mark() {
                break;
            }
            work.run(seq)?;
        }
        let cpu = threads::thread_cpu_ns() - before;
        work.finish().map(|extra| (samples, cpu, extra))
    })?;
    let (samples, cpu, extra) = threads::join(thread)?.map_err(ExitError::Failed)?;
    Ok(finished(samples, cpu, extra))
}

fn finished(samples: Samples, cpu: u64, extra: Extra) -> Turn {
    let cpu_ns = (cpu + extra.cpu_ns) as f64 / samples.operations().max(1) as f64;
    Turn { samples, cpu_ns, extra }
}

/// What a vCPU's thread answers. The machine comes back too: whoever calls the thread back writes
/// into the vCPU's mapping, so that must live until the thread is joined.
type Vcpu<T> = JoinHandle<(std::thread::Result<Result<T>>, Machine)>;

fn start_vcpu<T: Send + 'static>(
    cpu: usize,
    mut machine: Machine,
    body: impl FnOnce(&mut Machine) -> Result<T> + Send + 'static,
) -> Result<(Vcpu<T>, ImmediateExit)> {
    let immediate = ImmediateExit::of(&mut machine.vcpu);
    let thread = threads::spawn("tmem-vcpu", Some(cpu), move || {
        let answer = catch_unwind(AssertUnwindSafe(|| body(&mut machine)));
        (answer, machine)
    })?;
    Ok((thread, immediate))
}

/// Waits for the vCPU's own end, or for `stop`, and brings it back.
fn end_vcpu<T>(
    thread: Vcpu<T>,
    immediate: ImmediateExit,
    name: &str,
    deadline: Instant,
    done: impl FnMut() -> bool,
) -> Result<T> {
    if !threads::call_back(&thread, immediate, deadline, GRACE, done) {
        return Err(ExitError::Hung(format!(
            "a guest of kind {name} never came back from KVM_RUN, and no signal got it out: one CPU is lost to it \
             until this process ends"
        )));
    }
    let (answer, machine) = threads::join(thread)?;
    drop(machine);
    answer.unwrap_or_else(|_| Err(ExitError::Failed("the vCPU's thread panicked".into())))
}

fn hung(kind: Kind) -> ExitError {
    ExitError::Hung(format!("KVM_RUN of kind {} did not come back in time on this host", kind.name()))
}

/// Runs `body` with a machine, in a thread on `cpu`; calls it back at `deadline`.
pub(crate) fn guarded<T: Send + 'static>(
    name: &str,
    machine: Machine,
    cpu: usize,
    deadline: Instant,
    body: impl FnOnce(&mut Machine) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (thread, immediate) = start_vcpu(cpu, machine, body)?;
    end_vcpu(thread, immediate, name, deadline, || false)
}

/// The exit that a turn does not expect, in words.
pub(crate) fn unexpected(
    kind: &str,
    exit: std::result::Result<VcpuExit<'_>, kvm_ioctls::Error>,
) -> ExitError {
    match exit {
        Ok(exit) => ExitError::Failed(format!("the guest of kind {kind} left with {exit:?}")),
        Err(e) => ExitError::Failed(format!("KVM_RUN of kind {kind} failed: {e}")),
    }
}

fn deadline(amount: Amount) -> Instant {
    Instant::now() + amount.time * 2 + SLACK
}

/// Exits to user space, work done on the vCPU's thread.
fn user(stage: &Stage<'_>, kind: Kind, machine: Machine, mut work: Boxed, amount: Amount) -> Result<Turn> {
    guarded(kind.name(), machine, stage.cpus.0, deadline(amount), move |machine| {
        let mut samples = Samples::new(amount, 1);
        let mut seq = 0;
        let before = threads::thread_cpu_ns();
        loop {
            match machine.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT, _) | VcpuExit::MmioWrite(..)) => {}
                Err(e) if e.errno() == libc::EINTR => {
                    if ImmediateExit::is_set(&mut machine.vcpu) {
                        return Err(hung(kind));
                    }
                    continue;
                }
                other => return Err(unexpected(kind.name(), other)),
            }
            if !samples.mark() {
                break;
            }
            work.run(seq).map_err(ExitError::Failed)?;
            seq = seq.wrapping_add(1);
        }
        let cpu = threads::thread_cpu_ns() - before;
        let extra = work.finish().map_err(ExitError::Failed)?;
        Ok(finished(samples, cpu, extra))
    })
}

/// Operations that stay in the kernel, in loops of [`LOOP`]; each loop's end is seen in user space.
fn looped(stage: &Stage<'_>, kind: Kind, mut machine: Machine, amount: Amount) -> Result<Turn> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(ExitError::io("eventfd"))?;
    let signals = matches!(kind, Kind::IoeventfdPost | Kind::VirtqueueSubmit);
    let coalesces = matches!(kind, Kind::CoalescedMmio | Kind::CoalescedPio);
    if signals {
        register_ioevent(stage.kvm, &machine, &event)?;
    }
    if coalesces {
        coalesce(stage.kvm, &mut machine, kind)?;
    }
    guarded(kind.name(), machine, stage.cpus.0, deadline(amount), move |machine| {
        let mut samples = Samples::new(amount, LOOP);
        let before = threads::thread_cpu_ns();
        loop {
            match machine.vcpu.run() {
                Ok(VcpuExit::IoOut(DONE_PORT, _)) => {}
                Err(e) if e.errno() == libc::EINTR => {
                    if ImmediateExit::is_set(&mut machine.vcpu) {
                        return Err(hung(kind));
                    }
                    continue;
                }
                other => return Err(unexpected(kind.name(), other)),
            }
            let seen = if signals {
                event.read().unwrap_or(0)
            } else if coalesces {
                let mut n = 0;
                while machine.vcpu.coalesced_mmio_read().map_err(ExitError::kvm("the ring"))?.is_some() {
                    n += 1;
                }
                n
            } else {
                u64::from(LOOP)
            };
            if seen != u64::from(LOOP) {
                return Err(ExitError::Failed(format!("{seen} of {LOOP} requests arrived")));
            }
            if !samples.mark() {
                break;
            }
        }
        let cpu = threads::thread_cpu_ns() - before;
        Ok(finished(samples, cpu, Extra::default()))
    })
}

pub(crate) fn register_ioevent(kvm: &Kvm, machine: &Machine, event: &EventFd) -> Result<()> {
    if !kvm.check_extension(Cap::Ioeventfd) {
        return Err(ExitError::NotOffered("KVM has no ioeventfd (KVM_CAP_IOEVENTFD)".into()));
    }
    machine
        .vm
        .register_ioevent(event, &IoEventAddress::Pio(PORT.into()), NoDatamatch)
        .map_err(ExitError::kvm("KVM_IOEVENTFD"))
}

pub(crate) fn register_irq(kvm: &Kvm, machine: &Machine, event: &EventFd) -> Result<()> {
    if !kvm.check_extension(Cap::Irqfd) {
        return Err(ExitError::NotOffered("KVM has no irqfd (KVM_CAP_IRQFD)".into()));
    }
    machine.vm.register_irqfd(event, IRQ).map_err(ExitError::kvm("KVM_IRQFD"))
}

fn coalesce(kvm: &Kvm, machine: &mut Machine, kind: Kind) -> Result<()> {
    let (cap, name, address) = match kind {
        Kind::CoalescedPio => (Cap::CoalescedPio, "KVM_CAP_COALESCED_PIO", IoEventAddress::Pio(PORT.into())),
        _ => (Cap::CoalescedMmio, "KVM_CAP_COALESCED_MMIO", IoEventAddress::Mmio(DEVICE)),
    };
    if !kvm.check_extension(cap) {
        return Err(ExitError::NotOffered(format!("KVM does not coalesce ({name})")));
    }
    machine.vm.register_coalesced_mmio(address, 4).map_err(ExitError::kvm("KVM_REGISTER_COALESCED_MMIO"))?;
    machine.vcpu.map_coalesced_mmio_ring().map_err(ExitError::kvm("the coalescing ring"))
}

/// Requests that another thread serves.
fn served(stage: &Stage<'_>, kind: Kind, machine: Machine, work: Boxed, amount: Amount) -> Result<Turn> {
    let flags = if kind.polls() { EFD_NONBLOCK } else { 0 };
    let event = Arc::new(EventFd::new(flags).map_err(ExitError::io("eventfd"))?);
    let irq = EventFd::new(0).map_err(ExitError::io("eventfd"))?;
    if kind != Kind::SharedPoll {
        register_ioevent(stage.kvm, &machine, &event)?;
    }
    if kind.halts() {
        register_irq(stage.kvm, &machine, &irq)?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let memory = machine.memory.clone();
    memory.store(place::REQUEST, 0);
    memory.store(place::ANSWER, 0);
    let server = {
        let server = Server { kind, memory, event: event.clone(), irq, stop: stop.clone(), answered: 0 };
        threads::spawn("tmem-server", stage.cpus.1.or(Some(stage.cpus.0)), move || {
            server.serve(work, amount)
        })?
    };
    let ends = stop.clone();
    let guest = start_vcpu(stage.cpus.0, machine, move |machine| {
        let before = threads::thread_cpu_ns();
        loop {
            match machine.vcpu.run() {
                Err(e) if e.errno() == libc::EINTR => {
                    if ends.load(Ordering::Acquire) {
                        return Ok(threads::thread_cpu_ns() - before);
                    }
                    if ImmediateExit::is_set(&mut machine.vcpu) {
                        return Err(hung(kind));
                    }
                }
                other => return Err(unexpected(kind.name(), other)),
            }
        }
    });
    let end = deadline(amount);
    if let Ok((thread, _)) = &guest {
        while !server.is_finished() && !thread.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    stop.store(true, Ordering::Release);
    // A server that sleeps must see that it is over.
    event.write(1).map_err(ExitError::io("eventfd"))?;
    let answer = threads::join(server);
    let (thread, immediate) = guest?;
    // The guest's reason comes first: a server that waits for a dead guest has none of its own.
    let guest_cpu = end_vcpu(thread, immediate, kind.name(), Instant::now(), || true)?;
    let (samples, cpu, extra) = answer??;
    Ok(finished(samples, cpu + guest_cpu, extra))
}

struct Server {
    kind: Kind,
    memory: Arc<Memory>,
    event: Arc<EventFd>,
    irq: EventFd,
    stop: Arc<AtomicBool>,
    answered: u32,
}

impl Server {
    fn serve(mut self, mut work: Boxed, amount: Amount) -> Result<(Samples, u64, Extra)> {
        let mut samples = Samples::new(amount, 1);
        let before = threads::thread_cpu_ns();
        loop {
            let request = self.wait()?;
            if !samples.mark() {
                break;
            }
            work.run(request).map_err(ExitError::Failed)?;
            self.memory.store(place::ANSWER, request);
            self.answered = request;
            if self.kind.halts() {
                self.irq.write(1).map_err(ExitError::io("irqfd"))?;
            }
        }
        let cpu = threads::thread_cpu_ns() - before;
        let extra = work.finish().map_err(ExitError::Failed)?;
        Ok((samples, cpu, extra))
    }

    /// The next request's number.
    fn wait(&self) -> Result<u32> {
        loop {
            if self.kind == Kind::SharedPoll {
                let request = self.memory.load(place::REQUEST);
                if request != self.answered {
                    return Ok(request);
                }
                std::hint::spin_loop();
            } else {
                match self.event.read() {
                    Ok(_) => {
                        let request = self.memory.load(place::REQUEST);
                        if request != self.answered {
                            return Ok(request);
                        }
                    }
                    Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => std::hint::spin_loop(),
                    Err(e) => return Err(ExitError::io("eventfd")(e)),
                }
            }
            if self.stop.load(Ordering::Acquire) {
                return Err(hung(self.kind));
            }
        }
    }
}
