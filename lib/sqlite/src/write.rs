//! Writes a database anew: the schema of one that was read, with rows of the caller's. For giving a KubeEdge node back.
//!
//! Not here: changing a file in place. Indexes are built only where SQLite made them by itself for a primary key of text, which is
//! all that KubeEdge's tables have; any other is refused.

use std::collections::BTreeMap;

use crate::{Database, Row, SqliteError, Value, limits::ROW_BYTES_MAX, schema};

const TABLE_LEAF: u8 = 0x0d;
const TABLE_INTERIOR: u8 = 0x05;
const INDEX_LEAF: u8 = 0x0a;
const INDEX_INTERIOR: u8 = 0x02;

impl Database {
    /// The file's bytes, with other rows in the tables named; a row's number must be unique in its table.
    pub fn rewrite(&self, changed: &BTreeMap<String, Vec<Row>>) -> Result<Vec<u8>, SqliteError> {
        if self.bytes[52..56] != [0; 4] {
            return Err(SqliteError::Unsupported("it is one that shrinks by itself (auto_vacuum)"));
        }
        let mut pages = Pages::new(self.page_size, self.usable);
        let mut entries = self.rows_of(1, 5)?;
        let mut tables: BTreeMap<String, (schema::Table, Vec<Row>)> = BTreeMap::new();
        for (_, entry) in &mut entries {
            let kind = entry[0].text();
            let root = match kind.as_str() {
                "table" => self.write_table(&mut pages, entry, changed, &mut tables)?,
                "index" => write_index(&mut pages, entry, &tables)?,
                _ => continue,
            };
            entry[3] = Value::Integer(i64::from(root));
        }
        entries.sort_by_key(|(number, _)| *number);
        let cells = entries
            .iter()
            .map(|(number, values)| pages.table_cell(*number, values))
            .collect::<Result<_, _>>()?;
        pages.table(cells, true);
        let mut bytes = pages.bytes.concat();
        bytes[..100].copy_from_slice(&self.bytes[..100]);
        let count =
            u32::try_from(pages.bytes.len()).map_err(|_| SqliteError::Unsupported("it is too large"))?;
        let counter =
            u32::from_be_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]).wrapping_add(1).to_be_bytes();
        // No write-ahead log, no free pages, and a change that every reader notices.
        bytes[18..20].copy_from_slice(&[1, 1]);
        bytes[24..28].copy_from_slice(&counter);
        bytes[28..32].copy_from_slice(&count.to_be_bytes());
        bytes[32..40].fill(0);
        bytes[92..96].copy_from_slice(&counter);
        Ok(bytes)
    }

    fn write_table(
        &self,
        pages: &mut Pages,
        entry: &[Value],
        changed: &BTreeMap<String, Vec<Row>>,
        tables: &mut BTreeMap<String, (schema::Table, Vec<Row>)>,
    ) -> Result<u32, SqliteError> {
        let name = entry[1].text();
        let table = schema::table(entry)?;
        let old_root = match entry[3] {
            Value::Integer(root) => u32::try_from(root).unwrap_or(0),
            _ => 0,
        };
        let mut rows = match changed.get(&name) {
            Some(rows) => rows.clone(),
            None => self.rows_of(old_root, table.as_ref().map_or(0, |table| table.columns.len()))?,
        };
        rows.sort_by_key(|(number, _)| *number);
        if rows.windows(2).any(|two| two[0].0 == two[1].0) {
            return Err(SqliteError::Unsupported("two rows have one number"));
        }
        // The row's number is not kept twice.
        if let Some(at) = table.as_ref().and_then(|table| table.row_number) {
            for (_, values) in &mut rows {
                values[at] = Value::Null;
            }
        }
        let cells = rows
            .iter()
            .map(|(number, values)| pages.table_cell(*number, values))
            .collect::<Result<_, _>>()?;
        let root = pages.table(cells, false);
        if let Some(table) = table {
            tables.insert(name, (table, rows));
        }
        Ok(root)
    }
}

/// SQLite's own index of a table whose primary key is one column of text.
fn write_index(
    pages: &mut Pages,
    entry: &[Value],
    tables: &BTreeMap<String, (schema::Table, Vec<Row>)>,
) -> Result<u32, SqliteError> {
    const OTHER: SqliteError = SqliteError::Unsupported("it has an index of its own making");
    let of_key = matches!(entry[4], Value::Null) && entry[1].text().ends_with("_1");
    let Some((table, rows)) = tables.get(&entry[2].text()).filter(|_| of_key) else { return Err(OTHER) };
    let at = table.text_key.ok_or(OTHER)?;
    let mut keys = Vec::new();
    for (number, values) in rows {
        match values.get(at) {
            Some(Value::Text(text)) => keys.push((text.as_str(), *number)),
            _ => return Err(SqliteError::Unsupported("a key is no text")),
        }
    }
    // SQLite's BINARY order is that of the bytes.
    keys.sort();
    if keys.windows(2).any(|two| two[0].0 == two[1].0) {
        return Err(SqliteError::Unsupported("two rows have one key"));
    }
    let cells = keys
        .into_iter()
        .map(|(key, number)| pages.index_cell(&[Value::Text(key.into()), Value::Integer(number)]))
        .collect::<Result<_, _>>()?;
    Ok(pages.index(cells))
}

/// A file in the making. The first page is kept for the schema.
struct Pages {
    bytes: Vec<Vec<u8>>,
    size: usize,
    usable: usize,
}

impl Pages {
    fn new(size: usize, usable: usize) -> Pages {
        Pages { bytes: vec![vec![0; size]], size, usable }
    }

    fn add(&mut self, page: Vec<u8>) -> u32 {
        self.bytes.push(page);
        self.bytes.len() as u32
    }

    /// What of a row stays in its cell, with the rest on pages of its own.
    fn spill(&mut self, payload: &[u8], most: usize) -> Result<Vec<u8>, SqliteError> {
        if payload.len() > ROW_BYTES_MAX {
            return Err(SqliteError::Unsupported("a row is too long"));
        }
        if payload.len() <= most {
            return Ok(payload.to_vec());
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let local = least + (payload.len() - least) % (self.usable - 4);
        let local = if local <= most { local } else { least };
        let mut next = 0_u32;
        for part in payload[local..].chunks(self.usable - 4).rev() {
            let mut page = next.to_be_bytes().to_vec();
            page.extend_from_slice(part);
            page.resize(self.size, 0);
            next = self.add(page);
        }
        let mut cell = payload[..local].to_vec();
        cell.extend(next.to_be_bytes());
        Ok(cell)
    }

    fn table_cell(&mut self, number: i64, values: &[Value]) -> Result<(i64, Vec<u8>), SqliteError> {
        let payload = record(values);
        let mut cell = varint(payload.len() as u64);
        cell.extend(varint(number as u64));
        cell.extend(self.spill(&payload, self.usable - 35)?);
        Ok((number, cell))
    }

    fn index_cell(&mut self, values: &[Value]) -> Result<Vec<u8>, SqliteError> {
        let payload = record(values);
        let mut cell = varint(payload.len() as u64);
        cell.extend(self.spill(&payload, (self.usable - 12) * 64 / 255 - 23)?);
        Ok(cell)
    }

    /// Bytes for cells and their pointers, on a page that is not the first.
    fn room(&self, interior: bool) -> usize {
        // The first page has 100 bytes less; all are filled as if they were it.
        self.usable - 100 - if interior { 12 } else { 8 }
    }

    /// A tree of rows; its root. `first`: the root is the first page.
    fn table(&mut self, cells: Vec<(i64, Vec<u8>)>, first: bool) -> u32 {
        let mut level: Vec<(i64, Made)> = Vec::new();
        for group in groups(cells, self.room(false), |(_, cell)| cell.len()) {
            let last = group.last().map_or(0, |(number, _)| *number);
            let cells = group.into_iter().map(|(_, cell)| cell).collect();
            level.push((last, Made { kind: TABLE_LEAF, cells, right: 0 }));
        }
        while level.len() > 1 {
            let children: Vec<(i64, u32)> =
                level.into_iter().map(|(last, made)| (last, self.place(made, false))).collect();
            level = groups(children, self.room(true), |_| 4 + 9)
                .into_iter()
                .map(|mut group| {
                    let (last, right) = group.pop().expect("a group is not empty");
                    let cell = |(number, child): (i64, u32)| {
                        [&child.to_be_bytes()[..], &varint(number as u64)].concat()
                    };
                    (last, Made { kind: TABLE_INTERIOR, cells: group.into_iter().map(cell).collect(), right })
                })
                .collect();
        }
        let root =
            level.pop().map_or(Made { kind: TABLE_LEAF, cells: Vec::new(), right: 0 }, |(_, made)| made);
        self.place(root, first)
    }

    /// A tree of keys. Those between two pages stand above them, and only there.
    fn index(&mut self, cells: Vec<Vec<u8>>) -> u32 {
        let mut level: Vec<(Made, Option<Vec<u8>>)> = split(cells, self.room(false), Vec::len)
            .into_iter()
            .map(|(cells, between)| (Made { kind: INDEX_LEAF, cells, right: 0 }, between))
            .collect();
        while level.len() > 1 {
            let mut children = Vec::new();
            let mut last = 0;
            for (made, between) in level {
                last = self.place(made, false);
                if let Some(between) = between {
                    children.push([&last.to_be_bytes()[..], &between].concat());
                }
            }
            level = split(children, self.room(true), Vec::len)
                .into_iter()
                .map(|(cells, between)| {
                    // What goes up leaves its left child behind, as the rightmost of its page.
                    let right =
                        between.as_ref().map_or(last, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
                    (Made { kind: INDEX_INTERIOR, cells, right }, between.map(|b| b[4..].to_vec()))
                })
                .collect();
        }
        let (root, _) = level.pop().expect("there is at least an empty leaf");
        self.place(root, false)
    }

    fn place(&mut self, made: Made, first: bool) -> u32 {
        let start = if first { 100 } else { 0 };
        let mut page = vec![0; self.size];
        let count = made.cells.len() as u16;
        let mut end = self.usable;
        let mut at = start + if made.is_interior() { 12 } else { 8 };
        for cell in &made.cells {
            end -= cell.len();
            page[end..end + cell.len()].copy_from_slice(cell);
            page[at..at + 2].copy_from_slice(&(end as u16).to_be_bytes());
            at += 2;
        }
        page[start] = made.kind;
        page[start + 3..start + 5].copy_from_slice(&count.to_be_bytes());
        // 65536 is written as 0.
        page[start + 5..start + 7].copy_from_slice(&(end as u16).to_be_bytes());
        if made.is_interior() {
            page[start + 8..start + 12].copy_from_slice(&made.right.to_be_bytes());
        }
        match first {
            true => {
                self.bytes[0] = page;
                1
            }
            false => self.add(page),
        }
    }
}

struct Made {
    kind: u8,
    cells: Vec<Vec<u8>>,
    right: u32,
}

impl Made {
    fn is_interior(&self) -> bool {
        matches!(self.kind, TABLE_INTERIOR | INDEX_INTERIOR)
    }
}

/// Items in pages: as many as fit, each with a pointer of two bytes, and no page empty.
fn groups<T>(items: Vec<T>, room: usize, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut used = usize::MAX;
    for item in items {
        let size = size(&item) + 2;
        if used.saturating_add(size) > room {
            groups.push(Vec::new());
            used = 0;
        }
        used += size;
        groups.last_mut().expect("one was just made").push(item);
    }
    // An interior page needs two children.
    if let [.., before, last] = &mut groups[..]
        && last.len() == 1
        && before.len() > 2
        && let Some(moved) = before.pop()
    {
        last.insert(0, moved);
    }
    groups
}

/// As [`groups`], with one item between each two pages taken out. At least one page, maybe empty.
fn split<T>(items: Vec<T>, room: usize, size: impl Fn(&T) -> usize) -> Vec<(Vec<T>, Option<T>)> {
    let mut pages: Vec<(Vec<T>, Option<T>)> = vec![(Vec::new(), None)];
    let mut used = 0;
    let mut items = items.into_iter().peekable();
    while let Some(item) = items.next() {
        let size = size(&item) + 2;
        let (cells, between) = pages.last_mut().expect("there is always one");
        if used + size <= room || cells.is_empty() {
            cells.push(item);
            used += size;
            continue;
        }
        // The last item cannot stand between: nothing would follow it.
        match items.peek() {
            Some(_) => {
                *between = Some(item);
                pages.push((Vec::new(), None));
                used = 0;
            }
            None => {
                *between = cells.pop();
                pages.push((vec![item], None));
            }
        }
    }
    pages
}

fn record(values: &[Value]) -> Vec<u8> {
    let (mut types, mut body) = (Vec::new(), Vec::new());
    for value in values {
        let kind = match value {
            Value::Null => 0,
            Value::Integer(number) => {
                let (kind, bytes) = match number {
                    -0x80..=0x7f => (1, 1),
                    -0x8000..=0x7fff => (2, 2),
                    -0x80_0000..=0x7f_ffff => (3, 3),
                    -0x8000_0000..=0x7fff_ffff => (4, 4),
                    -0x8000_0000_0000..=0x7fff_ffff_ffff => (5, 6),
                    _ => (6, 8),
                };
                body.extend_from_slice(&number.to_be_bytes()[8 - bytes..]);
                kind
            }
            Value::Real(number) => {
                body.extend(number.to_be_bytes());
                7
            }
            Value::Text(text) => {
                body.extend(text.as_bytes());
                13 + 2 * text.len() as u64
            }
            Value::Blob(bytes) => {
                body.extend(bytes);
                12 + 2 * bytes.len() as u64
            }
        };
        types.extend(varint(kind));
    }
    // The header's length counts itself.
    let mut length = types.len() + 1;
    if varint(length as u64).len() > 1 {
        length = types.len() + 2;
    }
    [varint(length as u64), types, body].concat()
}

fn varint(number: u64) -> Vec<u8> {
    if number >> 56 != 0 {
        // Eight groups of seven bits above a whole last byte.
        let mut bytes: Vec<u8> = (0..8).map(|n| (number >> (8 + 7 * (7 - n))) as u8 & 0x7f | 0x80).collect();
        bytes.push(number as u8);
        return bytes;
    }
    let mut bytes = vec![number as u8 & 0x7f];
    let mut rest = number >> 7;
    while rest != 0 {
        bytes.push(rest as u8 & 0x7f | 0x80);
        rest >>= 7;
    }
    bytes.reverse();
    bytes
}
