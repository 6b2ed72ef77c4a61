//! What lies beside a database: the write-ahead log, which holds newer pages, and the rollback journal, which holds older ones.

use std::collections::BTreeMap;

use crate::{SqliteError, limits::FILE_BYTES_MAX};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Pages of the log up to its last commit.
pub struct Log<'a> {
    page_size: usize,
    /// Pages of the database after that commit.
    page_count: usize,
    pages: BTreeMap<u32, &'a [u8]>,
}

/// `None`: nothing in it was committed.
pub fn parse(log: &[u8]) -> Result<Option<Log<'_>>, SqliteError> {
    let Some(header) = log.get(..HEADER) else { return Ok(None) };
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let big = match word(0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        // What is left of a log that was reset is not part of the database.
        _ => return Ok(None),
    };
    let page_size = word(8) as usize;
    if !(512..=65536).contains(&page_size) || !page_size.is_power_of_two() {
        return Err(SqliteError::Damaged("the page size of its log is impossible"));
    }
    let mut sum = checksum((0, 0), &header[..24], big);
    if sum != (word(24), word(28)) {
        return Ok(None);
    }
    let mut current = BTreeMap::new();
    let mut committed = None;
    for frame in log[HEADER..].chunks_exact(FRAME_HEADER + page_size) {
        let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        sum = checksum(checksum(sum, &frame[..8], big), &frame[FRAME_HEADER..], big);
        // The first frame that does not fit is of an earlier round, or was cut off.
        if frame[8..16] != header[16..24] || sum != (word(16), word(20)) || word(0) == 0 {
            break;
        }
        current.insert(word(0), &frame[FRAME_HEADER..]);
        if word(4) != 0 {
            committed = Some((current.clone(), word(4) as usize));
        }
    }
    let Some((pages, page_count)) = committed else { return Ok(None) };
    if (page_count * page_size) as u64 > FILE_BYTES_MAX {
        return Err(SqliteError::Damaged("its log says that it is too large"));
    }
    Ok(Some(Log { page_size, page_count, pages }))
}

impl Log<'_> {
    pub fn apply(self, mut main: Vec<u8>) -> Result<Vec<u8>, SqliteError> {
        main.resize(self.page_count * self.page_size, 0);
        for (number, page) in self.pages {
            let start = (number as usize - 1) * self.page_size;
            // A page past the end was cut off by a later commit.
            if let Some(place) = main.get_mut(start..start + self.page_size) {
                place.copy_from_slice(page);
            }
        }
        Ok(main)
    }
}

fn checksum((mut a, mut b): (u32, u32), bytes: &[u8], big: bool) -> (u32, u32) {
    let word = |four: &[u8]| {
        let four = [four[0], four[1], four[2], four[3]];
        if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    for eight in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(&eight[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&eight[4..])).wrapping_add(a);
    }
    (a, b)
}

/// A journal that still has its head was not finished: the database holds half of a transaction.
pub fn is_hot_journal(journal: &[u8]) -> bool {
    journal.starts_with(&[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7])
}
