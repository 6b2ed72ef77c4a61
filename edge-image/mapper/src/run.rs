//! The loop: one thread waits for the broker, the devices and the clock.

use std::{
    cell::RefCell,
    io::{ErrorKind, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::fd::{AsFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use mqtt::{
    Qos,
    client::{Client, Event, Options},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;

use crate::{
    board,
    driver::{Driver, Reading, Wait},
    engine::{Engine, Opener},
    gpio::{GpioDriver, linux::KernelChips},
    holder::{Outputs, SocketOutputs},
    hotplug::HotPlug,
    limits::{DESCRIPTION_BYTES_MAX, VALUE_BYTES_MAX},
    modbus::{self, ModbusDriver},
    monotonic_ms,
    plan::{Access, PROTOCOLS, Plan, Protocol},
    polled::{
        Bus, PolledDriver,
        chip::Chips,
        onewire::{self, OneWire},
        registers::Registers,
    },
    serial::{self, SerialDriver},
    wall_ms,
};

const KEEP_ALIVE_S: u16 = 30;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 4096;
/// Longest sleep: nothing depends on it, it only bounds the effect of a mistake in a deadline.
const PAUSE_MS_MAX: u64 = 60_000;
const TOPIC_PREFIX: &str = "$kinglet/mapper/";
/// Retained, from edgecore: whether there is a link to the cloud, and since when.
const LINK_TOPIC: &str = "$kinglet/link";

#[derive(Clone, Debug)]
pub struct Settings {
    pub broker: String,
    pub username: Option<String>,
    pub password: Option<String>,
    pub lines_socket: PathBuf,
    pub client_id: String,
}

/// Opens the kernel's devices.
pub struct KernelOpener {
    /// One connection for all devices.
    outputs: Rc<RefCell<SocketOutputs>>,
    modbus: modbus::Lines,
    ports: serial::Ports,
}

impl KernelOpener {
    pub fn new(lines_socket: &Path) -> KernelOpener {
        KernelOpener {
            outputs: Rc::new(RefCell::new(SocketOutputs::new(lines_socket))),
            modbus: modbus::Lines::default(),
            ports: serial::Ports::default(),
        }
    }
}

impl Opener for KernelOpener {
    fn open(
        &mut self,
        now_ms: u64,
        device: &str,
        plan: &Plan,
        readings: &mut Vec<Reading>,
    ) -> Result<Box<dyn Driver>, String> {
        Ok(match &plan.protocol {
            Protocol::Gpio | Protocol::Pwm => {
                let outputs = self.outputs.clone();
                Box::new(GpioDriver::open(
                    now_ms,
                    device,
                    &plan.properties,
                    &mut KernelChips,
                    outputs,
                    readings,
                )?)
            }
            Protocol::OneWire => {
                let sensors = plan.properties.iter().filter_map(|property| match &property.access {
                    Access::Thermometer(sensor) => Some(sensor.clone()),
                    _ => None,
                });
                let bus = OneWire::new(onewire::ROOT, sensors.collect());
                Box::new(PolledDriver::open(now_ms, &plan.properties, Box::new(bus))?)
            }
            Protocol::I2c(place) => {
                let name = format!("address {:#04x} of /dev/i2c-{}", place.address, place.bus);
                registers(now_ms, board::open_i2c(place)?, name, plan)?
            }
            Protocol::Spi(place) => {
                let name = format!("/dev/spidev{}.{}", place.bus, place.select);
                registers(now_ms, board::open_spi(place)?, name, plan)?
            }
            Protocol::Modbus(slave) => {
                Box::new(ModbusDriver::open(now_ms, device, slave, &plan.properties, &mut self.modbus)?)
            }
            Protocol::Serial(port) => {
                Box::new(SerialDriver::open(now_ms, device, port, &plan.properties, &mut self.ports)?)
            }
        })
    }

    fn release(&mut self, device: &str, properties: &[&str]) {
        for property in properties {
            // Inputs and serial properties are unknown to the line-holder; that is no news.
            let _ = self.outputs.release(&format!("{device}/{property}"));
        }
    }
}

/// The driver of a device on I2C or SPI.
pub fn registers(
    now_ms: u64,
    bus: Box<dyn Bus>,
    place: String,
    plan: &Plan,
) -> Result<Box<dyn Driver>, String> {
    let chips = plan.properties.iter().filter_map(|property| match &property.access {
        Access::Chip(chip) => Some(*chip),
        _ => None,
    });
    let chips: Vec<_> = chips.collect();
    if !chips.is_empty() {
        let source = Chips::new(bus, chips, place);
        return Ok(Box::new(PolledDriver::open(now_ms, &plan.properties, Box::new(source))?));
    }
    let registers = plan.properties.iter().filter_map(|property| match &property.access {
        Access::Bytes(register) => Some(register.as_ref().clone()),
        _ => None,
    });
    let source = Registers::new(bus, registers.collect(), place);
    Ok(Box::new(PolledDriver::open(now_ms, &plan.properties, Box::new(source))?))
}

/// Runs until the process is ended: the kernel closes what it holds, and outputs are not its.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let engine = Engine::new(Box::new(KernelOpener::new(&settings.lines_socket)));
    Loop::new(settings, engine).run(|| false)
}

pub struct Loop {
    broker: String,
    word_topic: String,
    client: Client,
    stream: Option<TcpStream>,
    connect_at_ms: u64,
    outage_said: bool,
    /// The socket did not take everything.
    output_waits: bool,
    hot_plug: Option<HotPlug>,
    engine: Engine,
}

impl Loop {
    pub fn new(settings: &Settings, engine: Engine) -> Loop {
        let mut client = Client::new(Options {
            client_id: settings.client_id.clone(),
            username: settings.username.clone(),
            password: settings.password.clone(),
            clean_session: true,
            will: Some((word_topic(&settings.client_id), word(false))),
            keep_alive_s: KEEP_ALIVE_S,
            packet_bytes_max: DESCRIPTION_BYTES_MAX,
        });
        // The first: what devices do depends on it.
        let valid = client.subscribe(LINK_TOPIC);
        debug_assert!(valid, "the topic is ours");
        for protocol in PROTOCOLS {
            for filter in ["device/+/+", "devices", "call/+/+/+"] {
                let valid = client.subscribe(&format!("{TOPIC_PREFIX}{protocol}/{filter}"));
                debug_assert!(valid, "the filter is ours");
            }
        }
        Loop {
            broker: settings.broker.clone(),
            word_topic: word_topic(&settings.client_id),
            client,
            stream: None,
            connect_at_ms: 0,
            outage_said: false,
            output_waits: false,
            hot_plug: HotPlug::new(&[Path::new("/dev")]),
            engine,
        }
    }

    /// `stop` is asked at least once per turn.
    pub fn run(&mut self, stop: impl Fn() -> bool) -> anyhow::Result<()> {
        while !stop() {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let now_ms = monotonic_ms();
        self.engine.tick(now_ms);
        if self.stream.is_none() && now_ms >= self.connect_at_ms {
            self.connect(now_ms);
        }
        if self.stream.is_some() && self.client.deadline_ms().is_some_and(|at| at <= now_ms) {
            let result = self.client.tick(now_ms).map_err(|error| error.to_string());
            self.lost_if(now_ms, result);
        }
        self.offer(now_ms);
        let mut waits: Vec<(String, Wait)> = Vec::new();
        self.engine.waits(&mut waits);
        let (broker_ready, ready) = self.wait(now_ms, &waits)?;
        let now_ms = monotonic_ms();
        if broker_ready {
            let result = self.read(now_ms);
            self.lost_if(now_ms, result);
        }
        for id in ready {
            self.engine.ready(now_ms, &id);
        }
        if self.hot_plug.as_ref().is_some_and(HotPlug::has_news) {
            self.engine.hurry(now_ms);
        }
        Ok(())
    }

    /// Sleeps until something is ready. Returns whether the broker is, and the devices that are.
    fn wait(&self, now_ms: u64, waits: &[(String, Wait)]) -> anyhow::Result<(bool, Vec<String>)> {
        let connect_at = self.stream.is_none().then_some(self.connect_at_ms);
        let times = [
            self.engine.deadline_ms(),
            self.client.deadline_ms().filter(|_| self.stream.is_some()),
            connect_at,
        ];
        let due_ms = times.into_iter().flatten().min();
        let broker = self.stream.as_ref().map(|stream| (stream.as_fd(), self.output_waits));
        ready_devices(now_ms, due_ms, waits, self.hot_plug.as_ref(), broker)
    }

    fn connect(&mut self, now_ms: u64) {
        let address = self.broker.to_socket_addrs().ok().and_then(|mut found| found.next());
        let stream = address
            .ok_or(ErrorKind::AddrNotAvailable.into())
            .and_then(|address| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT));
        let stream = stream.and_then(|stream| {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => {
                self.stream = Some(stream);
                self.client.opened(now_ms);
            }
            Err(error) => self.lost(now_ms, &error.to_string()),
        }
    }

    fn lost_if(&mut self, now_ms: u64, result: Result<(), String>) {
        if let Err(error) = result {
            self.lost(now_ms, &error);
        }
    }

    fn lost(&mut self, now_ms: u64, error: &str) {
        if !std::mem::replace(&mut self.outage_said, true) {
            eprintln!(
                "mapper: no MQTT broker at {}: {error}; devices go on, values are reported when it is there",
                self.broker
            );
        }
        self.stream = None;
        self.engine.disconnected(now_ms);
        self.connect_at_ms = now_ms + self.client.closed();
    }

    fn read(&mut self, now_ms: u64) -> Result<(), String> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let mut buffer = [0; READ_BYTES];
        match stream.read(&mut buffer) {
            Ok(0) => return Err("it closed the connection".into()),
            Ok(len) => self.client.receive(&buffer[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        }
        let mut answers = Vec::new();
        while let Some(event) = self.client.next_event().map_err(|error| error.to_string())? {
            match event {
                Event::Up => {
                    if std::mem::take(&mut self.outage_said) {
                        eprintln!("mapper: the MQTT broker at {} is there", self.broker);
                    }
                    answers.push((self.word_topic.clone(), word(true)));
                    self.engine.connected(now_ms);
                }
                Event::Message { topic, payload, retain } => {
                    if let (LINK_TOPIC, Some(link)) = (topic, Link::parse(payload)) {
                        self.engine.link(now_ms, link.connected, link.since_ms(now_ms, wall_ms()));
                        continue;
                    }
                    let Some(rest) = topic.strip_prefix(TOPIC_PREFIX) else { continue };
                    if let Some((protocol, id)) = rest.split_once("/device/") {
                        self.engine.description(now_ms, protocol, id, payload);
                    } else if let Some(protocol) = rest.strip_suffix("/devices") {
                        self.engine.inventory(now_ms, protocol, payload);
                    } else if let Some((_, call)) = rest.split_once("/call/")
                        && !retain
                    {
                        // A retained one would be run again at each reconnection.
                        let result = call_method(&mut self.engine, now_ms, call, payload);
                        answers.push((format!("{topic}/result"), answer(&result)));
                    }
                }
                Event::Acknowledged(_) | Event::Refused(_) => {}
            }
        }
        for (topic, answer) in answers {
            if let Err(error) = self.client.publish(&topic, answer.as_bytes(), Qos::AtLeastOnce, false) {
                eprintln!("mapper: what was to be said on {topic} is lost: {error}");
            }
        }
        Ok(())
    }

    /// Gives the broker what it takes.
    fn offer(&mut self, now_ms: u64) {
        if self.client.is_up() {
            let client = &mut self.client;
            let publish = |topic: &str, payload: &str| {
                client.publish(topic, payload.as_bytes(), Qos::AtLeastOnce, false).is_ok()
            };
            self.engine.flush(now_ms, wall_ms(), publish);
        }
        let Some(stream) = &mut self.stream else { return };
        let output = self.client.output();
        self.output_waits = !output.is_empty();
        if output.is_empty() {
            return;
        }
        match stream.write(output) {
            Ok(written) => {
                output.drain(..written);
                self.output_waits = !output.is_empty();
                self.client.wrote(now_ms);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => self.lost(now_ms, &error.to_string()),
        }
    }
}

/// Where edgecore hears whether we are there.
fn word_topic(client_id: &str) -> String {
    let name: String =
        client_id.chars().map(|c| if matches!(c, '/' | '+' | '#' | '\0') { '-' } else { c }).collect();
    format!("{TOPIC_PREFIX}{name}")
}

/// Said when we come, and by the broker when we are gone: then nobody knows what our devices are.
fn word(alive: bool) -> String {
    serde_json::json!({"alive": alive, "protocols": PROTOCOLS}).to_string()
}

#[derive(Debug, PartialEq, Deserialize)]
struct Link {
    connected: bool,
    #[serde(default)]
    since: u64,
}

impl Link {
    fn parse(payload: &[u8]) -> Option<Link> {
        serde_json::from_slice(payload).ok()
    }

    /// On the monotonic clock. A wall clock that was set back since makes it now.
    fn since_ms(&self, now_ms: u64, wall_ms: u64) -> u64 {
        now_ms.saturating_sub(wall_ms.saturating_sub(self.since))
    }
}

/// `call` is `<ns>/<name>/<method>`.
fn call_method(engine: &mut Engine, now_ms: u64, call: &str, argument: &[u8]) -> Result<(), String> {
    let Some((id, method)) = call.rsplit_once('/') else { return Err("the topic names no method".into()) };
    match std::str::from_utf8(argument) {
        Ok(argument) if argument.len() <= VALUE_BYTES_MAX => engine.call(now_ms, id, method, argument),
        _ => Err(format!("the argument is not a text of at most {VALUE_BYTES_MAX} bytes")),
    }
}

fn answer(result: &Result<(), String>) -> String {
    match result {
        Ok(()) => r#"{"ok":true}"#.into(),
        Err(reason) => format!("{{\"ok\":false,\"reason\":{}}}", serde_json::Value::from(reason.as_str())),
    }
}

/// Sleeps until a device, a new one in /dev, the other descriptor (true: with room to write) or the clock has something. Returns whether the other
/// one is ready, and the devices that are.
pub(crate) fn ready_devices(
    now_ms: u64,
    due_ms: Option<u64>,
    waits: &[(String, Wait)],
    hot_plug: Option<&HotPlug>,
    other: Option<(BorrowedFd<'_>, bool)>,
) -> anyhow::Result<(bool, Vec<String>)> {
    let pause_ms = due_ms.map_or(PAUSE_MS_MAX, |due_ms| due_ms.saturating_sub(now_ms).min(PAUSE_MS_MAX));
    let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(waits.len() + 2);
    let flags = |write: bool| PollFlags::POLLIN | if write { PollFlags::POLLOUT } else { PollFlags::empty() };
    for (_, wait) in waits {
        fds.push(PollFd::new(borrowed(wait.fd), flags(wait.write)));
    }
    if let Some(hot_plug) = hot_plug {
        fds.push(PollFd::new(hot_plug.fd(), flags(false)));
    }
    if let Some((fd, write)) = other {
        fds.push(PollFd::new(fd, flags(write)));
    }
    match poll(&mut fds, PollTimeout::from(pause_ms as u16)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => anyhow::bail!("cannot wait for devices: {error}"),
    }
    let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    let other_ready = other.is_some() && fds.last().is_some_and(is_ready);
    let mut ready: Vec<String> =
        waits.iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|((id, _), _)| id.clone()).collect();
    ready.dedup();
    Ok((other_ready, ready))
}

/// Descriptors of drivers for one `poll`.
#[allow(unsafe_code)]
fn borrowed<'a>(fd: RawFd) -> BorrowedFd<'a> {
    debug_assert!(fd >= 0);
    // SAFETY: the engine's drivers own these descriptors, and none is opened or closed between `waits` and the end of `poll`.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests;
