// SPDX-License-Identifier: Apache-2.0
//! What an exit costs: raw KVM micro-VMs whose guest is a few dozen bytes of machine code.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod asm;
pub mod clock;
pub mod error;
pub mod fleet;
pub mod kinds;
pub mod machine;
pub mod memory;
pub mod rig;
pub mod run;
pub mod samples;
pub mod threads;
pub mod torn;
pub mod work;

pub use error::{ExitError, Result};
