// SPDX-License-Identifier: Apache-2.0
//! A server: one thread that keeps a connection to one VM's port.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tmem_engine::{Engine, Session};

use crate::bucket::Bucket;
use crate::port::{End, Port};
use crate::wait::{Flag, For, wait};

/// How long after a failed or ended connection the next one is tried: the VM may start at any time.
const AGAIN: Duration = Duration::from_millis(100);

/// Where a port stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamState {
    /// Nobody listens at the path: the VM does not run.
    Waiting = 0,
    /// Connected; the guest has not answered SYNC yet.
    Connected = 1,
    /// The guest answered: frames follow each other.
    InStep = 2,
}

impl StreamState {
    /// The word for results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Connected => "connected",
            Self::InStep => "in-step",
        }
    }

    fn of(code: u8) -> Self {
        match code {
            1 => Self::Connected,
            2 => Self::InStep,
            _ => Self::Waiting,
        }
    }
}

/// What happened on a port, over all its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStats {
    /// Where it stands.
    pub state: StreamState,
    /// Connections made.
    pub connections: u64,
    /// Requests answered.
    pub requests: u64,
    /// Connections ended because of bytes that were no frame.
    pub bad_frames: u64,
    /// Control frames passed on, and those that nobody took in time or that were too many.
    pub control: u64,
    /// As above.
    pub control_dropped: u64,
    /// Bytes that came, and that went.
    pub received: u64,
    /// As above.
    pub sent: u64,
}

/// What the thread and the owner share.
pub(crate) struct Shared {
    pub stop: Flag,
    pub session: Session,
    /// Control frames as lines of JSON, both ways.
    pub control: UnixStream,
    state: AtomicU8,
    connections: AtomicU64,
    pub requests: AtomicU64,
    bad_frames: AtomicU64,
    pub control_passed: AtomicU64,
    pub control_dropped: AtomicU64,
    pub received: AtomicU64,
    pub sent: AtomicU64,
}

impl Shared {
    pub fn enter(&self, state: StreamState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

/// Serves one VM's port. Dropping it stops it.
pub struct StreamServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl StreamServer {
    /// Keeps connecting to `socket`, where the VM's monitor listens, and serves `engine`'s VM there. Control frames go
    /// to `control` as lines, and lines that come from it go to the guest as control frames.
    ///
    /// # Errors
    /// No descriptors or threads are left.
    pub fn start(engine: &Arc<Engine>, socket: &Path, control: UnixStream) -> io::Result<Self> {
        control.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            stop: Flag::new()?,
            session: engine.session(),
            control,
            state: AtomicU8::new(0),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            bad_frames: AtomicU64::new(0),
            control_passed: AtomicU64::new(0),
            control_dropped: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        let (mine, path) = (shared.clone(), socket.to_owned());
        let thread =
            std::thread::Builder::new().name("tmem-stream".into()).spawn(move || run(&mine, &path))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Counters so far.
    pub fn stats(&self) -> StreamStats {
        let s = &self.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StreamStats {
            state: StreamState::of(s.state.load(Ordering::Relaxed)),
            connections: read(&s.connections),
            requests: read(&s.requests),
            bad_frames: read(&s.bad_frames),
            control: read(&s.control_passed),
            control_dropped: read(&s.control_dropped),
            received: read(&s.received),
            sent: read(&s.sent),
        }
    }

    /// The channel: its counters are of the ABI's operations and answers.
    pub fn session(&self) -> &Session {
        &self.shared.session
    }

    /// Ends the connection and the thread. A request that is being served is finished first.
    pub fn stop(&mut self) {
        self.shared.stop.set();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of a virtio-serial port panicked");
        }
    }
}

impl Drop for StreamServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(shared: &Shared, path: &PathBuf) {
    let mut bucket = Bucket::full(Instant::now());
    loop {
        if let Ok(stream) = UnixStream::connect(path) {
            shared.connections.fetch_add(1, Ordering::Relaxed);
            shared.enter(StreamState::Connected);
            let end = Port::new(shared, &mut bucket, stream).and_then(Port::serve);
            shared.enter(StreamState::Waiting);
            match end {
                Ok(End::Stopped) => return,
                Ok(End::Gone) => {}
                Ok(End::NoFrame(bad)) => {
                    shared.bad_frames.fetch_add(1, Ordering::Relaxed);
                    log::warn!("{}: {bad}", path.display());
                }
                Err(error) => log::warn!("{}: {error}", path.display()),
            }
        }
        match wait([(shared.stop.raw(), For::Reading)], Some(AGAIN)) {
            Ok([false]) => {}
            _ => return,
        }
    }
}
