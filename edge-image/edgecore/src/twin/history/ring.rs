//! The values of one property, oldest first, as bytes: one of a few characters takes about eight of them, where its [`Entry`] would
//! take sixty.

use std::collections::VecDeque;

use super::Entry;

/// Room is made in such steps. Not doubled: rings would take twice what they are counted for.
const STEP: usize = 128;

/// An entry is the zigzag of its distance in time from the one before, the value's length with a bit that says whether a quality
/// follows, the value, and then the quality's length and text. Numbers are in groups of seven bits, the lowest first.
#[derive(Debug, Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    len: usize,
    /// What the oldest entry's distance counts from.
    base_ms: i64,
    newest_ms: i64,
}

impl Ring {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What it grew by.
    pub fn push(&mut self, entry: &Entry) -> usize {
        if self.len == 0 {
            (self.base_ms, self.newest_ms) = (entry.at_ms, entry.at_ms);
        }
        let distance = entry.at_ms.wrapping_sub(self.newest_ms);
        let before = self.bytes.len();
        let (value, quality) = (entry.value.as_bytes(), entry.quality.as_bytes());
        let room = before + value.len() + quality.len() + 3 * 10;
        if self.bytes.capacity() < room {
            self.bytes.reserve_exact((room - before).next_multiple_of(STEP));
        }
        self.number((distance << 1 ^ distance >> 63) as u64);
        self.number((value.len() as u64) << 1 | u64::from(!quality.is_empty()));
        self.bytes.extend(value);
        if !quality.is_empty() {
            self.number(quality.len() as u64);
            self.bytes.extend(quality);
        }
        self.newest_ms = entry.at_ms;
        self.len += 1;
        self.bytes.len() - before
    }

    /// What it shrank by.
    pub fn drop_oldest(&mut self, count: usize) -> usize {
        let mut entries = self.entries();
        entries.by_ref().take(count).for_each(drop);
        let (at_ms, left, dropped) = (entries.at_ms, entries.left, entries.taken);
        self.base_ms = at_ms;
        self.len = left;
        self.bytes.drain(..dropped);
        dropped
    }

    pub fn shrink(&mut self) {
        self.bytes.shrink_to(self.bytes.len() + STEP);
    }

    pub fn entries(&self) -> Entries<'_> {
        Entries { bytes: &self.bytes, taken: 0, at_ms: self.base_ms, left: self.len }
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push_back(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push_back(number as u8);
    }
}

/// Oldest first.
pub(super) struct Entries<'a> {
    bytes: &'a VecDeque<u8>,
    taken: usize,
    at_ms: i64,
    left: usize,
}

impl Entries<'_> {
    fn number(&mut self) -> u64 {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.bytes[self.taken];
            self.taken += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number;
            }
            shift += 7;
        }
    }

    fn text(&mut self, len: u64) -> Box<str> {
        let text: Vec<u8> = self.bytes.range(self.taken..self.taken + len as usize).copied().collect();
        self.taken += text.len();
        String::from_utf8(text).expect("push took it from a text").into()
    }
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        self.left = self.left.checked_sub(1)?;
        let distance = self.number();
        self.at_ms = self.at_ms.wrapping_add((distance >> 1) as i64 ^ -((distance & 1) as i64));
        let len = self.number();
        let value = self.text(len >> 1);
        let quality = match len & 1 {
            0 => Box::default(),
            _ => {
                let len = self.number();
                self.text(len)
            }
        };
        Some(Entry { at_ms: self.at_ms, value, quality })
    }
}
