// SPDX-License-Identifier: Apache-2.0
//! Room that requests of one queue use one after the other.

use tmem_abi::wire::BATCH_MAX;
use tmem_abi::{KeyList, Status};
use tmem_store::{Get, PageAt, Put};

const MANY: usize = BATCH_MAX as usize;

/// Scratch space of one queue or stream.
pub struct Scratch {
    pub(crate) list: KeyList,
    pub(crate) pages: Pages,
}

/// What page operations need of it.
pub(crate) struct Pages {
    pub bounce: Vec<u8>,
    pub puts: Vec<PageAt<*const u8>>,
    pub gets: Vec<PageAt<*mut u8>>,
    pub put_answers: [Put; MANY],
    pub get_answers: [Get; MANY],
    pub statuses: [Status; MANY],
}

// SAFETY: the pointers are leftovers of a request: they are only followed while it is served, by the
// thread that serves it.
unsafe impl Send for Scratch {}

impl Scratch {
    /// Room for the longest batch.
    pub fn new() -> Self {
        Self {
            list: KeyList::default(),
            pages: Pages {
                bounce: Vec::new(),
                puts: Vec::with_capacity(MANY),
                gets: Vec::with_capacity(MANY),
                put_answers: [Put::NoPool; MANY],
                get_answers: [Get::NoPool; MANY],
                statuses: [Status::Ok; MANY],
            },
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Pages {
    /// The bounce buffer with room for `len` bytes.
    pub fn bounce(&mut self, len: usize) -> &mut [u8] {
        if self.bounce.len() < len {
            self.bounce.resize(len, 0);
        }
        &mut self.bounce[..len]
    }
}
