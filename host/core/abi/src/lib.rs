// SPDX-License-Identifier: Apache-2.0
//! What a guest asks its host, and what it is answered: `guest/abi/tmem_abi.h` in Rust. The header
//! is the manual; here is how bytes become typed requests and typed refusals. Nothing here acts,
//! allocates for longer than a frame, or knows where bytes lie.
//!
//! - [`wire`]: the structures and constants, as bytes
//! - [`request`]: [`parse`]: a header, lengths and listed keys become a [`Request`] or a [`Status`]
//! - [`pool`]: flags of a pool to be made; what the parser must know of one that is there
//! - [`frame`]: messages on a byte stream
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod frame;
pub mod pool;
pub mod request;
pub mod wire;

pub use frame::{BadFrame, Frame, FrameReader, Kind, Side};
pub use pool::{NewPool, Packing, Shape};
pub use request::{Agreed, Data, Guest, Key, KeyList, Keys, Part, Request, parse};
pub use wire::{Header, Item, Op, Reply, Status, feature};
