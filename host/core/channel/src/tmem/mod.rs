// SPDX-License-Identifier: Apache-2.0
//! The vhost-user-tmem channel: a virtqueue that carries the tmem ABI (`guest/abi/tmem_abi.h`, virtio id 63).
//!
//! | module | job |
//! |---|---|
//! | [`device`] | the device and its queues: chains become requests to the engine |
//! | [`ops`] | names of what is counted |
//!
//! A request and its reply are parsed, carried out and written by `tmem-engine`, from the pieces of guest memory that
//! the chain names: pages that lie in one piece go to the store and come from it in place, others by way of the
//! queue's bounce buffer. All queues are one channel: one HELLO is for all.
//!
//! # A host that dies
//!
//! Requests of a queue complete in order, and a killed server's successor repeats the one that was under way (at most
//! one for each queue) from guest memory. What was agreed on died with the server, so the repetition is answered
//! TMEM_NOT_NEGOTIATED; the guest says HELLO and sends the request again, which is the repetition proper. So everything
//! has to bear being done twice:
//!
//! | operation | done a second time |
//! |---|---|
//! | put, new page, write, read, get from a persistent or shared pool | the same again |
//! | get from a private ephemeral pool | TMEM_MISS if the first had removed the page: it may vanish at any moment |
//! | flush page, flush object | the same; `done` and the value count what was still there |
//! | new pool | with TMEM_POOL_ATTACH or shared: the pool of the first. Else a second pool, and nobody knows the number of the first, which stays until its VM is forgotten: name what has to last |
//! | destroy pool | TMEM_BAD_POOL: it is gone |
//! | exchange | the same again, as what is sent lies in other memory than what is fetched |
//!
//! That last condition is this channel's: with the fetched page over the one that was sent, as the ABI allows where
//! nobody repeats, the first attempt may have destroyed what the second would put. So a chain whose writable part
//! overlaps its readable part is refused whole (TMEM_BAD_LENGTH), whatever it asks for.

use std::ops::Deref;
use std::sync::Arc;

use tmem_engine::Session;

use crate::config::{ChannelError, ServerConfig};
use crate::server::{Server, worker_count};

pub mod device;
pub mod ops;

pub use ops::Reason;

/// Virtio device id: `VIRTIO_ID_TMEM`.
pub const VIRTIO_ID: u32 = 63;
/// Feature bit: more than one queue. `VIRTIO_TMEM_F_INLINE` (bit 1) is not for a device that is out of process.
pub const F_MQ: u32 = 0;

/// Serves one VM's requests on one vhost-user socket. Dropping it stops it.
pub struct TmemServer {
    server: Server,
    session: Arc<Session>,
}

impl TmemServer {
    /// Binds the socket and starts serving the VM of `session`, which is this channel's alone.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start(config: ServerConfig, session: Session) -> Result<TmemServer, ChannelError> {
        let workers = worker_count(config.queues);
        TmemServer::start_with(config, session, workers)
    }

    /// [`TmemServer::start`] with a given number of workers, for tests: how many there are depends on the machine.
    ///
    /// # Errors
    /// As [`Server::start`].
    #[doc(hidden)]
    pub fn start_with(
        config: ServerConfig,
        session: Session,
        workers: usize,
    ) -> Result<TmemServer, ChannelError> {
        let session = Arc::new(session);
        let device = Arc::new(device::Device::new(session.clone(), config.queues));
        Ok(TmemServer { server: Server::start_with(config, device, workers)?, session })
    }

    /// The channel as the engine knows it, with the engine's counters.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// As [`Server::stop`].
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub fn stop(self) -> Result<(), ChannelError> {
        self.server.stop()
    }
}

impl Deref for TmemServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
