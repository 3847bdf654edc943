// SPDX-License-Identifier: Apache-2.0
//! Who may hold how much host memory, in bytes of slots.
//!
//! The limit of the store is handed out as *grants*. An account's grant is never below its
//! reservation, so a put below the reservation never fails for room; beyond it, grants move in
//! chunks, so that VMs do not meet on one counter at every put.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Grants move in chunks of this many bytes.
const CHUNK: u64 = 256 << 10;

/// No cap.
pub const NO_CAP: u64 = u64::MAX;

/// What of the store's limit no account was granted, in bytes.
pub(crate) struct Budget {
    limit: u64,
    free: AtomicI64,
}

/// Why a put is not granted its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    Cap,
    Room,
}

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self { limit, free: AtomicI64::new(limit as i64) }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that nobody was granted. Negative after recovery under a smaller limit.
    pub fn free(&self) -> i64 {
        self.free.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let bytes = bytes as i64;
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |f| (f >= bytes).then(|| f - bytes))
            .is_ok()
    }

    /// Takes bytes that are held already, room or not (recovery).
    fn take_anyway(&self, bytes: u64) {
        self.free.fetch_sub(bytes as i64, Ordering::Relaxed);
    }

    fn give(&self, bytes: u64) {
        self.free.fetch_add(bytes as i64, Ordering::Relaxed);
    }
}

/// What one VM (or one shared pool) holds and may hold.
pub struct Account {
    held: AtomicU64,
    granted: AtomicU64,
    /// Serialises changes of `granted` and the settings.
    moves: Mutex<()>,
    reservation: AtomicU64,
    cap: AtomicU64,
    weight: AtomicU32,
    frozen: AtomicBool,
    /// Bytes of ephemeral slots in `held`: what could be evicted.
    pub(crate) ephemeral: AtomicU64,
}

impl Account {
    /// `None`: the limit has no room for that reservation.
    pub(crate) fn new(budget: &Budget, reservation: u64, cap: u64, weight: u32) -> Option<Self> {
        budget.take(reservation).then(|| Self::with(reservation, reservation, cap, weight))
    }

    /// An account read back from an arena: its promise stands even if the limit shrank.
    pub(crate) fn recovered(budget: &Budget, reservation: u64, cap: u64, weight: u32) -> Self {
        budget.take_anyway(reservation);
        Self::with(reservation, reservation, cap, weight)
    }

    fn with(reservation: u64, granted: u64, cap: u64, weight: u32) -> Self {
        Self {
            held: AtomicU64::new(0),
            granted: AtomicU64::new(granted),
            moves: Mutex::new(()),
            reservation: AtomicU64::new(reservation),
            cap: AtomicU64::new(cap),
            weight: AtomicU32::new(weight),
            frozen: AtomicBool::new(false),
            ephemeral: AtomicU64::new(0),
        }
    }

    /// Bytes of slots held.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Bytes of ephemeral slots held: what could be taken back.
    pub fn freeable(&self) -> u64 {
        self.ephemeral.load(Ordering::Relaxed)
    }

    /// Bytes promised.
    pub fn reservation(&self) -> u64 {
        self.reservation.load(Ordering::Relaxed)
    }

    /// Bytes never exceeded; [`NO_CAP`] for none.
    pub fn cap(&self) -> u64 {
        self.cap.load(Ordering::Relaxed)
    }

    /// Share in the ephemeral memory, against the sum of all weights.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// True while puts are refused.
    pub fn frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    pub(crate) fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    pub(crate) fn set_cap(&self, cap: u64) {
        self.cap.store(cap, Ordering::Relaxed);
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// False: the limit has no room for more.
    pub(crate) fn set_reservation(&self, budget: &Budget, bytes: u64) -> bool {
        let _guard = self.moves.lock();
        let granted = self.granted.load(Ordering::Relaxed);
        if bytes > granted {
            if !budget.take(bytes - granted) {
                return false;
            }
            self.granted.store(bytes, Ordering::Relaxed);
        }
        self.reservation.store(bytes, Ordering::Relaxed);
        drop(_guard);
        self.settle(budget, CHUNK);
        true
    }

    /// Charges a change from `old` to `new` bytes; on failure nothing is charged.
    #[inline]
    pub(crate) fn charge(&self, budget: &Budget, old: u64, new: u64) -> Result<(), Short> {
        if new <= old {
            self.uncharge(budget, old - new);
            return Ok(());
        }
        let more = new - old;
        let held = self.held.fetch_add(more, Ordering::Relaxed) + more;
        if held > self.cap.load(Ordering::Relaxed) {
            self.held.fetch_sub(more, Ordering::Relaxed);
            return Err(Short::Cap);
        }
        if held > self.granted.load(Ordering::Relaxed) && !self.more(budget, held) {
            self.held.fetch_sub(more, Ordering::Relaxed);
            return Err(Short::Room);
        }
        Ok(())
    }

    #[cold]
    fn more(&self, budget: &Budget, held: u64) -> bool {
        let _guard = self.moves.lock();
        let granted = self.granted.load(Ordering::Relaxed);
        let Some(need) = held.checked_sub(granted).filter(|&n| n > 0) else { return true };
        for bytes in [need.next_multiple_of(CHUNK), need] {
            if budget.take(bytes) {
                self.granted.store(granted + bytes, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    /// Charges what recovery found, room or not.
    pub(crate) fn charge_recovered(&self, budget: &Budget, bytes: u64) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let _guard = self.moves.lock();
        let granted = self.granted.load(Ordering::Relaxed);
        if held > granted {
            let more = (held - granted).next_multiple_of(CHUNK);
            budget.take_anyway(more);
            self.granted.store(granted + more, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn uncharge(&self, budget: &Budget, bytes: u64) {
        let held = self.held.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        let granted = self.granted.load(Ordering::Relaxed);
        if granted > held + 2 * CHUNK && granted > self.reservation.load(Ordering::Relaxed) {
            self.settle(budget, CHUNK);
        }
    }

    /// Gives back what is granted beyond what is held, some slack, and the reservation.
    #[cold]
    pub(crate) fn settle(&self, budget: &Budget, slack: u64) {
        let _guard = self.moves.lock();
        let granted = self.granted.load(Ordering::Relaxed);
        let held = self.held.load(Ordering::Relaxed);
        let keep = (held + slack).max(self.reservation.load(Ordering::Relaxed));
        if granted > keep {
            self.granted.store(keep, Ordering::Relaxed);
            // A put that raced past the old grant asks again: see `charge`.
            budget.give(granted - keep);
        }
    }

    /// Gives everything back: the account is gone.
    pub(crate) fn close(&self, budget: &Budget) {
        let _guard = self.moves.lock();
        budget.give(self.granted.swap(0, Ordering::Relaxed));
        self.reservation.store(0, Ordering::Relaxed);
        self.cap.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservation_holds_against_others() {
        let b = Budget::new(10 << 20);
        let a = Account::new(&b, 4 << 20, NO_CAP, 100).unwrap();
        let c = Account::new(&b, 0, NO_CAP, 100).unwrap();
        let mut n = 0u64;
        while c.charge(&b, 0, 4112).is_ok() {
            n += 4112;
        }
        assert!(n <= 6 << 20 && n > (6 << 20) - 8224);
        let mut n = 0u64;
        while n + 4112 <= 4 << 20 {
            a.charge(&b, 0, 4112).unwrap();
            n += 4112;
        }
        assert!(Account::new(&b, 1, NO_CAP, 1).is_none());
    }

    #[test]
    fn cap_is_hard_and_freed_bytes_return() {
        let b = Budget::new(10 << 20);
        let a = Account::new(&b, 0, 1 << 20, 100).unwrap();
        let mut n = 0u64;
        while a.charge(&b, 0, 1000).is_ok() {
            n += 1000;
        }
        assert_eq!(a.charge(&b, 0, 1000), Err(Short::Cap));
        assert!(n <= 1 << 20);
        a.charge(&b, 1000, 1000).unwrap();
        a.uncharge(&b, n);
        a.close(&b);
        assert_eq!(b.free(), 10 << 20);
    }

    #[test]
    fn reservation_can_change() {
        let b = Budget::new(1 << 20);
        let a = Account::new(&b, 0, NO_CAP, 100).unwrap();
        assert!(!a.set_reservation(&b, 2 << 20));
        assert!(a.set_reservation(&b, 1 << 20));
        assert_eq!(b.free(), 0);
        assert!(a.set_reservation(&b, 0));
        assert!(b.free() >= (1 << 20) - CHUNK as i64);
    }
}
