//! Lines that are open, and who is on them.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use super::{
    line::{Line, Timing},
    link::Wire,
};
use crate::{
    driver::Wait,
    limits::{MODBUS_CONNECT_MS_MAX, RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN, SERIAL_READ_BYTES},
    plan::{
        modbus::{LineSpec, Link},
        serial::{Parity, Port},
    },
};

/// Before a connection that was closed while nothing was asked is made again.
const CONNECT_PAUSE_MS: u64 = 100;

/// The lines that are open, each once, whoever asked first.
#[derive(Default)]
pub struct Lines {
    lines: Vec<Weak<RefCell<Shared>>>,
}

/// A line with its wire. A port that fails is gone for good: its devices are told and opened anew by the engine. A connection that
/// breaks is made again here, since only the other end knows when it is there.
pub(super) struct Shared {
    spec: LineSpec,
    /// The device that opened it, for messages.
    owner: String,
    pub line: Line,
    wire: Option<Wire>,
    connect_deadline_ms: Option<u64>,
    /// Why the port is gone.
    gone: Option<String>,
    /// Why there is no connection.
    outage: Option<String>,
    /// Counts losses, so that each device sees each of them.
    pub losses: u32,
    retry_at_ms: u64,
    retry_delay_ms: u64,
}

impl Lines {
    pub(super) fn open(
        &mut self,
        now_ms: u64,
        device: &str,
        spec: &LineSpec,
    ) -> Result<Rc<RefCell<Shared>>, String> {
        self.lines.retain(|line| line.upgrade().is_some_and(|line| line.borrow().gone.is_none()));
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
        let port = match &spec.link {
            Link::Serial(_) => Some(Wire::open(&spec.link)?),
            Link::Tcp { .. } => None,
        };
        let mut shared = Shared {
            spec: spec.clone(),
            owner: device.to_owned(),
            line: Line::new(spec.link.framing(), timing(spec)),
            outage: port.is_none().then(|| format!("connecting to {}", spec.link.name())),
            wire: port,
            connect_deadline_ms: Some(now_ms),
            gone: None,
            losses: 0,
            retry_at_ms: now_ms,
            retry_delay_ms: RETRY_DELAY_MS_MIN,
        };
        shared.work(now_ms)?;
        Ok(shared)
    }

    /// Moves bytes and looks at the clock. An error means that the port is gone.
    pub fn work(&mut self, now_ms: u64) -> Result<(), String> {
        if let Some(gone) = &self.gone {
            return Err(gone.clone());
        }
        let Err(error) = self.try_work(now_ms) else { return Ok(()) };
        let was_idle = self.line.is_idle() && self.outage.is_none();
        self.wire = None;
        self.line.closed();
        self.losses += 1;
        if matches!(self.spec.link, Link::Serial(_)) {
            self.gone = Some(error.clone());
            return Err(error);
        }
        if was_idle {
            // Many gateways close what is not used for a while: no outage, unless it cannot be opened again.
            self.losses -= 1;
            self.retry_at_ms = now_ms + CONNECT_PAUSE_MS;
            return Ok(());
        }
        self.outage = Some(error);
        self.retry_at_ms = now_ms + self.retry_delay_ms;
        self.retry_delay_ms = (self.retry_delay_ms * 2).min(RETRY_DELAY_MS_MAX);
        Ok(())
    }

    fn try_work(&mut self, now_ms: u64) -> Result<(), String> {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            None if now_ms < self.retry_at_ms => return Ok(()),
            None => {
                self.connect_deadline_ms = Some(now_ms + MODBUS_CONNECT_MS_MAX);
                self.wire.insert(Wire::open(&self.spec.link)?)
            }
        };
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
            self.outage = None;
            self.line.opened(now_ms);
        }
        let mut buffer = [0; SERIAL_READ_BYTES];
        let len = wire.read(&mut buffer)?;
        if len > 0 {
            self.retry_delay_ms = RETRY_DELAY_MS_MIN;
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

    /// Why nothing can be asked at present.
    pub fn outage(&self) -> Option<&String> {
        self.outage.as_ref()
    }

    pub fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    pub fn wait(&self) -> Option<Wait> {
        let wire = self.wire.as_ref()?;
        Some(Wait { fd: wire.fd(), write: !wire.is_connected() || self.line.wants_to_write() })
    }

    pub fn deadline_ms(&self) -> Option<u64> {
        match &self.wire {
            None => Some(self.retry_at_ms),
            Some(_) => self.connect_deadline_ms.or_else(|| self.line.deadline_ms()),
        }
    }
}
