//! Fields of devices on I2C and SPI (docs/gpio.md): where the device is, and what a property's bytes mean.

use super::{fields::Fields, gpio::decimal_text};
use crate::limits::{REGISTER_BYTES_MAX, REGISTER_SEND_BYTES_MAX};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I2cPlace {
    /// `/dev/i2c-N`.
    pub bus: u8,
    /// Seven bits.
    pub address: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiPlace {
    /// `/dev/spidevBUS.SELECT`.
    pub bus: u8,
    pub select: u8,
    pub hz: u32,
    pub mode: u8,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Register {
    /// Sent before a read: the register's number, or a command.
    pub read: Vec<u8>,
    /// Sent before the bytes of a write; `None`: it cannot be written.
    pub write: Option<Vec<u8>>,
    /// Bytes of the answer that say nothing.
    pub skip: usize,
    pub length: usize,
    pub little_endian: bool,
    pub signed: bool,
    /// Which bits are the value; it is shifted down to bit 0.
    pub mask: u64,
    pub scale: f64,
    pub offset: f64,
}

/// A number in decimal or, after `0x`, in hexadecimal digits.
fn number(fields: &mut Fields<'_>, key: &'static str, max: u64) -> Result<Option<u64>, String> {
    let Some(text) = fields.text(key)? else { return Ok(None) };
    let parsed = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(number) if number <= max => Ok(Some(number)),
        _ => Err(format!("{}: {text} is not a number from 0 to {max} (0x..: hexadecimal)", fields.path(key))),
    }
}

/// Bytes as hexadecimal digits, with or without spaces: `01 80 00`.
fn bytes(fields: &mut Fields<'_>, key: &'static str) -> Result<Option<Vec<u8>>, String> {
    let Some(text) = fields.text(key)? else { return Ok(None) };
    let digits: Vec<u32> =
        text.chars().filter(|c| !c.is_whitespace()).map_while(|c| c.to_digit(16)).collect();
    let whole = digits.len() == text.chars().filter(|c| !c.is_whitespace()).count();
    if !whole || digits.is_empty() || digits.len() % 2 == 1 || digits.len() / 2 > REGISTER_SEND_BYTES_MAX {
        return Err(format!(
            "{}: {text:?} is not 1 to {REGISTER_SEND_BYTES_MAX} bytes; write two hexadecimal digits for each: \"01 80 00\"",
            fields.path(key)
        ));
    }
    Ok(Some(digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()))
}

pub fn i2c(fields: &mut Fields<'_>) -> Result<I2cPlace, String> {
    // Bus 1 is the header's on every Pi.
    let bus = fields.number("bus", 0, 255)?.unwrap_or(1) as u8;
    match number(fields, "address", 0x77)? {
        Some(address) if address >= 3 => Ok(I2cPlace { bus, address: address as u16 }),
        Some(address) => Err(format!(
            "{}: {address} is reserved by I2C; addresses are 0x03 to 0x77",
            fields.path("address")
        )),
        None => Err(format!(
            "{} is missing: write the device's address (\"0x76\"); mapper scan prints them",
            fields.path("address")
        )),
    }
}

pub fn spi(fields: &mut Fields<'_>) -> Result<SpiPlace, String> {
    Ok(SpiPlace {
        bus: fields.number("bus", 0, 6)?.unwrap_or(0) as u8,
        select: fields.number("chipSelect", 0, 3)?.unwrap_or(0) as u8,
        hz: fields.number("speedHz", 1_000, 100_000_000)?.unwrap_or(1_000_000) as u32,
        mode: fields.number("mode", 0, 3)?.unwrap_or(0) as u8,
    })
}

/// `read_bit` is what most SPI devices want set in the register's number for a read.
pub fn register(fields: &mut Fields<'_>, is_spi: bool) -> Result<Register, String> {
    let at = number(fields, "register", 0xffff)?;
    let width = fields.number("registerLength", 1, 2)?.unwrap_or(1) as usize;
    let send = bytes(fields, "send")?;
    let read_bit = if is_spi { number(fields, "readBit", 0x80)?.unwrap_or(0x80) as u8 } else { 0 };
    let writable = fields.switch("write")?.unwrap_or(false);
    let (read, write) = match (at, send) {
        (Some(_), Some(_)) => {
            return Err(format!("{}: register says it already; remove one", fields.path("send")));
        }
        (None, None) => {
            return Err(format!(
                "{} is missing: write the register's number, or with configData.send the bytes of a command",
                fields.path("register")
            ));
        }
        (Some(at), None) if width == 1 && at > 0xff => {
            return Err(format!("{}: {at} needs registerLength: 2", fields.path("register")));
        }
        (Some(at), None) => {
            let number = (at as u16).to_be_bytes()[2 - width..].to_vec();
            let mut read = number.clone();
            read[0] |= read_bit;
            (read, writable.then_some(number))
        }
        (None, Some(_)) if writable => {
            return Err(format!("{}: needs configData.register", fields.path("write")));
        }
        (None, Some(send)) => (send, None),
    };
    let length = fields.number("length", 1, REGISTER_BYTES_MAX as u64)?.unwrap_or(1) as usize;
    let all = if length == 8 { u64::MAX } else { (1 << (8 * length)) - 1 };
    let mask = number(fields, "mask", u64::MAX)?.unwrap_or(all);
    if mask == 0 || mask & !all != 0 {
        return Err(format!(
            "{}: {mask:#x} has no bit, or one that {length} byte(s) do not have",
            fields.path("mask")
        ));
    }
    let scale = fields.decimal("scale")?.unwrap_or(1.0);
    if scale == 0.0 {
        return Err(format!("{}: 0 makes every value the same", fields.path("scale")));
    }
    Ok(Register {
        read,
        write,
        skip: fields.number("skip", 0, REGISTER_SEND_BYTES_MAX as u64)?.unwrap_or(0) as usize,
        length,
        little_endian: fields.choice("byteOrder", &[("big", false), ("little", true)])?.unwrap_or(false),
        signed: fields.switch("signed")?.unwrap_or(false),
        mask,
        scale,
        offset: fields.decimal("offset")?.unwrap_or(0.0),
    })
}

impl Register {
    fn shift(&self) -> u32 {
        self.mask.trailing_zeros()
    }

    /// Bits from the lowest to the highest of the mask.
    fn width(&self) -> u32 {
        u64::BITS - (self.mask >> self.shift()).leading_zeros()
    }

    /// All bits of the bytes, in the order of the description. `bytes` are [`Register::length`].
    pub fn raw(&self, bytes: &[u8]) -> u64 {
        let join = |raw: u64, byte: &u8| (raw << 8) | u64::from(*byte);
        match self.little_endian {
            true => bytes.iter().rev().fold(0, join),
            false => bytes.iter().fold(0, join),
        }
    }

    pub fn value(&self, raw: u64) -> String {
        let bits = (raw & self.mask) >> self.shift();
        let free = u64::BITS - self.width();
        let number = if self.signed { i128::from((bits << free) as i64 >> free) } else { i128::from(bits) };
        if self.scale == 1.0 && self.offset == 0.0 {
            return number.to_string();
        }
        decimal_text(number as f64 * self.scale + self.offset, 6)
    }

    /// `before` with the bits of the value in it, or why it has no place there.
    pub fn with_value(&self, before: u64, text: &str) -> Result<u64, String> {
        let number = match text {
            "true" | "on" => 1.0,
            "false" | "off" => 0.0,
            text => text.parse::<f64>().map_err(|_| format!("{text:?} is no number"))?,
        };
        let wanted = ((number - self.offset) / self.scale).round();
        let width = self.width();
        let (low, high) = match self.signed {
            true => (-(2f64.powi(width as i32 - 1)), 2f64.powi(width as i32 - 1) - 1.0),
            false => (0.0, 2f64.powi(width as i32) - 1.0),
        };
        if !(low..=high).contains(&wanted) {
            return Err(format!("{text} does not fit into {width} bits of the register"));
        }
        let bits = if wanted < 0.0 { wanted as i64 as u64 } else { wanted as u64 };
        Ok((before & !self.mask) | ((bits << self.shift()) & self.mask))
    }

    /// The bytes of a register's content.
    pub fn bytes(&self, raw: u64) -> Vec<u8> {
        let mut bytes = raw.to_be_bytes()[8 - self.length..].to_vec();
        if self.little_endian {
            bytes.reverse();
        }
        bytes
    }
}

/// Total on any description and any bytes: what is read can be written back, and is the same.
pub fn fuzz_registers(data: &[u8]) {
    let Some((config, bytes)) = data.iter().position(|byte| *byte == b'\n').map(|at| data.split_at(at))
    else {
        return;
    };
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(config) else { return };
    let Ok(mut fields) = Fields::new("fuzz", Some(&config)) else { return };
    let _ = i2c(&mut fields);
    let _ = spi(&mut fields);
    for is_spi in [false, true] {
        let Ok(register) = register(&mut fields, is_spi) else { continue };
        assert!(register.length <= REGISTER_BYTES_MAX && register.read.len() <= REGISTER_SEND_BYTES_MAX);
        let Some(bytes) = bytes.get(1..1 + register.length) else { continue };
        let raw = register.raw(bytes);
        assert_eq!(register.bytes(raw), bytes);
        let value = register.value(raw);
        if register.scale == 1.0 && register.offset == 0.0 && register.width() <= 52 {
            assert_eq!(register.with_value(raw, &value).map(|raw| register.value(raw)), Ok(value));
        } else {
            let _ = register.with_value(raw, &value);
        }
    }
}
