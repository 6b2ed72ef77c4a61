//! Fields of Modbus devices: KubeEdge's visitor keys and Telegraf's vocabulary (docs/modbus.md).

use std::net::{IpAddr, SocketAddr};

use super::{
    Type,
    fields::Fields,
    serial::{self, Framing as SerialFraming, Parity, Port},
};
use crate::{
    expression::Expression,
    limits::{MODBUS_RETRIES_MAX, MODBUS_TIMEOUT_MS_MAX},
    modbus::{
        adu::Framing,
        merge::{Merging, Span},
        pdu::Table,
        value::{Data, Encoding, Half},
    },
};

#[derive(Clone, Debug, PartialEq)]
pub enum Link {
    Serial(Port),
    Tcp { address: SocketAddr, framing: Framing },
}

impl Link {
    pub fn framing(&self) -> Framing {
        match self {
            Link::Tcp { framing, .. } => *framing,
            Link::Serial(port) if port.framing == SerialFraming::ModbusAscii => Framing::Ascii,
            Link::Serial(_) => Framing::Rtu,
        }
    }
}

/// A line as its devices describe it; those of one port must agree.
#[derive(Clone, Debug, PartialEq)]
pub struct LineSpec {
    pub link: Link,
    pub pause_ms: u64,
    pub after_connect_ms: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Slave {
    pub line: LineSpec,
    pub unit: u8,
    pub timeout_ms: u64,
    pub retries: u8,
    pub busy_retries: u8,
    pub busy_pause_ms: u64,
    pub merging: Merging,
    byte_order: Option<ByteOrder>,
}

impl Slave {
    /// All devices of the line at once, of which none answers. Over TCP 0 is an address as any other.
    pub fn is_broadcast(&self) -> bool {
        self.unit == 0 && self.line.link.framing().is_anonymous()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Register {
    pub span: Span,
    pub encoding: Encoding,
    /// Write with function 16 even what is one register.
    pub multiple: bool,
}

/// Bytes of each register swapped, registers reversed.
type ByteOrder = (bool, bool);
/// More between two registers cost more time than a request of their own.
const GAP_MAX: u64 = 120;
/// What Telegraf's `max_insert` fills without a number.
const TELEGRAF_GAP: u64 = 50;
const BYTE_ORDERS: [(&str, ByteOrder); 10] = [
    ("ABCD", (false, false)),
    ("BADC", (true, false)),
    ("CDAB", (false, true)),
    ("DCBA", (true, true)),
    ("AB", (false, false)),
    ("BA", (true, false)),
    ("ABCDEFGH", (false, false)),
    ("BADCFEHG", (true, false)),
    ("GHEFCDAB", (false, true)),
    ("HGFEDCBA", (true, true)),
];

/// Telegraf's words: on a port or through the network, and how frames look there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Port(SerialFraming),
    Network(Framing),
}
const MODES: [(&str, Option<Mode>); 6] = [
    ("auto", None),
    ("RTU", Some(Mode::Port(SerialFraming::ModbusRtu))),
    ("ASCII", Some(Mode::Port(SerialFraming::ModbusAscii))),
    ("TCP", Some(Mode::Network(Framing::Tcp))),
    ("RTUoverTCP", Some(Mode::Network(Framing::Rtu))),
    ("ASCIIoverTCP", Some(Mode::Network(Framing::Ascii))),
];

const STRING_LOCATIONS: [(&str, Option<Half>); 3] =
    [("both", None), ("upper", Some(Half::Upper)), ("lower", Some(Half::Lower))];

pub fn slave(fields: &mut Fields<'_>) -> Result<Slave, String> {
    let mode = fields.choice("transmissionMode", &MODES)?.flatten();
    let link = link(fields, mode)?;
    let units_max = if link.framing().is_anonymous() { 247 } else { 255 };
    let unit = fields.number("slaveID", 0, units_max)?.unwrap_or(1) as u8;
    let line = LineSpec {
        link,
        pause_ms: fields.number("pauseBetweenRequests", 0, 10_000)?.unwrap_or(0),
        after_connect_ms: fields.number("pauseAfterConnect", 0, 60_000)?.unwrap_or(0),
    };
    let retries_max = u64::from(MODBUS_RETRIES_MAX);
    Ok(Slave {
        line,
        unit,
        timeout_ms: fields.number("timeoutMs", 10, MODBUS_TIMEOUT_MS_MAX)?.unwrap_or(1_000),
        retries: fields.number("retries", 0, retries_max)?.unwrap_or(1) as u8,
        busy_retries: fields.number("busyRetries", 0, retries_max)?.unwrap_or(3) as u8,
        busy_pause_ms: fields.number("busyRetriesWait", 1, 10_000)?.unwrap_or(100),
        merging: merging(fields)?,
        byte_order: fields.choice("byteOrder", &BYTE_ORDERS)?,
    })
}

/// Our keys, and Telegraf's for the same.
fn merging(fields: &mut Fields<'_>) -> Result<Merging, String> {
    // A gap as Telegraf's algorithms have it: none, shrink and rearrange read nothing that nobody asked for.
    let algorithms =
        [("none", 0), ("shrink", 0), ("rearrange", 0), ("aggressive", GAP_MAX), ("max_insert", TELEGRAF_GAP)];
    let algorithm = fields.choice("optimization", &algorithms)?;
    let fill = fields.number("optimizationMaxRegisterFill", 0, GAP_MAX)?;
    let gap = fields.number("maxGap", 0, GAP_MAX)?;
    let per_field = fields.switch("oneRequestPerField")?;
    let merge = fields.switch("merge")?;
    for (ours, theirs, both) in [
        ("maxGap", "optimization", gap.is_some() && (algorithm.is_some() || fill.is_some())),
        ("merge", "oneRequestPerField", merge.is_some() && per_field.is_some()),
    ] {
        if both {
            return Err(format!("{}: says what {theirs} says; keep one of them", fields.path(ours)));
        }
    }
    let words = fields.number("maxWordRegistersPerRequest", 1, 125)?;
    let gap = gap.or(fill.filter(|_| algorithm == Some(TELEGRAF_GAP))).or(algorithm);
    Ok(Merging {
        enabled: merge.or(per_field.map(|alone| !alone)).unwrap_or(true),
        gap_max: gap.unwrap_or(0) as u16,
        registers_max: fields.number("maxRegisters", 1, 125)?.or(words).unwrap_or(125) as u16,
        bits_max: fields.number("maxBitRegistersPerRequest", 1, 2000)?.unwrap_or(2000) as u16,
        coils_from_zero: fields.switch("readCoilsStartingAtZero")?.unwrap_or(false),
    })
}

fn link(fields: &mut Fields<'_>, mode: Option<Mode>) -> Result<Link, String> {
    let controller = fields.text("controller")?;
    let mut com = fields.inner("com")?;
    let mut tcp = fields.inner("tcp")?;
    let serial_path = match &controller {
        Some(text) => text.strip_prefix("file://").map(str::to_owned),
        None => com.text("serialPort")?,
    };
    let serial_path = match serial_path {
        None => fields.text("serialPort")?,
        path => path,
    };
    // The settings are inside `com` or beside it.
    let serial_fields = if com.is_empty() { &mut *fields } else { &mut com };
    let port = serial::settings(serial_fields, 19_200, Parity::Even)?;
    let address = match controller.as_deref().map(|text| (text, text.strip_prefix("tcp://"))) {
        Some((_, Some(address))) => {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "502"));
            let port =
                port.parse().map_err(|_| format!("{}: {port} is no port", fields.path("controller")))?;
            Some((host.trim_matches(['[', ']']).to_owned(), port))
        }
        Some((text, None)) if serial_path.is_none() => {
            return Err(format!(
                "{}: {text:?} is neither tcp://ADDRESS:502 nor file:///dev/...",
                fields.path("controller")
            ));
        }
        _ => {
            let from = if tcp.is_empty() { &mut *fields } else { &mut tcp };
            let host = from.text("ip")?;
            let port = from.number("port", 1, 65535)?.unwrap_or(502) as u16;
            host.map(|host| (host, port))
        }
    };
    com.done()?;
    tcp.done()?;
    match (serial_path, address) {
        (Some(_), Some(_)) => Err(format!(
            "{} and {} are both there; keep the one that the device hangs on",
            fields.path("serialPort"),
            fields.path("ip")
        )),
        (None, None) => Err(format!(
            "{} is missing: write serialPort (/dev/serial/by-id/...) or ip and port",
            fields.path("serialPort")
        )),
        (Some(path), None) if !matches!(mode, Some(Mode::Network(_))) => {
            serial::check_path(&path, &fields.path("serialPort"))?;
            let framing = match mode {
                Some(Mode::Port(framing)) => framing,
                _ => SerialFraming::ModbusRtu,
            };
            Ok(Link::Serial(Port { path, framing, ..port }))
        }
        (None, Some((host, port))) if !matches!(mode, Some(Mode::Port(_))) => {
            let ip: IpAddr = host.parse().map_err(|_| {
                format!("{}: {host:?} is no IP address; names are not looked up", fields.path("ip"))
            })?;
            let framing = match mode {
                Some(Mode::Network(framing)) => framing,
                _ => Framing::Tcp,
            };
            Ok(Link::Tcp { address: SocketAddr::new(ip, port), framing })
        }
        _ => Err(format!(
            "{}: RTU and ASCII are for a serialPort, TCP, RTUoverTCP and ASCIIoverTCP for an ip",
            fields.path("transmissionMode")
        )),
    }
}

pub fn register(fields: &mut Fields<'_>, slave: &Slave, kind: Type) -> Result<Register, String> {
    let tables = [
        ("CoilRegister", Table::Coils),
        ("DiscreteInputRegister", Table::DiscreteInputs),
        ("HoldingRegister", Table::Holding),
        ("InputRegister", Table::Input),
        ("coil", Table::Coils),
        ("discrete", Table::DiscreteInputs),
        ("holding", Table::Holding),
        ("input", Table::Input),
    ];
    let Some(table) = fields.choice("register", &tables)? else {
        return Err(format!(
            "{} is missing: write CoilRegister, DiscreteInputRegister, HoldingRegister or InputRegister",
            fields.path("register")
        ));
    };
    let Some(address) = fields.number("offset", 0, 65535)? else {
        return Err(format!(
            "{} is missing: write the address as it goes over the wire, from 0 (40001 in a manual is offset 0)",
            fields.path("offset")
        ));
    };
    if slave.is_broadcast() && !table.is_writable() {
        return Err(format!(
            "{}: slaveID 0 is for all devices at once, and none of them answers; use CoilRegister or HoldingRegister, or the device's own address",
            fields.path("register")
        ));
    }
    let limit = fields.number("limit", 1, u64::from(table.read_max()))?.map(|limit| limit as u16);
    let bit = fields.number("bit", 0, 15)?.map(|bit| bit as u8);
    let name = fields.text("dataType")?;
    let mut data = data(table, kind, limit, bit, name.as_deref())
        .map_err(|reason| format!("{}: {reason}", fields.path("dataType")))?;
    if let Some(location) = fields.choice("stringRegisterLocation", &STRING_LOCATIONS)? {
        let Data::Text { half, .. } = &mut data else {
            return Err(format!("{}: only texts have it; remove it", fields.path("stringRegisterLocation")));
        };
        *half = location;
    }
    if slave.is_broadcast() && matches!(data, Data::Bit(_)) && !table.is_bits() {
        return Err(format!(
            "{}: one bit is written by reading the register first, which slaveID 0 does not answer",
            fields.path("bit")
        ));
    }
    let count = data.count().or(limit).unwrap_or(1);
    if let Some(limit) = limit
        && limit != count
    {
        return Err(format!(
            "{}: {limit} does not fit the type, which takes {count}; remove limit, or set dataType",
            fields.path("limit")
        ));
    }
    if address + u64::from(count) > 65536 {
        return Err(format!("{}: {address} and {count} more go beyond 65535", fields.path("offset")));
    }
    let most = slave.merging.count_max(table);
    if u32::from(count) > most {
        return Err(format!(
            "{}: {count} are more than this device gives at once, {most} (maxRegisters, maxBitRegistersPerRequest)",
            fields.path("limit")
        ));
    }
    let (swap_bytes, swap_words) = byte_order(fields, slave)?;
    let scale = fields.decimal("scale")?.unwrap_or(1.0);
    if scale == 0.0 {
        return Err(format!("{}: 0 makes every value 0; use 1 for no scale", fields.path("scale")));
    }
    let expression = expression(fields, "expression")?;
    Ok(Register {
        span: Span { table, address: address as u16, count },
        encoding: Encoding {
            data,
            swap_bytes,
            swap_words,
            scale,
            expression,
            boolean: kind == Type::Boolean,
            whole: kind == Type::Int,
        },
        multiple: fields.switch("writeMultiple")?.unwrap_or(false),
    })
}

/// An expression under a key.
pub fn expression(fields: &mut Fields<'_>, key: &'static str) -> Result<Option<Expression>, String> {
    let text = fields.text(key)?;
    let parsed = text.map(|text| Expression::parse(&text)).transpose();
    parsed.map_err(|reason| format!("{}: {reason}", fields.path(key)))
}

fn byte_order(fields: &mut Fields<'_>, slave: &Slave) -> Result<ByteOrder, String> {
    let named = fields.choice("byteOrder", &BYTE_ORDERS)?;
    let (bytes, words) = (fields.switch("isSwap")?, fields.switch("isRegisterSwap")?);
    match named {
        Some(_) if bytes.is_some() || words.is_some() => Err(format!(
            "{}: says what isSwap and isRegisterSwap say; keep one of them",
            fields.path("byteOrder")
        )),
        Some(order) => Ok(order),
        None if bytes.is_none() && words.is_none() => Ok(slave.byte_order.unwrap_or_default()),
        None => Ok((bytes.unwrap_or(false), words.unwrap_or(false))),
    }
}

/// The data type by its name, or by the model's type and the number of registers, as KubeEdge's Modbus mapper does it.
fn data(
    table: Table,
    kind: Type,
    limit: Option<u16>,
    bit: Option<u8>,
    name: Option<&str>,
) -> Result<Data, String> {
    let name = name.map(|name| name.to_ascii_uppercase().replace("-IEEE", ""));
    if table.is_bits() {
        return match name.as_deref() {
            None | Some("BOOL" | "BOOLEAN" | "BIT") if bit.is_none() => {
                Ok(if limit.unwrap_or(1) == 1 { Data::Bit(0) } else { Data::Bits })
            }
            _ => Err(format!("a {} is one bit; remove dataType and bit", table.name())),
        };
    }
    let registers = |default: u16| limit.unwrap_or(default);
    let numeric = |default: u16| match registers(default) {
        count @ 1..=4 if count != 3 => Ok(count),
        count => Err(format!("no number has {count} registers; set limit to 1, 2 or 4")),
    };
    let int = |registers: u16, signed: bool| Data::Int { registers, signed };
    if bit.is_some() && !matches!(name.as_deref(), None | Some("BIT")) {
        return Err("bit is for one bit of a register; remove dataType".into());
    }
    Ok(match name.as_deref() {
        None if bit.is_some() => Data::Bit(bit.unwrap_or_default()),
        None => match kind {
            Type::Int | Type::Boolean => int(numeric(1)?, true),
            Type::Float if registers(2) >= 2 => Data::Float32,
            Type::Double if registers(4) == 4 => Data::Float64,
            Type::Double if registers(4) == 2 => Data::Float32,
            // One register with digits behind the point, by scale.
            Type::Float | Type::Double => Data::Fixed { registers: numeric(1)?, signed: true },
            Type::String => Data::Text { registers: registers(1), half: None },
            Type::Bytes => Data::Hex { registers: registers(1) },
        },
        Some("BIT") => Data::Bit(bit.unwrap_or_default()),
        Some("BOOL" | "BOOLEAN" | "INT") => int(numeric(1)?, true),
        Some("UINT") => int(numeric(1)?, false),
        Some("INT8L") => Data::Byte { high: false, signed: true },
        Some("INT8H") => Data::Byte { high: true, signed: true },
        Some("UINT8L") => Data::Byte { high: false, signed: false },
        Some("UINT8H") => Data::Byte { high: true, signed: false },
        Some("INT16") => int(1, true),
        Some("UINT16") => int(1, false),
        Some("INT32") => int(2, true),
        Some("UINT32") => int(2, false),
        Some("INT64") => int(4, true),
        Some("UINT64") => int(4, false),
        Some("FIXED") => Data::Fixed { registers: numeric(1)?, signed: true },
        Some("UFIXED") => Data::Fixed { registers: numeric(1)?, signed: false },
        Some("FLOAT16") => Data::Float16,
        Some("FLOAT32" | "FLOAT") => Data::Float32,
        Some("FLOAT64" | "DOUBLE") => Data::Float64,
        Some("STRING") => Data::Text { registers: registers(1), half: None },
        Some("BYTES" | "HEX") => Data::Hex { registers: registers(1) },
        Some(other) => {
            return Err(format!(
                "{other} is unknown; use INT16, UINT16, INT32, UINT32, INT64, UINT64, FLOAT16-IEEE, FLOAT32-IEEE, FLOAT64-IEEE, FIXED, UFIXED, \
                 INT8L, INT8H, UINT8L, UINT8H, STRING, BYTES or BIT"
            ));
        }
    })
}

impl Register {
    /// Why a desired value cannot be written here.
    pub fn refuses(&self, value: &str) -> Option<String> {
        if !self.span.table.is_writable() {
            return Some(format!(
                "a {} is read only; remove the value, or use CoilRegister or HoldingRegister",
                self.span.table.name()
            ));
        }
        if self.encoding.expression.is_some() {
            return Some("expression works for reading only; remove the value, or use scale".into());
        }
        match self.encoding.data {
            Data::Bit(_) | Data::Bits => self.encoding.bits(value, self.span.count).err(),
            _ => self.encoding.registers(value).err(),
        }
    }
}
