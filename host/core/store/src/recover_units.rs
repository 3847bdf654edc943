// SPDX-License-Identifier: Apache-2.0
//! Recovery of pages above 64 KiB: which units belong to a page that stands.

use std::collections::HashMap;

use crate::index::Stand;
use crate::ops::DENSE_OBJECT;
use crate::recover::Recovery;
use crate::store::Inner;
use crate::units::account_unit;

/// Heads and units that the scan found.
#[derive(Default)]
pub(crate) struct Large {
    /// Slots of heads that check.
    pub heads: Vec<u64>,
    /// Slots that say they are a unit, and whether their bytes check.
    pub units: HashMap<u64, bool>,
}

impl Large {
    pub fn extend(&mut self, other: Self) {
        self.heads.extend(other.heads);
        self.units.extend(other.units);
    }

    /// Gives each page that stands its units, and counts them. A page that lacks one, or one of
    /// whose units does not check, is lost as a whole; how many these are.
    pub fn claim(&mut self, inner: &Inner) -> u64 {
        let mut lost = 0;
        for slot in std::mem::take(&mut self.heads) {
            // One that another took the key from is no head any more.
            let Some(header) = inner.arena.header(slot) else { continue };
            let Some(pool) = inner.pools.read().get(&header.pool).cloned() else { continue };
            let object = if header.sparse { inner.arena.object(slot) } else { DENSE_OBJECT };
            let whole = pool.index.with(&object, header.index, |e| {
                if e.stand != Stand::Page(slot) {
                    return true;
                }
                // SAFETY: the entry is locked and says the slot is its page.
                let whole = unsafe { inner.head(&pool, slot) }.is_some_and(|head| {
                    let mut good = 0;
                    for at in inner.units(&head) {
                        account_unit(&pool, &at);
                        good += usize::from(self.units.remove(&at.slot) == Some(true));
                    }
                    good == head.count()
                });
                if !whole {
                    e.stand = Stand::Lost(slot);
                }
                whole
            });
            lost += u64::from(whole == Some(false));
        }
        lost
    }

    /// What no page has: left over by a put or a move that was cut short, and free now. But if
    /// something could not be read, it may be what is left of a page whose head that was: kept, out
    /// of use, like all that is not understood.
    pub fn settle(self, inner: &Inner, clean: bool, r: &mut Recovery) {
        let clean = clean && self.units.values().all(|good| *good);
        for slot in self.units.into_keys() {
            if clean {
                inner.arena.clear_header(slot);
                inner.alloc.free(slot);
                r.leftovers += 1;
            } else {
                r.unreadable += 1;
            }
        }
    }
}
