// SPDX-License-Identifier: Apache-2.0
//! Bytes in pieces: a descriptor chain in guest memory, or one buffer.
//!
//! A guest may change its memory at any time, so what matters is copied out once; pages go to and
//! from the store where they lie.

use std::sync::atomic::{Ordering, compiler_fence};

/// A run of bytes; laid out as `struct iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Segment {
    /// The first byte.
    pub ptr: *mut u8,
    /// How many.
    pub len: usize,
}

impl Segment {
    /// A buffer to be read from. It must not be given where a reply is written.
    pub fn reading(bytes: &[u8]) -> Self {
        Self { ptr: bytes.as_ptr().cast_mut(), len: bytes.len() }
    }

    /// A buffer to be written to.
    pub fn writing(bytes: &mut [u8]) -> Self {
        Self { ptr: bytes.as_mut_ptr(), len: bytes.len() }
    }
}

/// Bytes in all pieces together.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().fold(0, |sum: u64, s| sum.saturating_add(s.len as u64))
}

/// Walks over pieces from front to back.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    segments: &'a [Segment],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(segments: &'a [Segment]) -> Self {
        Self { segments, offset: 0 }
    }

    /// Where the next bytes lie, at most `most` of them; `None` at the end.
    fn run(&mut self, most: usize) -> Option<(*mut u8, usize)> {
        loop {
            let segment = self.segments.first()?;
            let left = segment.len - self.offset;
            if left > 0 {
                let len = left.min(most);
                let at = segment.ptr.wrapping_add(self.offset);
                self.offset += len;
                return Some((at, len));
            }
            self.segments = &self.segments[1..];
            self.offset = 0;
        }
    }

    fn each(&mut self, len: usize, mut f: impl FnMut(usize, *mut u8, usize)) {
        let mut done = 0;
        while done < len {
            let Some((at, n)) = self.run(len - done) else { return };
            f(done, at, n);
            done += n;
        }
    }

    /// The next `len` bytes, if they lie in one piece.
    pub fn whole(&mut self, len: usize) -> Option<*mut u8> {
        let mut ahead = self.clone();
        let (at, n) = ahead.run(len)?;
        if n < len {
            return None;
        }
        *self = ahead;
        Some(at)
    }

    pub fn skip(&mut self, len: usize) {
        self.each(len, |_, _, _| ());
    }

    /// Copies the next bytes out; what is not there stays as it is in `out`.
    ///
    /// # Safety
    /// The pieces are valid for reads; others may write to them meanwhile.
    pub unsafe fn read(&mut self, out: &mut [u8]) {
        self.each(out.len(), |done, at, n| {
            // SAFETY: by the caller; `done + n` is within `out`, which is ours alone.
            unsafe { std::ptr::copy_nonoverlapping(at.cast_const(), out.as_mut_ptr().add(done), n) };
        });
        // What was copied is what is looked at: the compiler does not go back for it.
        compiler_fence(Ordering::AcqRel);
    }

    /// Copies bytes in.
    ///
    /// # Safety
    /// The pieces are valid for writes; others may access them meanwhile.
    pub unsafe fn write(&mut self, data: &[u8]) {
        self.each(data.len(), |done, at, n| {
            // SAFETY: by the caller; `done + n` is within `data`, which nobody else writes.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().add(done), at, n) };
        });
    }

    /// Writes zeroes.
    ///
    /// # Safety
    /// As [`Self::write`].
    pub unsafe fn zero(&mut self, len: usize) {
        self.each(len, |_, at, n| {
            // SAFETY: by the caller.
            unsafe { std::ptr::write_bytes(at, 0, n) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_walked_over() {
        let (mut a, mut b) = (*b"abc", *b"defgh");
        let pieces = [
            Segment::writing(&mut a),
            Segment { ptr: std::ptr::null_mut(), len: 0 },
            Segment::writing(&mut b),
        ];
        assert_eq!(total(&pieces), 8);
        let mut cursor = Cursor::new(&pieces);
        let mut out = [0; 4];
        // SAFETY: (all) the arrays live, and only the cursor touches them meanwhile.
        unsafe { cursor.read(&mut out) };
        assert_eq!(&out, b"abcd");
        let mut other = cursor.clone();
        assert!(other.whole(5).is_none());
        assert!(other.whole(4).is_some());
        assert!(other.whole(1).is_none());
        let mut start = Cursor::new(&pieces);
        assert!(start.whole(4).is_none());
        start.skip(2);
        // SAFETY: as above.
        unsafe { start.write(b"xy") };
        // SAFETY: as above.
        unsafe { start.zero(100) };
        assert_eq!((&a, &b), (b"abx", b"y\0\0\0\0"));
    }
}
