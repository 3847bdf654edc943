// SPDX-License-Identifier: Apache-2.0
//! What turns share: KVM, a guest's memory full of pages, the store, the disk file, the clock.

use std::arch::x86_64::__cpuid;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::Kvm;

use crate::clock::{Calibration, calibrate};
use crate::error::{ExitError, Result};
use crate::kinds::{Hypercall, Kind};
use crate::machine::{open_kvm, place};
use crate::memory::{Memory, PAGE};
use crate::run::{Stage, Turn, turn};
use crate::samples::Amount;
use crate::threads::usable_cpus;
use crate::work::{self, DiskSite, FRAMES, Pages, Site, StoreSite};

/// A bench's set-up. Bare work runs without KVM, too.
pub struct Rig {
    kvm: Result<Kvm>,
    memory: Arc<Memory>,
    site: Site,
    cpus: (usize, Option<usize>),
    calibration: Calibration,
}

impl Rig {
    /// With the given pages (a multiple of 4096 bytes) in the guest's memory.
    ///
    /// # Errors
    /// No memory, or a clock that cannot be trusted. A host without KVM is no error here: each turn
    /// that needs it says why it has none.
    pub fn new(corpus: &[u8]) -> Result<Self> {
        if corpus.is_empty() || !corpus.len().is_multiple_of(PAGE) {
            return Err(ExitError::Invalid("pages must be one or more of 4096 bytes".into()));
        }
        let count = corpus.len() / PAGE;
        let memory = Arc::new(Memory::new(place::PAGES + (count + FRAMES) * PAGE)?);
        memory.write(place::PAGES, corpus);
        let usable = usable_cpus();
        let calibration = calibrate(&usable)?;
        // The last CPUs: interrupts and the rest of the system like the first.
        let mut last = usable.iter().rev().copied();
        let first = last.next().unwrap_or(0);
        let cpus = (first, last.next());
        let pages = Pages::new(memory.clone(), place::PAGES, count);
        let site = Site { pages, cold: None, store: None, disk: None, hz: calibration.hz, other_cpu: cpus.1 };
        Ok(Self { kvm: open_kvm(), memory, site, cpus, calibration })
    }

    /// Work with the store uses these pools.
    pub fn set_store(&mut self, store: StoreSite) {
        self.site.store = Some(store);
    }

    /// Work with the disk uses a file at `path` of `pages` pages.
    ///
    /// # Errors
    /// As of [`DiskSite::new`].
    pub fn set_disk(&mut self, path: &Path, pages: usize) -> Result<()> {
        self.site.disk = Some(DiskSite::new(path, pages, &self.site.pages)?);
        Ok(())
    }

    /// Ticks in a second.
    pub fn hz(&self) -> f64 {
        self.calibration.hz
    }

    /// What was found about the clock.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// CPUs of the vCPU's thread and of the thread that serves.
    pub fn cpus(&self) -> (usize, Option<usize>) {
        self.cpus
    }

    /// Why there is no KVM; `None` when there is.
    pub fn no_kvm(&self) -> Option<String> {
        self.kvm.as_ref().err().map(ToString::to_string)
    }

    /// One turn; `n` is the work's number, where it has one.
    ///
    /// # Errors
    /// As of [`turn`].
    pub fn turn(&mut self, kind: Kind, work: &str, n: u32, amount: Amount) -> Result<Turn> {
        if kind.loops() && work != "nothing" {
            return Err(ExitError::Invalid(format!(
                "kind {} is answered in the kernel: nobody there does any work",
                kind.name()
            )));
        }
        let kvm = match (&self.kvm, kind) {
            (Ok(kvm), _) => Some(kvm),
            (Err(_), Kind::Bare) => None,
            (Err(e), _) => return Err(ExitError::NoKvm(e.to_string())),
        };
        let work = work::make(&mut self.site, work, n)?;
        match kvm {
            None => crate::run::bare(self.cpus.0, work, amount),
            Some(kvm) => {
                let stage = Stage {
                    kvm,
                    memory: self.memory.clone(),
                    cpus: self.cpus,
                    hypercall: hypercall_of_vendor(),
                };
                turn(&stage, kind, work, amount)
            }
        }
    }
}

/// AMD's processors (and Hygon's, which are theirs) know VMMCALL, all others VMCALL.
fn hypercall_of_vendor() -> Hypercall {
    match __cpuid(0).ebx.to_le_bytes() {
        [b'A', b'u', b't', b'h'] | [b'H', b'y', b'g', b'o'] => Hypercall::Vmmcall,
        _ => Hypercall::Vmcall,
    }
}
