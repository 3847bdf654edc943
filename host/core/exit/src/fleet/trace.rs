// SPDX-License-Identifier: Apache-2.0
//! The paging of one guest, decided beforehand: accesses to a zipf-distributed working set through
//! a few frames, least recently used first out. What is left are the page-outs and page-ins.

/// One request of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// A get (page in); else a put (page out).
    pub get: bool,
    /// The frame.
    pub frame: u32,
    /// The page.
    pub page: u32,
}

/// Most frames and pages that a request has room for.
pub const MAX_FRAMES: u32 = 1 << 15;
/// As above.
pub const MAX_PAGES: u32 = 1 << 16;

impl Op {
    /// As the word that the guest sends: bit 31 get, bits 16 to 30 the frame, bits 0 to 15 the page.
    pub fn word(self) -> u32 {
        u32::from(self.get) << 31 | self.frame << 16 | self.page
    }

    /// The request in a word, whatever it is: the caller checks its bounds.
    pub fn of(word: u32) -> Self {
        Self { get: word >> 31 == 1, frame: word >> 16 & 0x7fff, page: word & 0xffff }
    }
}

/// What a guest's memory and its accesses look like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Pages that are in memory at once.
    pub frames: u32,
    /// Pages of the working set.
    pub pages: u32,
    /// Exponent of Zipf's law.
    pub zipf: f64,
    /// Requests of a trace, before it is closed.
    pub length: usize,
}

struct Dice(u64);

impl Dice {
    /// splitmix64 (Steele, Lea, Flood 2014): any seed gives a good sequence.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A trace that can be played again and again: it begins and ends with page `i` in frame `i`.
pub fn trace(shape: Shape, seed: u64) -> Vec<Op> {
    let Shape { frames, pages, .. } = shape;
    assert!(frames > 0 && frames < pages && frames <= MAX_FRAMES && pages <= MAX_PAGES);
    let mut dice = Dice(seed);
    // Which page has which rank differs from guest to guest.
    let mut ranked: Vec<u32> = (0..pages).collect();
    for i in (1..ranked.len()).rev() {
        ranked.swap(i, (dice.next() % (i as u64 + 1)) as usize);
    }
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=pages)
        .map(|rank| {
            sum += f64::from(rank).powf(-shape.zipf);
            sum
        })
        .collect();
    let mut holds: Vec<u32> = (0..frames).collect();
    let mut used = vec![0u64; frames as usize];
    let mut ops = Vec::with_capacity(shape.length + 2 * frames as usize);
    for now in 1u64.. {
        if ops.len() >= shape.length {
            break;
        }
        let at = dice.unit() * sum;
        let page = ranked[cumulative.partition_point(|&c| c < at).min(ranked.len() - 1)];
        if let Some(frame) = holds.iter().position(|&p| p == page) {
            used[frame] = now;
            continue;
        }
        let victim = (0..frames as usize).min_by_key(|&f| used[f]).unwrap_or(0);
        let frame = victim as u32;
        ops.push(Op { get: false, frame, page: holds[victim] });
        ops.push(Op { get: true, frame, page });
        holds[victim] = page;
        used[victim] = now;
    }
    close(&mut ops, &holds);
    ops
}

/// Brings every page back to where it began: first all out that are elsewhere, then all in.
fn close(ops: &mut Vec<Op>, holds: &[u32]) {
    let moved = || (0..).zip(holds).filter(|&(frame, &page)| frame != page);
    ops.extend(moved().map(|(frame, &page)| Op { get: false, frame, page }));
    let back: Vec<Op> = moved().map(|(frame, _)| Op { get: true, frame, page: frame }).collect();
    ops.extend(back);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SHAPE: Shape = Shape { frames: 16, pages: 64, zipf: 0.9, length: 600 };

    #[test]
    fn a_trace_never_gets_what_was_not_put_and_can_be_repeated() {
        for seed in 0..20 {
            let ops = trace(SHAPE, seed);
            assert!(ops.len() >= SHAPE.length);
            let mut stored: HashSet<u32> = (16..64).collect();
            let mut holds: Vec<Option<u32>> = (0..16).map(Some).collect();
            for _ in 0..3 {
                for op in &ops {
                    let frame = &mut holds[op.frame as usize];
                    if op.get {
                        assert!(stored.contains(&op.page));
                        *frame = Some(op.page);
                    } else {
                        assert_eq!(*frame, Some(op.page));
                        stored.insert(op.page);
                        *frame = None;
                    }
                }
                assert!(holds.iter().enumerate().all(|(i, &p)| p == Some(i as u32)));
            }
        }
    }

    #[test]
    fn a_word_carries_a_request() {
        for op in [Op { get: true, frame: 0x7fff, page: 0xffff }, Op { get: false, frame: 3, page: 9 }] {
            assert_eq!(Op::of(op.word()), op);
        }
    }

    #[test]
    fn popular_pages_travel_less_often_than_a_uniform_working_set_would_make_them() {
        let skewed = trace(Shape { zipf: 1.2, ..SHAPE }, 1);
        let most = (0..64).map(|p| skewed.iter().filter(|o| o.get && o.page == p).count()).max().unwrap();
        assert!(most < skewed.len() / 2 / 16);
    }
}
