//! DER, as much of it as certificates need. Reading is total: any bytes give a value or an error.

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const PRINTABLE_STRING: u8 = 0x13;
pub(crate) const IA5_STRING: u8 = 0x16;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// Context tag `n`, constructed.
pub(crate) const fn context(n: u8) -> u8 {
    0xa0 | n
}

/// Context tag `n`, primitive.
pub(crate) const fn implicit(n: u8) -> u8 {
    0x80 | n
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    pub tag: u8,
    pub content: &'a [u8],
    /// With tag and length.
    pub raw: &'a [u8],
}

/// Reads elements one after the other. Errors are the reason in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    pub fn element(&mut self) -> Result<Element<'a>, &'static str> {
        let short = "it ends early";
        let bytes = self.0;
        let (tag, first) = (*bytes.first().ok_or(short)?, *bytes.get(1).ok_or(short)?);
        let (len, header_len) = match first {
            0..=0x7f => (first as usize, 2),
            // Four bytes of length are more than anything here may have.
            0x81..=0x84 => {
                let count = (first & 0x7f) as usize;
                let digits = bytes.get(2..2 + count).ok_or(short)?;
                (digits.iter().fold(0, |len, digit| len << 8 | *digit as usize), 2 + count)
            }
            _ => return Err("a length is not DER"),
        };
        let end = header_len.checked_add(len).ok_or(short)?;
        let content = bytes.get(header_len..end).ok_or(short)?;
        self.0 = &bytes[end..];
        Ok(Element { tag, content, raw: &bytes[..end] })
    }

    pub fn expect(&mut self, tag: u8) -> Result<Element<'a>, &'static str> {
        let element = self.element()?;
        if element.tag == tag { Ok(element) } else { Err("an element is of another type") }
    }

    /// The content of a constructed element.
    pub fn enter(&mut self, tag: u8) -> Result<Reader<'a>, &'static str> {
        Ok(Reader(self.expect(tag)?.content))
    }

    pub fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, &'static str> {
        if self.peek() == Some(tag) { self.element().map(Some) } else { Ok(None) }
    }

    /// Nothing may follow.
    pub fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err("bytes follow its end") }
    }
}

/// One element around the parts.
pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(len + 4);
    out.push(tag);
    match len {
        0..=0x7f => out.push(len as u8),
        _ => {
            let digits = len.to_be_bytes();
            let skip = digits.iter().take_while(|digit| **digit == 0).count();
            out.push(0x80 | (digits.len() - skip) as u8);
            out.extend_from_slice(&digits[skip..]);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// A positive integer from its big-endian bytes.
pub(crate) fn integer(bytes: &[u8]) -> Vec<u8> {
    let skip = bytes.iter().take_while(|byte| **byte == 0).count().min(bytes.len().saturating_sub(1));
    let bytes = &bytes[skip..];
    match bytes.first() {
        Some(0x80..) => tlv(INTEGER, &[&[0], bytes]),
        _ => tlv(INTEGER, &[bytes]),
    }
}

/// Whole bytes.
pub(crate) fn bit_string(bytes: &[u8]) -> Vec<u8> {
    tlv(BIT_STRING, &[&[0], bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_all_sizes_are_read_as_written() {
        for len in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; len];
            let raw = tlv(OCTET_STRING, &[&content]);
            let mut reader = Reader::new(&raw);
            assert_eq!(reader.expect(OCTET_STRING).unwrap().content, content);
            reader.end().unwrap();
            assert!(Reader::new(&raw[..raw.len() - 1]).element().is_err());
        }
        assert_eq!(integer(&[0, 0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[0]), [2, 1, 0]);
        assert!(Reader::new(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).element().is_err());
        assert!(Reader::new(&[0x30, 0x80, 0, 0]).element().is_err(), "indefinite length");
    }
}
