// SPDX-License-Identifier: Apache-2.0
//! The kinds of exit, as a table: what the guest does, and who answers.

use crate::asm::Asm;
use crate::machine::{DEVICE, DONE_PORT, Mode, PORT, place};

/// Requests in one turn of a guest's loop that does not leave the kernel: enough that the one exit
/// which ends it does not count for much, and fewer than KVM's coalescing ring has room for (170).
pub const LOOP: u32 = 128;

/// Who answers a request, and so how far the path goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Nobody leaves the guest.
    None,
    /// The kernel answers.
    Kernel,
    /// The vCPU's thread answers, in user space.
    User,
    /// Another thread answers.
    Thread,
}

impl Path {
    /// The word for results.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kernel => "kernel",
            Self::User => "user",
            Self::Thread => "thread",
        }
    }
}

/// A kind of exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // Each is described by `about`.
pub enum Kind {
    Bare,
    Loop,
    SharedPoll,
    Cpuid,
    Cpuid16,
    Hypercall,
    KernelDevice,
    KernelDevice16,
    CoalescedMmio,
    CoalescedPio,
    IoeventfdPost,
    VirtqueueSubmit,
    Pio,
    Pio16,
    Mmio,
    Mmio16,
    IoeventfdSleep,
    IoeventfdPoll,
    IrqfdSleep,
    IrqfdPoll,
}

/// All of them, from no exit to the longest way.
pub const ALL: [Kind; 20] = [
    Kind::Bare,
    Kind::Loop,
    Kind::SharedPoll,
    Kind::Cpuid,
    Kind::Cpuid16,
    Kind::Hypercall,
    Kind::KernelDevice,
    Kind::KernelDevice16,
    Kind::CoalescedMmio,
    Kind::CoalescedPio,
    Kind::IoeventfdPost,
    Kind::VirtqueueSubmit,
    Kind::Pio,
    Kind::Pio16,
    Kind::Mmio,
    Kind::Mmio16,
    Kind::IoeventfdSleep,
    Kind::IoeventfdPoll,
    Kind::IrqfdSleep,
    Kind::IrqfdPoll,
];

/// How a vendor's hypercall instruction is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypercall {
    /// Intel's.
    Vmcall,
    /// AMD's.
    Vmmcall,
}

impl Kind {
    /// The word for results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Loop => "loop",
            Self::SharedPoll => "shared-poll",
            Self::Cpuid => "cpuid",
            Self::Cpuid16 => "cpuid16",
            Self::Hypercall => "hypercall",
            Self::KernelDevice => "kernel-device",
            Self::KernelDevice16 => "kernel-device16",
            Self::CoalescedMmio => "coalesced-mmio",
            Self::CoalescedPio => "coalesced-pio",
            Self::IoeventfdPost => "ioeventfd-post",
            Self::VirtqueueSubmit => "virtqueue-submit",
            Self::Pio => "pio",
            Self::Pio16 => "pio16",
            Self::Mmio => "mmio",
            Self::Mmio16 => "mmio16",
            Self::IoeventfdSleep => "ioeventfd-sleep",
            Self::IoeventfdPoll => "ioeventfd-poll",
            Self::IrqfdSleep => "irqfd-sleep",
            Self::IrqfdPoll => "irqfd-poll",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|k| k.name() == name)
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        match self {
            Self::Bare => "no guest: the work alone in a host thread",
            Self::Loop => "a guest's loop that asks for nothing: the floor of those that stay in the kernel",
            Self::SharedPoll => "no exit: request and answer are words in shared memory, a host thread polls",
            Self::Cpuid | Self::Cpuid16 => "CPUID, emulated by KVM in the kernel",
            Self::Hypercall => "a hypercall that KVM itself refuses, in the kernel",
            Self::KernelDevice | Self::KernelDevice16 => {
                "a read of KVM's own interrupt controller (port 0x4d0)"
            }
            Self::CoalescedMmio => "a device write that KVM puts into its ring, read at the next exit",
            Self::CoalescedPio => "a port write that KVM puts into its ring, read at the next exit",
            Self::IoeventfdPost => "a port write that signals an ioeventfd nobody waits for",
            Self::VirtqueueSubmit => {
                "descriptors and ring written as a virtio driver does, then an ioeventfd"
            }
            Self::Pio | Self::Pio16 => "a port write, answered in user space by the vCPU's thread",
            Self::Mmio | Self::Mmio16 => "a device write, answered in user space by the vCPU's thread",
            Self::IoeventfdSleep => "an ioeventfd that wakes a thread; the guest spins on a word of memory",
            Self::IoeventfdPoll => "an ioeventfd that a thread polls; the guest spins on a word of memory",
            Self::IrqfdSleep => "an ioeventfd that wakes a thread, which wakes the halted guest by irqfd",
            Self::IrqfdPoll => "an ioeventfd that a thread polls, which wakes the halted guest by irqfd",
        }
    }

    /// Who answers.
    pub fn path(self) -> Path {
        match self {
            Self::Bare | Self::Loop | Self::SharedPoll => Path::None,
            Self::Cpuid
            | Self::Cpuid16
            | Self::Hypercall
            | Self::KernelDevice
            | Self::KernelDevice16
            | Self::CoalescedMmio
            | Self::CoalescedPio
            | Self::IoeventfdPost
            | Self::VirtqueueSubmit => Path::Kernel,
            Self::Pio | Self::Pio16 | Self::Mmio | Self::Mmio16 => Path::User,
            Self::IoeventfdSleep | Self::IoeventfdPoll | Self::IrqfdSleep | Self::IrqfdPoll => Path::Thread,
        }
    }

    /// The guest's mode; `None` without a guest.
    pub fn mode(self) -> Option<Mode> {
        match self {
            Self::Bare => None,
            Self::Cpuid16 | Self::KernelDevice16 | Self::Pio16 | Self::Mmio16 => Some(Mode::Real),
            _ => Some(Mode::Long),
        }
    }

    /// True when the guest asks in loops of [`LOOP`] and only then leaves the kernel.
    pub fn loops(self) -> bool {
        self.path() == Path::Kernel || self == Self::Loop
    }

    /// True when another thread serves the guest, so that work is done there.
    pub fn served(self) -> bool {
        self.path() == Path::Thread || self == Self::SharedPoll
    }

    /// True when the serving thread spins instead of sleeping.
    pub fn polls(self) -> bool {
        matches!(self, Self::SharedPoll | Self::IoeventfdPoll | Self::IrqfdPoll)
    }

    /// True when the guest halts until an interrupt.
    pub fn halts(self) -> bool {
        matches!(self, Self::IrqfdSleep | Self::IrqfdPoll)
    }

    /// True when KVM's interrupt controller is needed.
    pub fn needs_irqchip(self) -> bool {
        self.halts() || matches!(self, Self::KernelDevice | Self::KernelDevice16)
    }
}

/// A guest's program, and where its interrupt handler begins.
pub struct Program {
    /// The code.
    pub code: Asm,
    /// Offset of the handler.
    pub handler: usize,
}

/// The program of a kind. `hypercall`: which instruction that is here.
pub fn program(kind: Kind, hypercall: Hypercall) -> Program {
    let mut a = Asm::new();
    let mut handler = 0;
    match kind {
        Kind::Bare => {}
        // The six bytes that the reference loop in C runs, too.
        Kind::Pio16 => {
            a.mov_dx(PORT);
            let top = a.label();
            a.out_dx_al().jmp(top);
        }
        Kind::Mmio16 => {
            let top = a.label();
            a.store_ds0_al().jmp(top);
        }
        Kind::Cpuid16 | Kind::KernelDevice16 => {
            let again = a.label();
            a.mov_si(LOOP as u16);
            let top = a.label();
            if kind == Kind::Cpuid16 {
                a.raw(&[0x66]).zero_eax().cpuid();
            } else {
                a.mov_dx(ELCR).in_al_dx();
            }
            a.dec_si().jnz(top).mov_dx(DONE_PORT).out_dx_al().jmp(again);
        }
        Kind::Pio | Kind::Mmio => {
            a.zero_eax().mov_edx(PORT.into()).mov_ebx(DEVICE as u32);
            let top = a.label();
            a.inc_eax();
            if kind == Kind::Pio {
                a.out_dx_eax()
            } else {
                a.store_rbx_eax()
            };
            a.jmp(top);
        }
        Kind::Loop
        | Kind::Cpuid
        | Kind::Hypercall
        | Kind::KernelDevice
        | Kind::CoalescedMmio
        | Kind::CoalescedPio
        | Kind::IoeventfdPost
        | Kind::VirtqueueSubmit => {
            let again = a.label();
            a.mov_esi(LOOP);
            let top = a.label();
            in_kernel(&mut a, kind, hypercall);
            a.dec_esi().jnz(top).mov_edx(DONE_PORT.into()).out_dx_al().jmp(again);
        }
        Kind::SharedPoll | Kind::IoeventfdSleep | Kind::IoeventfdPoll => {
            a.zero_eax().mov_edx(PORT.into()).mov_ebx(place::REQUEST as u32);
            let next = a.label();
            a.inc_eax().store_rbx_eax();
            if kind != Kind::SharedPoll {
                a.out_dx_eax();
            }
            let wait = a.label();
            a.pause().cmp_rbx_at_eax(ANSWER_OFFSET).jnz(wait).jmp(next);
        }
        Kind::IrqfdSleep | Kind::IrqfdPoll => {
            a.zero_eax().mov_edx(PORT.into()).mov_ebx(place::REQUEST as u32);
            let next = a.label();
            a.inc_eax().store_rbx_eax().out_dx_eax();
            handler = wait_halted(&mut a, next);
        }
    }
    Program { code: a, handler }
}

/// The answer's place after the request's.
pub const ANSWER_OFFSET: i8 = (place::ANSWER - place::REQUEST) as i8;

/// Halts until the answer equals eax, then jumps to `next`; ends with the handler and returns its
/// offset. `sti; hlt` lets no interrupt in between (SDM volume 2, STI), so none is slept through.
pub fn wait_halted(a: &mut Asm, next: crate::asm::Label) -> usize {
    let wait = a.label();
    a.cli().cmp_rbx_at_eax(ANSWER_OFFSET).jz(next).sti().hlt().jmp(wait);
    let handler = a.bytes().len();
    a.iretq();
    handler
}

/// Edge/level control register of the master PIC: what kvm-unit-tests' `inl_from_kernel` reads.
const ELCR: u16 = 0x4d0;
/// No hypercall has this number: KVM answers -KVM_ENOSYS without asking anybody.
const NO_HYPERCALL: u32 = 0xffff;

fn in_kernel(a: &mut Asm, kind: Kind, hypercall: Hypercall) {
    match kind {
        Kind::Cpuid => a.zero_eax().cpuid(),
        Kind::Hypercall => {
            a.mov_eax(NO_HYPERCALL);
            if hypercall == Hypercall::Vmcall { a.vmcall() } else { a.vmmcall() }
        }
        Kind::KernelDevice => a.mov_edx(ELCR.into()).in_al_dx(),
        Kind::CoalescedMmio => a.mov_ebx(DEVICE as u32).store_rbx_eax(),
        Kind::CoalescedPio | Kind::IoeventfdPost => a.mov_edx(PORT.into()).out_dx_eax(),
        Kind::VirtqueueSubmit => submit(a),
        _ => a.nop(),
    };
}

/// What a virtio-blk driver stores for one page and its kick (virtio 1.2, sections 2.7.5, 2.7.6
/// and 2.7.13): header, data and status descriptor, the ring entry, the ring's index; then it looks
/// whether the device wants to be told, and tells it.
fn submit(a: &mut Asm) -> &mut Asm {
    const AVAIL: usize = place::QUEUE + 0x400;
    const USED: usize = place::QUEUE + 0x800;
    a.mov_ebx(place::QUEUE as u32);
    for (i, (address, len)) in
        [(0x8100u32, 16u32), (place::PAGES as u32, 4096), (0x8180, 1)].iter().enumerate()
    {
        let at = (i * 16) as i8;
        a.store_rbx_at_imm(at, *address).store_rbx_at_imm(at + 8, *len);
    }
    a.mov_edi(AVAIL as u32).store_rdi_eax();
    // add word [rdi + 2], 1 : the index; then read the used ring's flags.
    a.raw(&[0x66, 0x83, 0x47, 0x02, 0x01]).mov_edi(USED as u32);
    // mov eax, [rdi]
    a.raw(&[0x8b, 0x07]).mov_edx(PORT.into()).out_dx_eax()
}
