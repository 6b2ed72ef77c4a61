//! Text lines out of a stream of bytes, in a fixed buffer.

use crate::limits::LINE_BYTES_MAX;

#[derive(Default)]
pub struct Lines {
    buffer: heapless::Vec<u8, LINE_BYTES_MAX>,
    /// The current line was too long: everything up to its end is dropped.
    dropping: bool,
}

impl Lines {
    /// Calls `each` for every whole line, without its end. Empty lines and lines that are no UTF-8 are skipped.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => {
                    if !std::mem::take(&mut self.dropping)
                        && !self.buffer.is_empty()
                        && let Ok(line) = std::str::from_utf8(&self.buffer)
                    {
                        each(line);
                    }
                    self.buffer.clear();
                }
                _ if self.dropping => {}
                byte => {
                    if self.buffer.push(*byte).is_err() {
                        self.dropping = true;
                        self.buffer.clear();
                    }
                }
            }
        }
    }
}

/// Total on any bytes; lines are within their bound however the input is cut.
pub fn fuzz_lines(data: &[u8]) {
    let mut lines = Lines::default();
    for piece in data.chunks(7) {
        lines.feed(piece, |line| assert!(line.len() <= LINE_BYTES_MAX && !line.contains(['\n', '\r'])));
    }
}
