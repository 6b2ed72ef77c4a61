//! `mapper scan`: what could be written into a Device on this machine. Nothing is changed by looking: I2C addresses are read from, and
//! Modbus lines are asked only when they are named ([`modbus`]).

pub mod i2c;
pub mod modbus;

use std::{fmt::Write, path::Path};

use crate::{board, gpio::linux, limits::SCAN_ENTRIES_MAX, serial::byid};

const ONE_WIRE: &str = "/sys/bus/w1/devices";

const PORT_PREFIXES: [&str; 5] = ["ttyUSB", "ttyACM", "ttyAMA", "ttyS", "serial"];

/// The whole report.
pub fn report() -> String {
    let mut text = format!("board  {}\n", board::model());
    let chips = linux::chips();
    if chips.is_empty() {
        text.push_str("gpio   no /dev/gpiochip* here\n");
    }
    for chip in chips {
        let _ = writeln!(text, "gpio   chip: {} ({}, {} lines)", chip.label, chip.path, chip.lines);
        for offset in 0..chip.lines {
            let Ok(line) = chip.line(offset) else { continue };
            let direction = if line.output { "output" } else { "input" };
            let user = line.user.map(|user| format!(", used by {user}")).unwrap_or_default();
            let name = if line.name.is_empty() { "-".to_owned() } else { format!("{:?}", line.name) };
            let _ = writeln!(text, "       line: {offset:<3} {name} {direction}{user}");
        }
    }
    for chip in crate::pwm::sysfs::SysfsPwm::default().chips() {
        let _ =
            writeln!(text, "pwm    chip: {} (channels 0 to {})", chip.label, chip.channels.saturating_sub(1));
    }
    for path in ports() {
        let _ = writeln!(text, "serial path: {path}");
    }
    for id in one_wire() {
        let _ = writeln!(text, "1-wire sensor: {id}");
    }
    for path in entries("/dev", |name| numbered(name, &["i2c-"])) {
        let _ = writeln!(text, "i2c    bus: {path}");
        match i2c::KernelBus::open(&path) {
            Ok(mut bus) => i2c::report(&mut bus).iter().for_each(|line| {
                let _ = writeln!(text, "       {line}");
            }),
            Err(error) => {
                let _ = writeln!(text, "       cannot be opened: {error}");
            }
        }
    }
    for path in entries("/dev", |name| name.starts_with("spidev")) {
        let _ = writeln!(text, "spi    device: {path}");
    }
    text
}

/// Sensors that the kernel's 1-Wire master has found: their family and serial number.
fn one_wire() -> Vec<String> {
    let sensors = entries(ONE_WIRE, |name| name.split_once('-').is_some_and(|(family, _)| family.len() == 2));
    sensors
        .iter()
        .map(|path| {
            let id = path.rsplit('/').next().unwrap_or(path);
            let kind = if id.starts_with("28-") { " (DS18B20)" } else { "" };
            format!("{id}{kind}")
        })
        .collect()
}

/// Paths in a folder whose name fits, in order.
fn entries(folder: &str, fits: impl Fn(&str) -> bool) -> Vec<String> {
    let all =
        std::fs::read_dir(folder).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
    let names = all.iter().map(|entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned());
    let mut paths: Vec<String> =
        names.filter(|name| fits(name)).map(|name| format!("{folder}/{name}")).collect();
    paths.sort();
    paths.truncate(SCAN_ENTRIES_MAX);
    paths
}

/// One of the prefixes and a number.
fn numbered(name: &str, prefixes: &[&str]) -> bool {
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Ports by the names that stay the same after replugging, then by their plain names.
fn ports() -> Vec<String> {
    let by_id = byid::names(Path::new("/sys/class/tty")).into_iter();
    let mut ports: Vec<String> =
        by_id.map(|(name, port)| format!("{}{name} (now /dev/{port})", byid::FOLDER)).collect();
    ports.extend(entries("/dev", |name| numbered(name, &PORT_PREFIXES)));
    ports
}
