// SPDX-License-Identifier: Apache-2.0
//! A VM on a real store, and requests of a tmem driver.

use std::path::Path;
use std::sync::Arc;

use tmem_abi::wire::{Object, REPLY_SIZE, REQUEST_LIST, REQUEST_SIZE};
use tmem_abi::{Header, Item, Op, Reply, Status, feature, pool};
use tmem_channel::tmem::TmemServer;
use tmem_channel::{PollPolicy, ServerConfig};
use tmem_engine::{Engine, Options};
use tmem_store::{Store, StoreOptions};

use super::{Desc, Driver, NEXT, UNTOUCHED, WRITE};

/// A store with one VM.
pub struct Vm {
    pub store: Arc<Store>,
    pub engine: Arc<Engine>,
}

impl Vm {
    pub fn new(folder: &Path) -> Vm {
        let options = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };
        let store = Arc::new(Store::open(&folder.join("arena"), options).unwrap());
        if store.vm("web").is_err() {
            store.vm_create("web", 0, tmem_store::NO_CAP, 100).unwrap();
        }
        let engine = Engine::new(store.clone(), "web", Options::default()).unwrap();
        Vm { store, engine }
    }

    pub fn serve(&self, socket: &Path, queues: u16, poll: PollPolicy) -> TmemServer {
        let config = ServerConfig { socket: socket.to_owned(), queues, poll };
        TmemServer::start(config, self.engine.session()).unwrap()
    }
}

pub fn hello() -> Header {
    Header { op: Op::Hello as u16, index: 1, argument: feature::ALL, ..Header::default() }
}

pub fn new_pool(flags: u64, uuid: u64) -> Header {
    Header { op: Op::NewPool as u16, argument: flags, object: [uuid, 0, 0], ..Header::default() }
}

/// A persistent pool that is found again.
pub fn persistent(uuid: u64) -> Header {
    new_pool(pool::PERSISTENT | pool::ATTACH, uuid)
}

pub fn pages(op: Op, pool: u32, object: Object, index: u32, count: u32) -> Header {
    Header { op: op as u16, pool, object, index, count, ..Header::default() }
}

/// Keys that are listed.
pub fn listed(op: Op, pool: u32, keys: &[(Object, u32)]) -> (Header, Vec<u8>) {
    let header =
        Header { op: op as u16, flags: REQUEST_LIST, pool, count: keys.len() as u32, ..Header::default() };
    (header, items(keys))
}

pub fn items(keys: &[(Object, u32)]) -> Vec<u8> {
    keys.iter()
        .flat_map(|(object, index)| Item { object: *object, index: *index, reserved: 0 }.encode())
        .collect()
}

/// An answer: the reply, the used length less the reply's, and all that the data's room holds.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    pub fetched: usize,
    pub data: Vec<u8>,
}

const DATA: u64 = 0x4000;
const REPLY: u64 = 0x3000;
const ROOM: u64 = 0x10_0000;

impl Driver {
    /// Lays a request out as a sensible driver does: request and items, data, reply, room; each in a piece of its own
    /// if there is any, data and room page-aligned.
    pub fn lay_out_tmem(&mut self, queue: usize, header: &Header, items: &[u8], data: &[u8], room: usize) {
        let base = self.queues[queue].buffers;
        assert!(REQUEST_SIZE + items.len() < REPLY as usize && data.len() <= (ROOM - DATA) as usize);
        self.ram.write(base, &header.encode());
        self.ram.write(base + REQUEST_SIZE as u64, items);
        self.ram.write(base + DATA, data);
        self.ram.write(base + REPLY, &[UNTOUCHED; REPLY_SIZE]);
        self.ram.write(base + ROOM, &vec![UNTOUCHED; room]);
        let pieces = [
            (base, REQUEST_SIZE + items.len(), 0),
            (base + DATA, data.len(), 0),
            (base + REPLY, REPLY_SIZE, WRITE),
            (base + ROOM, room, WRITE),
        ];
        let pieces: Vec<_> = pieces.into_iter().filter(|(_, len, _)| *len > 0).collect();
        self.set_chain(queue, &pieces);
    }

    /// A chain from descriptor 0 on.
    pub fn set_chain(&self, queue: usize, pieces: &[(u64, usize, u16)]) {
        for (at, (addr, len, flags)) in pieces.iter().enumerate() {
            let more = if at + 1 < pieces.len() { NEXT } else { 0 };
            let next = at as u16 + 1;
            self.set_desc(
                queue,
                at as u16,
                Desc { addr: *addr, len: *len as u32, flags: flags | more, next },
            );
        }
    }

    /// The answer to what [`Driver::lay_out_tmem`] laid out.
    pub fn answer(&self, queue: usize, used: u32, room: usize) -> Answer {
        let base = self.queues[queue].buffers;
        let raw = self.ram.read(base + REPLY, REPLY_SIZE);
        Answer {
            reply: Reply::decode(&raw.try_into().unwrap()).unwrap(),
            fetched: used as usize - REPLY_SIZE,
            data: self.ram.read(base + ROOM, room),
        }
    }

    /// One request from start to end.
    pub fn ask(&mut self, queue: usize, header: &Header, items: &[u8], data: &[u8], room: usize) -> Answer {
        self.lay_out_tmem(queue, header, items, data, room);
        let used = self.run_head(queue, 0);
        let answer = self.answer(queue, used, room);
        assert_eq!(answer.reply.cookie, header.cookie);
        answer
    }

    /// One request that sends and fetches nothing, and is done; its value.
    pub fn told(&mut self, header: &Header) -> u64 {
        let answer = self.ask(0, header, &[], &[], 0);
        assert_eq!(answer.reply.status, Status::Ok);
        answer.reply.value
    }

    /// Sends any bytes over descriptors cut at these lengths; what the writable part then holds, and the used length.
    pub fn scatter(&mut self, readable: &[u8], writable: usize, cuts: &[usize]) -> (Vec<u8>, u32) {
        let mut at = self.queues[0].buffers;
        let mut cut = cuts.iter().cycle();
        let mut pieces = Vec::new();
        for (content, flags) in [(readable, 0), (&vec![UNTOUCHED; writable][..], WRITE)] {
            let mut left = content;
            while !left.is_empty() {
                let n = (*cut.next().unwrap()).min(left.len());
                self.ram.write(at, &left[..n]);
                pieces.push((at, n, flags));
                at += n as u64 + 5;
                left = &left[n..];
            }
        }
        assert!(pieces.len() <= usize::from(self.queues[0].size));
        self.set_chain(0, &pieces);
        let used = self.run_head(0, 0);
        let out = pieces.iter().filter(|(_, _, flags)| *flags == WRITE);
        (out.flat_map(|(at, n, _)| self.ram.read(*at, *n)).collect(), used)
    }
}
