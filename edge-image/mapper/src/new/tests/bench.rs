//! One model of the library in the mapper's real engine, with a simulated device at the other end of its wires.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::openpty,
};
use serde_json::{Value, json};

use crate::{
    check,
    driver::{Driver, Reading},
    engine::{Engine, Opener},
    gpio::{
        GpioDriver,
        fake::{DirectOutputs, LABEL, World},
    },
    modbus::{Lines, ModbusDriver},
    new,
    plan::{Access, Plan, Protocol},
    polled::{Bus, PolledDriver, onewire::OneWire},
    run,
    serial::{Ports, SerialDriver},
};

/// Turns until a value must be there; each waits a millisecond at most.
const TURNS_MAX: u64 = 20_000;

struct SimulatedOpener {
    world: World,
    outputs: DirectOutputs,
    modbus: Lines,
    serial: Ports,
    /// What is on the I2C or SPI bus; taken when the device is opened.
    chip: Rc<RefCell<Option<Box<dyn Bus>>>>,
    /// The kernel's folder of the 1-Wire bus.
    one_wire: PathBuf,
}

impl Opener for SimulatedOpener {
    fn open(
        &mut self,
        now_ms: u64,
        device: &str,
        plan: &Plan,
        readings: &mut Vec<Reading>,
    ) -> Result<Box<dyn Driver>, String> {
        Ok(match &plan.protocol {
            Protocol::Gpio | Protocol::Pwm => {
                let outputs = Rc::new(RefCell::new(self.outputs.clone()));
                let properties = &plan.properties;
                Box::new(GpioDriver::open(now_ms, device, properties, &mut self.world, outputs, readings)?)
            }
            Protocol::I2c(_) | Protocol::Spi(_) => {
                let bus = self.chip.take().ok_or("nothing is on the bus")?;
                run::registers(now_ms, bus, "the simulated chip".into(), plan)?
            }
            Protocol::OneWire => {
                let sensors = plan.properties.iter().filter_map(|property| match &property.access {
                    Access::Thermometer(sensor) => Some(sensor.clone()),
                    _ => None,
                });
                let bus = OneWire::new(&self.one_wire, sensors.collect());
                Box::new(PolledDriver::open(now_ms, &plan.properties, Box::new(bus))?)
            }
            Protocol::Modbus(slave) => {
                Box::new(ModbusDriver::open(now_ms, device, slave, &plan.properties, &mut self.modbus)?)
            }
            Protocol::Serial(port) => {
                Box::new(SerialDriver::open(now_ms, device, port, &plan.properties, &mut self.serial)?)
            }
        })
    }

    fn release(&mut self, _device: &str, _properties: &[&str]) {}
}

/// What is at the other end of a port: bytes in, bytes out.
pub trait Simulated {
    fn heard(&mut self, bytes: &[u8]) -> Vec<u8>;
}

pub struct Bench {
    engine: Engine,
    pub world: World,
    outputs: DirectOutputs,
    /// The other end of the model's port. The slave side stays open, so that the port is there before and after the driver.
    port: Option<(File, OwnedFd)>,
    chip: Rc<RefCell<Option<Box<dyn Bus>>>>,
    pub one_wire: tempfile::TempDir,
    description: Value,
    protocol: String,
    /// The fake line of each line of the model.
    lines: BTreeMap<u64, u32>,
    pub values: BTreeMap<String, String>,
    pub state: String,
    now_ms: u64,
}

impl Bench {
    /// The model with its example Device, as it is, but for where it is wired to.
    pub fn new(model: &str) -> Bench {
        let objects = check::objects(&new::new(model, None, None).unwrap()).unwrap();
        let mut device = objects[1].clone();
        let mut lines = BTreeMap::new();
        for property in device["spec"]["properties"].as_array_mut().unwrap() {
            let config = &mut property["visitors"]["configData"];
            if let Some(line) = config["line"].as_u64() {
                let next = lines.len() as u32;
                config["line"] = json!(*lines.entry(line).or_insert(next));
                config["chip"] = json!(LABEL);
            } else if config.is_null() {
                property.as_object_mut().unwrap().remove("visitors");
            }
        }
        let protocol = device["spec"]["protocol"]["protocolName"].as_str().unwrap().to_owned();
        let config = &mut device["spec"]["protocol"]["configData"];
        let key = ["path", "serialPort"].into_iter().find(|key| config[*key].is_string());
        let port = key.map(|key| {
            let pty = openpty(None, None).unwrap();
            config[key] = json!(nix::unistd::ttyname(&pty.slave).unwrap());
            fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            (File::from(pty.master), pty.slave)
        });
        let world = World::default();
        let outputs = DirectOutputs::new(&world);
        let (chip, one_wire) = (Rc::new(RefCell::new(None)), tempfile::tempdir().unwrap());
        let opener = SimulatedOpener {
            world: world.clone(),
            outputs: outputs.clone(),
            modbus: Lines::default(),
            serial: Ports::default(),
            chip: chip.clone(),
            one_wire: one_wire.path().into(),
        };
        let mut engine = Engine::new(Box::new(opener));
        engine.connected(0);
        let description = json!({"version": 1, "device": device, "model": objects[0]});
        Bench {
            engine,
            world,
            outputs,
            port,
            chip,
            one_wire,
            description,
            protocol,
            lines,
            values: BTreeMap::new(),
            state: String::new(),
            now_ms: 0,
        }
    }

    /// Puts a chip on the bus.
    pub fn with_chip(self, chip: impl Bus + 'static) -> Bench {
        *self.chip.borrow_mut() = Some(Box::new(chip));
        self
    }

    /// Describes the device to the mapper, as edgecore does.
    pub fn start(mut self) -> Bench {
        self.describe();
        self
    }

    fn describe(&mut self) {
        let payload = self.description.to_string();
        self.engine.description(self.now_ms, &self.protocol, "default/d", payload.as_bytes());
    }

    /// A desired value, as it comes from the cloud.
    pub fn desire(&mut self, property: &str, value: &str) {
        let properties = self.description["device"]["spec"]["properties"].as_array_mut().unwrap();
        let property = properties.iter_mut().find(|have| have["name"] == property).unwrap();
        property["desired"] = json!({"value": value});
        self.describe();
    }

    /// The level of a line of the model.
    pub fn set_line(&self, line: u64, high: bool) {
        self.world.flip(self.lines[&line], high);
    }

    pub fn line(&self, line: u64) -> bool {
        self.world.high(self.lines[&line])
    }

    pub fn say(&mut self, text: &str) {
        self.port.as_mut().unwrap().0.write_all(text.as_bytes()).unwrap();
    }

    /// One turn of the mapper's loop, and of the device.
    pub fn turn(&mut self, device: &mut dyn Simulated) {
        self.now_ms += 2;
        *self.world.now_ns.borrow_mut() = self.now_ms * 1_000_000;
        self.outputs.tick(self.now_ms * 1000);
        self.engine.tick(self.now_ms);
        let mut waits = Vec::new();
        self.engine.waits(&mut waits);
        {
            let mut fds: Vec<PollFd<'_>> = waits
                .iter()
                .map(|(_, wait)| {
                    let write = if wait.write { PollFlags::POLLOUT } else { PollFlags::empty() };
                    PollFd::new(borrowed(wait.fd), PollFlags::POLLIN | write)
                })
                .collect();
            fds.extend(
                self.port.iter().map(|(port, _)| PollFd::new(borrowed(port.as_raw_fd()), PollFlags::POLLIN)),
            );
            poll(&mut fds, PollTimeout::from(1_u8)).unwrap();
        }
        let ids: std::collections::BTreeSet<String> = waits.into_iter().map(|(id, _)| id).collect();
        ids.iter().for_each(|id| self.engine.ready(self.now_ms, id));
        if let Some((port, _)) = &mut self.port {
            let mut buffer = [0; 512];
            if let Ok(len) = port.read(&mut buffer) {
                let answer = device.heard(&buffer[..len]);
                port.write_all(&answer).unwrap();
            }
        }
        let (values, state) = (&mut self.values, &mut self.state);
        self.engine.flush(self.now_ms, 7, |topic, payload| {
            let message: Value = serde_json::from_str(payload).unwrap();
            if let Some(now) = message["state"].as_str() {
                assert!(topic.ends_with("/state/update"));
                *state =
                    format!("{now} {}", message["reason"].as_str().unwrap_or_default()).trim().to_owned();
            }
            for (name, twin) in message["twin"].as_object().into_iter().flatten() {
                if let Some(value) = twin["actual"]["value"].as_str() {
                    values.insert(name.clone(), value.to_owned());
                }
            }
            true
        });
    }

    /// Turns until the value is there.
    pub fn expect(&mut self, property: &str, value: &str, device: &mut dyn Simulated) {
        for _ in 0..TURNS_MAX {
            self.turn(device);
            if self.values.get(property).is_some_and(|have| have == value) {
                return;
            }
        }
        panic!("{property} is not {value}: {:?}, {}", self.values, self.state);
    }
}

#[allow(unsafe_code)]
fn borrowed<'a>(fd: std::os::fd::RawFd) -> BorrowedFd<'a> {
    // SAFETY: the engine's drivers and the bench own these descriptors and live through the poll.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// A device that only lines are wired to, or that only speaks.
pub struct Silent;

impl Simulated for Silent {
    fn heard(&mut self, _bytes: &[u8]) -> Vec<u8> {
        Vec::new()
    }
}

/// A device of text lines.
#[derive(Default)]
pub struct TextDevice {
    pub heard: String,
}

impl Simulated for TextDevice {
    fn heard(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.heard.push_str(&String::from_utf8_lossy(bytes));
        Vec::new()
    }
}

/// A Modbus RTU slave with address 1, written from the specification ("MODBUS over serial line" V1.02), not with the mapper's code.
#[derive(Default)]
pub struct RtuSlave {
    pub input_registers: BTreeMap<u16, u16>,
    pub coils: BTreeMap<u16, bool>,
    pub discrete_inputs: BTreeMap<u16, bool>,
    /// More registers at once are refused with exception 2, as the SDM meters do.
    pub registers_max: u16,
    received: Vec<u8>,
    pub requests: usize,
}

impl RtuSlave {
    /// Two registers, the first one is the high half.
    pub fn put_float(&mut self, address: u16, value: f32) {
        let bits = value.to_bits();
        self.input_registers.insert(address, (bits >> 16) as u16);
        self.input_registers.insert(address + 1, bits as u16);
    }

    fn answer(&mut self, function: u8, address: u16, number: u16) -> Vec<u8> {
        let bits = |bits: &BTreeMap<u16, bool>| {
            let mut bytes = vec![0_u8; usize::from(number).div_ceil(8)];
            for at in 0..number {
                let set = bits.get(&(address + at)).copied().unwrap_or(false);
                bytes[usize::from(at / 8)] |= u8::from(set) << (at % 8);
            }
            [vec![function, bytes.len() as u8], bytes].concat()
        };
        match function {
            1 => bits(&self.coils),
            2 => bits(&self.discrete_inputs),
            4 if number <= self.registers_max => {
                let mut pdu = vec![4, (number * 2) as u8];
                for at in 0..number {
                    let value = self.input_registers.get(&(address + at)).copied().unwrap_or(0);
                    pdu.extend(value.to_be_bytes());
                }
                pdu
            }
            5 => {
                self.coils.insert(address, number == 0xff00);
                let (address, number) = (address.to_be_bytes(), number.to_be_bytes());
                [&[5][..], &address, &number].concat()
            }
            _ => vec![function | 0x80, 2],
        }
    }
}

impl Simulated for RtuSlave {
    fn heard(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.received.extend_from_slice(bytes);
        let mut out = Vec::new();
        // All requests that these models make are 8 bytes long.
        while self.received.len() >= 8 {
            let request: Vec<u8> = self.received.drain(..8).collect();
            assert_eq!(crc(&request), 0, "{request:02x?}");
            assert_eq!(request[0], 1, "the unit");
            self.requests += 1;
            let word = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
            let mut frame = vec![1];
            frame.extend(self.answer(request[1], word(2), word(4)));
            let sum = crc(&frame);
            frame.extend(sum.to_le_bytes());
            out.extend(frame);
        }
        out
    }
}

fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xffff, |crc, byte| {
        (0..8)
            .fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 })
    })
}
