// SPDX-License-Identifier: Apache-2.0
//! The vhost-user-blk channel: how a stock guest's virtio-blk requests reach a page store.
//!
//! | module | job |
//! |---|---|
//! | [`backend`] | what a block device needs of a store |
//! | [`config`] | what the device is told and what it tells the driver |
//! | [`ops`] | operations, reasons for refusing a request, their names |
//! | [`request`] | parses a descriptor chain into a request or a refusal; acts on nothing |
//! | [`device`] | carries a request out, a page at a time |

use std::ops::Deref;
use std::sync::Arc;

use crate::config::ChannelError;
use crate::server::{Server, worker_count};

pub mod backend;
pub mod config;
#[doc(hidden)]
pub mod device;
pub mod ops;
#[doc(hidden)]
pub mod request;

pub use backend::{GetResult, PAGE_SIZE, PageBackend, PutResult, SECTOR_SIZE};
pub use config::BlkConfig;
pub use ops::{Op, PageRefusal, Reason};

/// Serves one block device on one vhost-user socket. Dropping it stops it.
pub struct BlkServer(Server);

impl BlkServer {
    /// Binds the socket and starts serving.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start(config: BlkConfig, backend: Arc<dyn PageBackend>) -> Result<BlkServer, ChannelError> {
        let workers = worker_count(config.queues);
        BlkServer::start_with(config, backend, workers)
    }

    /// [`BlkServer::start`] with a given number of workers, for tests: how many there are depends on the machine.
    ///
    /// # Errors
    /// As [`Server::start`].
    #[doc(hidden)]
    pub fn start_with(
        config: BlkConfig,
        backend: Arc<dyn PageBackend>,
        workers: usize,
    ) -> Result<BlkServer, ChannelError> {
        let server = config.server();
        let device = Arc::new(device::Device::new(config, backend)?);
        Server::start_with(server, device, workers).map(BlkServer)
    }

    /// As [`Server::stop`].
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub fn stop(self) -> Result<(), ChannelError> {
        self.0.stop()
    }
}

impl Deref for BlkServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}
