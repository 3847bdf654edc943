// SPDX-License-Identifier: Apache-2.0
//! The listening socket: owned by one live server, open to nobody else's user, gone when the server stops.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::config::ChannelError;

/// Connections that may wait: the next frontend, and probes of other servers.
const BACKLOG: i32 = 64;

const ADDRESS_LEN: libc::socklen_t = std::mem::size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// A bound and listening socket with its place in the file system.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: after somebody else took the path over, it is not ours to remove.
    identity: (u64, u64),
}

impl Socket {
    /// Binds `path`; replaces a socket that no process listens on.
    pub(crate) fn bind(path: &Path) -> Result<Socket, ChannelError> {
        let addr = address(path)?;
        // Two servers that start at once must not both find the same stale socket.
        let _turn = lock_folder(path)?;
        remove_stale(path, &addr)?;
        let fd = new_socket(0).map_err(ChannelError::io("cannot make a socket"))?;
        // SAFETY: addr is a sockaddr_un of ADDRESS_LEN bytes, NUL-terminated by the length check in address().
        let bound = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&addr).cast(), ADDRESS_LEN) };
        if bound < 0 {
            return Err(ChannelError::io("cannot bind the socket")(io::Error::last_os_error()));
        }
        // Nobody can connect before listen(): the mode is right before anyone gets in.
        let prepared = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::symlink_metadata(path))
            .and_then(|meta| {
                // SAFETY: listen() on an open socket.
                if unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) } < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok((meta.dev(), meta.ino()))
            });
        match prepared {
            Ok(identity) => Ok(Socket { listener: UnixListener::from(fd), path: path.to_owned(), identity }),
            Err(error) => {
                let _ = std::fs::remove_file(path);
                Err(ChannelError::io("cannot listen on the socket")(error))
            }
        }
    }

    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    pub(crate) fn raw(&self) -> i32 {
        self.listener.as_raw_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _turn = lock_folder(&self.path);
        let still_ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if still_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn address(path: &Path) -> Result<libc::sockaddr_un, ChannelError> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all-zero bytes are a valid sockaddr_un.
    let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.len() >= addr.sun_path.len() {
        return Err(ChannelError::PathTooLong(path.to_owned()));
    }
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(ChannelError::Invalid("the socket path must not be empty or contain NUL"));
    }
    addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in addr.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(addr)
}

fn new_socket(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket() takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fd was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects without waiting: a live server with a full backlog would let us wait for ever.
fn probe(addr: &libc::sockaddr_un) -> io::Result<()> {
    let fd = new_socket(libc::SOCK_NONBLOCK)?;
    // SAFETY: addr is a sockaddr_un of ADDRESS_LEN bytes.
    let connected = unsafe { libc::connect(fd.as_raw_fd(), std::ptr::from_ref(addr).cast(), ADDRESS_LEN) };
    if connected < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn lock_folder(path: &Path) -> Result<File, ChannelError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = File::open(folder).map_err(ChannelError::io("cannot open the socket's folder"))?;
    // SAFETY: flock() on an open descriptor.
    if unsafe { libc::flock(folder.as_raw_fd(), libc::LOCK_EX) } < 0 {
        return Err(ChannelError::io("cannot lock the socket's folder")(io::Error::last_os_error()));
    }
    Ok(folder)
}

fn remove_stale(path: &Path, addr: &libc::sockaddr_un) -> Result<(), ChannelError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ChannelError::io("cannot look at the socket path")(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(ChannelError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match probe(addr) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(ChannelError::io("cannot remove a stale socket"))
        }
        // A full backlog, or no permission, is somebody's socket all the same.
        _ => Err(ChannelError::SocketInUse(path.to_owned())),
    }
}
