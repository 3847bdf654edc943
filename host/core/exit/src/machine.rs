// SPDX-License-Identifier: Apache-2.0
//! A micro-VM: memory, one vCPU, and a program of a few dozen bytes that starts at once.
//!
//! Two modes. *Real*: 16-bit code, the least that KVM can run. *Long*: 64-bit code with identity
//! page tables (2 MiB pages, so up to 1 GiB of memory), an in-kernel interrupt controller, and one
//! interrupt vector for completions.

use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_IRQCHIP_PIC_MASTER, KVM_MAX_CPUID_ENTRIES, kvm_irqchip, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::asm::Asm;
use crate::error::{ExitError, Result};
use crate::memory::Memory;

/// Where things lie in a guest's memory.
pub mod place {
    /// Global descriptor table: null, code, data.
    pub const GDT: usize = 0x500;
    /// Interrupt descriptor table.
    pub const IDT: usize = 0x1000;
    /// Page tables: level 4.
    pub const PML4: usize = 0x2000;
    /// Level 3.
    pub const PDPT: usize = 0x3000;
    /// Level 2 of memory.
    pub const PD_MEMORY: usize = 0x4000;
    /// Level 2 of the device gigabyte.
    pub const PD_DEVICE: usize = 0x5000;
    /// The stack grows down from here.
    pub const STACK: usize = 0x7000;
    /// The program.
    pub const CODE: usize = 0x7000;
    /// Words that host and guest share, on a cache line each: the request.
    pub const REQUEST: usize = 0x8000;
    /// The answer.
    pub const ANSWER: usize = 0x8040;
    /// A virtqueue: descriptors, avail ring, used ring.
    pub const QUEUE: usize = 0x9000;
    /// The first page that the guest gives away.
    pub const PAGES: usize = 0x10000;
}

/// The port of requests.
pub const PORT: u16 = 0x3f8;
/// The port that ends a loop of requests that do not leave the kernel. Not within four bytes of the
/// other: a coalescing zone of that size must not swallow it.
pub const DONE_PORT: u16 = 0x3f0;
/// Guest physical address of the device that no memory backs, in long mode.
pub const DEVICE: u64 = 0xd000_0000;
/// The same in real mode, as a segment's base: below 1 MiB, above the memory of such a guest.
pub const DEVICE_REAL: u64 = 0xd_0000;
/// Memory of a real-mode guest.
pub const REAL_MEMORY: usize = 0xa_0000;
/// The interrupt line of completions: a pin of the master PIC, and its vector.
pub const IRQ: u32 = 5;
const IRQ_BASE: u8 = 0x20;

/// 16-bit real mode or 64-bit long mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit.
    Real,
    /// 64-bit.
    Long,
}

impl Mode {
    /// 16 or 64.
    pub fn bits(self) -> u32 {
        match self {
            Self::Real => 16,
            Self::Long => 64,
        }
    }
}

/// Opens KVM. One file descriptor serves any number of VMs.
///
/// # Errors
/// [`ExitError::NoKvm`] with the reason in one line.
pub fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|e| ExitError::NoKvm(no_kvm(e.errno())))?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(ExitError::NoKvm(format!("KVM speaks API {version}, not {KVM_API_VERSION}")));
    }
    Ok(kvm)
}

/// Why /dev/kvm does not open, and what to do.
fn no_kvm(errno: i32) -> String {
    match errno {
        libc::ENOENT => "there is no /dev/kvm: this host has no KVM, or its module is not loaded".into(),
        libc::EACCES | libc::EPERM => {
            "no permission for /dev/kvm: become a member of its group (kvm), or run as root".into()
        }
        libc::ENXIO | libc::ENODEV => {
            "/dev/kvm is there, but no virtualisation behind it: is it switched off in the firmware?".into()
        }
        _ => format!("/dev/kvm cannot be opened: {}", std::io::Error::from_raw_os_error(errno)),
    }
}

/// A micro-VM that is ready to run.
pub struct Machine {
    /// The vCPU.
    pub vcpu: VcpuFd,
    /// The VM.
    pub vm: VmFd,
    /// Its memory; dropped after the VM.
    pub memory: Arc<Memory>,
}

impl Machine {
    /// A VM on `memory`, with `program` at its entry. `interrupts`: with an in-kernel interrupt
    /// controller, whose line [`IRQ`] runs `program`'s handler at `handler` (offset in the program).
    ///
    /// # Errors
    /// KVM refused one of the steps.
    pub fn new(
        kvm: &Kvm,
        mode: Mode,
        memory: Arc<Memory>,
        program: &Asm,
        interrupts: Option<usize>,
    ) -> Result<Self> {
        let vm = again(|| kvm.create_vm()).map_err(ExitError::kvm("KVM_CREATE_VM"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.len() as u64,
            userspace_addr: memory.at(0, memory.len()) as u64,
        };
        // SAFETY: the mapping lives as long as the VM: both are in this value, the VM drops first.
        unsafe { vm.set_user_memory_region(region) }.map_err(ExitError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        if let Some(handler) = interrupts {
            if !kvm.check_extension(Cap::Irqchip) {
                return Err(ExitError::NotOffered("KVM has no in-kernel interrupt controller".into()));
            }
            again(|| vm.create_irq_chip()).map_err(ExitError::kvm("KVM_CREATE_IRQCHIP"))?;
            set_pic(&vm)?;
            let target = (place::CODE + handler) as u64;
            // An interrupt gate (SDM volume 3, figure 6-8): offset, selector 8, present.
            let low = (target & 0xffff) | (8 << 16) | (0x8e00 << 32) | ((target >> 16 & 0xffff) << 48);
            let entry = place::IDT + (IRQ_BASE as usize + IRQ as usize) * 16;
            memory.write_u64(entry, low);
            memory.write_u64(entry + 8, target >> 32);
        }
        let vcpu = again(|| vm.create_vcpu(0)).map_err(ExitError::kvm("KVM_CREATE_VCPU"))?;
        memory.write(place::CODE, program.bytes());
        match mode {
            Mode::Real => set_real(&vcpu)?,
            Mode::Long => {
                write_tables(&memory);
                let cpuid = kvm
                    .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                    .map_err(ExitError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
                vcpu.set_cpuid2(&cpuid).map_err(ExitError::kvm("KVM_SET_CPUID2"))?;
                set_long(&vcpu, interrupts.is_some())?;
            }
        }
        let mut regs = vcpu.get_regs().map_err(ExitError::kvm("KVM_GET_REGS"))?;
        regs.rip = place::CODE as u64;
        regs.rsp = place::STACK as u64;
        regs.rflags = 2;
        vcpu.set_regs(&regs).map_err(ExitError::kvm("KVM_SET_REGS"))?;
        Ok(Self { vcpu, vm, memory })
    }
}

/// Tries again what a signal interrupted: making a VM starts kernel threads, and that gives up when
/// a signal is pending for the caller.
fn again<T>(
    mut step: impl FnMut() -> std::result::Result<T, kvm_ioctls::Error>,
) -> std::result::Result<T, kvm_ioctls::Error> {
    loop {
        match step() {
            Err(e) if e.errno() == libc::EINTR => {}
            other => return other,
        }
    }
}

/// Unmasks line [`IRQ`] of the master PIC, vectors from [`IRQ_BASE`], edge-triggered, with
/// automatic end of interrupt: so that the guest's handler has nothing to do.
fn set_pic(vm: &VmFd) -> Result<()> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(ExitError::kvm("KVM_GET_IRQCHIP"))?;
    // SAFETY: chip_id says that this member of the union is the one in use.
    let pic = unsafe { &mut chip.chip.pic };
    pic.irq_base = IRQ_BASE;
    pic.imr = !(1 << IRQ);
    pic.auto_eoi = 1;
    pic.init_state = 0;
    pic.elcr = 0;
    vm.set_irqchip(&chip).map_err(ExitError::kvm("KVM_SET_IRQCHIP"))
}

fn set_real(vcpu: &VcpuFd) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(ExitError::kvm("KVM_GET_SREGS"))?;
    for segment in [&mut sregs.cs, &mut sregs.ss, &mut sregs.es] {
        segment.base = 0;
        segment.selector = 0;
    }
    sregs.ds.base = DEVICE_REAL;
    sregs.ds.selector = (DEVICE_REAL >> 4) as u16;
    vcpu.set_sregs(&sregs).map_err(ExitError::kvm("KVM_SET_SREGS"))
}

/// Page table bits (SDM volume 3, table 4-17): present, writable, 2 MiB page.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

fn write_tables(memory: &Memory) {
    memory.write_u64(place::PML4, place::PDPT as u64 | PRESENT | WRITABLE);
    memory.write_u64(place::PDPT, place::PD_MEMORY as u64 | PRESENT | WRITABLE);
    // The device lies in the fourth gigabyte.
    memory.write_u64(place::PDPT + 3 * 8, place::PD_DEVICE as u64 | PRESENT | WRITABLE);
    let span = (memory.len() as u64).div_ceil(2 << 20).min(512);
    for i in 0..span {
        memory.write_u64(place::PD_MEMORY + 8 * i as usize, (i << 21) | PRESENT | WRITABLE | LARGE);
    }
    let device = (DEVICE - (3 << 30)) >> 21;
    memory.write_u64(
        place::PD_DEVICE + 8 * device as usize,
        (DEVICE & !((2 << 20) - 1)) | PRESENT | WRITABLE | LARGE,
    );
    // Flat 64-bit code and data for ring 0 (SDM volume 3, section 3.4.5).
    memory.write_u64(place::GDT + 8, 0x00af_9b00_0000_ffff);
    memory.write_u64(place::GDT + 16, 0x00cf_9300_0000_ffff);
}

fn set_long(vcpu: &VcpuFd, interrupts: bool) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(ExitError::kvm("KVM_GET_SREGS"))?;
    let data = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.gdt.base = place::GDT as u64;
    sregs.gdt.limit = 23;
    sregs.idt.base = place::IDT as u64;
    sregs.idt.limit = 0xfff;
    sregs.cr3 = place::PML4 as u64;
    // CR4.PAE; CR0.PE, ET, PG; EFER.LME, LMA.
    sregs.cr4 = 1 << 5;
    sregs.cr0 = 1 | 1 << 4 | 1 << 31;
    sregs.efer = 1 << 8 | 1 << 10;
    if interrupts {
        // With the local APIC off, the PIC's line goes straight to the processor.
        sregs.apic_base &= !(1 << 11);
    }
    vcpu.set_sregs(&sregs).map_err(ExitError::kvm("KVM_SET_SREGS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_says_what_to_do() {
        for (errno, word) in [
            (libc::ENOENT, "module"),
            (libc::EACCES, "group"),
            (libc::ENODEV, "firmware"),
            (libc::EIO, "opened"),
        ] {
            let told = no_kvm(errno);
            assert!(told.contains("/dev/kvm") && told.contains(word) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn device_and_frames_do_not_meet() {
        assert!(DEVICE_REAL as usize >= REAL_MEMORY);
        const { assert!(place::QUEUE + 0x1000 <= place::PAGES && place::CODE + 0x1000 <= place::REQUEST) };
    }
}
