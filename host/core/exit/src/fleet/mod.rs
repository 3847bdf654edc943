// SPDX-License-Identifier: Apache-2.0
//! Fleets: one to a thousand micro-VMs at once, each with memory and a pool of its own, paging
//! through one store or to one disk file.
//!
//! - [`trace`]: which page leaves and comes back when: a zipf working set over few frames
//! - `guest`: the program that plays a trace
//! - `backend`: where a page goes, and the check of every page that comes back
//! - `member`: one VM of a fleet as its host sees it
//! - `crew`: the threads; `host`: what a fleet takes of its host
//! - [`watch`]: made, watched for a while, counted

mod backend;
mod crew;
mod guest;
mod host;
mod member;
mod reservoir;
pub mod trace;
pub mod watch;

pub use backend::{BackendSpec, Class};
pub use watch::{Channel, ClassReport, FleetSpec, Report, run};
