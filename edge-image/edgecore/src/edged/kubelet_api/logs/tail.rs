//! Where the last lines of a log begin, found by reading blocks from the end.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{Streams, line::parse_head};
use crate::edged::kubelet_api::limits::{LOG_BLOCK_BYTES, LOG_HEAD_BYTES_MAX};

/// Counts lines while entries come from the last to the first, over all files of a log.
pub struct Count {
    wanted: u64,
    streams: Streams,
    any: bool,
}

impl Count {
    pub fn new(lines: u64, streams: Streams) -> Count {
        Count { wanted: lines, streams, any: false }
    }

    /// True: this entry ends the line before those that are wanted.
    fn entry(&mut self, head: &[u8]) -> bool {
        let Some(head) = parse_head(head).filter(|head| head.is_of(self.streams)) else { return false };
        // Parts belong to the line that a whole entry ends; the last line may not have ended yet.
        let ends_line = !head.partial || !self.any;
        self.any = true;
        if !ends_line {
            return false;
        }
        match self.wanted.checked_sub(1) {
            None => true,
            Some(left) => {
                self.wanted = left;
                false
            }
        }
    }
}

/// The offset where the wanted lines begin; `None`: at or before the file's beginning.
pub fn find(file: &File, end: u64, count: &mut Count) -> io::Result<Option<u64>> {
    let mut block = vec![0; LOG_BLOCK_BYTES + LOG_HEAD_BYTES_MAX];
    let (mut high, mut entry_end) = (end, end);
    while high > 0 {
        let low = high.saturating_sub(LOG_BLOCK_BYTES as u64);
        // With the beginning of the next block, where a head may go on.
        let len = (end.min(high + LOG_HEAD_BYTES_MAX as u64) - low) as usize;
        file.read_exact_at(&mut block[..len], low)?;
        let own = (high - low) as usize;
        for at in (0..own).rev().filter(|at| block[*at] == b'\n') {
            let start = low + at as u64 + 1;
            if start < entry_end && count.entry(&block[at + 1..len.min(at + 1 + LOG_HEAD_BYTES_MAX)]) {
                return Ok(Some(entry_end));
            }
            entry_end = start;
        }
        high = low;
        if high == 0 && entry_end > 0 && count.entry(&block[..len.min(LOG_HEAD_BYTES_MAX)]) {
            return Ok(Some(entry_end));
        }
    }
    Ok(None)
}
