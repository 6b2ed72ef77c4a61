//! PEM: labelled base64 blocks.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{PkiError, limits::PEM_LEN_MAX};

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";

pub fn pem_encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// All blocks in order, `(label, DER)`. Text between blocks is skipped; an unfinished block is an error.
pub fn pem_decode(text: &str) -> Result<Vec<(String, Vec<u8>)>, PkiError> {
    let malformed = |reason| PkiError::Malformed { what: "the PEM text", reason };
    if text.len() > PEM_LEN_MAX {
        return Err(malformed("it is too long"));
    }
    let mut blocks = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines().map(str::trim) {
        let begin = line.strip_prefix("-----BEGIN ").and_then(|line| line.strip_suffix("-----"));
        let end = line.strip_prefix("-----END ").and_then(|line| line.strip_suffix("-----"));
        match (&mut open, begin, end) {
            (None, Some(label), _) => open = Some((label, String::new())),
            (Some(_), Some(_), _) => return Err(malformed("a block begins inside another one")),
            (Some((label, body)), _, Some(end)) if *label == end => {
                let der = STANDARD.decode(&*body).map_err(|_| malformed("a block is not base64"))?;
                blocks.push(((*label).to_owned(), der));
                open = None;
            }
            (Some(_), _, Some(_)) => return Err(malformed("a block ends with another label")),
            // `Key: value` headers belong to encrypted keys, which end up as "not base64": the right answer.
            (Some((_, body)), None, None) => body.push_str(line),
            (None, ..) => {}
        }
    }
    match open {
        Some(_) => Err(malformed("a block does not end; the file may be cut off")),
        None => Ok(blocks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_as_written() {
        for len in [0, 1, 47, 48, 49, 1000] {
            let der = vec![0xa5; len];
            let text = format!("a remark\n{}", pem_encode("X Y", &der));
            assert_eq!(pem_decode(&text).unwrap(), [("X Y".to_owned(), der)]);
            assert!(text.lines().all(|line| line.len() <= 64));
        }
    }

    #[test]
    fn broken_blocks_are_refused() {
        for text in [
            "-----BEGIN A-----\nAAAA",
            "-----BEGIN A-----\n-----END B-----",
            "-----BEGIN A-----\n!\n-----END A-----",
        ] {
            assert!(matches!(pem_decode(text), Err(PkiError::Malformed { .. })), "{text}");
        }
    }
}
