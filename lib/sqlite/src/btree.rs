//! The tree of pages below a table, and the chains of pages that long rows go on in.

use crate::{
    Database, SqliteError,
    limits::{ROW_BYTES_MAX, TABLE_BYTES_MAX},
    record::varint,
};

const INTERIOR: u8 = 0x05;
const LEAF: u8 = 0x0d;

/// Calls `visit` for each row in order: its number and its bytes.
pub fn walk(
    database: &Database,
    root: u32,
    mut visit: impl FnMut(i64, &[u8]) -> Result<(), SqliteError>,
) -> Result<(), SqliteError> {
    let mut seen = vec![false; database.page_count() + 1];
    let mut taken = 0_usize;
    let mut stack = vec![root];
    while let Some(number) = stack.pop() {
        enter(&mut seen, number)?;
        let page = Page::new(database, number)?;
        match page.kind {
            LEAF => {
                for n in 0..page.cells {
                    let cell = page.cell(n)?;
                    let row = row(database, cell, &mut seen)?;
                    taken += row.1.len();
                    if taken > TABLE_BYTES_MAX {
                        return Err(SqliteError::Damaged("its rows overlap"));
                    }
                    visit(row.0, &row.1)?;
                }
            }
            INTERIOR => {
                // The last one first: a stack turns the order around.
                stack.push(page.last_child()?);
                for n in (0..page.cells).rev() {
                    stack.push(u32_at(page.cell(n)?, 0)?);
                }
                if stack.len() > seen.len() {
                    return Err(SqliteError::Damaged("a page is in two places"));
                }
            }
            _ => return Err(SqliteError::Damaged("a page of a table is none")),
        }
    }
    Ok(())
}

fn enter(seen: &mut [bool], number: u32) -> Result<(), SqliteError> {
    match seen.get_mut(number as usize) {
        Some(seen) if !*seen => {
            *seen = true;
            Ok(())
        }
        Some(_) => Err(SqliteError::Damaged("a page is in two places")),
        None => Err(SqliteError::Damaged("it names a page that is not there")),
    }
}

struct Page<'a> {
    bytes: &'a [u8],
    /// Where the header begins: the first page has the file's header before it.
    start: usize,
    kind: u8,
    cells: usize,
    usable: usize,
}

impl<'a> Page<'a> {
    fn new(database: &'a Database, number: u32) -> Result<Page<'a>, SqliteError> {
        let bytes = database.page(number)?;
        let start = if number == 1 { 100 } else { 0 };
        let cells = usize::from(u16::from_be_bytes([bytes[start + 3], bytes[start + 4]]));
        Ok(Page { bytes, start, kind: bytes[start], cells, usable: database.usable })
    }

    fn cell(&self, n: usize) -> Result<&'a [u8], SqliteError> {
        let header = if self.kind == INTERIOR { 12 } else { 8 };
        let at = self.start + header + 2 * n;
        let pointer = self.bytes.get(at..at + 2).ok_or(SqliteError::Damaged("a page has too many cells"))?;
        let offset = usize::from(u16::from_be_bytes([pointer[0], pointer[1]]));
        self.bytes.get(offset..self.usable).ok_or(SqliteError::Damaged("a cell is outside of its page"))
    }

    fn last_child(&self) -> Result<u32, SqliteError> {
        u32_at(self.bytes, self.start + 8)
    }
}

/// A row's number and bytes, from its page and the pages it goes on in.
fn row(database: &Database, cell: &[u8], seen: &mut [bool]) -> Result<(i64, Vec<u8>), SqliteError> {
    const CUT: SqliteError = SqliteError::Damaged("a row is cut off");
    let (length, rest) = varint(cell).ok_or(CUT)?;
    let (number, rest) = varint(rest).ok_or(CUT)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= ROW_BYTES_MAX);
    let length = length.ok_or(SqliteError::Damaged("a row is too long"))?;
    let local = local_bytes(length, database.usable);
    let mut row = rest.get(..local).ok_or(CUT)?.to_vec();
    let mut next = if local < length { u32_at(rest, local)? } else { 0 };
    while row.len() < length {
        enter(seen, next)?;
        let page = database.page(next)?;
        let part = (length - row.len()).min(database.usable - 4);
        row.extend_from_slice(&page[4..4 + part]);
        next = u32_at(page, 0)?;
    }
    Ok((number as i64, row))
}

/// How much of a row of a table is in its leaf.
fn local_bytes(length: usize, usable: usize) -> usize {
    let most = usable - 35;
    if length <= most {
        return length;
    }
    let least = (usable - 12) * 32 / 255 - 23;
    let local = least + (length - least) % (usable - 4);
    if local <= most { local } else { least }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, SqliteError> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_be_bytes).ok_or(SqliteError::Damaged("a page is cut off"))
}
