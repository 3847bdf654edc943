// SPDX-License-Identifier: Apache-2.0
//! The vhost-user-blk channel: how a stock guest's virtio-blk requests reach a page store.
//!
//! | module | job |
//! |---|---|
//! | [`backend`] | what a channel needs of a store |
//! | [`config`] | what a server is told and what it tells the driver |
//! | [`ops`] | operations, and reasons for refusing a request |
//! | [`guest`] | guest memory: proven places, copies made once |
//! | [`request`] | parses a descriptor chain into a request or a refusal; acts on nothing |
//! | [`device`] | carries a request out, a page at a time |
//! | [`ring`] | a running virtqueue: in-order completion, notifications |
//! | `worker`, `poll` | threads that own rings: events, spinning, faults |
//! | `memory`, `event` | the guest's memory map; eventfd and epoll |
//! | `session` | vhost-user messages of one connection |
//! | `server`, `socket` | lifetime: bind, accept, stop |
//! | [`stats`] | counters |
//!
//! Everything that comes from the guest or the frontend is hostile. A bad request is answered and counted; a bad
//! ring stops that queue; a bad message ends that connection; none of them touches another VM.

pub mod backend;
pub mod config;
#[doc(hidden)]
pub mod device;
mod event;
#[doc(hidden)]
pub mod guest;
mod memory;
pub mod ops;
mod poll;
#[doc(hidden)]
pub mod request;
#[doc(hidden)]
pub mod ring;
mod server;
mod session;
mod socket;
pub mod stats;
mod worker;

pub use backend::{GetResult, PAGE_SIZE, PageBackend, PutResult, SECTOR_SIZE};
pub use config::{BlkConfig, ChannelError, PollPolicy};
pub use ops::{Op, Reason};
pub use ring::Fault;
pub use server::BlkServer;
pub use stats::{ChannelState, ChannelStats, LATENCY_BUCKETS, PageRefusal, QueueState, QueueStats};
