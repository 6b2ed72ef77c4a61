//! Frames around requests and answers: RTU and ASCII (Modbus over Serial Line V1.02, sections 2.5.1 and 2.5.2) and TCP (Messaging
//! Implementation Guide, section 3.1.3).

use super::pdu::{PDU_BYTES_MAX, Request};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Address, PDU, checksum; on a serial line, or through a TCP gateway that passes bytes on.
    Rtu,
    /// The same as hexadecimal digits between a colon and a line's end, for lines that cannot keep RTU's silences.
    Ascii,
    /// Transaction, length, unit, PDU.
    Tcp,
}

impl Framing {
    /// Answers carry nothing that says which request they belong to.
    pub fn is_anonymous(self) -> bool {
        self != Framing::Tcp
    }

    /// Bytes on the wire for a unit's address and a PDU of `len` bytes.
    pub fn wire_len(self, len: usize) -> usize {
        match self {
            Framing::Rtu => 1 + len + 2,
            Framing::Ascii => 1 + 2 * (1 + len + 1) + 2,
            Framing::Tcp => 7 + len,
        }
    }
}

/// Largest frame: ASCII's; TCP has 260, RTU 256.
pub const ADU_BYTES_MAX: usize = 1 + 2 * (PDU_BYTES_MAX + 2) + 2;
/// Bytes that are looked at together.
const PIECE_BYTES: usize = 64;
pub type Adu = heapless::Vec<u8, ADU_BYTES_MAX>;

/// CRC-16 with polynomial 0xA001, sent low byte first.
pub fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0xffff_u16;
    for byte in bytes {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 };
        }
    }
    crc
}

/// What makes the sum of all bytes zero.
fn lrc(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn digit(nibble: u8) -> u8 {
    b"0123456789ABCDEF"[usize::from(nibble & 15)]
}

/// The frame of a request; `None` when the request is too long.
pub fn encode(framing: Framing, transaction: u16, unit: u8, request: &Request) -> Option<Adu> {
    let pdu = request.encode()?;
    let mut out = Adu::new();
    match framing {
        Framing::Rtu => {
            out.push(unit).ok()?;
            out.extend_from_slice(&pdu).ok()?;
            let crc = crc16(&out).to_le_bytes();
            out.extend_from_slice(&crc).ok()?;
        }
        Framing::Ascii => {
            let body = [&[unit][..], &pdu].concat();
            out.push(b':').ok()?;
            for byte in body.iter().chain(&[lrc(&body)]) {
                out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]).ok()?;
            }
            out.extend_from_slice(b"\r\n").ok()?;
        }
        Framing::Tcp => {
            out.extend_from_slice(&transaction.to_be_bytes()).ok()?;
            out.extend_from_slice(&[0, 0]).ok()?;
            out.extend_from_slice(&(1 + pdu.len() as u16).to_be_bytes()).ok()?;
            out.push(unit).ok()?;
            out.extend_from_slice(&pdu).ok()?;
        }
    }
    Some(out)
}

/// What a stream of bytes holds for the request that is out.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Not there yet.
    Nothing,
    /// The answer's PDU.
    Answer(Vec<u8>),
    /// The stream cannot be read any more (TCP only: a length that cannot be).
    Broken,
}

/// Bytes that came and belong to no frame yet. Bounded: the oldest go first.
#[derive(Default)]
pub struct Receiver {
    buffer: heapless::Vec<u8, { ADU_BYTES_MAX + PIECE_BYTES }>,
    /// Bytes that belonged to no awaited answer: noise, late answers, other masters.
    pub strays: u64,
}

impl Receiver {
    pub fn clear(&mut self) {
        self.strays += self.buffer.len() as u64;
        self.buffer.clear();
    }

    fn drop_front(&mut self, len: usize) {
        self.buffer.rotate_left(len);
        self.buffer.truncate(self.buffer.len() - len);
    }

    /// Takes bytes, and looks for the answer of unit `unit` to `request`.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        framing: Framing,
        transaction: u16,
        unit: u8,
        request: &Request,
    ) -> Found {
        for piece in bytes.chunks(PIECE_BYTES) {
            let over = (self.buffer.len() + piece.len()).saturating_sub(self.buffer.capacity());
            self.strays += over as u64;
            self.drop_front(over);
            self.buffer.extend_from_slice(piece).expect("room was made");
            let found = match framing {
                Framing::Rtu => self.look_rtu(unit, request),
                Framing::Ascii => self.look_ascii(unit, request),
                Framing::Tcp => self.look_tcp(transaction, unit),
            };
            if found != Found::Nothing {
                return found;
            }
        }
        Found::Nothing
    }

    /// RTU has no mark of a beginning: every offset is tried, so that noise before an answer does not cost the answer.
    fn look_rtu(&mut self, unit: u8, request: &Request) -> Found {
        let function = request.function();
        let is_read = matches!(request, Request::Read { .. });
        let fits = |third: u8| !is_read || usize::from(third) + 2 == request.answer_len();
        for at in 0..self.buffer.len() {
            let rest = &self.buffer[at..];
            let len = match rest {
                [first, second, ..] if *first == unit && *second == function | 0x80 => 5,
                // The count of bytes tells an answer from the echo of the request, which some adapters send back.
                [first, second, third, ..] if *first == unit && *second == function && fits(*third) => {
                    3 + request.answer_len()
                }
                _ => continue,
            };
            let Some((body, crc)) = rest.get(..len).and_then(|frame| frame.split_last_chunk::<2>()) else {
                continue;
            };
            if crc16(body) == u16::from_le_bytes(*crc) {
                let pdu = body[1..].to_vec();
                self.strays += at as u64;
                self.drop_front(at + len);
                return Found::Answer(pdu);
            }
        }
        Found::Nothing
    }

    /// What is no frame for us is dropped up to the next colon.
    fn look_ascii(&mut self, unit: u8, request: &Request) -> Found {
        let function = request.function();
        while let Some(begin) = self.buffer.iter().position(|byte| *byte == b':') {
            self.strays += begin as u64;
            self.drop_front(begin);
            let Some(end) = self.buffer.iter().skip(1).position(|byte| [b':', b'\r', b'\n'].contains(byte))
            else {
                return Found::Nothing;
            };
            let body = hexadecimal(&self.buffer[1..=end]).unwrap_or_default();
            // The length tells an answer from the echo of the request.
            let fits = match body.get(1) {
                Some(second) if *second == function => body.len() == 1 + request.answer_len() + 1,
                Some(second) => *second == function | 0x80 && body.len() == 4,
                None => false,
            };
            if fits && body[0] == unit && lrc(&body) == 0 {
                self.drop_front(1 + end);
                return Found::Answer(body[1..body.len() - 1].to_vec());
            }
            self.strays += 1 + end as u64;
            self.drop_front(1 + end);
        }
        // Line ends, or noise without a colon.
        self.strays += self.buffer.iter().filter(|byte| !byte.is_ascii_whitespace()).count() as u64;
        self.buffer.clear();
        Found::Nothing
    }

    fn look_tcp(&mut self, transaction: u16, unit: u8) -> Found {
        loop {
            let Some((head, rest)) = self.buffer.split_first_chunk::<7>() else { return Found::Nothing };
            let [t0, t1, p0, p1, l0, l1, from] = *head;
            let len = usize::from(u16::from_be_bytes([l0, l1]));
            if (p0, p1) != (0, 0) || !(2..=1 + PDU_BYTES_MAX).contains(&len) {
                return Found::Broken;
            }
            let Some(pdu) = rest.get(..len - 1) else { return Found::Nothing };
            let ours = u16::from_be_bytes([t0, t1]) == transaction && from == unit;
            let pdu = ours.then(|| pdu.to_vec());
            self.drop_front(6 + len);
            match pdu {
                Some(pdu) => return Found::Answer(pdu),
                None => self.strays += 6 + len as u64,
            }
        }
    }
}

fn hexadecimal(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.iter().map(|letter| char::from(*letter).to_digit(16).map(|digit| digit as u8)).collect();
    let (pairs, rest) = digits.as_deref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
