// SPDX-License-Identifier: Apache-2.0
//! Notifications that get lost, as under a monitor whose vCPU lets a look overtake a write: the worker makes up for them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::*;
use tmem_channel::{BlkServer, ChannelStats, PollPolicy};

const BOTH: u64 = EVENT_IDX | INDIRECT_DESC;
/// Many times the worker's second look: what has not come by then does not come, as the worker sleeps without limit.
const PATIENCE: Duration = Duration::from_millis(500);

fn late_kicks(stats: &ChannelStats) -> u64 {
    stats.queues.iter().map(|queue| queue.late_kicks).sum()
}

fn late_interrupts(stats: &ChannelStats) -> u64 {
    stats.queues.iter().map(|queue| queue.late_interrupts).sum()
}

impl Driver {
    /// The worker has asked for a kick: it sleeps, or is about to.
    fn kicks_are_wanted(&self) -> bool {
        let vq = &self.queues[0];
        if self.features & EVENT_IDX == 0 {
            return self.ram.u16(vq.used).load(Ordering::SeqCst) & 1 == 0;
        }
        self.ram.u16(vq.used + 4 + 8 * u64::from(vq.size)).load(Ordering::SeqCst) == vq.next_avail
    }

    /// Wants interrupts from this used index on, or with `None` none at all.
    fn want_interrupt(&self, from: Option<u16>) {
        let vq = &self.queues[0];
        if self.features & EVENT_IDX == 0 {
            self.ram.u16(vq.avail).store(u16::from(from.is_none()), Ordering::SeqCst);
        } else {
            let event = from.unwrap_or(vq.next_used.wrapping_sub(100));
            self.ram.u16(vq.avail + 4 + 2 * u64::from(vq.size)).store(event, Ordering::SeqCst);
        }
    }
}

/// Until it was seen: the worker may be slow to fall asleep, or this thread slower than its second look.
fn until_seen(features: u64, mut attempt: impl FnMut(&mut Driver) -> bool, seen: fn(&ChannelStats) -> u64) {
    let (_folder, socket) = folder();
    let server = BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(64)).unwrap();
    let mut driver = Driver::connect(&socket, 1, 16, features);
    for _ in 0..200 {
        if attempt(&mut driver) && seen(&server.stats()) > 0 {
            server.stop().unwrap();
            return;
        }
    }
    panic!("in 200 attempts no notification was made up for: {:?}", server.stats());
}

#[test]
fn a_request_whose_kick_got_lost_is_served() {
    for features in [BOTH, INDIRECT_DESC] {
        until_seen(
            features,
            |driver| {
                assert_eq!(driver.write(0, 0, &page(1)), OK);
                eventually("kicks are wanted", || driver.kicks_are_wanted());
                driver.lay_out(0, OUT, 8, &page(2), 0);
                driver.publish(0, 0);
                let done = driver.queues[0].next_used.wrapping_add(1);
                let served = within(PATIENCE, || driver.used_idx(0) == done);
                // Only one that came after the second look needs its kick.
                driver.kick(0, 1);
                driver.wait_used(0);
                served
            },
            late_kicks,
        );
    }
}

#[test]
fn an_interrupt_that_was_asked_for_too_late_is_sent() {
    for features in [BOTH, INDIRECT_DESC] {
        until_seen(
            features,
            |driver| {
                driver.want_interrupt(None);
                driver.lay_out(0, OUT, 8, &page(2), 0);
                driver.publish(0, 0);
                driver.kick(0, 1);
                let (asked, done) = (driver.queues[0].next_used, driver.queues[0].next_used.wrapping_add(1));
                eventually("served", || driver.used_idx(0) == done);
                eventually("kicks are wanted", || driver.kicks_are_wanted());
                let _ = driver.queues[0].call.read();
                driver.want_interrupt(Some(asked));
                let told = within(PATIENCE, || driver.queues[0].call.read().is_ok());
                driver.wait_used(0);
                told
            },
            late_interrupts,
        );
    }
}

#[test]
fn nobody_is_told_twice_or_unasked() {
    for asks in [true, false] {
        let (_folder, socket) = folder();
        let server =
            BlkServer::start(config(&socket, 1, PollPolicy::Events), MemoryBackend::new(64)).unwrap();
        let mut driver = Driver::connect(&socket, 1, 16, BOTH);
        for round in 0..20 {
            let (asked, done) = (driver.queues[0].next_used, driver.queues[0].next_used.wrapping_add(1));
            driver.want_interrupt(asks.then_some(asked));
            let before = server.stats().queues[0].interrupts;
            driver.lay_out(0, OUT, 8 * round, &page(round), 0);
            driver.publish(0, 0);
            driver.kick(0, 1);
            eventually("served", || driver.used_idx(0) == done);
            eventually("told", || server.stats().queues[0].interrupts == before + u64::from(asks));
            driver.wait_used(0);
        }
        let told = server.stats().queues[0].interrupts;
        // Longer than the second look takes.
        assert!(!within(Duration::from_millis(50), || server.stats().queues[0].interrupts > told));
        assert_eq!(late_interrupts(&server.stats()), 0);
        server.stop().unwrap();
    }
}
