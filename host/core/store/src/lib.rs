// SPDX-License-Identifier: Apache-2.0
//! The store of kvm-tmem: pools of pages under (pool, object, index), compressed, counted, and in
//! a file that outlives the process. It knows nothing of virtio.
//!
//! - [`store`], `pools`: VMs, pools, quotas; opening an arena
//! - [`ops`]: put, get, flush; [`parts`]: byte ranges; [`batch`]: several pages; `keep`, `fetch`:
//!   their part under the key's lock
//! - `packed`: pages that come compressed; `units`: pages above 64 KiB
//! - `index`: key to slot; `alloc`, `reclaim`, `block`, `classes`: slots out of blocks;
//!   `arena`, `slot`, `layout`, `tables`: the file
//! - [`codec`], `decode`: one page, compressed; `quota`: who may hold what; `upkeep`: eviction, compaction
//! - [`recover`]: from the file back to an index
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod alloc;
mod arena;
pub mod batch;
mod block;
mod classes;
pub mod codec;
mod decode;
pub mod error;
mod fetch;
mod index;
mod keep;
mod layout;
mod lru;
pub mod ops;
mod packed;
pub mod parts;
pub mod pool;
mod pools;
pub mod quota;
mod reclaim;
pub mod recover;
mod recover_units;
pub mod save;
mod slot;
pub mod stats;
pub mod store;
mod tables;
mod units;
mod upkeep;

pub use batch::{Exchanged, PageAt};
pub use codec::{Codec, PAGE_MAX, PAGE_SIZE};
pub use error::{Result, StoreError};
pub use layout::ObjectId;
pub use ops::{DENSE_OBJECT, Get, Handle, Put};
pub use pool::{PoolId, PoolSpec, VmId};
pub use quota::NO_CAP;
pub use recover::Recovery;
pub use save::Saved;
pub use store::{QuotaChange, Store, StoreOptions, Totals, worst_case_bytes, worst_case_bytes_of};
