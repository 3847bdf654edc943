// SPDX-License-Identifier: Apache-2.0
//! One channel: what was agreed on, and requests from their bytes to the bytes of their replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tmem_abi::wire::{DATA_MAX, ITEM_SIZE, REPLY_SIZE, REQUEST_SIZE, VERSION};
use tmem_abi::{Agreed, Guest, Header, Op, Reply, Request, Shape, Status, parse};

use crate::counters::Counters;
use crate::engine::{Engine, Pool};
use crate::memory::{Cursor, Segment, total};
use crate::pages::{Answer, Work};
use crate::scratch::Scratch;

/// Most bytes of a reply with its data.
pub const REPLY_MAX: usize = REPLY_SIZE + DATA_MAX as usize;

/// Set while HELLO was said; the features are below.
const SAID: u64 = 1 << 63;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// What was asked for; `None` if that is no operation.
    pub op: Option<Op>,
    /// What was answered.
    pub status: Status,
    /// Bytes of the reply and its data.
    pub length: usize,
}

/// A channel of a VM. Requests of several queues may be served at once.
pub struct Session {
    engine: Arc<Engine>,
    agreed: AtomicU64,
    counters: Counters,
}

impl Session {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, agreed: AtomicU64::new(0), counters: Counters::default() }
    }

    /// The VM.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What happened on this channel.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Features agreed on, once HELLO was said.
    pub fn features(&self) -> Option<u64> {
        let agreed = self.agreed.load(Ordering::Acquire);
        (agreed & SAID != 0).then_some(agreed & !SAID)
    }

    /// Starts anew: HELLO was not said. For a device that is reset, a stream that is opened.
    pub fn reset(&self) {
        self.agreed.store(0, Ordering::Release);
    }

    /// Serves the request in `readable`; the reply goes to `writable`. How many bytes of `writable`
    /// the reply and its data have; `None`: not even a reply has room, and nothing was done.
    ///
    /// # Safety
    /// All pieces are valid for reads, those of `writable` for writes too, for the whole call. They
    /// may be the guest's, which may access them meanwhile, and the two may be the same memory.
    pub unsafe fn serve(
        &self,
        readable: &[Segment],
        writable: &[Segment],
        scratch: &mut Scratch,
    ) -> Option<usize> {
        // SAFETY: by the caller.
        unsafe { self.serve_told(readable, writable, scratch) }.map(|served| served.length)
    }

    /// As [`Self::serve`], and tells what the request was and how it went.
    ///
    /// # Safety
    /// As [`Self::serve`].
    pub unsafe fn serve_told(
        &self,
        readable: &[Segment],
        writable: &[Segment],
        scratch: &mut Scratch,
    ) -> Option<Served> {
        let room = total(writable).checked_sub(REPLY_SIZE as u64)?;
        let mut from = Cursor::new(readable);
        let mut raw = [0; REQUEST_SIZE];
        // SAFETY: by the caller.
        unsafe { from.read(&mut raw) };
        let (header, answer) = match total(readable).checked_sub(REQUEST_SIZE as u64) {
            None => (Header::default(), Answer::refused(Status::BadLength)),
            Some(sent) => {
                let header = Header::decode(&raw);
                let next = |item: &mut [u8; ITEM_SIZE]| {
                    // SAFETY: by the caller.
                    unsafe { from.read(item) }
                };
                let answer = match parse(&View(self), &header, sent, room, &mut scratch.list, next) {
                    Ok(request) => {
                        let mut to = Cursor::new(writable);
                        to.skip(REPLY_SIZE);
                        let (counters, faults) = (&self.counters, self.engine.faults());
                        let mut work = Work { from, to, scratch, counters, faults };
                        // SAFETY: by the caller; the parser checked that the pieces hold all data.
                        unsafe { self.act(request, &mut work) }
                    }
                    Err(status) => Answer::refused(status),
                };
                (header, answer)
            }
        };
        self.counters.request(header.op, answer.status);
        let mut reply = Reply::refusal(answer.status, header.cookie);
        if answer.status != Status::BadVersion {
            (reply.value, reply.done) = (answer.value, answer.done);
        }
        // SAFETY: by the caller.
        unsafe { Cursor::new(writable).write(&reply.encode()) };
        let length = REPLY_SIZE + answer.fetched;
        Some(Served { op: Op::from_wire(header.op), status: answer.status, length })
    }

    /// Serves a request that came in one piece; the reply goes to the front of `reply`, which may
    /// have up to [`REPLY_MAX`] bytes of use. How many it has; `None` as in [`Self::serve`].
    pub fn answer(&self, request: &[u8], reply: &mut [u8], scratch: &mut Scratch) -> Option<usize> {
        // SAFETY: both are valid for the whole call, and only `reply` is written to.
        unsafe { self.serve(&[Segment::reading(request)], &[Segment::writing(reply)], scratch) }
    }

    /// # Safety
    /// As [`Work`] says.
    unsafe fn act(&self, request: Request<Arc<Pool>>, work: &mut Work<'_>) -> Answer {
        let answer = match &request {
            Request::Hello { features } => {
                let features = features & self.engine.features();
                self.agreed.store(SAID | features, Ordering::Release);
                return Answer { value: features, ..Answer::OK };
            }
            Request::NewPool(new) => {
                return match self.engine.make(new) {
                    Ok((number, there)) => {
                        Answer { value: u64::from(number), done: u128::from(there), ..Answer::OK }
                    }
                    Err(status) => Answer::refused(status),
                };
            }
            Request::DestroyPool { pool, .. } => {
                return match self.engine.destroy(pool) {
                    Ok(()) => Answer::OK,
                    Err(status) => Answer::refused(status),
                };
            }
            // SAFETY: (all) by the caller.
            Request::NewPage { pool, key } => work.new_page(pool, *key),
            // SAFETY: as above.
            Request::Put { pool, keys, data } => unsafe { work.put(pool, *keys, *data) },
            // SAFETY: as above.
            Request::Get { pool, keys } => unsafe { work.get(pool, *keys) },
            Request::FlushPage { pool, keys } => work.flush(pool, *keys),
            Request::FlushObject { pool, object } => {
                return Answer { value: pool.handle.flush_object(object), ..Answer::OK };
            }
            // SAFETY: as above.
            Request::Read { pool, key, part } => unsafe { work.read(pool, *key, *part) },
            // SAFETY: as above.
            Request::Write { pool, key, part } => unsafe { work.write(pool, *key, *part) },
            Request::Exchange { pool, put, data, get } => {
                // SAFETY: as above.
                unsafe { work.exchange(pool, *put, *data, *get) }
            }
        };
        if answer.status == Status::BadPool
            && let Some(pool) = request.pool()
        {
            self.engine.forget(pool);
        }
        answer
    }
}

/// A session as the parser sees it.
struct View<'a>(&'a Session);

impl Guest for View<'_> {
    type Pool = Arc<Pool>;

    fn agreed(&self) -> Option<Agreed> {
        self.0.features().map(|features| Agreed { version: VERSION, features })
    }

    fn pool(&self, number: u32) -> Option<(Arc<Pool>, Shape)> {
        self.0.engine.pool(number).map(|pool| {
            let shape = pool.shape;
            (pool, shape)
        })
    }
}
