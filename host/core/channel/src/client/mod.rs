// SPDX-License-Identifier: Apache-2.0
//! The other side of vhost-user-tmem: a frontend and driver in one, without QEMU and without a guest.
//!
//! For tests and for measuring what the channel itself costs. It keeps to the rules a guest's driver keeps to: rings,
//! requests and pages lie in shared memory, kicks and interrupts are eventfds and only sent when asked for. What it
//! leaves out is what a VM adds: exits, interrupt delivery, and the guest's own work.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use tmem_abi::wire::{REPLY_SIZE, REQUEST_SIZE};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};

mod queue;
mod ram;

use queue::{Piece, Queue};
use ram::{GUEST_BASE, Ram};

use crate::ring::RING_FEATURES;

pub use tmem_abi::wire::{BATCH_MAX, DATA_MAX};

/// Descriptors of the queue.
const SIZE: u16 = 128;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where things lie in the shared memory. The rings come first.
const REQUEST: u64 = GUEST_BASE + 0x1_0000;
const REPLY: u64 = GUEST_BASE + 0x1_8000;
const SENT: u64 = GUEST_BASE + 0x2_0000;
const FETCHED: u64 = SENT + DATA_MAX as u64 + 0x1_0000;
const END: u64 = FETCHED + DATA_MAX as u64;

/// A client of one server.
pub struct Client {
    // Dropped first: the server lets go of the memory.
    frontend: Frontend,
    ram: Ram,
    queue: Queue,
    spins: bool,
}

fn failed<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> io::Error {
    move |error| io::Error::other(format!("{what}: {error}"))
}

impl Client {
    /// Connects and sets one queue up. With `spins` it looks for answers all the time, else it sleeps until it is
    /// interrupted.
    ///
    /// # Errors
    /// No server there, one that does not speak vhost-user, or no resources.
    pub fn connect(socket: &Path, spins: bool) -> io::Result<Client> {
        let frontend = Frontend::connect(socket, 1).map_err(failed("cannot connect"))?;
        let ram = Ram::new((END - GUEST_BASE) as usize)?;
        let queue = Queue::new(SIZE)?;
        let mut client = Client { frontend, ram, queue, spins };
        client.negotiate()?;
        Ok(client)
    }

    fn negotiate(&mut self) -> io::Result<()> {
        let frontend = &mut self.frontend;
        frontend.set_owner().map_err(failed("SET_OWNER"))?;
        let offered = frontend.get_features().map_err(failed("GET_FEATURES"))?;
        let wanted = RING_FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if offered & wanted != wanted {
            return Err(io::Error::other(format!("the device offers features {offered:#x} only")));
        }
        let protocol = frontend.get_protocol_features().map_err(failed("GET_PROTOCOL_FEATURES"))?
            & VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(protocol).map_err(failed("SET_PROTOCOL_FEATURES"))?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(wanted).map_err(failed("SET_FEATURES"))?;
        frontend.set_mem_table(&[self.ram.region()]).map_err(failed("SET_MEM_TABLE"))?;
        frontend.set_vring_num(0, SIZE).map_err(failed("SET_VRING_NUM"))?;
        frontend.set_vring_base(0, 0).map_err(failed("SET_VRING_BASE"))?;
        let user = |at: u64| self.ram.user(at);
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: user(self.queue.desc()),
            used_ring_addr: user(self.queue.used()),
            avail_ring_addr: user(self.queue.avail()),
            log_addr: None,
        };
        frontend.set_vring_addr(0, &addresses).map_err(failed("SET_VRING_ADDR"))?;
        frontend.set_vring_call(0, &self.queue.call).map_err(failed("SET_VRING_CALL"))?;
        frontend.set_vring_kick(0, &self.queue.kick).map_err(failed("SET_VRING_KICK"))?;
        frontend.set_vring_enable(0, true).map_err(failed("SET_VRING_ENABLE"))
    }

    /// Serves one request: the reply and what it fetched, as far as `room` goes. Empty when it had no room for a reply.
    ///
    /// # Errors
    /// The message is longer than any request, or no answer came.
    pub fn request(&mut self, message: &[u8], room: usize) -> io::Result<Vec<u8>> {
        let (head, data) = message.split_at(message.len().min(REQUEST_SIZE));
        if data.len() > (FETCHED - SENT) as usize || room > DATA_MAX as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no request is as long as that"));
        }
        self.ram.write(REQUEST, head);
        self.ram.write(SENT, data);
        let used = self.exchange(head.len(), data.len(), REPLY_SIZE, room)?;
        let mut answer = self.ram.read(REPLY, used.min(REPLY_SIZE));
        answer.extend(self.ram.read(FETCHED, used.saturating_sub(REPLY_SIZE).min(room)));
        Ok(answer)
    }

    /// A request as a guest makes it, whose data lies in the shared memory before: nanoseconds from before `head` (the
    /// request and its items) is written to after the reply was seen, and the reply's status. `room`: bytes it may fetch.
    ///
    /// # Errors
    /// No request is as long as that, or no answer came.
    pub fn timed(&mut self, head: &[u8], data: &[u8], room: usize) -> io::Result<(u64, u32)> {
        if head.len() > (REPLY - REQUEST) as usize || data.len().max(room) > DATA_MAX as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no request is as long as that"));
        }
        self.ram.write(SENT, data);
        let start = Instant::now();
        self.ram.write(REQUEST, head);
        self.exchange(head.len(), data.len(), REPLY_SIZE, room)?;
        let ns = start.elapsed().as_nanos() as u64;
        Ok((ns, self.ram.u32(REPLY)))
    }

    /// Submits a chain of these lengths and waits for it; the used length.
    fn exchange(&mut self, head: usize, sends: usize, reply: usize, room: usize) -> io::Result<usize> {
        let pieces = [
            Piece { at: REQUEST, len: head, writable: false },
            Piece { at: SENT, len: sends, writable: false },
            Piece { at: REPLY, len: reply, writable: true },
            Piece { at: FETCHED, len: room, writable: true },
        ];
        self.queue.submit(&self.ram, &pieces)?;
        self.queue.wait(&self.ram, self.spins, PATIENCE)
    }
}
