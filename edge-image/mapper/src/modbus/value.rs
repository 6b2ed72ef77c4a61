//! Registers as values, and values as registers: data types and byte orders by Telegraf's names.

use crate::{
    expression::{Expression, Given, number_text},
    limits::VALUE_BYTES_MAX,
    plan::level,
};

/// Which byte of each register a text is in (Telegraf's `string_register_location`), after the bytes were swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Upper,
    Lower,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// One bit of a register, or a coil.
    Bit(u8),
    /// Several coils, as `1,0,1`.
    Bits,
    /// The low or high byte of a register.
    Byte {
        high: bool,
        signed: bool,
    },
    Int {
        registers: u16,
        signed: bool,
    },
    /// As `Int`, but meant as a number with digits behind the point (FIXED, UFIXED): never rounded to a whole number.
    Fixed {
        registers: u16,
        signed: bool,
    },
    Float16,
    Float32,
    Float64,
    /// Two characters a register, or one in the half that is named; up to the first zero byte.
    Text {
        registers: u16,
        half: Option<Half>,
    },
    /// As hexadecimal digits.
    Hex {
        registers: u16,
    },
}

impl Data {
    /// How many registers or bits it takes.
    pub fn count(self) -> Option<u16> {
        Some(match self {
            Data::Bit(_) | Data::Byte { .. } | Data::Float16 => 1,
            Data::Int { registers, .. }
            | Data::Fixed { registers, .. }
            | Data::Text { registers, .. }
            | Data::Hex { registers } => registers,
            Data::Float32 => 2,
            Data::Float64 => 4,
            Data::Bits => return None,
        })
    }

    pub fn is_number(self) -> bool {
        !matches!(self, Data::Bit(_) | Data::Bits | Data::Text { .. } | Data::Hex { .. })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    pub data: Data,
    /// The bytes of each register are swapped (KubeEdge's `isSwap`).
    pub swap_bytes: bool,
    /// The registers of a value are reversed (KubeEdge's `isRegisterSwap`).
    pub swap_words: bool,
    /// What is read times this is the value.
    pub scale: f64,
    /// Works on the scaled `value`; reading only.
    pub expression: Option<Expression>,
    /// The model's type: BOOLEAN values are `true` and `false`; INT values are whole.
    pub boolean: bool,
    pub whole: bool,
}

impl Encoding {
    /// The value of a bit or some, as the twin's text.
    pub fn bits_text(&self, bits: &[bool]) -> Result<String, String> {
        match bits {
            [bit] => self.level_text(*bit),
            bits => Ok(bits.iter().map(|bit| if *bit { "1" } else { "0" }).collect::<Vec<_>>().join(",")),
        }
    }

    fn level_text(&self, active: bool) -> Result<String, String> {
        if self.expression.is_some() {
            return self.evaluate(f64::from(u8::from(active)));
        }
        let text = match (self.boolean, active) {
            (true, true) => "true",
            (true, false) => "false",
            (false, true) => "1",
            (false, false) => "0",
        };
        Ok(text.to_owned())
    }

    fn evaluate(&self, value: f64) -> Result<String, String> {
        match &self.expression {
            Some(expression) => {
                expression.text(&Given { line: "", value: Some(&number_text(value)) }, self.whole)
            }
            None if !value.is_finite() => Err(format!("the device says {value}, which is no number")),
            None if self.whole => Ok(number_text(value.round())),
            None => Ok(number_text(value)),
        }
    }

    /// The value of registers, as the twin's text.
    pub fn registers_text(&self, registers: &[u16]) -> Result<String, String> {
        let bytes = self.bytes(registers);
        let unsigned = bytes.iter().take(8).fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        let signed = |bits: u32| ((unsigned << (64 - bits)) as i64) >> (64 - bits);
        let int = match self.data {
            Data::Bit(bit) => return self.level_text(unsigned >> bit & 1 == 1),
            Data::Bits => return Err("registers have no list of bits".into()),
            Data::Text { half, .. } => return text(&half_of(&bytes, half)),
            Data::Hex { .. } => return Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            Data::Float16 => return self.evaluate(half_float(unsigned as u16) * self.scale),
            Data::Float32 => {
                // By its shortest text: 21.3 as f32 must not become 21.299999237 when it is widened.
                let narrow = f32::from_bits(unsigned as u32);
                let value = narrow.to_string().parse::<f64>().unwrap_or(f64::NAN);
                return self.evaluate(value * self.scale);
            }
            Data::Float64 => return self.evaluate(f64::from_bits(unsigned) * self.scale),
            Data::Byte { high, signed: false } => {
                i128::from(if high { unsigned >> 8 & 0xff } else { unsigned & 0xff })
            }
            Data::Byte { high, signed: true } => {
                i128::from(if high { (unsigned >> 8) as i8 } else { unsigned as i8 })
            }
            Data::Int { signed: false, .. } | Data::Fixed { signed: false, .. } => i128::from(unsigned),
            Data::Int { registers, .. } | Data::Fixed { registers, .. } => {
                i128::from(signed(16 * u32::from(registers.clamp(1, 4))))
            }
        };
        if self.boolean {
            return self.level_text(int != 0);
        }
        // Whole numbers beyond 2^53 (energy counters) must not go through a float.
        if self.scale == 1.0 && self.expression.is_none() {
            return Ok(int.to_string());
        }
        self.evaluate(int as f64 * self.scale)
    }

    fn bytes(&self, registers: &[u16]) -> Vec<u8> {
        let mut words: Vec<[u8; 2]> = registers.iter().map(|register| register.to_be_bytes()).collect();
        self.swap(&mut words);
        words.concat()
    }

    fn swap(&self, words: &mut [[u8; 2]]) {
        if self.swap_words {
            words.reverse();
        }
        if self.swap_bytes {
            words.iter_mut().for_each(|word| word.reverse());
        }
    }

    /// The bits to write for a desired value.
    pub fn bits(&self, value: &str, count: u16) -> Result<Vec<bool>, String> {
        let bits: Option<Vec<bool>> = value.split(',').map(|part| level(part.trim())).collect();
        match bits {
            Some(bits) if bits.len() == usize::from(count) => Ok(bits),
            _ if count == 1 => Err(format!("{value:?} is no level; write 1, 0, true, false, on or off")),
            _ => Err(format!("{value:?} is no list of {count} levels; write them as 1,0,1")),
        }
    }

    /// The registers to write for a desired value. Not for single bits: those need the rest of their register.
    pub fn registers(&self, value: &str) -> Result<Vec<u16>, String> {
        let (count, raw) = match self.data {
            Data::Bit(_) | Data::Bits => return Err("a bit is not a register".into()),
            Data::Byte { .. } => return Err("half a register cannot be written; use the whole one".into()),
            Data::Text { registers, half } => return self.text_registers(value, registers, half),
            Data::Hex { registers } => return self.hex_registers(value, registers),
            Data::Float16 => {
                let bits = half_float_bits(self.unscaled(value)?);
                (
                    1,
                    u64::from(bits.ok_or_else(|| {
                        format!("{value} does not fit FLOAT16, which ends at 65504 before scale")
                    })?),
                )
            }
            Data::Float32 => (2, u64::from((self.unscaled(value)? as f32).to_bits())),
            Data::Float64 => (4, self.unscaled(value)?.to_bits()),
            Data::Int { registers, signed } | Data::Fixed { registers, signed } => {
                (registers, self.int(value, registers, signed)?)
            }
        };
        let bytes = raw.to_be_bytes();
        let words = bytes[8 - 2 * usize::from(count)..].as_chunks::<2>().0;
        Ok(self.swapped(words.to_vec()))
    }

    fn swapped(&self, mut words: Vec<[u8; 2]>) -> Vec<u16> {
        self.swap(&mut words);
        words.into_iter().map(u16::from_be_bytes).collect()
    }

    fn unscaled(&self, value: &str) -> Result<f64, String> {
        if let (true, Some(active)) = (self.boolean, level(value)) {
            return Ok(f64::from(u8::from(active)));
        }
        match value.trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number / self.scale),
            _ => Err(format!("{value:?} is no number")),
        }
    }

    fn int(&self, value: &str, registers: u16, signed: bool) -> Result<u64, String> {
        let bits = 16 * u32::from(registers);
        let exact = value.trim().parse::<i128>().ok().filter(|_| self.scale == 1.0);
        let number = match exact {
            Some(number) => number,
            None => self.unscaled(value)?.round() as i128,
        };
        let (min, max) =
            if signed { (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        if !(min..=max).contains(&number) {
            let sign = if signed { "" } else { "U" };
            return Err(format!(
                "{value} does not fit {sign}INT{bits}, which holds {min} to {max} before scale"
            ));
        }
        Ok(number as u64 & u64::MAX >> (64 - bits))
    }

    fn text_registers(&self, value: &str, registers: u16, half: Option<Half>) -> Result<Vec<u16>, String> {
        let room = usize::from(registers) * if half.is_some() { 1 } else { 2 };
        if value.len() > room {
            return Err(format!("{value:?} is longer than {room} bytes"));
        }
        let mut bytes = value.as_bytes().to_vec();
        bytes.resize(room, 0);
        let bytes: Vec<u8> = match half {
            None => bytes,
            Some(Half::Upper) => bytes.into_iter().flat_map(|byte| [byte, 0]).collect(),
            Some(Half::Lower) => bytes.into_iter().flat_map(|byte| [0, byte]).collect(),
        };
        Ok(self.swapped(bytes.as_chunks::<2>().0.to_vec()))
    }

    fn hex_registers(&self, value: &str, registers: u16) -> Result<Vec<u16>, String> {
        let digits: Option<Vec<u8>> =
            value.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
        match digits {
            Some(digits) if digits.len() == 4 * usize::from(registers) => {
                let nibbles = digits.as_chunks::<4>().0;
                let words = nibbles.iter().map(|[a, b, c, d]| [a << 4 | b, c << 4 | d]).collect();
                Ok(self.swapped(words))
            }
            _ => Err(format!("{value:?} is not {} hexadecimal digits", 4 * registers)),
        }
    }
}

/// IEEE 754 binary16: a sign, five bits of exponent, ten of fraction. By its shortest text, as FLOAT32 is.
fn half_float(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2_f64.powi(-24),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
    };
    let value = if bits >> 15 == 1 { -size } else { size };
    let texts = (0..5).filter_map(|digits| format!("{value:.digits$e}").parse::<f64>().ok());
    texts.into_iter().find(|short| half_float_bits(*short) == Some(bits)).unwrap_or(value)
}

/// The nearest one, the even one of two; `None` beyond the largest.
fn half_float_bits(value: f64) -> Option<u16> {
    let size = value.abs();
    let sign = u16::from(value.is_sign_negative()) << 15;
    // Below 2^-14 the steps stay as they are.
    let exponent = (size.max(2_f64.powi(-14)).log2().floor() as i32).min(16);
    let steps = (size / 2_f64.powi(exponent - 10)).round_ties_even();
    // 2048 steps are the first value of the next exponent, which this addition makes of it.
    let bits = (steps as u32).saturating_add(((exponent + 14) as u32) << 10);
    (bits < 0x7c00).then_some(sign | bits as u16)
}

fn half_of(bytes: &[u8], half: Option<Half>) -> Vec<u8> {
    let skip = match half {
        None => return bytes.to_vec(),
        Some(Half::Upper) => 0,
        Some(Half::Lower) => 1,
    };
    bytes.iter().skip(skip).step_by(2).copied().collect()
}

fn text(bytes: &[u8]) -> Result<String, String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let bytes = &bytes[..end.min(VALUE_BYTES_MAX)];
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) => Err("the device's text is no UTF-8; check byteOrder".into()),
    }
}
