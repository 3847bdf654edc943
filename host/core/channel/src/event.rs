// SPDX-License-Identifier: Apache-2.0
//! Event descriptors and epoll: the few system calls the channel needs, each in one place.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// An eventfd, ours or the frontend's.
#[derive(Clone, Debug)]
pub(crate) struct Event(Arc<OwnedFd>);

impl Event {
    /// A new one.
    pub(crate) fn new() -> io::Result<Event> {
        // SAFETY: eventfd() takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just made and belongs to nobody else.
        Ok(Event(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// One that the frontend sent. Anything but an eventfd is refused: a write to a full pipe would block.
    pub(crate) fn from_frontend(file: File) -> Option<Event> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        match link {
            Ok(target) if target.as_os_str() != "anon_inode:[eventfd]" => None,
            // Without /proc there is no telling.
            _ => Some(Event(Arc::new(OwnedFd::from(file)))),
        }
    }

    /// Adds one.
    pub(crate) fn signal(&self) {
        let one = 1u64;
        // SAFETY: the descriptor is open and the buffer has eight bytes. An error means that the counter is
        // at its maximum, so the reader is told anyway.
        unsafe { libc::write(self.raw(), std::ptr::from_ref(&one).cast(), 8) };
    }

    /// Takes the count without waiting, whatever the descriptor's mode.
    pub(crate) fn drain(&self) {
        let mut count = 0u64;
        let iov = libc::iovec { iov_base: std::ptr::from_mut(&mut count).cast(), iov_len: 8 };
        // SAFETY: iov describes eight writable bytes; RWF_NOWAIT keeps a blocking descriptor from blocking.
        unsafe { libc::preadv2(self.raw(), &iov, 1, -1, libc::RWF_NOWAIT) };
    }

    pub(crate) fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// An epoll set of events, edge-triggered: their counters never need to be read, each signal wakes once.
#[derive(Debug)]
pub(crate) struct EventSet(OwnedFd);

impl EventSet {
    pub(crate) fn new() -> io::Result<EventSet> {
        // SAFETY: epoll_create1() takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just made and belongs to nobody else.
        Ok(EventSet(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn add(&self, event: &Event, token: u64) -> io::Result<()> {
        let mut entry = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: token };
        // SAFETY: both descriptors are open, entry is a valid epoll_event.
        let result =
            unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, event.raw(), &mut entry) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(crate) fn remove(&self, event: &Event) {
        let mut entry = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: as in add(). A descriptor that is not in the set is an error without consequence.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, event.raw(), &mut entry) };
    }

    /// Waits, without limit or up to `limit` (whole ms); calls `each` with the tokens that were signalled. `false` when
    /// the time was over first.
    pub(crate) fn wait(&self, limit: Option<Duration>, mut each: impl FnMut(u64)) -> bool {
        const ROOM: usize = 20;
        let ms = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        let mut entries = [libc::epoll_event { events: 0, u64: 0 }; ROOM];
        // SAFETY: entries has ROOM places. EINTR counts as a wake-up with nothing signalled.
        let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), entries.as_mut_ptr(), ROOM as i32, ms) };
        for entry in entries.iter().take(usize::try_from(n).unwrap_or(0)) {
            each(entry.u64);
        }
        n != 0
    }
}

/// Waits without limit until one of `fds` is readable or hung up; `true` for each that is.
pub(crate) fn wait_readable<const N: usize>(fds: [i32; N]) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: polled has N entries.
    let n = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, -1) };
    if n < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok([false; N]);
    }
    Ok(polled.map(|entry| entry.revents != 0))
}
