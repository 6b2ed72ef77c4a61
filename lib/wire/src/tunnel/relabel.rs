//! Calls text what is binary, below the WebSocket library.
//!
//! EdgeStream sends any bytes as text. RFC 6455 forbids it and the library checks it, with no way to switch the check off; so
//! the opcode of every text frame is changed to binary on its way to the library. (What we send as text is not checked.)

/// Follows the frames of one direction of a WebSocket.
#[derive(Clone, Debug)]
pub struct Relabel(State);

#[derive(Clone, Copy, Debug)]
enum State {
    /// The HTTP head; so many bytes of its end (`\r\n\r\n`) were seen.
    Head(usize),
    Opcode,
    Len,
    /// So many bytes of the extended length are to come.
    More {
        left: u8,
        len: u64,
        is_masked: bool,
    },
    /// The mask and the payload.
    Payload(u64),
}

const HEAD_END: &[u8; 4] = b"\r\n\r\n";
const TEXT: u8 = 1;
const BINARY: u8 = 2;

impl Relabel {
    /// For the first byte of a connection: an HTTP head, then frames.
    pub fn connection() -> Relabel {
        Relabel(State::Head(0))
    }

    /// After the HTTP head.
    pub fn frames() -> Relabel {
        Relabel(State::Opcode)
    }

    /// Takes the next bytes, in pieces of any length.
    pub fn feed(&mut self, mut bytes: &mut [u8]) {
        while let Some((byte, rest)) = bytes.split_first_mut() {
            if let State::Payload(left) = &mut self.0 {
                // This byte and as many after it as belong to the payload.
                let skipped = (rest.len() as u64).min(*left - 1);
                *left -= 1 + skipped;
                if *left == 0 {
                    self.0 = State::Opcode;
                }
                bytes = &mut rest[skipped as usize..];
                continue;
            }
            self.0 = step(self.0, byte);
            bytes = rest;
        }
    }
}

fn step(state: State, byte: &mut u8) -> State {
    match state {
        State::Head(seen) if *byte == HEAD_END[seen] => match seen + 1 {
            4 => State::Opcode,
            seen => State::Head(seen),
        },
        State::Head(_) => State::Head(usize::from(*byte == HEAD_END[0])),
        State::Opcode => {
            if *byte & 0x0f == TEXT {
                *byte = *byte & 0xf0 | BINARY;
            }
            State::Len
        }
        State::Len => {
            let is_masked = *byte & 0x80 != 0;
            match *byte & 0x7f {
                126 => State::More { left: 2, len: 0, is_masked },
                127 => State::More { left: 8, len: 0, is_masked },
                len => payload(u64::from(len), is_masked),
            }
        }
        State::More { left, len, is_masked } => {
            let len = len << 8 | u64::from(*byte);
            match left {
                1 => payload(len, is_masked),
                left => State::More { left: left - 1, len, is_masked },
            }
        }
        State::Payload(_) => unreachable!("payloads are skipped by the caller"),
    }
}

fn payload(len: u64, is_masked: bool) -> State {
    match len.saturating_add(if is_masked { 4 } else { 0 }) {
        0 => State::Opcode,
        len => State::Payload(len),
    }
}
