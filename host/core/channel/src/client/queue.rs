// SPDX-License-Identifier: Apache-2.0
//! The driver's side of one split virtqueue with event indices (virtio 1.2, section 2.7), one chain at a time.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::ram::{GUEST_BASE, Ram};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 1024;

/// A buffer of a chain.
pub(super) struct Piece {
    pub at: u64,
    pub len: usize,
    pub writable: bool,
}

pub(super) struct Queue {
    size: u16,
    submitted: u16,
    completed: u16,
    pub kick: EventFd,
    pub call: EventFd,
}

impl Queue {
    pub(super) fn new(size: u16) -> io::Result<Queue> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Queue { size, submitted: 0, completed: 0, kick: event()?, call: event()? })
    }

    pub(super) fn desc(&self) -> u64 {
        GUEST_BASE
    }

    pub(super) fn avail(&self) -> u64 {
        GUEST_BASE + 0x4000
    }

    pub(super) fn used(&self) -> u64 {
        GUEST_BASE + 0x6000
    }

    /// Index of the next completion at which the driver wants to be interrupted.
    fn used_event(&self) -> u64 {
        self.avail() + 4 + 2 * u64::from(self.size)
    }

    /// Index of the next submission at which the device wants to be kicked.
    fn avail_event(&self) -> u64 {
        self.used() + 4 + 8 * u64::from(self.size)
    }

    /// Makes a chain of the pieces that are not empty available, and kicks if the device asks for it.
    pub(super) fn submit(&mut self, ram: &Ram, pieces: &[Piece]) -> io::Result<()> {
        let count = pieces.iter().filter(|piece| piece.len > 0).count();
        for (at, piece) in pieces.iter().filter(|piece| piece.len > 0).enumerate() {
            let more = if at + 1 < count { NEXT } else { 0 };
            let flags = more | if piece.writable { WRITE } else { 0 };
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&piece.at.to_le_bytes());
            raw[8..12].copy_from_slice(&(piece.len as u32).to_le_bytes());
            raw[12..14].copy_from_slice(&flags.to_le_bytes());
            raw[14..].copy_from_slice(&(at as u16 + 1).to_le_bytes());
            ram.write(self.desc() + 16 * at as u64, &raw);
        }
        let slot = self.avail() + 4 + 2 * u64::from(self.submitted % self.size);
        ram.u16(slot).store(0, Ordering::Relaxed);
        self.submitted = self.submitted.wrapping_add(1);
        // An interrupt for this chain, unless it is seen before.
        ram.u16(self.used_event()).store(self.completed.to_le(), Ordering::Relaxed);
        ram.u16(self.avail() + 2).store(self.submitted.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        let event = u16::from_le(ram.u16(self.avail_event()).load(Ordering::Relaxed));
        if self.submitted.wrapping_sub(event).wrapping_sub(1) < 1 {
            self.kick.write(1)?;
        }
        Ok(())
    }

    fn done(&self, ram: &Ram) -> bool {
        u16::from_le(ram.u16(self.used() + 2).load(Ordering::Acquire)) != self.completed
    }

    /// Waits for the chain, spinning or asleep; its used length.
    pub(super) fn wait(&mut self, ram: &Ram, spins: bool, patience: Duration) -> io::Result<usize> {
        let deadline = Instant::now() + patience;
        while !self.done(ram) {
            if spins {
                for _ in 0..LOOKS {
                    if self.done(ram) {
                        break;
                    }
                    std::hint::spin_loop();
                }
            } else {
                self.sleep(deadline)?;
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
            }
        }
        let slot = self.used() + 4 + 8 * u64::from(self.completed % self.size);
        let used = u32::from_le(ram.u32(slot + 4)) as usize;
        self.completed = self.completed.wrapping_add(1);
        Ok(used)
    }

    fn sleep(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as i32;
        let mut poll = libc::pollfd { fd: self.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&mut poll, 1, left.max(1)) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let _ = self.call.read();
        Ok(())
    }
}
