// SPDX-License-Identifier: Apache-2.0
//! How long requests of the ABI take, over whatever carries them: the same ones for every channel.

use std::io;
use std::time::Instant;

use pyo3::prelude::*;
use tmem_abi::wire::{BATCH_MAX, DATA_MAX, Item, REPLY_SIZE, VERSION, feature};
use tmem_abi::{Header, Op, Status};
use tmem_engine::{REPLY_MAX, Scratch, Session};

use tmem_exit::work::scatter;

use crate::engine::PyEngine;
use crate::error::{core_error, from_io};

/// What carries requests.
pub trait Carrier {
    /// Nanoseconds of a request with its items and data, and the status it is answered. The data lies where the guest
    /// would have it before the clock is read.
    ///
    /// # Errors
    /// There was no answer.
    fn ask(&mut self, head: &[u8], data: &[u8], room: usize) -> io::Result<(u64, u32)>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Put,
    Get,
    Flush,
    Exchange,
    PutGet,
    Read,
    Write,
}

/// So many requests of a kind on object 0 of a pool, whose pages are those of a buffer.
#[pyclass(name = "RequestPlan", module = "tmem_host._core", frozen)]
pub struct Plan {
    kind: Kind,
    pool: u32,
    batch: u32,
    page: usize,
    length: u32,
    requests: u32,
    start: u32,
}

fn invalid(message: impl Into<String>) -> PyErr {
    core_error("invalid", message.into())
}

#[pymethods]
impl Plan {
    /// Refuses what is no plan for any buffer.
    #[new]
    #[pyo3(signature = (op, pool, requests, *, batch = 1, page_bytes = 4096, length = 0, start = 0))]
    fn new(
        op: &str,
        pool: u32,
        requests: u32,
        batch: u32,
        page_bytes: usize,
        length: u32,
        start: u32,
    ) -> PyResult<Self> {
        let kind = match op {
            "put" => Kind::Put,
            "get" => Kind::Get,
            "flush" => Kind::Flush,
            "exchange" => Kind::Exchange,
            "put+get" => Kind::PutGet,
            "read" => Kind::Read,
            "write" => Kind::Write,
            _ => return Err(invalid(format!("there is no operation {op:?} to measure"))),
        };
        let most = if matches!(kind, Kind::Put | Kind::Get | Kind::Flush) { BATCH_MAX } else { 1 };
        if !page_bytes.is_power_of_two()
            || !(1..=most).contains(&batch)
            || page_bytes > DATA_MAX as usize / batch as usize
        {
            return Err(invalid(format!("{op} takes no {batch} pages of {page_bytes} bytes")));
        }
        if matches!(kind, Kind::Read | Kind::Write) != (length > 0) || length as usize > page_bytes {
            return Err(invalid("a range has 1 byte to a page, and only reads and writes have one"));
        }
        Ok(Self { kind, pool, batch, page: page_bytes, length, requests, start })
    }
}

impl Plan {
    /// Refuses pages that it does not fit.
    pub fn check(&self, pages: &[u8]) -> PyResult<()> {
        if pages.is_empty() || !pages.len().is_multiple_of(self.batch as usize * self.page) {
            return Err(invalid("the pages must be a multiple of what a request takes"));
        }
        Ok(())
    }

    /// Nanoseconds of each request.
    ///
    /// # Errors
    /// There was no answer, or another than `TMEM_OK`.
    pub fn run(&self, pages: &[u8], to: &mut dyn Carrier) -> io::Result<Vec<u64>> {
        let bytes = self.batch as usize * self.page;
        let chunks = pages.len() / bytes;
        let mut times = Vec::with_capacity(self.requests as usize);
        for i in 0..self.requests {
            let chunk = (self.start as usize).wrapping_add(i as usize) % chunks;
            let other = (chunk + chunks / 2) % chunks;
            times.push(self.one(pages, [chunk, other], self.offset(i), to)?);
        }
        Ok(times)
    }

    /// Where in its page the range of request `i` begins: anywhere, as what it costs to reach depends on it.
    fn offset(&self, i: u32) -> usize {
        let length = (self.length as usize).max(1);
        scatter(self.start.wrapping_add(i), self.page / length) * length
    }

    /// The request at a chunk and an offset; the second chunk is the page that is got after a put.
    fn one(
        &self,
        pages: &[u8],
        [chunk, other]: [usize; 2],
        offset: usize,
        to: &mut dyn Carrier,
    ) -> io::Result<u64> {
        let bytes = self.batch as usize * self.page;
        let data = &pages[chunk * bytes..][..bytes];
        let index = (chunk * self.batch as usize) as u32;
        let second = (other * self.batch as usize) as u32;
        let range = |op| Header { offset: offset as u32, length: self.length, ..self.header(op, index) };
        match self.kind {
            Kind::Put => ask(to, &self.header(Op::Put, index), &[], data, 0),
            Kind::Get => ask(to, &self.header(Op::Get, index), &[], &[], bytes),
            Kind::Flush => {
                ask(to, &self.header(Op::Put, index), &[], data, 0)?;
                ask(to, &self.header(Op::FlushPage, index), &[], &[], 0)
            }
            Kind::Exchange => {
                let item = Item { index: second, ..Item::default() }.encode();
                ask(to, &self.header(Op::Exchange, index), &item, data, bytes)
            }
            Kind::PutGet => {
                let put = ask(to, &self.header(Op::Put, index), &[], data, 0)?;
                Ok(put + ask(to, &self.header(Op::Get, second), &[], &[], bytes)?)
            }
            Kind::Read => ask(to, &range(Op::Read), &[], &[], self.length as usize),
            // What is there already: the page stays what it was.
            Kind::Write => ask(to, &range(Op::Write), &[], &data[offset..][..self.length as usize], 0),
        }
    }

    fn header(&self, op: Op, index: u32) -> Header {
        Header { op: op as u16, pool: self.pool, index, count: self.batch, ..Header::default() }
    }
}

fn ask(to: &mut dyn Carrier, header: &Header, items: &[u8], data: &[u8], room: usize) -> io::Result<u64> {
    let head = [&header.encode()[..], items].concat();
    let (ns, status) = to.ask(&head, data, room)?;
    match Status::from_wire(status) {
        Some(Status::Ok) => Ok(ns),
        Some(status) => {
            Err(io::Error::other(format!("operation {} is answered {}", header.op, status.name())))
        }
        None => Err(io::Error::other("an answer that is none")),
    }
}

/// The engine itself, with no channel before it.
struct Bare {
    session: Session,
    scratch: Scratch,
    message: Vec<u8>,
    reply: Vec<u8>,
}

impl Carrier for Bare {
    fn ask(&mut self, head: &[u8], data: &[u8], room: usize) -> io::Result<(u64, u32)> {
        self.message.clear();
        self.message.extend_from_slice(head);
        self.message.extend_from_slice(data);
        let start = Instant::now();
        let n = self.session.answer(&self.message, &mut self.reply[..REPLY_SIZE + room], &mut self.scratch);
        let ns = start.elapsed().as_nanos() as u64;
        match self.reply.first_chunk() {
            Some(status) if n.is_some() => Ok((ns, u32::from_le_bytes(*status))),
            _ => Err(io::Error::other("no answer")),
        }
    }
}

/// As `TmemClient.measure`, in this process.
#[pyfunction]
pub fn measure_engine(py: Python<'_>, engine: &PyEngine, pages: &[u8], plan: &Plan) -> PyResult<Vec<u64>> {
    plan.check(pages)?;
    let session = engine.engine().session();
    py.detach(|| {
        let mut bare =
            Bare { session, scratch: Scratch::new(), message: Vec::new(), reply: vec![0; REPLY_MAX] };
        let hello =
            Header { op: Op::Hello as u16, index: VERSION, argument: feature::ALL, ..Header::default() };
        ask(&mut bare, &hello, &[], &[], 0)?;
        plan.run(pages, &mut bare)
    })
    .map_err(from_io)
}
