// SPDX-License-Identifier: Apache-2.0
//! Carries out a guest's requests: bytes in, bytes out, over a store.
//!
//! - [`Engine`]: one VM: its pools, and what it may have of them. One for all channels of a VM.
//! - [`Session`]: one channel: what HELLO agreed on. [`Session::serve`] takes a request where it
//!   lies, in guest memory in place or in a buffer, and answers it where the reply goes.
//! - [`memory`]: bytes in pieces; pages that lie in one piece reach the store where they are
//! - `pages`: operations on pages; `counters`: what happened; [`faults`]: pages lost on purpose
//!
//! Requests are parsed by `tmem-abi` before anything acts. Which VM they are from is the channel's
//! word. Nothing here allocates for a request, but pages that descriptors split go through a bounce
//! buffer that grows once.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod counters;
mod engine;
pub mod faults;
pub mod memory;
mod pages;
mod scratch;
mod session;

pub use counters::Counters;
pub use engine::{Engine, Options, SUPPORTED};
pub use faults::Faults;
pub use memory::Segment;
pub use scratch::Scratch;
pub use session::{REPLY_MAX, Served, Session};
pub use tmem_abi::wire::REPLY_SIZE;
