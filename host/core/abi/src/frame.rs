// SPDX-License-Identifier: Apache-2.0
//! Messages on a byte stream: cut out of whatever pieces arrive, in bounded memory.
//!
//! A host's reader drops everything until its own SYNC comes back, a guest's until any SYNC. Then
//! frames follow each other; one that is none ends the stream for good.

use crate::wire::{BATCH_MAX, DATA_MAX, ITEM_SIZE, REQUEST_SIZE};

/// Bytes of `struct tmem_frame`.
pub const FRAME_SIZE: usize = 8;
/// `TMEM_FRAME_MAX`: bytes behind the header of a request or reply frame.
pub const FRAME_MAX: usize = DATA_MAX as usize + REQUEST_SIZE + ITEM_SIZE * BATCH_MAX as usize;
/// `TMEM_CONTROL_MAX`: bytes behind the header of a control frame.
pub const CONTROL_MAX: usize = 65536;
/// `TMEM_SYNC_SIZE`: bytes behind the header of a SYNC frame.
pub const SYNC_SIZE: usize = 16;

/// What a frame carries: `TMEM_FRAME_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A request with what it sends.
    Request = 0x716d_7430,
    /// A reply with what it fetches.
    Reply = 0x726d_7430,
    /// One JSON object.
    Control = 0x636d_7430,
    /// The stream starts anew.
    Sync = 0x736d_7430,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Request, Self::Reply, Self::Control, Self::Sync];

    fn most(self) -> usize {
        match self {
            Self::Request | Self::Reply => FRAME_MAX,
            Self::Control => CONTROL_MAX,
            Self::Sync => SYNC_SIZE,
        }
    }
}

/// The header of a frame of `length` bytes.
pub fn header(kind: Kind, length: u32) -> [u8; FRAME_SIZE] {
    let mut raw = [0; FRAME_SIZE];
    raw[..4].copy_from_slice(&(kind as u32).to_le_bytes());
    raw[4..].copy_from_slice(&length.to_le_bytes());
    raw
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Requests come; before them the SYNC that was sent.
    Host([u8; SYNC_SIZE]),
    /// Replies come; before them a SYNC that is to be answered.
    Guest,
}

/// One whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it carries.
    pub kind: Kind,
    /// What is behind its header.
    pub body: &'a [u8],
}

/// Bytes that are no frame: the stream is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame {
    /// As it came.
    pub magic: u32,
    /// As it came.
    pub length: u32,
}

impl std::fmt::Display for BadFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no frame: magic {:#010x}, length {}", self.magic, self.length)
    }
}

impl std::error::Error for BadFrame {}

enum State {
    Seeking,
    Reading,
    Ended(BadFrame),
}

/// Cuts frames out of a stream.
pub struct FrameReader {
    side: Side,
    state: State,
    /// A frame that has not come whole, or the last bytes seen while seeking.
    buffer: Vec<u8>,
    /// The buffer holds a frame that was handed out.
    spent: bool,
}

impl FrameReader {
    /// At the start of a stream.
    pub fn new(side: Side) -> Self {
        Self { side, state: State::Seeking, buffer: Vec::new(), spent: false }
    }

    /// Bytes held of what is not whole yet.
    pub fn held(&self) -> usize {
        if self.spent { 0 } else { self.buffer.len() }
    }

    /// True from the SYNC on.
    pub fn in_step(&self) -> bool {
        matches!(self.state, State::Reading)
    }

    /// The next frame, once it is whole; takes what it needs off the front of `input`. `None`: all
    /// was taken. A guest is given the SYNC that it has to answer, a host its own when it is back.
    ///
    /// # Errors
    /// No frame: then and ever after.
    pub fn next<'f, 'i: 'f>(&'f mut self, input: &mut &'i [u8]) -> Result<Option<Frame<'f>>, BadFrame> {
        if std::mem::take(&mut self.spent) {
            self.buffer.clear();
            // What was needed once for a page of 2 MiB is not kept for small ones.
            self.buffer.shrink_to(64 << 10);
        }
        match self.state {
            State::Ended(bad) => return Err(bad),
            State::Seeking => return Ok(self.seek(input)),
            State::Reading => {}
        }
        self.fill(input, FRAME_SIZE);
        if self.buffer.len() < FRAME_SIZE {
            return Ok(None);
        }
        let (kind, length) = match self.check() {
            Ok(checked) => checked,
            Err(bad) => {
                self.state = State::Ended(bad);
                self.buffer = Vec::new();
                return Err(bad);
            }
        };
        if self.buffer.len() == FRAME_SIZE && input.len() >= length {
            // All of it is there: nothing is copied.
            let (body, rest) = input.split_at(length);
            *input = rest;
            self.spent = true;
            return Ok(Some(Frame { kind, body }));
        }
        self.fill(input, FRAME_SIZE + length);
        if self.buffer.len() < FRAME_SIZE + length {
            return Ok(None);
        }
        self.spent = true;
        Ok(Some(Frame { kind, body: &self.buffer[FRAME_SIZE..] }))
    }

    /// Moves bytes from the input until the buffer has `want`.
    fn fill(&mut self, input: &mut &[u8], want: usize) {
        let n = want.saturating_sub(self.buffer.len()).min(input.len());
        let (now, rest) = input.split_at(n);
        self.buffer.extend_from_slice(now);
        *input = rest;
    }

    fn check(&self) -> Result<(Kind, usize), BadFrame> {
        let word = |at: usize| {
            let mut raw = [0; 4];
            raw.copy_from_slice(&self.buffer[at..at + 4]);
            u32::from_le_bytes(raw)
        };
        let (magic, length) = (word(0), word(4));
        let wrong = match self.side {
            Side::Host(_) => Kind::Reply,
            Side::Guest => Kind::Request,
        };
        Kind::ALL
            .into_iter()
            .find(|&k| k as u32 == magic && k != wrong)
            .filter(|&k| length as usize <= k.most() && (k != Kind::Sync || length as usize == SYNC_SIZE))
            .map(|k| (k, length as usize))
            .ok_or(BadFrame { magic, length })
    }

    /// Drops bytes until the SYNC that is waited for.
    fn seek(&mut self, input: &mut &[u8]) -> Option<Frame<'_>> {
        const WHOLE: usize = FRAME_SIZE + SYNC_SIZE;
        let head = header(Kind::Sync, SYNC_SIZE as u32);
        let mut pattern = head.to_vec();
        if let Side::Host(token) = self.side {
            pattern.extend_from_slice(&token);
        }
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.buffer.push(byte);
            // Keep the longest end of what came that may be the start of the frame.
            while !agrees(&self.buffer, &pattern) {
                self.buffer.remove(0);
            }
            if self.buffer.len() == WHOLE {
                self.state = State::Reading;
                self.spent = true;
                return Some(Frame { kind: Kind::Sync, body: &self.buffer[FRAME_SIZE..] });
            }
        }
        None
    }
}

fn agrees(buffer: &[u8], pattern: &[u8]) -> bool {
    let n = buffer.len().min(pattern.len());
    buffer[..n] == pattern[..n]
}
