// SPDX-License-Identifier: Apache-2.0
//! Operations on pages, from the pieces that the guest gave to the store and back.

use tmem_abi::{Data, Key, Keys, Part, Status};
use tmem_store::{Get, PageAt, Put};

use crate::counters::Counters;
use crate::engine::Pool;
use crate::faults::Faults;
use crate::memory::Cursor;
use crate::scratch::Scratch;

/// What a reply says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub status: Status,
    pub value: u64,
    pub done: u128,
    /// Bytes of data behind the reply.
    pub fetched: usize,
}

impl Answer {
    pub const OK: Self = Self { status: Status::Ok, value: 0, done: 0, fetched: 0 };

    pub fn refused(status: Status) -> Self {
        Self { status, ..Self::OK }
    }

    /// Each page for itself.
    fn pages(statuses: &[Status]) -> Self {
        let done = statuses.iter().enumerate().fold(0, |all, (i, s)| all | u128::from(*s == Status::Ok) << i);
        let status = statuses.iter().copied().find(|&s| s != Status::Ok).unwrap_or(Status::Ok);
        Self { status, value: u64::from(done.count_ones()), done, fetched: 0 }
    }
}

fn put_status(put: Put) -> Status {
    match put {
        Put::Stored => Status::Ok,
        Put::NoRoom => Status::NoRoom,
        Put::OverCap => Status::OverCap,
        Put::Frozen => Status::Frozen,
        Put::NoPool => Status::BadPool,
        Put::Lost => Status::Lost,
        Put::Missing => Status::Miss,
        Put::BadRange => Status::BadLength,
        Put::BadData => Status::BadData,
    }
}

fn get_status(get: Get) -> Status {
    match get {
        Get::Hit => Status::Ok,
        Get::Miss | Get::Refused => Status::Miss,
        Get::Lost => Status::Lost,
        Get::NoPool => Status::BadPool,
        Get::BadRange => Status::BadLength,
    }
}

/// One request's data: `from` stands behind the keys, `to` behind the reply.
///
/// The pieces of both are valid for reads, those of `to` for writes too, and hold all data that the
/// request sends and fetches: so say the safety contracts of all methods here.
pub(crate) struct Work<'a> {
    pub from: Cursor<'a>,
    pub to: Cursor<'a>,
    pub scratch: &'a mut Scratch,
    pub counters: &'a Counters,
    pub faults: &'a Faults,
}

impl Work<'_> {
    /// The next `len` bytes that were sent: where they lie, or a copy in one piece.
    ///
    /// # Safety
    /// As [`Work`] says. The pointer is good until the bounce buffer is used again.
    unsafe fn sent(&mut self, len: usize) -> *const u8 {
        let whole = self.from.whole(len);
        self.counters.page(whole.is_some());
        if let Some(at) = whole {
            return at;
        }
        let bounce = self.scratch.pages.bounce(len);
        // SAFETY: by the caller.
        unsafe { self.from.read(bounce) };
        bounce.as_ptr()
    }

    /// Gets one page or part by `get` to where it goes, by way of the bounce buffer if it must.
    ///
    /// # Safety
    /// As [`Work`] says; `get` writes no more than `len` bytes.
    unsafe fn fetch(&mut self, len: usize, get: impl FnOnce(*mut u8) -> Get) -> Get {
        if self.faults.strikes() {
            self.to.skip(len);
            return Get::Lost;
        }
        let whole = self.to.whole(len);
        self.counters.page(whole.is_some());
        if let Some(at) = whole {
            return get(at);
        }
        let bounce = self.scratch.pages.bounce(len);
        let answer = get(bounce.as_mut_ptr());
        match answer {
            // SAFETY: by the caller.
            Get::Hit => unsafe { self.to.write(bounce) },
            _ => self.to.skip(len),
        }
        answer
    }

    pub fn new_page(&mut self, pool: &Pool, key: Key) -> Answer {
        Answer::pages(&[put_status(pool.handle.new_page(&key.object, key.index))])
    }

    /// # Safety
    /// As [`Work`] says.
    pub unsafe fn put(&mut self, pool: &Pool, keys: Keys, data: Data) -> Answer {
        let page = pool.shape.page_size as usize;
        if let Data::Packed(len) = data {
            let len = len as usize;
            let Some(key) = keys.at(0, &self.scratch.list) else { return Answer::refused(Status::HostError) };
            // SAFETY: by the caller.
            let answer = unsafe {
                let at = self.sent(len);
                pool.handle.put_packed(&key.object, key.index, at, len)
            };
            return Answer::pages(&[put_status(answer)]);
        }
        self.scratch.pages.puts.clear();
        let mut done = 0;
        for i in 0..keys.count() {
            let Some(key) = keys.at(i, &self.scratch.list) else { break };
            let split = self.from.clone().whole(page).is_none();
            if split {
                done = self.put_gathered(pool, done);
            }
            // SAFETY: by the caller. The bounce buffer is used again only when its page is put.
            let at = unsafe { self.sent(page) };
            self.scratch.pages.puts.push(PageAt { object: key.object, index: key.index, at });
            if split {
                done = self.put_gathered(pool, done);
            }
        }
        done = self.put_gathered(pool, done);
        Answer::pages(&self.scratch.pages.statuses[..done])
    }

    /// Puts what was gathered; `done` pages were put before, so many are now.
    fn put_gathered(&mut self, pool: &Pool, done: usize) -> usize {
        let pages = &mut self.scratch.pages;
        let answers = &mut pages.put_answers[..pages.puts.len()];
        match (&pages.puts[..], &mut *answers) {
            // SAFETY: (both) each page lies in pieces that are valid by the contract of `put`, or in
            // the bounce buffer, which nobody else has.
            ([one], [answer]) => *answer = unsafe { pool.handle.put(&one.object, one.index, one.at) },
            // SAFETY: as above.
            (many, answers) => unsafe { pool.handle.put_many(many, answers) },
        }
        for (status, answer) in pages.statuses[done..].iter_mut().zip(answers) {
            *status = put_status(*answer);
        }
        let done = done + pages.puts.len();
        pages.puts.clear();
        done
    }

    /// # Safety
    /// As [`Work`] says.
    pub unsafe fn get(&mut self, pool: &Pool, keys: Keys) -> Answer {
        let page = pool.shape.page_size as usize;
        let start = self.to.clone();
        self.scratch.pages.gets.clear();
        let mut done = 0;
        for i in 0..keys.count() {
            let Some(key) = keys.at(i, &self.scratch.list) else { break };
            if !self.faults.armed()
                && let Some(at) = self.to.whole(page)
            {
                self.counters.page(true);
                self.scratch.pages.gets.push(PageAt { object: key.object, index: key.index, at });
                continue;
            }
            done = self.get_gathered(pool, done);
            // SAFETY: by the caller, and a page of this pool has `page` bytes.
            let answer = unsafe { self.fetch(page, |at| pool.handle.get(&key.object, key.index, at)) };
            self.scratch.pages.statuses[done] = get_status(answer);
            done += 1;
        }
        done = self.get_gathered(pool, done);
        let mut answer = Answer::pages(&self.scratch.pages.statuses[..done]);
        let pages = (u128::BITS - answer.done.leading_zeros()) as usize;
        answer.fetched = pages * page;
        if pages > answer.done.count_ones() as usize {
            let mut to = start;
            for i in 0..pages {
                match answer.done >> i & 1 {
                    // SAFETY: by the caller.
                    0 => unsafe { to.zero(page) },
                    _ => to.skip(page),
                }
            }
        }
        answer
    }

    fn get_gathered(&mut self, pool: &Pool, done: usize) -> usize {
        let pages = &mut self.scratch.pages;
        let answers = &mut pages.get_answers[..pages.gets.len()];
        match (&pages.gets[..], &mut *answers) {
            // SAFETY: (both) each page lies in pieces that are valid by the contract of `get`.
            ([one], [answer]) => *answer = unsafe { pool.handle.get(&one.object, one.index, one.at) },
            // SAFETY: as above.
            (many, answers) => unsafe { pool.handle.get_many(many, answers) },
        }
        for (status, answer) in pages.statuses[done..].iter_mut().zip(answers) {
            *status = get_status(*answer);
        }
        let done = done + pages.gets.len();
        pages.gets.clear();
        done
    }

    /// A page that was not there is flushed just as well: the status is no page's.
    pub fn flush(&mut self, pool: &Pool, keys: Keys) -> Answer {
        let mut done = 0;
        for (i, key) in keys.iter(&self.scratch.list).enumerate() {
            done |= u128::from(pool.handle.flush_page(&key.object, key.index)) << i;
        }
        Answer { value: u64::from(done.count_ones()), done, ..Answer::OK }
    }

    /// # Safety
    /// As [`Work`] says.
    pub unsafe fn read(&mut self, pool: &Pool, key: Key, part: Part) -> Answer {
        let (offset, len) = (part.offset as usize, part.length as usize);
        // SAFETY: by the caller, and a read writes `len` bytes.
        let answer =
            unsafe { self.fetch(len, |at| pool.handle.read(&key.object, key.index, offset, len, at)) };
        let mut answer = Answer::pages(&[get_status(answer)]);
        answer.fetched = if answer.done != 0 { len } else { 0 };
        answer
    }

    /// # Safety
    /// As [`Work`] says.
    pub unsafe fn write(&mut self, pool: &Pool, key: Key, part: Part) -> Answer {
        let (offset, len) = (part.offset as usize, part.length as usize);
        // SAFETY: by the caller.
        let answer = unsafe {
            let at = self.sent(len);
            pool.handle.write(&key.object, key.index, offset, len, at)
        };
        Answer::pages(&[put_status(answer)])
    }

    /// # Safety
    /// As [`Work`] says.
    pub unsafe fn exchange(&mut self, pool: &Pool, put: Key, data: Data, get: Key) -> Answer {
        let page = pool.shape.page_size as usize;
        let fetched =
            |answer: Answer| Answer { fetched: if answer.done & 2 != 0 { page } else { 0 }, ..answer };
        if data == Data::Plain
            && !self.faults.armed()
            && let (Some(src), Some(dst)) = (self.from.clone().whole(page), self.to.clone().whole(page))
        {
            self.counters.page(true);
            self.counters.page(true);
            let (put, get) = ((&put.object, put.index), (&get.object, get.index));
            // SAFETY: both by the caller; they may be the same memory, as `exchange` allows.
            let both = unsafe { pool.handle.exchange(put, src, get, dst) };
            return fetched(match both.get {
                Some(got) => Answer::pages(&[put_status(both.put), get_status(got)]),
                None => Answer::pages(&[put_status(both.put)]),
            });
        }
        let one = Keys::Run { first: put, count: 1 };
        // SAFETY: by the caller.
        let stored = unsafe { self.put(pool, one, data) };
        if stored.done == 0 {
            return stored;
        }
        // SAFETY: by the caller, and a page of this pool has `page` bytes.
        let got = unsafe { self.fetch(page, |at| pool.handle.get(&get.object, get.index, at)) };
        fetched(Answer::pages(&[Status::Ok, get_status(got)]))
    }
}
