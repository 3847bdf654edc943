// SPDX-License-Identifier: Apache-2.0
//! One VM of a fleet as its host sees it: carries requests out and checks every page that comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::backend::{Backend, Kept};
use super::guest::frame_at;
use super::reservoir::Reservoir;
use super::trace::{Op, Shape};
use crate::clock::ticks;
use crate::memory::{Memory, PAGE};

/// Samples kept of all VMs together.
const SAMPLES: usize = 4000;

/// What everybody may read while a fleet runs.
#[derive(Default)]
pub struct Counts {
    /// Pages put or got.
    pub ops: AtomicU64,
    /// Pages compared when they came back.
    pub verified: AtomicU64,
    /// Pages that came back different, or did not come back and should have.
    pub bad: AtomicU64,
    /// Puts refused over the cap.
    pub over_cap: AtomicU64,
    /// Puts refused for room.
    pub no_room: AtomicU64,
    /// Gets of pages that were refused or evicted before.
    pub missed: AtomicU64,
}

/// A VM's pages and where they go.
pub struct Member {
    memory: Arc<Memory>,
    backend: Backend,
    corpus: Arc<Vec<u8>>,
    shape: Shape,
    number: usize,
    /// A page that is not there is a lost page.
    persistent: bool,
    /// How often each page was put.
    versions: Vec<u32>,
    /// Whether the last put of each page was taken.
    kept: Vec<bool>,
    counts: Arc<Counts>,
    last: u64,
    /// Ticks from seeing a request to its answer; from one request to the next.
    pub latency: Reservoir,
    /// As above.
    pub interval: Reservoir,
}

/// The first word of a page: whose it is, and (in the low bits) how often it was put.
fn tag(number: usize, page: u32) -> u64 {
    (number as u64 + 1) << 48 | u64::from(page) << 32
}

impl Member {
    /// Writes the frames' first contents and puts all other pages.
    ///
    /// # Errors
    /// The backend failed.
    pub fn new(
        memory: Arc<Memory>,
        backend: Backend,
        corpus: Arc<Vec<u8>>,
        shape: Shape,
        (number, vms): (usize, usize),
        persistent: bool,
    ) -> std::result::Result<Self, String> {
        let samples = SAMPLES.div_ceil(vms);
        let mut member = Self {
            memory,
            backend,
            corpus,
            shape,
            number,
            persistent,
            versions: vec![0; shape.pages as usize],
            kept: vec![true; shape.pages as usize],
            counts: Arc::default(),
            last: 0,
            latency: Reservoir::new(samples),
            interval: Reservoir::new(samples),
        };
        for page in shape.frames..shape.pages {
            member.fill(0, page);
            // SAFETY: a frame of the guest, which does not run yet.
            let kept = unsafe { member.backend.put(page, member.frame(0)) }?;
            member.kept[page as usize] = kept == Kept::Yes;
        }
        for frame in 0..shape.frames {
            member.fill(frame, frame);
        }
        Ok(member)
    }

    /// Its counts.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Where its pages go.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn frame(&self, frame: u32) -> *mut u8 {
        self.memory.at(frame_at(frame), PAGE)
    }

    /// The corpus page that a page of this VM looks like, but for its first word.
    fn likeness(&self, page: u32) -> &[u8] {
        let count = self.corpus.len() / PAGE;
        let at = (self.number * 7 + page as usize * 13) % count * PAGE;
        &self.corpus[at..at + PAGE]
    }

    /// Writes a page's contents to a frame, as it was put last.
    fn fill(&self, frame: u32, page: u32) {
        self.memory.write(frame_at(frame) + 8, &self.likeness(page)[8..]);
        self.memory.write_u64(frame_at(frame), self.expected(page));
    }

    fn expected(&self, page: u32) -> u64 {
        tag(self.number, page) + u64::from(self.versions[page as usize])
    }

    fn word_of(&self, frame: u32) -> u64 {
        // SAFETY: a frame of the guest, aligned; it may change, the value is read once.
        unsafe { self.frame(frame).cast::<u64>().read_volatile() }
    }

    /// Carries a request out; while `measuring`, takes its time.
    ///
    /// # Errors
    /// A request that no guest of ours sends, or a backend that fails.
    #[inline]
    pub fn serve(&mut self, word: u32, measuring: bool) -> std::result::Result<(), String> {
        let began = ticks();
        let op = Op::of(word);
        if op.frame >= self.shape.frames || op.page >= self.shape.pages {
            return Err(format!("the guest asked for {op:?}, which it does not have"));
        }
        if op.get {
            self.page_in(op)?
        } else {
            self.page_out(op)?
        }
        let done = ticks();
        if measuring {
            self.latency.push(done - began);
            if self.last > 0 {
                self.interval.push(began - self.last);
            }
        }
        self.last = began;
        self.counts.ops.fetch_add(1, Ordering::Relaxed);
        if op.get {
            self.check(op);
        }
        Ok(())
    }

    fn page_out(&mut self, op: Op) -> std::result::Result<(), String> {
        let page = op.page as usize;
        // The guest wrote to the page before it sent it.
        self.versions[page] = self.versions[page].wrapping_add(1);
        if self.word_of(op.frame) != self.expected(op.page) {
            self.counts.bad.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: a frame of the guest.
        let kept = unsafe { self.backend.put(op.page, self.frame(op.frame)) }?;
        self.kept[page] = kept == Kept::Yes;
        match kept {
            Kept::Yes => {}
            Kept::OverCap => _ = self.counts.over_cap.fetch_add(1, Ordering::Relaxed),
            Kept::NoRoom => _ = self.counts.no_room.fetch_add(1, Ordering::Relaxed),
        }
        Ok(())
    }

    fn page_in(&mut self, op: Op) -> std::result::Result<(), String> {
        // SAFETY: a frame of the guest.
        if unsafe { self.backend.get(op.page, self.frame(op.frame)) }? {
            if !self.kept[op.page as usize] {
                // A page that was refused must not come back (rule 1).
                self.counts.bad.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(());
        }
        if self.persistent && self.kept[op.page as usize] {
            self.counts.bad.fetch_add(1, Ordering::Relaxed);
        }
        // Refused or evicted: the guest has it from its own disk.
        self.counts.missed.fetch_add(1, Ordering::Relaxed);
        self.fill(op.frame, op.page);
        Ok(())
    }

    /// The whole page, against what was put. Not part of the time taken.
    fn check(&self, op: Op) {
        // SAFETY: a frame of the guest, which waits for the answer and does not touch it.
        let rest = unsafe { std::slice::from_raw_parts(self.frame(op.frame).add(8), PAGE - 8) };
        if self.word_of(op.frame) != self.expected(op.page) || rest != &self.likeness(op.page)[8..] {
            self.counts.bad.fetch_add(1, Ordering::Relaxed);
        }
        self.counts.verified.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tmem_store::{DENSE_OBJECT, PoolSpec, Put, Store, StoreOptions};

    use super::super::guest::memory_len;
    use super::*;

    const SHAPE: Shape = Shape { frames: 2, pages: 4, zipf: 1.0, length: 8 };

    /// A member on a store of its own, and another handle of its pool.
    fn member() -> (tempfile::TempDir, Store, Member, tmem_store::Handle) {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions { limit: 64 << 20, accept_loss: false, maintenance: false };
        let store = Store::open(&folder.path().join("arena"), options).unwrap();
        let vm = store.vm_create("one", 0, tmem_store::NO_CAP, 100).unwrap();
        let spec = PoolSpec::dense(4);
        let pool = store.pool_create(vm, spec).unwrap();
        let corpus: Vec<u8> = (0..PAGE * 4).map(|i| (i / 3) as u8).collect();
        let member = Member::new(
            Arc::new(Memory::new(memory_len(2, 16)).unwrap()),
            Backend::Store(store.handle(vm, pool).unwrap()),
            Arc::new(corpus),
            SHAPE,
            (5, 9),
            true,
        )
        .unwrap();
        let handle = store.handle(vm, pool).unwrap();
        (folder, store, member, handle)
    }

    /// The guest's part of a page-out: it writes to the page first.
    fn put(member: &mut Member, frame: u32, page: u32) {
        let word = member.word_of(frame);
        member.memory.write_u64(frame_at(frame), word + 1);
        member.serve(Op { get: false, frame, page }.word(), true).unwrap();
    }

    fn get(member: &mut Member, frame: u32, page: u32) {
        member.serve(Op { get: true, frame, page }.word(), true).unwrap();
    }

    fn bad(member: &Member) -> u64 {
        member.counts.bad.load(Ordering::Relaxed)
    }

    #[test]
    fn pages_that_come_back_as_they_went_are_good() {
        let (_folder, _store, mut member, _handle) = member();
        for _ in 0..3 {
            put(&mut member, 0, 0);
            get(&mut member, 0, 2);
            put(&mut member, 0, 2);
            get(&mut member, 0, 0);
        }
        assert_eq!((bad(&member), member.counts.verified.load(Ordering::Relaxed)), (0, 6));
    }

    #[test]
    fn another_page_an_older_one_and_a_lost_one_are_bad() {
        let (_folder, _store, mut member, handle) = member();
        put(&mut member, 0, 0);
        let old = member.likeness(1).to_vec();
        // SAFETY: a page.
        assert_eq!(unsafe { handle.put(&DENSE_OBJECT, 0, old.as_ptr()) }, Put::Stored);
        get(&mut member, 0, 0);
        assert_eq!(bad(&member), 1);

        let (_folder, _store, mut member, handle) = super::tests::member();
        let mut page = vec![0; PAGE];
        // SAFETY: a page.
        assert_eq!(unsafe { handle.get(&DENSE_OBJECT, 2, page.as_mut_ptr()) }, tmem_store::Get::Hit);
        put(&mut member, 0, 0);
        get(&mut member, 0, 2);
        put(&mut member, 0, 2);
        // The page as it was before it was put the second time.
        // SAFETY: a page.
        assert_eq!(unsafe { handle.put(&DENSE_OBJECT, 2, page.as_ptr()) }, Put::Stored);
        get(&mut member, 0, 2);
        assert_eq!(bad(&member), 1);

        let (_folder, _store, mut member, handle) = super::tests::member();
        handle.flush_page(&DENSE_OBJECT, 3);
        put(&mut member, 0, 0);
        get(&mut member, 0, 3);
        assert_eq!(bad(&member), 1);
    }

    #[test]
    fn a_request_for_what_a_guest_does_not_have_is_refused() {
        let (_folder, _store, mut member, _handle) = member();
        for op in [Op { get: true, frame: 2, page: 0 }, Op { get: false, frame: 0, page: 4 }] {
            assert!(member.serve(op.word(), true).unwrap_err().contains("does not have"));
        }
        assert!(member.serve(u32::MAX, true).is_err());
        assert_eq!(member.counts.ops.load(Ordering::Relaxed), 0);
    }
}
