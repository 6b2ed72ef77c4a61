//! Reads database files of SQLite 3, so that a KubeEdge node's database can be taken over without linking SQLite (1 MB).
//!
//! Not here: SQL, reading of indexes, changing a file in place. Tables are read in rowid order, whole; [`Database::rewrite`] makes
//! a new file of them.
//!
//! Invariants
//! - Any bytes are a database or an error: every length is checked, every page is visited once, nothing recurses.
//! - Only what was committed is seen: frames of the write-ahead log count up to its last commit, and a database whose writer was
//!   cut off in the middle (a hot rollback journal) is refused.
//!
//! Source of the format: sqlite.org/fileformat2.html. Start at [`Database::open`].

mod btree;
pub mod limits;
mod record;
mod schema;
#[cfg(test)]
mod tests;
mod wal;
mod write;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use record::Value;
pub use schema::Table;

use limits::FILE_BYTES_MAX;

#[derive(Debug, thiserror::Error)]
pub enum SqliteError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes; make it smaller with: sqlite3 {path} VACUUM")]
    TooLarge { path: PathBuf },
    #[error(
        "{path} shows that a program was cut off while it wrote the database; start that program once and stop it, it repairs it then"
    )]
    HotJournal { path: PathBuf },
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("it is not a database of SQLite 3 that can be read here: {0}")]
    Unsupported(&'static str),
    #[error("it has no table {0}")]
    NoTable(String),
}

/// A row: its number, and a value for each column of the table.
pub type Row = (i64, Vec<Value>);

/// A database in memory, as of its last commit.
pub struct Database {
    bytes: Vec<u8>,
    page_size: usize,
    /// Bytes of a page that hold content.
    usable: usize,
}

impl Database {
    /// Reads the file, and the write-ahead log beside it. The file is not locked: its program must have ended.
    pub fn open(path: &Path) -> Result<Database, SqliteError> {
        let beside = |end: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        let main = read(path)?;
        let journal = beside("-journal");
        if read_if_there(&journal)?.is_some_and(|bytes| wal::is_hot_journal(&bytes)) {
            return Err(SqliteError::HotJournal { path: journal });
        }
        let log = read_if_there(&beside("-wal"))?;
        Database::parse(main, log.as_deref())
    }

    /// The same of bytes. `log`: the write-ahead log.
    pub fn parse(main: Vec<u8>, log: Option<&[u8]>) -> Result<Database, SqliteError> {
        let bytes = match log.map(wal::parse).transpose()?.flatten() {
            Some(log) => log.apply(main)?,
            None => main,
        };
        let header = bytes.get(..100).ok_or(SqliteError::Damaged("it is shorter than its header"))?;
        if !header.starts_with(b"SQLite format 3\0") {
            return Err(SqliteError::Unsupported("it does not begin as one"));
        }
        let page_size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65536,
            size => usize::from(size),
        };
        if !(512..=65536).contains(&page_size) || !page_size.is_power_of_two() {
            return Err(SqliteError::Damaged("its page size is impossible"));
        }
        let usable = page_size - usize::from(header[20]);
        if usable < 480 {
            return Err(SqliteError::Damaged("too much of its pages is reserved"));
        }
        // 0: nothing was ever written.
        if header[59] > 1 || header[56..59] != [0, 0, 0] {
            return Err(SqliteError::Unsupported("its text is UTF-16"));
        }
        Ok(Database { bytes, page_size, usable })
    }

    /// The tables that hold a person's data.
    pub fn tables(&self) -> Result<Vec<Table>, SqliteError> {
        let mut tables = Vec::new();
        for (_, values) in self.rows_of(1, 5)? {
            if let Some(table) = schema::table(&values)? {
                tables.push(table);
            }
        }
        Ok(tables)
    }

    /// All rows of a table, in the order of their numbers.
    pub fn rows(&self, name: &str) -> Result<Vec<Row>, SqliteError> {
        let tables = self.tables()?;
        let table = tables.iter().find(|known| known.name.eq_ignore_ascii_case(name));
        let table = table.ok_or_else(|| SqliteError::NoTable(name.into()))?;
        let mut rows = self.rows_of(table.root, table.columns.len())?;
        if let Some(at) = table.row_number {
            for (number, values) in &mut rows {
                values[at] = Value::Integer(*number);
            }
        }
        Ok(rows)
    }

    fn rows_of(&self, root: u32, columns: usize) -> Result<Vec<Row>, SqliteError> {
        let mut rows = Vec::new();
        btree::walk(self, root, |number, payload| {
            rows.push((number, record::parse(payload, columns)?));
            Ok(())
        })?;
        Ok(rows)
    }

    fn page(&self, number: u32) -> Result<&[u8], SqliteError> {
        const OUTSIDE: SqliteError = SqliteError::Damaged("it names a page that is not there");
        let start =
            (number as usize).checked_sub(1).and_then(|n| n.checked_mul(self.page_size)).ok_or(OUTSIDE)?;
        self.bytes.get(start..start.saturating_add(self.page_size)).ok_or(OUTSIDE)
    }

    fn page_count(&self) -> usize {
        self.bytes.len() / self.page_size
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SqliteError> {
    let failed = |source| SqliteError::Read { path: path.into(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(SqliteError::TooLarge { path: path.into() });
    }
    fs::read(path).map_err(failed)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, SqliteError> {
    match path.exists() {
        true => read(path).map(Some),
        false => Ok(None),
    }
}

/// Any bytes are a database or an error; never a panic, never without end. For random bytes.
pub fn fuzz_database(data: &[u8]) {
    // The first byte says whether the rest is a database or the log of a small one.
    let Some((kind, rest)) = data.split_first() else { return };
    let parsed = match kind % 2 {
        0 => Database::parse(rest.to_vec(), None),
        _ => Database::parse(Vec::new(), Some(rest)),
    };
    let Ok(database) = parsed else { return };
    for table in database.tables().unwrap_or_default() {
        let _ = database.rows(&table.name);
    }
}
