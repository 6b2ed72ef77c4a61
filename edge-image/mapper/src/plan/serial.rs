//! Fields of serial ports (docs/serial.md); what is read out of lines is in `text.rs`.

use super::fields::Fields;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Lines,
    Frames,
    /// Not framings of protocol `serial`: the port is a Modbus line.
    ModbusRtu,
    ModbusAscii,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parity {
    None,
    Even,
    Odd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    None,
    RtsCts,
    XonXoff,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub path: String,
    pub baud_rate: u32,
    pub data_bits: u8,
    pub parity: Parity,
    pub stop_bits: u8,
    pub flow: Flow,
    pub framing: Framing,
    pub rs485: Option<Rs485>,
    /// What ends a line that is written.
    pub line_end: &'static str,
    /// Nothing for this long makes the values stale; 0: never.
    pub silent_after_ms: u64,
}

/// RTS switches the transmitter (TIOCSRS485).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rs485 {
    /// RTS is low while sending.
    pub active_low: bool,
    pub delay_before_ms: u32,
    pub delay_after_ms: u32,
}

pub fn port(fields: &mut Fields<'_>) -> Result<Port, String> {
    let Some(path) = fields.text("path")? else {
        return Err(format!(
            "{} is missing: write the device file, such as /dev/ttyUSB0",
            fields.path("path")
        ));
    };
    check_path(&path, &fields.path("path"))?;
    let framings = [("lines", Framing::Lines), ("frames", Framing::Frames)];
    let framing = fields.choice("framing", &framings)?.unwrap_or(Framing::Lines);
    let ends = [("lf", "\n"), ("cr", "\r"), ("crlf", "\r\n")];
    let line_end = fields.choice("lineEnd", &ends)?.unwrap_or("\n");
    let silent_after_ms = fields.number("silentAfterMs", 0, 86_400_000)?.unwrap_or(0);
    Ok(Port { path, framing, line_end, silent_after_ms, ..settings(fields, 115_200, Parity::None)? })
}

/// Only device files are opened, whatever a description says.
pub fn check_path(path: &str, field: &str) -> Result<(), String> {
    if !path.starts_with("/dev/") || path.split('/').any(|part| part == "..") {
        return Err(format!("{field}: {path:?} is no device file; write one below /dev"));
    }
    Ok(())
}

/// How a port is set, without its path and framing.
pub fn settings(fields: &mut Fields<'_>, baud_rate: u32, parity: Parity) -> Result<Port, String> {
    let baud_rate = fields.number("baudRate", 50, 4_000_000)?.unwrap_or(u64::from(baud_rate)) as u32;
    if crate::serial::port::speed(baud_rate).is_none() {
        return Err(format!(
            "{}: {baud_rate} is not a rate that the kernel knows; use 9600, 115200, ...",
            fields.path("baudRate")
        ));
    }
    let parities = [
        ("none", Parity::None),
        ("even", Parity::Even),
        ("odd", Parity::Odd),
        ("N", Parity::None),
        ("E", Parity::Even),
        ("O", Parity::Odd),
    ];
    let flows = [("none", Flow::None), ("rtscts", Flow::RtsCts), ("xonxoff", Flow::XonXoff)];
    Ok(Port {
        path: String::new(),
        baud_rate,
        data_bits: fields.number("dataBits", 7, 8)?.unwrap_or(8) as u8,
        parity: fields.choice("parity", &parities)?.unwrap_or(parity),
        stop_bits: fields.number("stopBits", 1, 2)?.unwrap_or(1) as u8,
        flow: fields.choice("flowControl", &flows)?.unwrap_or(Flow::None),
        framing: Framing::Lines,
        rs485: rs485(fields)?,
        line_end: "\n",
        silent_after_ms: 0,
    })
}

/// Half duplex with the UART switching the transmitter: the kernel does it, where the UART's driver can.
fn rs485(fields: &mut Fields<'_>) -> Result<Option<Rs485>, String> {
    let on = fields.switch("rs485")?.unwrap_or(false);
    let before = fields.number("rs485DelayBeforeMs", 0, 100)?;
    let after = fields.number("rs485DelayAfterMs", 0, 100)?;
    let active_low = fields.switch("rs485ActiveLow")?;
    if !on && (before.is_some() || after.is_some() || active_low.is_some()) {
        return Err(format!("{}: must be true for the other rs485 keys", fields.path("rs485")));
    }
    Ok(on.then_some(Rs485 {
        active_low: active_low.unwrap_or(false),
        delay_before_ms: before.unwrap_or(0) as u32,
        delay_after_ms: after.unwrap_or(0) as u32,
    }))
}

pub fn channel(fields: &mut Fields<'_>) -> Result<u8, String> {
    match fields.number("channel", 0, 255)? {
        Some(channel) => Ok(channel as u8),
        None => Err(format!(
            "{} is missing: write the channel that the sensor uses for it, 0 to 255",
            fields.path("channel")
        )),
    }
}
