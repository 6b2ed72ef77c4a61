//! Frames around requests and answers: RTU (Modbus over Serial Line V1.02, section 2.5.1) and TCP (Messaging Implementation Guide,
//! section 3.1.3).

use super::pdu::{PDU_BYTES_MAX, Request};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Address, PDU, checksum; on a serial line, or through a TCP gateway that passes bytes on.
    Rtu,
    /// Transaction, length, unit, PDU.
    Tcp,
}

/// Largest frame of both kinds (7 + 253; RTU has 256).
pub const ADU_BYTES_MAX: usize = 7 + PDU_BYTES_MAX;
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
    buffer: heapless::Vec<u8, { 2 * ADU_BYTES_MAX }>,
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
        for piece in bytes.chunks(ADU_BYTES_MAX) {
            let over = (self.buffer.len() + piece.len()).saturating_sub(self.buffer.capacity());
            self.strays += over as u64;
            self.drop_front(over);
            self.buffer.extend_from_slice(piece).expect("room was made");
            let found = match framing {
                Framing::Rtu => self.look_rtu(unit, request),
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
