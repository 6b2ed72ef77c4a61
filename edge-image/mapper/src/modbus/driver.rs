//! A Modbus device of the engine: its [`Device`] on a line that it shares with the others of the same port.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use super::{
    adu::Framing,
    device::Device,
    line::{Line, Timing},
    link::Wire,
};
use crate::{
    driver::{Driver, Reading, Wait},
    limits::{MODBUS_CONNECT_MS_MAX, SERIAL_READ_BYTES},
    plan::{
        Property,
        modbus::{LineSpec, Link, Slave},
        serial::{Parity, Port},
    },
};

/// The lines that are open, each once, whoever asked first.
#[derive(Default)]
pub struct Lines {
    lines: Vec<Weak<RefCell<Shared>>>,
}

/// A line with its wire. When the wire fails, every device on it is told, and the next that opens gets a new line.
struct Shared {
    spec: LineSpec,
    /// The device that opened it, for messages.
    owner: String,
    line: Line,
    wire: Result<Wire, String>,
    connect_deadline_ms: Option<u64>,
}

impl Lines {
    fn open(&mut self, now_ms: u64, device: &str, spec: &LineSpec) -> Result<Rc<RefCell<Shared>>, String> {
        self.lines.retain(|line| line.upgrade().is_some_and(|line| line.borrow().wire.is_ok()));
        for line in self.lines.iter().filter_map(Weak::upgrade) {
            let shared = line.borrow();
            if !is_same_place(&shared.spec.link, &spec.link) {
                continue;
            }
            if !shared.spec.is_set_as(spec) {
                return Err(format!(
                    "{} is open for {} with other settings; devices on one line must have the same baudRate, parity, stopBits and pauses",
                    spec.link.name(),
                    shared.owner
                ));
            }
            drop(shared);
            return Ok(line);
        }
        let shared = Shared::open(now_ms, device, spec)?;
        let shared = Rc::new(RefCell::new(shared));
        self.lines.push(Rc::downgrade(&shared));
        Ok(shared)
    }
}

fn is_same_place(left: &Link, right: &Link) -> bool {
    match (left, right) {
        (Link::Serial(left), Link::Serial(right)) => left.device_file() == right.device_file(),
        (Link::Tcp { address: left, .. }, Link::Tcp { address: right, .. }) => left == right,
        _ => false,
    }
}

impl LineSpec {
    /// The same line, by whatever path.
    fn is_set_as(&self, other: &LineSpec) -> bool {
        let links = match (&self.link, &other.link) {
            (Link::Serial(own), Link::Serial(other)) => own.is_set_as(other),
            (own, other) => own == other,
        };
        links && (self.pause_ms, self.after_connect_ms) == (other.pause_ms, other.after_connect_ms)
    }
}

impl Link {
    pub fn name(&self) -> String {
        match self {
            Link::Serial(port) => port.path.clone(),
            Link::Tcp { address, .. } => address.to_string(),
        }
    }
}

/// Start bit, data bits, parity bit, stop bits.
fn byte_us(port: &Port) -> u64 {
    let bits =
        1 + u64::from(port.data_bits) + u64::from(port.parity != Parity::None) + u64::from(port.stop_bits);
    (bits * 1_000_000).div_ceil(u64::from(port.baud_rate))
}

fn timing(spec: &LineSpec) -> Timing {
    let (byte_us, gap_ms) = match &spec.link {
        // 3.5 characters, and above 19200 baud 1.75 ms (Modbus over Serial Line, section 2.5.1.1); one more for the clock's grain.
        Link::Serial(port) => {
            let gap_us = if port.baud_rate > 19_200 { 1_750 } else { byte_us(port) * 7 / 2 };
            (byte_us(port), gap_us.div_ceil(1000) + 1)
        }
        Link::Tcp { .. } => (0, 0),
    };
    Timing { gap_ms, pause_ms: spec.pause_ms, after_connect_ms: spec.after_connect_ms, byte_us }
}

impl Shared {
    fn open(now_ms: u64, device: &str, spec: &LineSpec) -> Result<Shared, String> {
        let framing = match &spec.link {
            Link::Serial(_) => Framing::Rtu,
            Link::Tcp { framing, .. } => *framing,
        };
        let mut shared = Shared {
            spec: spec.clone(),
            owner: device.to_owned(),
            line: Line::new(framing, timing(spec)),
            wire: Ok(Wire::open(&spec.link)?),
            connect_deadline_ms: Some(now_ms + MODBUS_CONNECT_MS_MAX),
        };
        shared.work(now_ms)?;
        Ok(shared)
    }

    /// Moves bytes and looks at the clock. After an error the wire is closed, and the error stays for the others.
    fn work(&mut self, now_ms: u64) -> Result<(), String> {
        let result = self.try_work(now_ms);
        if let Err(error) = &result {
            self.wire = Err(error.clone());
        }
        result
    }

    fn try_work(&mut self, now_ms: u64) -> Result<(), String> {
        let wire = self.wire.as_mut().map_err(|error| error.clone())?;
        if let Some(deadline_ms) = self.connect_deadline_ms {
            if !wire.connect()? {
                if now_ms < deadline_ms {
                    return Ok(());
                }
                return Err(format!(
                    "cannot connect to {}: no answer in {MODBUS_CONNECT_MS_MAX} ms; check ip, port and that the device is on",
                    self.spec.link.name()
                ));
            }
            self.connect_deadline_ms = None;
            self.line.opened(now_ms);
        }
        let mut buffer = [0; SERIAL_READ_BYTES];
        let len = wire.read(&mut buffer)?;
        if len > 0 {
            self.line.received(now_ms, &buffer[..len])?;
        }
        self.line.tick(now_ms);
        let output = self.line.output();
        if !output.is_empty() {
            let written = wire.write(output)?;
            output.rotate_left(written);
            output.truncate(output.len() - written);
        }
        Ok(())
    }

    fn deadline_ms(&self) -> Option<u64> {
        self.connect_deadline_ms.or_else(|| self.line.deadline_ms())
    }
}

pub struct ModbusDriver {
    shared: Rc<RefCell<Shared>>,
    client: u32,
    device: Device,
}

impl ModbusDriver {
    pub fn open(
        now_ms: u64,
        name: &str,
        slave: &Slave,
        properties: &[Property],
        lines: &mut Lines,
    ) -> Result<ModbusDriver, String> {
        let shared = lines.open(now_ms, name, &slave.line)?;
        let client = shared.borrow_mut().line.join();
        let place = format!("unit {} on {}", slave.unit, slave.line.link.name());
        Ok(ModbusDriver { shared, client, device: Device::new(now_ms, slave, place, properties) })
    }

    fn work(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        let shared = &mut *self.shared.borrow_mut();
        shared.work(now_ms)?;
        while let Some(done) = shared.line.take_done(self.client) {
            self.device.done(now_ms, done, &mut shared.line, self.client, readings);
        }
        self.device.tick(now_ms, &mut shared.line, self.client);
        // What was just asked may go out at once.
        shared.work(now_ms)
    }
}

impl Driver for ModbusDriver {
    fn waits(&self, waits: &mut Vec<Wait>) {
        let shared = self.shared.borrow();
        if let Ok(wire) = &shared.wire {
            let write = !wire.is_connected() || shared.line.wants_to_write();
            waits.push(Wait { fd: wire.fd(), write });
        }
    }

    fn ready(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        self.work(now_ms, readings)
    }

    fn tick(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        self.work(now_ms, readings)
    }

    fn deadline_ms(&self) -> Option<u64> {
        let shared = self.shared.borrow();
        // A result that another device's turn brought, or a wire that it found dead.
        if shared.wire.is_err() || shared.line.has_done(self.client) {
            return Some(0);
        }
        [shared.deadline_ms(), self.device.deadline_ms()].into_iter().flatten().min()
    }

    fn set(
        &mut self,
        now_ms: u64,
        property: usize,
        value: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        self.device.wish(property, value);
        self.work(now_ms, readings)
    }

    fn complaint(&self) -> Option<String> {
        self.device.complaint()
    }
}

impl Drop for ModbusDriver {
    fn drop(&mut self) {
        self.shared.borrow_mut().line.leave(self.client);
    }
}
