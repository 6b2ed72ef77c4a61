//! Where lines come out on a board's header, and what is odd about the wiring of the Devices in a file. For laptops: the boards are
//! `board/*.toml`, carried in the program.

use std::{collections::BTreeMap, fmt::Write, sync::OnceLock};

use board_spec::{Board, Header, Own};
use serde_json::Value;

use crate::{
    check::Checked,
    plan::{
        Access, Protocol,
        gpio::{Bias, Direction, Function, LineRef, LineSpec},
    },
};

const TEXTS: [&str; 2] =
    [include_str!("../../../board/qemu-virt.toml"), include_str!("../../../board/rpi.toml")];
/// Ports that are the header's UART on one of the boards.
const HEADER_PORTS: [&str; 4] = ["/dev/serial0", "/dev/ttyS0", "/dev/ttyS1", "/dev/ttyAMA0"];

fn boards() -> &'static [Own] {
    static BOARDS: OnceLock<Vec<Own>> = OnceLock::new();
    BOARDS.get_or_init(|| TEXTS.iter().filter_map(|text| Board::own(text).ok()).collect())
}

/// The headers that a line can be on: those of its chip, or of a Pi when it names none.
fn headers(line: &LineSpec) -> impl Iterator<Item = (&'static Header, Vec<&'static str>)> {
    let all = boards().iter().filter_map(|board| board.header.as_ref());
    all.filter_map(move |header| {
        let is_chip = |label: &str| match &line.chip {
            Some(chip) => chip == label,
            None => !header.pins.is_empty(),
        };
        let chips = header.chips.iter().filter(|chip| is_chip(&chip.label));
        let boards: Vec<&str> = chips.map(|chip| chip.boards.as_str()).collect();
        (!boards.is_empty()).then_some((header, boards))
    })
}

/// A line as the boards' files name it. Other names are known on the device only.
fn name(line: &LineSpec) -> Option<String> {
    match &line.line {
        LineRef::Offset(offset) => Some(format!("GPIO{offset}")),
        LineRef::Name(name) if name.starts_with("GPIO") => Some(name.clone()),
        LineRef::Name(_) => None,
    }
}

/// What follows a line in the text of `check`: its pin on each board.
pub fn pin(line: &LineSpec) -> String {
    let Some(name) = name(line) else { return String::new() };
    let mut out = String::new();
    for (header, boards) in headers(line) {
        if let Some(pin) = header.pin(&name) {
            let _ = write!(out, " (pin {pin} of the header of {})", boards.join(", "));
        }
    }
    out
}

/// Warnings about the file as a whole, and the boot configuration that belongs to it.
pub fn report(devices: &[Checked], objects: &[Value]) -> String {
    let mut out = String::new();
    for (function, device) in functions(devices) {
        for header in boards().iter().filter_map(|board| board.header.as_ref()) {
            let uses = header.uses.iter().filter(|line_use| line_use.function == function);
            let pins: Vec<String> = uses
                .flat_map(|line_use| &line_use.lines)
                .filter_map(|line| Some(format!("{line} (pin {})", header.pin(line)?)))
                .collect();
            if !pins.is_empty() {
                let _ = writeln!(out, "{device} needs {function}: {}", pins.join(", "));
            }
        }
    }
    for warning in warnings(devices) {
        let _ = writeln!(out, "warning: {warning}");
    }
    let power_on = pins::power_on(objects);
    if !power_on.is_empty() {
        out.push_str(
            "levels from power-on (Kinglet's image writes them into config.txt, from its second start on):\n",
        );
        for line in pins::config_text(&power_on).lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

/// Everything that is odd about the wiring, in sentences that name the property and the remedy.
pub fn warnings(devices: &[Checked]) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut owners: BTreeMap<(Option<&str>, String), String> = BTreeMap::new();
    let functions = functions(devices);
    for device in devices {
        for property in &device.plan.properties {
            let Access::Line(line) = &property.access else { continue };
            let who = format!("{} of {}", property.name, device.id);
            let Some(name) = name(line) else {
                warnings.push(format!(
                    "{who}: where {:?} comes out is known on the device only (mapper scan); the number of the line is the same on all Pis",
                    match &line.line { LineRef::Name(name) => name.as_str(), LineRef::Offset(_) => "" }
                ));
                continue;
            };
            let chip = line.chip.as_deref().filter(|chip| !is_header_chip(chip));
            if let Some(other) = owners.insert((chip, name.clone()), who.clone()) {
                warnings.push(format!("{who}: line {name} is used by {other} already; give each its own"));
            }
            for (header, _) in headers(line) {
                line_warnings(&who, &name, line, header, &functions, &mut warnings);
            }
        }
    }
    warnings
}

fn is_header_chip(label: &str) -> bool {
    let headers = boards().iter().filter_map(|board| board.header.as_ref());
    headers
        .filter(|header| !header.pins.is_empty())
        .any(|header| header.chips.iter().any(|chip| chip.label == label))
}

/// Functions of header lines that the file's own devices use, and which device does.
fn functions(devices: &[Checked]) -> BTreeMap<&'static str, &str> {
    let mut functions = BTreeMap::new();
    for device in devices {
        let function = match &device.plan.protocol {
            Protocol::Serial(port) if HEADER_PORTS.contains(&port.path.as_str()) => "uart",
            Protocol::I2c(place) if place.bus == 1 => "i2c-1",
            Protocol::Spi(place) if place.bus == 0 => "spi0",
            Protocol::OneWire => "1-wire",
            _ => continue,
        };
        functions.insert(function, device.id.as_str());
    }
    functions
}

fn line_warnings(
    who: &str,
    name: &str,
    line: &LineSpec,
    header: &Header,
    functions: &BTreeMap<&'static str, &str>,
    warnings: &mut Vec<String>,
) {
    let on_header = header.pins.is_empty() || header.pin(name).is_some();
    if !on_header {
        warnings.push(format!("{who}: {name} is on no pin of the header; the board itself uses it"));
    }
    for line_use in header.uses.iter().filter(|line_use| line_use.lines.iter().any(|line| line == name)) {
        if let Some(why) = &line_use.always {
            warnings.push(format!("{who}: {name} is {}: {why}", line_use.function));
        }
        if let Some(other) = functions.get(line_use.function.as_str()) {
            warnings.push(format!(
                "{who}: {name} is {}, which {other} needs; take another line",
                line_use.function
            ));
        }
    }
    if header.pins.is_empty() || !on_header {
        return;
    }
    let pulled_up = header.pulled_up.iter().any(|up| up == name);
    let (pull, level) = if pulled_up { ("up", "1") } else { ("down", "0") };
    if line.direction == Direction::Output {
        // A pull is no duty cycle: off is the least that can go wrong.
        let is_pwm = matches!(line.function, Function::Pwm { .. });
        let wanted = !is_pwm && line.initial.or(line.safety.value).unwrap_or(0) != 0;
        if (wanted != line.active_low) != pulled_up {
            let is = if wanted { "off" } else { "on" };
            warnings.push(format!(
                "{who}: {name} is pulled {pull} from power-on until the boot configuration is read, and again after a watchdog reset: the output is {is} for these seconds; take a line that is pulled {}, or a resistor that is stronger than 50 kOhm",
                if pulled_up { "down" } else { "up" }
            ));
        }
    } else if line.bias == Bias::AsIs {
        warnings.push(format!("{who}: no bias is set, so the line stays pulled {pull} and reads {level} when nothing is connected; write bias: pull-up, pull-down or disabled"));
    }
}

#[cfg(test)]
mod tests {
    use crate::check::check;

    fn device(name: &str, properties: &str) -> String {
        format!(
            "---\nkind: DeviceModel\nmetadata: {{name: m}}\nspec: {{properties: []}}\n---\nkind: Device\nmetadata: {{name: {name}}}\nspec:\n  deviceModelRef: {{name: m}}\n  protocol: {{protocolName: gpio}}\n  properties:\n{properties}"
        )
    }

    fn line(name: &str, config: &str) -> String {
        format!("  - {{name: {name}, visitors: {{configData: {{{config}}}}}}}\n")
    }

    #[test]
    fn a_line_is_shown_with_its_pin_on_each_board() {
        let said =
            check(&device("d", &line("lamp", "line: 17, direction: output, initial: 0")), None).unwrap();
        assert!(
            said.contains("lamp: drives line 17 of the Pi's header chip (pin 11 of the header of Raspberry Pi 3 and Zero 2 W, Raspberry Pi 4, Raspberry Pi 5)"),
            "{said}"
        );
        assert!(said.ends_with("gpio=17=op,dl\n") && !said.contains("warning"), "{said}");
        let on_pi5 = "line: GPIO2, chip: pinctrl-rp1, bias: disabled";
        let said = check(&device("d", &line("in", on_pi5)), None).unwrap();
        assert!(said.contains("(pin 3 of the header of Raspberry Pi 5)"), "{said}");
        assert!(said.contains("warning: in of default/d: GPIO2 is i2c-1: has a 1.8 kOhm resistor"), "{said}");
        let said = check(&device("d", &line("in", "line: 5, chip: 9030000.pl061")), None).unwrap();
        assert!(!said.contains("pin ") && !said.contains("warning"), "{said}");
    }

    #[test]
    fn a_bus_is_shown_with_its_pins() {
        let said = check(&crate::new::new("bme280", None, None).unwrap(), None).unwrap();
        assert!(said.contains("default/bme280-1 needs i2c-1: GPIO2 (pin 3), GPIO3 (pin 5)"), "{said}");
        let said = check(&crate::new::new("mcp3008", None, None).unwrap(), None).unwrap();
        assert!(said.contains("GPIO10 (pin 19)") && said.contains("GPIO8 (pin 24)"), "{said}");
    }

    #[test]
    fn odd_wiring_is_told_with_the_remedy() {
        let uart = "---\nkind: Device\nmetadata: {name: gps}\nspec:\n  protocol: {protocolName: serial, configData: {path: /dev/ttyAMA0}}\n  properties: []\n";
        for (config, told) in [
            ("line: 14, bias: disabled", "GPIO14 is uart, which default/gps needs; take another line"),
            ("line: 0, bias: pull-up", "GPIO0 is the HAT's EEPROM: read at power-on"),
            ("line: 40, bias: pull-up", "GPIO40 is on no pin of the header"),
            ("line: ID_SDA", "is known on the device only"),
            ("line: 22", "the line stays pulled down and reads 0"),
            ("line: 5, direction: output, initial: 0", "GPIO5 is pulled up from power-on"),
            ("line: 5, function: pwm, initial: 50", "the output is on for these seconds"),
            ("line: 17, direction: output, activeLow: true", "the output is on for these seconds"),
            ("line: 3, chip: 9030000.pl061", "GPIO3 is the power button: taken by the kernel"),
        ] {
            let text = device("d", &line("p", config)) + uart;
            let said = check(&text, None).unwrap();
            let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning: ")).collect();
            assert!(warnings.iter().any(|warning| warning.contains(told)), "{config}: {said}");
        }
        let servo = check(&crate::new::new("servo", None, None).unwrap(), None).unwrap();
        assert!(!servo.contains("warning"), "a pull down is no pulse: {servo}");
        let two = device("a", &line("p", "line: 27, bias: pull-up"))
            + &device("b", &line("q", "line: GPIO27, chip: pinctrl-bcm2711, bias: pull-up"));
        let said = check(&two, None).unwrap();
        assert!(said.contains("q of default/b: line GPIO27 is used by p of default/a already"), "{said}");
    }
}
