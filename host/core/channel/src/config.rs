// SPDX-License-Identifier: Apache-2.0
//! What every server is told, and how it can fail to start.

use std::path::PathBuf;

/// Most queues of one device.
pub const MAX_QUEUES: u16 = 16;
/// Largest queue accepted: QEMU's limit.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// When a worker looks for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollPolicy {
    /// Sleep until the guest kicks.
    Events,
    /// After the last request spin for a window that adapts to the guest, then sleep.
    Adaptive {
        /// Upper bound of the window, in microseconds; 0 is the same as `Events`.
        max_us: u32,
    },
}

impl PollPolicy {
    pub(crate) fn max_us(self) -> u32 {
        match self {
            PollPolicy::Events => 0,
            PollPolicy::Adaptive { max_us } => max_us,
        }
    }
}

/// Where and how to serve a device, whatever it is.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Path of the socket; made with mode 0600.
    pub socket: PathBuf,
    /// Queues offered, 1..=16.
    pub queues: u16,
    /// When to look for requests.
    pub poll: PollPolicy,
}

impl ServerConfig {
    pub(crate) fn check(&self) -> Result<(), ChannelError> {
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(ChannelError::Invalid("queues must be 1 to 16"));
        }
        Ok(())
    }
}

/// Why a server could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Another live server listens there.
    #[error("socket {0} is in use by a running server")]
    SocketInUse(PathBuf),
    /// Something that is no socket is there; it is not touched.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The path does not fit `sockaddr_un`.
    #[error("socket path {0} is longer than 107 bytes")]
    PathTooLong(PathBuf),
    /// A value outside its bounds.
    #[error("invalid channel configuration: {0}")]
    Invalid(&'static str),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread of the channel died of a bug; its queues were stopped.
    #[error("a channel thread panicked")]
    Panicked,
}

impl ChannelError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> ChannelError {
        move |source| ChannelError::Io { what, source }
    }
}
