//! The table of tables, and the column names in a CREATE TABLE.

use crate::{SqliteError, Value};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub root: u32,
    pub columns: Vec<String>,
    /// The column that is the row's number (INTEGER PRIMARY KEY); the row itself does not hold it.
    pub row_number: Option<usize>,
    /// The column that alone is the primary key, where it is none of integers.
    pub text_key: Option<usize>,
}

impl Table {
    /// Where a column is, by its name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.eq_ignore_ascii_case(name))
    }
}

/// A row of `sqlite_schema`: type, name, tbl_name, rootpage, sql. `None`: not a table of somebody's data.
pub fn table(values: &[Value]) -> Result<Option<Table>, SqliteError> {
    let [Value::Text(kind), Value::Text(name), _, Value::Integer(root), Value::Text(sql)] = values else {
        return Ok(None);
    };
    if kind != "table" || name.starts_with("sqlite_") || *root == 0 {
        return Ok(None);
    }
    let root = u32::try_from(*root).map_err(|_| SqliteError::Damaged("a table begins nowhere"))?;
    let open = sql.find('(').ok_or(SqliteError::Unsupported("a table has no columns"))?;
    let close = sql.rfind(')').filter(|close| *close > open);
    let close = close.ok_or(SqliteError::Damaged("a table's definition is cut off"))?;
    if sql[close..].to_ascii_uppercase().contains("WITHOUT") {
        return Err(SqliteError::Unsupported("a table is WITHOUT ROWID"));
    }
    let mut columns = Vec::new();
    let (mut row_number, mut text_key) = (None, None);
    for part in parts(&sql[open + 1..close]) {
        let Some((column, rest)) = name_of(part) else { continue };
        let rest = rest.to_ascii_uppercase();
        let mut words = rest.split_whitespace();
        if words.next() == Some("INTEGER") && rest.contains("PRIMARY KEY") {
            row_number = Some(columns.len());
        }
        columns.push(column);
    }
    // `id integer, ... PRIMARY KEY (id)`, as object mappers write it.
    for part in parts(&sql[open + 1..close]) {
        let upper = part.trim().to_ascii_uppercase();
        let Some(key) = upper.strip_prefix("PRIMARY KEY").map(str::trim_start) else { continue };
        let key = key.trim_start_matches('(');
        let key: String =
            key.chars().take_while(|c| *c != ')' && *c != ',').filter(|c| !"`\"[] ".contains(*c)).collect();
        let single = !part.contains(',');
        let at = columns.iter().position(|column| column.eq_ignore_ascii_case(&key));
        let is_integer = |at: usize| {
            parts(&sql[open + 1..close]).get(at).and_then(|part| name_of(part)).is_some_and(|(_, rest)| {
                rest.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("integer"))
            })
        };
        match at.filter(|_| single) {
            Some(at) if is_integer(at) => row_number = row_number.or(Some(at)),
            other => text_key = other,
        }
    }
    Ok(Some(Table { name: name.clone(), root, columns, row_number, text_key }))
}

/// The parts between the commas of the outermost level.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut quote, mut begun) = (0_u32, None, 0);
    let mut parts = Vec::new();
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (Some(_), _) => {}
            (None, '`' | '"' | '\'') => quote = Some(c),
            (None, '[') => quote = Some(']'),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                parts.push(&text[begun..at]);
                begun = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begun..]);
    parts
}

/// A column's name and the rest of its definition; `None` for a constraint of the whole table.
fn name_of(part: &str) -> Option<(String, &str)> {
    let part = part.trim();
    let first = part.chars().next()?;
    let end = match first {
        '`' | '"' | '\'' => Some(first),
        '[' => Some(']'),
        _ => None,
    };
    if let Some(end) = end {
        let (name, rest) = part[1..].split_once(end)?;
        return Some((name.to_owned(), rest));
    }
    let (name, rest) = part.split_once(char::is_whitespace).unwrap_or((part, ""));
    let constraint = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"];
    let bare = name.split('(').next().unwrap_or(name).to_ascii_uppercase();
    (!constraint.contains(&bare.as_str())).then(|| (name.to_owned(), rest))
}
