// SPDX-License-Identifier: Apache-2.0
//! Threads that sit on one CPU, what CPU time they took, and how a vCPU is called back.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{ExitError, Result};

/// CPUs this process may use, ascending.
pub fn usable_cpus() -> Vec<usize> {
    // SAFETY: a bit set of plain integers; all-zero is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: set is writable and its size is given.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return vec![0];
    }
    // SAFETY: i is below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&i| unsafe { libc::CPU_ISSET(i, &set) }).collect()
}

/// Binds the calling thread to `cpus`. False: the kernel did not want to.
pub fn pin(cpus: &[usize]) -> bool {
    // SAFETY: as in `usable_cpus`.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&c| c < libc::CPU_SETSIZE as usize) {
        // SAFETY: in range, just checked.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: set is readable and its size is given.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0 }
}

/// Asks the scheduler for slices of that length for the calling thread: Linux 6.12 takes the runtime
/// of a SCHED_OTHER thread as such (sched(7), EEVDF). False: an older kernel, nothing changed.
pub fn set_slice(slice: std::time::Duration) -> bool {
    // struct sched_attr in its first version (linux/sched/types.h, SCHED_ATTR_SIZE_VER0).
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime: slice.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the structure is as the kernel wants it, and only read.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}

/// A thread bound to one CPU (or to none).
///
/// # Errors
/// The system has no thread left.
pub fn spawn<T: Send + 'static>(
    name: &str,
    cpu: Option<usize>,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.into())
        // Micro-VMs come by the thousand; nothing here recurses.
        .stack_size(256 << 10)
        .spawn(move || {
            only_kicks();
            if let Some(cpu) = cpu {
                // Not bound is slower to measure, not wrong: the interval shows it.
                let _ = pin(&[cpu]);
            }
            body()
        })
        .map_err(ExitError::io("cannot start a thread"))
}

/// Waits for a thread's answer.
///
/// # Errors
/// The thread panicked: a bug, reported as one line.
pub fn join<T>(handle: JoinHandle<T>) -> Result<T> {
    handle.join().map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        ExitError::Failed(format!("a thread of the bench panicked: {text}"))
    })
}

/// CPU time of the calling thread so far, nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    cpu_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of the process so far, nanoseconds.
pub fn process_cpu_ns() -> u64 {
    cpu_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu_ns(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: t is writable.
    unsafe { libc::clock_gettime(clock, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

extern "C" fn nothing(_: libc::c_int) {}

/// The signal that brings a thread out of KVM_RUN. Far from what programs use themselves.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Leaves all other signals to other threads: what is meant for the program must not end a KVM_RUN.
fn only_kicks() {
    // SAFETY: a signal set of plain integers, filled before it is used; all calls only write to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::sigdelset(&mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Installs the handler that does nothing: the signal's only effect is that KVM_RUN returns.
pub fn allow_kicks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is one without flags: no SA_RESTART.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as usize;
        // SAFETY: the handler does nothing, so it is safe in any context.
        unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) };
    });
}

/// Where KVM_RUN looks before it enters the guest: set, it returns at once (KVM_CAP_IMMEDIATE_EXIT).
#[derive(Clone, Copy)]
pub struct ImmediateExit(*mut u8);

// SAFETY: one byte in the mapping of the vCPU, written with volatile stores only. Whoever kicks
// does so while the thread that owns the vCPU is not joined.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    /// That of a vCPU.
    pub fn of(vcpu: &mut kvm_ioctls::VcpuFd) -> Self {
        Self(&raw mut vcpu.get_kvm_run().immediate_exit)
    }

    /// Whether a vCPU was called back.
    pub fn is_set(vcpu: &mut kvm_ioctls::VcpuFd) -> bool {
        // SAFETY: a byte of the vCPU's mapping; another thread may set it at any moment.
        unsafe { (&raw const vcpu.get_kvm_run().immediate_exit).read_volatile() != 0 }
    }

    /// KVM_RUN will return at once, now and from now on.
    pub fn set(self) {
        // SAFETY: see above.
        unsafe { self.0.write_volatile(1) };
    }
}

/// Waits until `done` or `deadline`; then calls the vCPU's thread back, again and again for `grace`.
/// False: it never came, and the thread is lost.
pub fn call_back<T>(
    thread: &JoinHandle<T>,
    immediate: ImmediateExit,
    deadline: Instant,
    grace: Duration,
    mut done: impl FnMut() -> bool,
) -> bool {
    while !thread.is_finished() && !done() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    let end = Instant::now() + grace;
    while !thread.is_finished() {
        if Instant::now() > end {
            return false;
        }
        immediate.set();
        kick(thread.as_pthread_t());
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

/// Brings a thread out of KVM_RUN. It must not be joined yet: then its identity is valid even if it
/// has just ended.
pub fn kick(thread: libc::pthread_t) {
    // SAFETY: valid as said; the signal's handler does nothing. An error means that it has ended.
    unsafe { libc::pthread_kill(thread, kick_signal()) };
}

/// The last error of the C library.
pub fn last_error(what: &str) -> ExitError {
    ExitError::io(what)(io::Error::last_os_error())
}
