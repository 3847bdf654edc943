// SPDX-License-Identifier: Apache-2.0
//! A fake guest at the other end of a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tmem_abi::frame::{FRAME_SIZE, Frame, FrameReader, Kind, SYNC_SIZE, Side, header};
use tmem_abi::{Header, Op, Reply, Status};
use tmem_engine::{Engine, Options, SUPPORTED};
use tmem_store::{Codec, NO_CAP, Store, StoreOptions};
use tmem_stream::{StreamServer, StreamState};

const PAGE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(20);

struct Guest {
    stream: UnixStream,
    reader: FrameReader,
    pending: Vec<u8>,
}

impl Guest {
    /// The next connection; `answer`: the SYNC is sent back.
    fn accept(listener: &UnixListener, answer: bool) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Self { stream, reader: FrameReader::new(Side::Guest), pending: Vec::new() };
        let (kind, token) = guest.frame();
        assert_eq!((kind, token.len()), (Kind::Sync, SYNC_SIZE));
        if answer {
            guest.send(Kind::Sync, &token);
        }
        guest
    }

    fn send(&mut self, kind: Kind, body: &[u8]) {
        self.stream.write_all(&header(kind, body.len() as u32)).unwrap();
        self.stream.write_all(body).unwrap();
    }

    fn frame(&mut self) -> (Kind, Vec<u8>) {
        loop {
            let mut input = &self.pending[..];
            let found =
                self.reader.next(&mut input).unwrap().map(|Frame { kind, body }| (kind, body.to_vec()));
            let left = input.len();
            self.pending.drain(..self.pending.len() - left);
            if let Some(found) = found {
                return found;
            }
            let mut bytes = [0; 8192];
            let n = self.stream.read(&mut bytes).unwrap();
            assert!(n > 0, "the host hung up");
            self.pending.extend_from_slice(&bytes[..n]);
        }
    }

    fn ask(&mut self, header: Header, data: &[u8]) -> (Reply, Vec<u8>) {
        let mut body = header.encode().to_vec();
        body.extend_from_slice(data);
        self.send(Kind::Request, &body);
        let (kind, body) = self.frame();
        assert_eq!(kind, Kind::Reply);
        let reply = Reply::decode(body[..40].try_into().unwrap()).unwrap();
        (reply, body[40..].to_vec())
    }

    fn hello(&mut self) {
        let hello =
            Header { op: Op::Hello as u16, index: 1, argument: SUPPORTED, cookie: 5, ..Header::default() };
        let (reply, _) = self.ask(hello, &[]);
        assert_eq!((reply.status, reply.cookie), (Status::Ok, 5));
    }

    fn swap_pool(&mut self) -> u32 {
        let pool = Header { op: Op::NewPool as u16, argument: 1, count: 64, ..Header::default() };
        let (reply, _) = self.ask(pool, &[]);
        assert_eq!(reply.status, Status::Ok);
        reply.value as u32
    }

    fn put(&mut self, pool: u32, index: u32, page: &[u8]) -> Status {
        self.ask(Header { op: Op::Put as u16, pool, index, count: 1, ..Header::default() }, page).0.status
    }

    fn get(&mut self, pool: u32, index: u32) -> (Status, Vec<u8>) {
        let (reply, data) =
            self.ask(Header { op: Op::Get as u16, pool, index, count: 1, ..Header::default() }, &[]);
        (reply.status, data)
    }
}

/// A store with VM "one", its port's socket, and the server.
struct World {
    _folder: tempfile::TempDir,
    listener: UnixListener,
    store: Arc<Store>,
    server: StreamServer,
    control: UnixStream,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };
    let store = Arc::new(Store::open(&folder.path().join("arena"), options).unwrap());
    store.vm_create("one", 0, NO_CAP, 100).unwrap();
    let socket = folder.path().join("port");
    let listener = UnixListener::bind(&socket).unwrap();
    let (server, control) = serve(&store, "one", &socket);
    World { _folder: folder, listener, store, server, control }
}

fn serve(store: &Arc<Store>, vm: &str, socket: &Path) -> (StreamServer, UnixStream) {
    let engine = Engine::new(store.clone(), vm, Options { features: SUPPORTED, codec: Codec::Lz4 }).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (StreamServer::start(&engine, socket, theirs).unwrap(), ours)
}

fn page(seed: u8) -> Vec<u8> {
    (0..PAGE).map(|i| (i / 5) as u8 ^ seed).collect()
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "that never happened");
        std::thread::yield_now();
    }
}

#[test]
fn pages_go_and_come_back() {
    let w = world();
    let mut guest = Guest::accept(&w.listener, true);
    assert_eq!(guest.put(0, 0, &page(1)), Status::NotNegotiated);
    guest.hello();
    let pool = guest.swap_pool();
    for i in 0..64 {
        assert_eq!(guest.put(pool, i, &page(i as u8)), Status::Ok);
    }
    for i in (0..64).rev() {
        assert_eq!(guest.get(pool, i), (Status::Ok, page(i as u8)));
    }
    assert_eq!(guest.put(pool, 64, &page(0)), Status::BadLength);
    assert_eq!(w.server.stats().state, StreamState::InStep);
    // Counted after the reply is on its way.
    until(|| w.server.stats().requests == 1 + 2 + 128 + 1);
    assert_eq!(w.server.session().counters().operations().find(|(name, _)| *name == "put").unwrap().1, 66);
}

#[test]
fn a_guest_that_comes_back_finds_its_pages_and_must_say_hello_again() {
    let w = world();
    let mut guest = Guest::accept(&w.listener, true);
    guest.hello();
    let pool = guest.swap_pool();
    assert_eq!(guest.put(pool, 3, &page(9)), Status::Ok);
    // It dies in the middle of a frame.
    guest.stream.write_all(&header(Kind::Request, 64 + PAGE as u32)[..5]).unwrap();
    drop(guest);
    let mut guest = Guest::accept(&w.listener, true);
    assert_eq!(guest.get(pool, 3).0, Status::NotNegotiated);
    guest.hello();
    assert_eq!(guest.get(pool, 3), (Status::Ok, page(9)));
    assert_eq!(w.server.stats().connections, 2);
}

#[test]
fn bytes_that_are_no_frame_end_the_connection_and_a_new_one_begins() {
    let w = world();
    let mut guest = Guest::accept(&w.listener, true);
    guest.hello();
    guest.stream.write_all(&[0xff; 64]).unwrap();
    let mut rest = Vec::new();
    assert_eq!(guest.stream.read_to_end(&mut rest).unwrap_or(0), 0);
    let mut guest = Guest::accept(&w.listener, true);
    guest.hello();
    assert_eq!(w.server.stats().bad_frames, 1);
    // As long as a frame must not be.
    guest.stream.write_all(&header(Kind::Request, u32::MAX)).unwrap();
    Guest::accept(&w.listener, true).hello();
    assert_eq!(w.server.stats().bad_frames, 2);
}

#[test]
fn what_a_guest_sent_before_it_answered_sync_is_dropped() {
    let w = world();
    let mut guest = Guest::accept(&w.listener, false);
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
    guest.stream.write_all(&noise).unwrap();
    assert_eq!(w.server.stats().state, StreamState::Connected);
    drop(guest);
    Guest::accept(&w.listener, true).hello();
}

#[test]
fn control_frames_go_both_ways_and_a_flood_of_them_is_dropped_not_kept() {
    let w = world();
    let mut guest = Guest::accept(&w.listener, true);
    guest.send(Kind::Control, b"{\"agent\":\n\"tmem\"}");
    let mut lines = BufReader::new(w.control.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "{\"agent\": \"tmem\"}\n");
    (&w.control).write_all(b"{\"run\":\"hog\"}\n").unwrap();
    assert_eq!(guest.frame(), (Kind::Control, b"{\"run\":\"hog\"}".to_vec()));
    // Nobody reads the control side any more, and the pages go on.
    let long = vec![b' '; 60_000];
    for _ in 0..100 {
        guest.send(Kind::Control, &long);
    }
    guest.hello();
    let stats = w.server.stats();
    assert!(stats.control_dropped > 0, "{stats:?}");
    assert_eq!(stats.control + stats.control_dropped, 101);
}

#[test]
fn a_guest_that_takes_no_replies_holds_up_nobody_and_can_be_stopped() {
    let mut w = world();
    let mut deaf = Guest::accept(&w.listener, true);
    deaf.hello();
    let pool = deaf.swap_pool();
    assert_eq!(deaf.put(pool, 0, &page(4)), Status::Ok);
    deaf.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let get = Header { op: Op::Get as u16, pool, count: 1, ..Header::default() }.encode();
    // Until both directions are full: the host stops reading when it cannot write.
    while deaf.stream.write_all(&header(Kind::Request, 64)).and_then(|()| deaf.stream.write_all(&get)).is_ok()
    {
    }

    w.store.vm_create("two", 0, NO_CAP, 100).unwrap();
    let other = w._folder.path().join("other");
    let listener = UnixListener::bind(&other).unwrap();
    let (_server, _control) = serve(&w.store, "two", &other);
    let mut guest = Guest::accept(&listener, true);
    guest.hello();
    let pool = guest.swap_pool();
    assert_eq!(guest.put(pool, 0, &page(8)), Status::Ok);
    assert_eq!(guest.get(pool, 0), (Status::Ok, page(8)));
    w.server.stop();
}

#[test]
fn a_vm_that_starts_late_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };
    let store = Arc::new(Store::open(&folder.path().join("arena"), options).unwrap());
    store.vm_create("one", 0, NO_CAP, 100).unwrap();
    let socket = folder.path().join("port");
    let (server, control) = serve(&store, "one", &socket);
    assert_eq!(server.stats().state, StreamState::Waiting);
    // Whoever would have listened to control frames has gone.
    drop(control);
    let listener = UnixListener::bind(&socket).unwrap();
    let mut guest = Guest::accept(&listener, true);
    guest.send(Kind::Control, b"{}");
    guest.hello();
    assert_eq!(FRAME_SIZE, 8);
}
