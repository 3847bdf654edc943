// SPDX-License-Identifier: Apache-2.0
//! Samples of a run whose length nobody knows: evenly spread, bounded in number.

/// Keeps every n-th value; when full, every other one goes and n doubles.
pub struct Reservoir {
    kept: Vec<u64>,
    most: usize,
    stride: u64,
    seen: u64,
}

impl Reservoir {
    /// At most `most` (at least two) values.
    pub fn new(most: usize) -> Self {
        let most = most.max(2);
        Self { kept: Vec::with_capacity(most), most, stride: 1, seen: 0 }
    }

    /// One more.
    #[inline]
    pub fn push(&mut self, value: u64) {
        if self.seen.is_multiple_of(self.stride) {
            if self.kept.len() == self.most {
                let mut i = 0;
                self.kept.retain(|_| {
                    i += 1;
                    i % 2 == 1
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.kept.push(value);
            }
        }
        self.seen += 1;
    }

    /// What was kept.
    pub fn values(&self) -> &[u64] {
        &self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenly_spread_and_bounded() {
        let mut r = Reservoir::new(8);
        (0..1000).for_each(|v| r.push(v));
        let gaps: Vec<u64> = r.values().windows(2).map(|w| w[1] - w[0]).collect();
        assert!(r.values().len() <= 8 && r.values().len() >= 4);
        assert!(gaps.iter().all(|&g| g == gaps[0]), "{gaps:?}");
    }
}
