//! For seeded tests, here and in crates that test over this one: random numbers, and a disk that only remembers.

use std::collections::BTreeMap;

use super::{Change, Key};

/// What a commit does to a disk.
pub fn apply(disk: &mut BTreeMap<Key, Vec<u8>>, changes: Vec<Change>) {
    for Change { key, value } in changes {
        match value {
            Some(value) => _ = disk.insert(key, value),
            None => _ = disk.remove(&key),
        }
    }
}

/// SplitMix64: the same seed gives the same numbers on every machine.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}
