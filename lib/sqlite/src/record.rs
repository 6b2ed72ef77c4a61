//! A row's values.

use crate::{SqliteError, limits::COLUMNS_MAX};

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl Value {
    /// Text as it is, numbers as text, the rest empty.
    pub fn text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Real(number) => number.to_string(),
            Value::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Null => String::new(),
        }
    }
}

/// The values of a row, filled up with NULL to `columns` (a column added later is not in older rows).
pub fn parse(payload: &[u8], columns: usize) -> Result<Vec<Value>, SqliteError> {
    const CUT: SqliteError = SqliteError::Damaged("a row is cut off");
    let (header, after) = varint(payload).ok_or(CUT)?;
    let begun = payload.len() - after.len();
    let header = usize::try_from(header).map_err(|_| CUT)?;
    let mut types = payload.get(begun..header).ok_or(CUT)?;
    let mut body = &payload[header..];
    let mut values = Vec::new();
    while let Some((kind, rest)) = varint(types) {
        types = rest;
        let length = length_of(kind)?;
        if values.len() >= COLUMNS_MAX {
            return Err(SqliteError::Damaged("a row has too many columns"));
        }
        let bytes = body.get(..length).ok_or(CUT)?;
        body = &body[length..];
        values.push(value(kind, bytes));
    }
    while values.len() < columns {
        values.push(Value::Null);
    }
    Ok(values)
}

fn length_of(kind: u64) -> Result<usize, SqliteError> {
    Ok(match kind {
        0 | 8 | 9 => 0,
        1..=4 => kind as usize,
        5 => 6,
        6 | 7 => 8,
        10 | 11 => return Err(SqliteError::Damaged("a value has no type")),
        kind => usize::try_from((kind - 12) / 2).map_err(|_| SqliteError::Damaged("a value is too long"))?,
    })
}

fn value(kind: u64, bytes: &[u8]) -> Value {
    match kind {
        0 => Value::Null,
        8 => Value::Integer(0),
        9 => Value::Integer(1),
        7 => Value::Real(f64::from_bits(integer(bytes) as u64)),
        1..=6 => Value::Integer(integer(bytes)),
        kind if kind % 2 == 1 => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
        _ => Value::Blob(bytes.to_vec()),
    }
}

/// Big-endian with a sign.
fn integer(bytes: &[u8]) -> i64 {
    let sign = if bytes.first().is_some_and(|first| *first >= 0x80) { -1 } else { 0 };
    bytes.iter().fold(sign, |number, byte| number << 8 | i64::from(*byte))
}

/// SQLite's number of one to nine bytes, and what follows it.
pub fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(9) {
        if at == 8 {
            return Some((number << 8 | u64::from(*byte), &bytes[9..]));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}
