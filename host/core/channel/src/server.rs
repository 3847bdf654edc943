// SPDX-License-Identifier: Apache-2.0
//! A server: one socket, one control thread, workers; frontends come and go.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vhost::vhost_user::{BackendReqHandler, Error};

use crate::config::{ChannelError, PollPolicy, ServerConfig};
use crate::device::DeviceModel;
use crate::event::{Event, wait_readable};
use crate::session::{Home, Session};
use crate::socket::Socket;
use crate::stats::{ChannelState, ChannelStats, QueueCounters, QueueState};
use crate::worker::{Shared, WorkerHandle};

/// Serves one device on one vhost-user socket. Dropping it stops it.
pub struct Server {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// What the control thread and the owner of the server share.
struct Control {
    home: Arc<Home>,
    shared: Arc<Shared>,
    queues: Vec<Arc<QueueCounters>>,
    stop: Event,
    state: AtomicU8,
    connections: AtomicU64,
    /// The connected stream, to be shut down from outside when the control thread waits in it.
    stream: Mutex<Option<UnixStream>>,
}

impl Server {
    /// Binds the socket and starts serving. The socket has mode 0600 before anyone can connect.
    ///
    /// # Errors
    /// [`ChannelError::SocketInUse`] when a live server listens there; a stale socket is replaced.
    /// Others: configuration out of bounds, something else at the path, or no resources.
    pub fn start(config: ServerConfig, device: Arc<dyn DeviceModel>) -> Result<Server, ChannelError> {
        let workers = worker_count(config.queues);
        Server::start_with(config, device, workers)
    }

    /// [`Server::start`] with a given number of workers, for tests: how many there are depends on the machine.
    ///
    /// # Errors
    /// As [`Server::start`].
    #[doc(hidden)]
    pub fn start_with(
        config: ServerConfig,
        device: Arc<dyn DeviceModel>,
        workers: usize,
    ) -> Result<Server, ChannelError> {
        config.check()?;
        let socket = Socket::bind(&config.socket)?;
        let shared = Arc::new(Shared {
            device: device.clone(),
            stop: AtomicBool::new(false),
            poll_us: AtomicU32::new(config.poll.max_us()),
        });
        let names = device.names();
        let queues: Vec<Arc<QueueCounters>> =
            (0..config.queues).map(|_| Arc::new(QueueCounters::new(names))).collect();
        let workers = workers.clamp(1, queues.len());
        let mut server = Server {
            control: Arc::new(Control {
                home: Arc::new(Home {
                    socket: config.socket,
                    queues: config.queues,
                    device,
                    workers: Vec::new(),
                    calls: Mutex::new(Vec::new()),
                }),
                shared: shared.clone(),
                queues: queues.clone(),
                stop: Event::new().map_err(ChannelError::io("cannot make an eventfd"))?,
                state: AtomicU8::new(0),
                connections: AtomicU64::new(0),
                stream: Mutex::new(None),
            }),
            thread: None,
        };
        // When one of these fails, dropping `server` joins the workers started so far.
        for index in 0..workers {
            let mine = queues.iter().skip(index).step_by(workers).cloned().collect();
            let worker = WorkerHandle::spawn(format!("tmem-{}-{index}", names.device), shared.clone(), mine)
                .map_err(ChannelError::io("cannot start a worker thread"))?;
            if let Some(home) =
                Arc::get_mut(&mut server.control).and_then(|control| Arc::get_mut(&mut control.home))
            {
                home.workers.push(worker);
            }
        }
        let control = server.control.clone();
        let thread = std::thread::Builder::new()
            .name(format!("tmem-{}-ctl", names.device))
            .spawn(move || control.run(&socket))
            .map_err(ChannelError::io("cannot start the control thread"))?;
        server.thread = Some(thread);
        Ok(server)
    }

    /// Counters since the start, over all connections.
    pub fn stats(&self) -> ChannelStats {
        let control = &self.control;
        let queues: Vec<_> = control.queues.iter().map(|queue| queue.snapshot()).collect();
        let workers = &control.home.workers;
        let dead =
            !control.shared.stop.load(Ordering::Relaxed) && workers.iter().any(WorkerHandle::is_finished);
        let state = if dead || queues.iter().any(|queue| queue.state == QueueState::Broken) {
            ChannelState::Broken
        } else if control.state.load(Ordering::Relaxed) == ChannelState::Connected as u8 {
            ChannelState::Connected
        } else {
            ChannelState::Listening
        };
        ChannelStats {
            names: control.home.device.names(),
            state,
            connections: control.connections.load(Ordering::Relaxed),
            queues,
            workers: workers.len(),
            wakeups: workers.iter().map(|worker| worker.counters.wakeups.get()).sum(),
            spin_hits: workers.iter().map(|worker| worker.counters.spin_hits.get()).sum(),
            spin_misses: workers.iter().map(|worker| worker.counters.spin_misses.get()).sum(),
            cpu_ns: workers.iter().map(|worker| worker.counters.cpu_ns()).sum(),
        }
    }

    /// Changes the policy of a running server.
    pub fn set_poll(&self, poll: PollPolicy) {
        self.control.shared.poll_us.store(poll.max_us(), Ordering::Relaxed);
        for worker in &self.control.home.workers {
            worker.wake();
        }
    }

    /// Stops serving: joins all threads and removes the socket. Requests not yet completed stay in the ring, for
    /// the next server to take up.
    ///
    /// # Errors
    /// [`ChannelError::Panicked`] when a thread had died of a bug.
    pub fn stop(mut self) -> Result<(), ChannelError> {
        if self.shut_down() { Ok(()) } else { Err(ChannelError::Panicked) }
    }

    fn shut_down(&mut self) -> bool {
        let control = &self.control;
        let workers = &control.home.workers;
        control.shared.stop.store(true, Ordering::Release);
        control.stop.signal();
        if let Some(stream) = &*control.stream.lock().unwrap_or_else(PoisonError::into_inner) {
            // The control thread may wait for the rest of a message.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for worker in workers {
            worker.wake();
        }
        let mut clean = true;
        for worker in workers {
            // A frontend can fill the counter of its call descriptor so that our write blocks.
            clean &= worker.join(|| control.home.drain_calls());
        }
        if let Some(thread) = self.thread.take() {
            clean &= thread.join().is_ok();
        }
        clean
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Workers for so many queues: see the head of `worker.rs`.
pub(crate) fn worker_count(queues: u16) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (cpus / 2).clamp(1, usize::from(queues).max(1))
}

impl Control {
    fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Accepts frontends, one after the other; the next one waits in the backlog until the last is gone.
    fn run(&self, socket: &Socket) {
        while !self.stopping() {
            match wait_readable([socket.raw(), self.stop.raw()]) {
                Ok([true, _]) if !self.stopping() => {}
                Ok(_) => continue,
                Err(error) => {
                    self.pause(&error);
                    continue;
                }
            }
            match socket.accept() {
                Ok(stream) => self.serve(stream),
                Err(error) => self.pause(&error),
            }
        }
    }

    /// Out of descriptors or memory, most likely: waits for better times.
    fn pause(&self, error: &std::io::Error) {
        log::warn!("{}: cannot accept a frontend: {error}", self.home.socket.display());
        std::thread::park_timeout(Duration::from_millis(100));
    }

    fn serve(&self, stream: UnixStream) {
        let Ok(shutdown_end) = stream.try_clone() else { return };
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(shutdown_end);
        let session = Arc::new(Mutex::new(Session::new(self.home.clone())));
        if catch_unwind(AssertUnwindSafe(|| self.converse(stream, session.clone()))).is_err() {
            log::error!("a vhost-user session panicked");
        }
        session.lock().unwrap_or_else(PoisonError::into_inner).end();
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.state.store(ChannelState::Listening as u8, Ordering::Relaxed);
    }

    fn converse(&self, stream: UnixStream, session: Arc<Mutex<Session>>) {
        let fd = stream.as_raw_fd();
        let mut handler = BackendReqHandler::from_stream(stream, session);
        let mut greeted = false;
        while !self.stopping() {
            match wait_readable([fd, self.stop.raw()]) {
                Ok([true, _]) => {}
                Ok(_) => continue,
                Err(_) => return,
            }
            match handler.handle_request() {
                Ok(()) => {
                    if !greeted {
                        // Not at accept: another server that probes the path is no frontend.
                        greeted = true;
                        self.connections.fetch_add(1, Ordering::Relaxed);
                        self.state.store(ChannelState::Connected as u8, Ordering::Relaxed);
                    }
                }
                Err(Error::Disconnected | Error::SocketBroken(_) | Error::PartialMessage) => return,
                Err(error) => {
                    // Not every message has a reply: hanging up is how the frontend learns of it.
                    log::warn!("{}: frontend refused: {error}", self.home.socket.display());
                    return;
                }
            }
        }
    }
}
