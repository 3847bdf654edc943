// SPDX-License-Identifier: Apache-2.0
//! One connection to a port: frames in, replies out.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tmem_abi::frame::{BadFrame, CONTROL_MAX, FRAME_SIZE, FrameReader, Kind, SYNC_SIZE, Side, header};
use tmem_engine::{REPLY_MAX, Scratch};

use crate::bucket::Bucket;
use crate::server::{Shared, StreamState};
use crate::wait::{For, wait};

/// Bytes read at once: some pages, so that a batch takes few calls.
const READ: usize = 256 << 10;

/// Why a connection ended.
pub enum End {
    /// The server stops.
    Stopped,
    /// The other end is gone.
    Gone,
    /// Bytes that are no frame.
    NoFrame(BadFrame),
}

/// A connection.
pub struct Port<'a> {
    shared: &'a Shared,
    bucket: &'a mut Bucket,
    stream: UnixStream,
    reader: FrameReader,
    scratch: Scratch,
    /// Room for the largest frame; the first `ready` bytes are to be sent. Zeroed by the kernel when
    /// it is first touched, so it costs what the largest reply so far had.
    out: Vec<u8>,
    ready: usize,
    /// A line of the control side that has not come whole.
    line: Vec<u8>,
}

/// What came of waiting or writing.
enum Step {
    Go,
    End(End),
}

impl<'a> Port<'a> {
    /// Begins with a SYNC that nobody can guess.
    pub fn new(shared: &'a Shared, bucket: &'a mut Bucket, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        shared.session.reset();
        let token = token()?;
        let mut port = Self {
            shared,
            bucket,
            stream,
            reader: FrameReader::new(Side::Host(token)),
            scratch: Scratch::new(),
            out: vec![0; FRAME_SIZE + REPLY_MAX],
            ready: 0,
            line: Vec::new(),
        };
        port.put(Kind::Sync, &token);
        Ok(port)
    }

    /// Serves until it ends.
    pub fn serve(mut self) -> io::Result<End> {
        if let Step::End(end) = self.send()? {
            return Ok(end);
        }
        let mut input = vec![0; READ];
        loop {
            let fds = [
                (self.shared.stop.raw(), For::Reading),
                (self.stream.as_raw_fd(), For::Reading),
                // Before the guest is in step nothing may be sent but SYNC.
                (
                    self.shared.control.as_raw_fd(),
                    if self.reader.in_step() { For::Reading } else { For::Nothing },
                ),
            ];
            let [stop, port, control] = wait(fds, None)?;
            if stop {
                return Ok(End::Stopped);
            }
            if control
                && self.reader.in_step()
                && let Step::End(end) = self.take_control()?
            {
                return Ok(end);
            }
            if !port {
                continue;
            }
            let n = match self.stream.read(&mut input) {
                Ok(0) => return Ok(End::Gone),
                Ok(n) => n,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                Err(e) if gone(&e) => return Ok(End::Gone),
                Err(e) => return Err(e),
            };
            self.shared.received.fetch_add(n as u64, Ordering::Relaxed);
            if let Step::End(end) = self.take(&input[..n])? {
                return Ok(end);
            }
        }
    }

    /// A frame, ready to be sent.
    fn put(&mut self, kind: Kind, body: &[u8]) {
        self.ready = FRAME_SIZE + body.len();
        self.out[..FRAME_SIZE].copy_from_slice(&header(kind, body.len() as u32));
        self.out[FRAME_SIZE..self.ready].copy_from_slice(body);
    }

    /// Everything that `input` completes.
    fn take(&mut self, input: &[u8]) -> io::Result<Step> {
        let mut at = 0;
        loop {
            let Self { shared, bucket, reader, scratch, out, ready, .. } = self;
            let mut rest = &input[at..];
            let frame = match reader.next(&mut rest) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(Step::Go),
                Err(bad) => return Ok(Step::End(End::NoFrame(bad))),
            };
            at = input.len() - rest.len();
            match frame.kind {
                Kind::Request => {
                    let n = shared.session.answer(frame.body, &mut out[FRAME_SIZE..], scratch).unwrap_or(0);
                    out[..FRAME_SIZE].copy_from_slice(&header(Kind::Reply, n as u32));
                    *ready = FRAME_SIZE + n;
                    shared.requests.fetch_add(1, Ordering::Relaxed);
                }
                Kind::Control => {
                    pass_on(shared, bucket, frame.body);
                    continue;
                }
                Kind::Sync => {
                    shared.enter(StreamState::InStep);
                    continue;
                }
                // The reader lets no reply through to a host.
                Kind::Reply => continue,
            }
            if let step @ Step::End(_) = self.send()? {
                return Ok(step);
            }
            if at == input.len() {
                // Nobody waits now: memory for puts to come.
                self.shared.session.engine().idle();
            }
        }
    }

    /// Sends `out`, however slowly the guest reads. Nothing is read meanwhile: a guest that takes no
    /// replies gets no more of them.
    fn send(&mut self) -> io::Result<Step> {
        let mut at = 0;
        while at < self.ready {
            match self.stream.write(&self.out[at..self.ready]) {
                Ok(0) => return Ok(Step::End(End::Gone)),
                Ok(n) => at += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let fds =
                        [(self.shared.stop.raw(), For::Reading), (self.stream.as_raw_fd(), For::Writing)];
                    if wait(fds, None)?[0] {
                        return Ok(Step::End(End::Stopped));
                    }
                }
                Err(e) if gone(&e) => return Ok(Step::End(End::Gone)),
                Err(e) => return Err(e),
            }
        }
        self.shared.sent.fetch_add(at as u64, Ordering::Relaxed);
        Ok(Step::Go)
    }

    /// Lines of the control side, as frames to the guest.
    fn take_control(&mut self) -> io::Result<Step> {
        let mut bytes = [0; 4096];
        let n = match (&self.shared.control).read(&mut bytes) {
            // Nobody is there any more to say anything: the pages go on.
            Ok(0) => return self.without_control(),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Go),
            Err(_) => return self.without_control(),
        };
        for &byte in &bytes[..n] {
            if byte != b'\n' {
                // Our own side keeps to the bound; what does not is cut off, never sent in part.
                if self.line.len() <= CONTROL_MAX {
                    self.line.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if line.is_empty() || line.len() > CONTROL_MAX {
                continue;
            }
            self.put(Kind::Control, &line);
            if let step @ Step::End(_) = self.send()? {
                return Ok(step);
            }
        }
        Ok(Step::Go)
    }

    fn without_control(&mut self) -> io::Result<Step> {
        // Shut for reading it would be ready for ever: wait for the guest alone until it sends.
        let fds = [(self.shared.stop.raw(), For::Reading), (self.stream.as_raw_fd(), For::Reading)];
        Ok(if wait(fds, None)?[0] { Step::End(End::Stopped) } else { Step::Go })
    }
}

/// A control frame to whoever listens, as one line; dropped when nobody reads, and when there are too many: a guest that
/// floods must not make us keep what it says, nor keep those busy who read it.
fn pass_on(shared: &Shared, bucket: &mut Bucket, body: &[u8]) {
    if !bucket.take(body.len(), Instant::now()) {
        shared.control_dropped.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let mut line: Vec<u8> = body.iter().map(|&b| if b == b'\n' { b' ' } else { b }).collect();
    line.push(b'\n');
    // One call on a stream socket: what does not fit whole is not begun, or the reader would see half a line.
    let whole =
        room(shared) >= line.len() && matches!((&shared.control).write(&line), Ok(n) if n == line.len());
    let counter = if whole { &shared.control_passed } else { &shared.control_dropped };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Bytes that the control side takes at once without waiting.
fn room(shared: &Shared) -> usize {
    let fd = shared.control.as_raw_fd();
    let (mut queued, mut size): (libc::c_int, libc::c_int) = (0, 0);
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both write one int; len says so.
    let known = unsafe {
        libc::ioctl(fd, libc::TIOCOUTQ, &mut queued) == 0
            && libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw mut size).cast(), &mut len) == 0
    };
    // The kernel counts its own overhead in both: half of the buffer is always good for that many bytes.
    if known { usize::try_from(size / 2 - queued).unwrap_or(0) } else { 0 }
}

fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

/// Sixteen bytes from the kernel's generator.
fn token() -> io::Result<[u8; SYNC_SIZE]> {
    let mut token = [0; SYNC_SIZE];
    // SAFETY: as many writable bytes as said. Up to 256 bytes are never cut short (getrandom(2)).
    let n = unsafe { libc::getrandom(token.as_mut_ptr().cast(), SYNC_SIZE, 0) };
    if n == SYNC_SIZE as isize { Ok(token) } else { Err(io::Error::last_os_error()) }
}
