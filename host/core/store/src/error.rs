// SPDX-License-Identifier: Apache-2.0
//! The one error tree of the store. Refusals of a put are values ([`crate::Put`]), not errors.

use std::io;
use std::path::PathBuf;

/// What can go wrong outside the path of a page: opening the arena, making VMs and pools.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not an arena, or its superblock or tables do not check.
    #[error("arena {path}: {what}")]
    Corrupt {
        /// The arena's file.
        path: PathBuf,
        /// Which part does not check.
        what: String,
    },
    /// The file is shorter than its superblock says.
    #[error("arena {path} is truncated: {have} bytes of {want}")]
    Truncated {
        /// The arena's file.
        path: PathBuf,
        /// Bytes the file has.
        have: u64,
        /// Bytes the superblock promises.
        want: u64,
    },
    /// The arena was made by a program with another format.
    #[error("arena {path} has format {have}, this program makes and reads {want}")]
    Format {
        /// The arena's file.
        path: PathBuf,
        /// Its format.
        have: u64,
        /// The program's.
        want: u32,
    },
    /// Another process holds the arena.
    #[error("arena {path} is in use by another process")]
    Locked {
        /// The arena's file.
        path: PathBuf,
    },
    /// The file system or the limit has no room.
    #[error("{0}")]
    NoSpace(String),
    /// No such VM or pool.
    #[error("{0}")]
    NotFound(String),
    /// A VM of that name exists already.
    #[error("{0}")]
    Exists(String),
    /// The VM may not use the shared pool of that uuid.
    #[error("{0}")]
    NotAuthorised(String),
    /// An argument is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// A short stable name for programs: the `kind` of the Python exception.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => "arena-corrupt",
            Self::Truncated { .. } => "arena-truncated",
            Self::Format { .. } => "arena-format",
            Self::Locked { .. } => "arena-locked",
            Self::NoSpace(_) => "no-space",
            Self::NotFound(_) => "not-found",
            Self::Exists(_) => "exists",
            Self::NotAuthorised(_) => "not-authorised",
            Self::Invalid(_) => "invalid",
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => "permission",
                io::ErrorKind::StorageFull => "no-space",
                _ => "io",
            },
        }
    }
}

/// Result of a control operation.
pub type Result<T> = std::result::Result<T, StoreError>;
