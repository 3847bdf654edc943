// SPDX-License-Identifier: Apache-2.0
//! The one error of this crate.

use std::io;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// There is no KVM that this process can use.
    #[error("{0}")]
    NoKvm(String),
    /// KVM is there, but not this: the reason says what is missing.
    #[error("{0}")]
    NotOffered(String),
    /// The guest did not come back in time.
    #[error("{0}")]
    Hung(String),
    /// The guest did what its program does not do, or the work failed.
    #[error("{0}")]
    Failed(String),
    /// An argument that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, ExitError>;

impl ExitError {
    /// For `map_err`: an error of a KVM ioctl.
    pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |e| Self::Io { what: what.into(), source: io::Error::from_raw_os_error(e.errno()) }
    }

    /// For `map_err`: an error of any other system call.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoKvm(_) => "no-kvm",
            Self::NotOffered(_) => "not-offered",
            Self::Hung(_) => "hung",
            Self::Failed(_) => "failed",
            Self::Invalid(_) => "invalid",
            Self::Io { .. } => "io",
        }
    }
}
