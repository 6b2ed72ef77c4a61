//! `mapper scan`: what could be written into a Device on this machine.

use std::{fmt::Write, path::Path};

use crate::{board, gpio::linux, serial::byid};

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
    for path in ports() {
        let _ = writeln!(text, "serial path: {path}");
    }
    text
}

/// Ports by the names that stay the same after replugging, then by their plain names.
fn ports() -> Vec<String> {
    let by_id = byid::names(Path::new("/sys/class/tty")).into_iter();
    let mut ports: Vec<String> =
        by_id.map(|(name, port)| format!("{}{name} (now /dev/{port})", byid::FOLDER)).collect();
    let entries =
        std::fs::read_dir("/dev").map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
    let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let plain = names.filter(|name| {
        let rest = PORT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
        rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let mut plain: Vec<String> = plain.map(|name| format!("/dev/{name}")).collect();
    plain.sort();
    ports.extend(plain);
    ports
}
