//! Requests and answers (Modbus Application Protocol V1.1b3, section 6), without their framing.

use std::fmt;

/// Longest request or answer without address and checksum.
pub const PDU_BYTES_MAX: usize = 253;
pub type Pdu = heapless::Vec<u8, PDU_BYTES_MAX>;

const READ_REGISTERS_MAX: u16 = 125;
const READ_BITS_MAX: u16 = 2000;
pub const WRITE_REGISTERS_MAX: usize = 123;
const WRITE_COILS_MAX: usize = 1968;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Coils,
    DiscreteInputs,
    Holding,
    Input,
}

impl Table {
    fn read_function(self) -> u8 {
        match self {
            Table::Coils => 1,
            Table::DiscreteInputs => 2,
            Table::Holding => 3,
            Table::Input => 4,
        }
    }

    pub fn is_bits(self) -> bool {
        matches!(self, Table::Coils | Table::DiscreteInputs)
    }

    pub fn is_writable(self) -> bool {
        matches!(self, Table::Coils | Table::Holding)
    }

    /// Most bits or registers that one request may ask for.
    pub fn read_max(self) -> u16 {
        if self.is_bits() { READ_BITS_MAX } else { READ_REGISTERS_MAX }
    }

    pub fn name(self) -> &'static str {
        match self {
            Table::Coils => "coil",
            Table::DiscreteInputs => "discrete input",
            Table::Holding => "holding register",
            Table::Input => "input register",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Read {
        table: Table,
        address: u16,
        count: u16,
    },
    /// One value goes out as function 5, several as 15.
    WriteCoils {
        address: u16,
        values: Vec<bool>,
    },
    /// One value goes out as function 6, several as 16; `multiple` makes it 16 for one, too: some devices know only that.
    WriteRegisters {
        address: u16,
        values: Vec<u16>,
        multiple: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Bits(Vec<bool>),
    Registers(Vec<u16>),
    Written,
}

/// What a slave says when it does not do it (section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception(pub u8);

impl Exception {
    pub const ILLEGAL_ADDRESS: Exception = Exception(2);
    pub const ILLEGAL_VALUE: Exception = Exception(3);

    /// The same request will be refused again: no such function, register or value.
    pub fn is_final(self) -> bool {
        matches!(self.0, 1..=3)
    }

    /// It says: later.
    pub fn is_busy(self) -> bool {
        matches!(self.0, 5 | 6)
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            1 => "illegal function: it cannot do this with that register type",
            2 => "illegal data address: it has no such register",
            3 => "illegal data value: it does not take this value or this many registers",
            4 => "server device failure",
            5 => "acknowledge: it needs more time",
            6 => "server device busy",
            7 => "negative acknowledge",
            8 => "memory parity error",
            10 => "gateway path unavailable",
            11 => "gateway target device failed to respond",
            _ => "an exception without a name",
        };
        write!(out, "exception {} ({name})", self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Exception(Exception),
    /// The answer does not fit the request.
    Wrong,
}

impl Request {
    pub fn function(&self) -> u8 {
        match self {
            Request::Read { table, .. } => table.read_function(),
            Request::WriteCoils { values, .. } => {
                if values.len() == 1 {
                    5
                } else {
                    15
                }
            }
            Request::WriteRegisters { values, multiple, .. } => {
                if values.len() == 1 && !multiple {
                    6
                } else {
                    16
                }
            }
        }
    }

    /// Bytes of the answer's PDU when the slave does what it was asked.
    pub fn answer_len(&self) -> usize {
        match self {
            Request::Read { table, count, .. } if table.is_bits() => 2 + usize::from(*count).div_ceil(8),
            Request::Read { count, .. } => 2 + 2 * usize::from(*count),
            _ => 5,
        }
    }

    /// `None` when it asks for nothing or for more than fits a request: the plan lets no such thing through.
    pub fn encode(&self) -> Option<Pdu> {
        let mut out = Pdu::new();
        out.push(self.function()).ok()?;
        let mut word = |value: u16| out.extend_from_slice(&value.to_be_bytes()).ok();
        match self {
            Request::Read { table, address, count } => {
                if *count == 0 || *count > table.read_max() {
                    return None;
                }
                word(*address)?;
                word(*count)?;
            }
            Request::WriteCoils { address, values } => {
                word(*address)?;
                if let [value] = values.as_slice() {
                    word(if *value { 0xff00 } else { 0 })?;
                    return Some(out);
                }
                if values.is_empty() || values.len() > WRITE_COILS_MAX {
                    return None;
                }
                word(values.len() as u16)?;
                out.push(values.len().div_ceil(8) as u8).ok()?;
                for eight in values.chunks(8) {
                    let byte =
                        eight.iter().enumerate().fold(0, |byte, (bit, value)| byte | u8::from(*value) << bit);
                    out.push(byte).ok()?;
                }
            }
            Request::WriteRegisters { address, values, multiple } => {
                word(*address)?;
                if let ([value], false) = (values.as_slice(), *multiple) {
                    word(*value)?;
                    return Some(out);
                }
                if values.is_empty() || values.len() > WRITE_REGISTERS_MAX {
                    return None;
                }
                word(values.len() as u16)?;
                out.push(2 * values.len() as u8).ok()?;
                for value in values {
                    out.extend_from_slice(&value.to_be_bytes()).ok()?;
                }
            }
        }
        Some(out)
    }

    /// What the slave's PDU means for this request.
    pub fn decode(&self, pdu: &[u8]) -> Result<Answer, Refusal> {
        match pdu {
            [function, code] if *function == self.function() | 0x80 => {
                Err(Refusal::Exception(Exception(*code)))
            }
            [function, ..] if *function != self.function() || pdu.len() != self.answer_len() => {
                Err(Refusal::Wrong)
            }
            [_, bytes, data @ ..] if let Request::Read { table, count, .. } = self => {
                if usize::from(*bytes) != data.len() {
                    return Err(Refusal::Wrong);
                }
                Ok(if table.is_bits() {
                    let bit = |at: usize| data[at / 8] >> (at % 8) & 1 == 1;
                    Answer::Bits((0..usize::from(*count)).map(bit).collect())
                } else {
                    let words = data.as_chunks::<2>().0;
                    Answer::Registers(words.iter().map(|word| u16::from_be_bytes(*word)).collect())
                })
            }
            // A write's answer repeats the first five bytes of its request.
            [_, ..] if self.encode().is_some_and(|sent| sent.get(..5) == Some(pdu)) => Ok(Answer::Written),
            _ => Err(Refusal::Wrong),
        }
    }
}
