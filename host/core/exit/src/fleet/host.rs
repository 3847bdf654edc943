// SPDX-License-Identifier: Apache-2.0
//! What a fleet takes of its host: descriptors and memory.

use std::fs;

use crate::error::{ExitError, Result};
use crate::threads::last_error;

/// Lets this process open `need` descriptors.
///
/// # Errors
/// The hard limit is below that.
pub fn allow_descriptors(need: u64) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: limit is writable.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(last_error("the limit of open files"));
    }
    if limit.rlim_max < need {
        return Err(ExitError::NotOffered(format!(
            "{need} open files are needed and this process may have {}: raise it with 'ulimit -Hn'",
            limit.rlim_max
        )));
    }
    if limit.rlim_cur < need {
        limit.rlim_cur = need;
        // SAFETY: limit is readable.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(last_error("the limit of open files"));
        }
    }
    Ok(())
}

/// Memory that VMs take besides the pages they store: this process's anonymous memory, and the
/// kernel's, which nobody accounts to a process: slab, page tables (KVM's, too) and stacks.
pub struct Anonymous {
    bytes: u64,
}

impl Anonymous {
    /// Now.
    pub fn now() -> Self {
        let own = sum("/proc/self/status", &["RssAnon"]);
        let kernel = sum("/proc/meminfo", &["Slab", "PageTables", "SecPageTables", "KernelStack"]);
        Self { bytes: own + kernel }
    }

    /// Bytes more than at `before`.
    pub fn since(&self, before: &Self) -> u64 {
        self.bytes.saturating_sub(before.bytes)
    }
}

/// The sum of some `NAME: N kB` lines, in bytes. A line that is not there counts nothing.
fn sum(path: &str, names: &[&str]) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| names.contains(name))
        .filter_map(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum::<u64>()
        * 1024
}
