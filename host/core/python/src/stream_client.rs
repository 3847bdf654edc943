// SPDX-License-Identifier: Apache-2.0
//! `StreamClient`: the monitor and the guest of a `StreamServer` in one, for benches.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tmem_abi::frame::{FRAME_MAX, FRAME_SIZE, Kind, SYNC_SIZE, header};
use tmem_abi::wire::REPLY_SIZE;

use crate::error::from_io;
use crate::measure::{Carrier, Plan};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest's end of a stream.
struct Guest {
    stream: UnixStream,
    out: Vec<u8>,
    reply: Vec<u8>,
}

fn le32(raw: &[u8], at: usize) -> Option<u32> {
    raw.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

impl Guest {
    /// Answers the host's SYNC.
    fn meet(mut stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut sync = [0; FRAME_SIZE + SYNC_SIZE];
        stream.read_exact(&mut sync)?;
        if le32(&sync, 0) != Some(Kind::Sync as u32) {
            return Err(io::Error::other("the host does not begin with SYNC"));
        }
        stream.write_all(&sync)?;
        Ok(Self { stream, out: Vec::new(), reply: Vec::new() })
    }

    /// Sends what is in `out` and reads the reply with its data into `reply`.
    fn exchange(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        let mut head = [0; FRAME_SIZE];
        self.stream.read_exact(&mut head)?;
        let length = le32(&head, 4).unwrap_or(0) as usize;
        if le32(&head, 0) != Some(Kind::Reply as u32) || !(REPLY_SIZE..=FRAME_MAX).contains(&length) {
            return Err(io::Error::other("the host does not answer with a reply"));
        }
        self.reply.resize(length, 0);
        self.stream.read_exact(&mut self.reply)
    }

    fn frame(&mut self, head: &[u8], data: &[u8]) {
        self.out.clear();
        self.out.extend_from_slice(&header(Kind::Request, (head.len() + data.len()) as u32));
        self.out.extend_from_slice(head);
        self.out.extend_from_slice(data);
    }
}

impl Carrier for Guest {
    fn ask(&mut self, head: &[u8], data: &[u8], _room: usize) -> io::Result<(u64, u32)> {
        self.frame(head, data);
        let start = Instant::now();
        self.exchange()?;
        let ns = start.elapsed().as_nanos() as u64;
        le32(&self.reply, 0).map(|status| (ns, status)).ok_or_else(|| io::Error::other("no answer"))
    }
}

#[pyclass(name = "StreamClient", module = "tmem_host._core", frozen)]
pub struct PyStreamClient {
    listener: UnixListener,
    guest: Mutex<Option<Guest>>,
}

impl PyStreamClient {
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut Guest) -> io::Result<R> + Send,
    ) -> PyResult<R> {
        py.detach(|| {
            let mut guard = self.guest.lock().map_err(|_| io::Error::other("the client broke"))?;
            match &mut *guard {
                Some(guest) => f(guest),
                None => f(guard.insert(Guest::meet(accept(&self.listener)?)?)),
            }
        })
        .map_err(from_io)
    }
}

/// The next connection, if one comes in time.
fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let mut fd = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor of ours, which stays open meanwhile.
    match unsafe { libc::poll(&mut fd, 1, PATIENCE.as_millis() as libc::c_int) } {
        0 => Err(io::ErrorKind::TimedOut.into()),
        n if n < 0 => Err(io::Error::last_os_error()),
        _ => listener.accept().map(|(stream, _)| stream),
    }
}

#[pymethods]
impl PyStreamClient {
    #[new]
    fn new(socket: PathBuf) -> PyResult<Self> {
        let listener = UnixListener::bind(&socket).map_err(from_io)?;
        Ok(Self { listener, guest: Mutex::new(None) })
    }

    #[pyo3(signature = (message, room = None))]
    fn request<'py>(
        &self,
        py: Python<'py>,
        message: &[u8],
        room: Option<usize>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        // A stream has room for whatever is fetched.
        let _ = room;
        let answer = self.with(py, |guest| {
            guest.frame(message, &[]);
            guest.exchange()?;
            Ok(guest.reply.clone())
        })?;
        Ok(PyBytes::new(py, &answer))
    }

    /// As `TmemClient.measure`.
    fn measure(&self, py: Python<'_>, pages: &[u8], plan: &Plan) -> PyResult<Vec<u64>> {
        plan.check(pages)?;
        self.with(py, |guest| plan.run(pages, guest))
    }

    fn close(&self) {
        if let Ok(mut guest) = self.guest.lock() {
            *guest = None;
        }
    }
}
