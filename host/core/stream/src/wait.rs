// SPDX-License-Identifier: Apache-2.0
//! Waiting for descriptors.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    Reading,
    Writing,
    /// Nothing but the other end's leaving.
    Nothing,
}

/// Waits until one of `fds` is ready or gone, or for `time`; `true` for each that is.
pub fn wait<const N: usize>(fds: [(RawFd, For); N], time: Option<Duration>) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|(fd, what)| {
        let events = match what {
            For::Reading => libc::POLLIN,
            For::Writing => libc::POLLOUT,
            For::Nothing => 0,
        };
        libc::pollfd { fd, events, revents: 0 }
    });
    let ms = time.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: polled has N entries.
    let n = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, ms) };
    if n < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(error) };
    }
    Ok(polled.map(|entry| entry.revents != 0))
}

/// An eventfd that stays set: readable from its first signal on.
pub struct Flag(OwnedFd);

impl Flag {
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd() takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn set(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes. An error means that the counter is full: it is set anyway.
        unsafe { libc::write(self.raw(), std::ptr::from_ref(&one).cast(), 8) };
    }

    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
