// SPDX-License-Identifier: Apache-2.0
//! The host's end of a virtio-serial port: requests of the tmem ABI on a byte stream.
//!
//! | module | job |
//! |---|---|
//! | [`server`] | lifetime: connects to the monitor's socket again and again, one thread for each VM |
//! | `port` | one connection: cuts frames, has requests served, passes control frames on |
//! | `bucket` | how much a guest may say to the control side |
//! | `wait` | waiting for descriptors, with a way out |
//!
//! The monitor (QEMU) listens, we connect. What comes is the guest's, so it is hostile: a request that cannot be
//! is answered as one; bytes that are no frame end the connection, and a new one begins with SYNC. A guest that is slow,
//! silent, flooding or lying has one thread of ours and bounded memory, and no other guest notices.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod bucket;
mod port;
pub mod server;
mod wait;

pub use server::{StreamServer, StreamState, StreamStats};
