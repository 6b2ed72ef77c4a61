//! `mapper scan`: what could be written into a Device on this machine.

use std::fmt::Write;

use crate::{board, gpio::linux};

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

fn ports() -> Vec<String> {
    let list = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(folder)
            .map(|entries| entries.flatten().collect())
            .unwrap_or_else(|_| Vec::new());
        entries
            .iter()
            .map(|entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let mut ports: Vec<String> =
        list("/dev/serial/by-id").iter().map(|name| format!("/dev/serial/by-id/{name}")).collect();
    let plain = list("/dev").into_iter().filter(|name| {
        let rest = PORT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
        rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let mut plain: Vec<String> = plain.map(|name| format!("/dev/{name}")).collect();
    plain.sort();
    ports.sort();
    ports.extend(plain);
    ports
}
