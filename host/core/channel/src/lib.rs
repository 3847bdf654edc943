// SPDX-License-Identifier: Apache-2.0
//! Channels on a virtqueue: how a guest's requests reach a page store over vhost-user.
//!
//! | module | job |
//! |---|---|
//! | [`device`] | what a device is to the rest: features, configuration space, names of counters, a handler for each queue |
//! | [`blk`] | virtio-blk, for stock guests: sectors are pages of a swap pool |
//! | [`tmem`] | the tmem ABI, for guests with a driver: requests go to the engine of the VM |
//! | [`chain`] | walks a descriptor chain into proven buffers |
//! | [`guest`] | guest memory: proven places, copies made once |
//! | [`ring`] | a running virtqueue: in-order completion, notifications |
//! | `worker`, `poll` | threads that own rings: events, spinning, faults |
//! | `memory`, `event` | the guest's memory map; eventfd and epoll |
//! | `session` | vhost-user messages of one connection |
//! | [`server`], `socket` | lifetime: bind, accept, stop |
//! | [`stats`] | counters |
//! | [`client`] | the other side of vhost-user-tmem, for tests and benches |
//!
//! Everything that comes from the guest or the frontend is hostile. A bad request is answered and counted; a bad
//! ring stops that queue; a bad message ends that connection; none of them touches another VM.

pub mod blk;
#[doc(hidden)]
pub mod chain;
pub mod client;
pub mod config;
pub mod device;
mod event;
#[doc(hidden)]
pub mod guest;
mod memory;
mod poll;
#[doc(hidden)]
pub mod ring;
pub mod server;
mod session;
mod socket;
pub mod stats;
pub mod tmem;
mod worker;

pub use blk::{
    BlkConfig, BlkServer, GetResult, Op, PAGE_SIZE, PageBackend, PageRefusal, PutResult, Reason, SECTOR_SIZE,
};
pub use config::{ChannelError, PollPolicy, ServerConfig};
pub use ring::Fault;
pub use server::Server;
pub use stats::{ChannelState, ChannelStats, LATENCY_BUCKETS, QueueState, QueueStats};
