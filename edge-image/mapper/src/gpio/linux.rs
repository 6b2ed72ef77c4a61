//! The kernel's GPIO character device, version 2 of its interface (include/uapi/linux/gpio.h).
#![allow(unsafe_code)]

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

use super::{Chips, EdgeEvent, GpioError, Line, listed, uapi::*};
use crate::{
    limits::{COUNT_BUFFER_EDGES, INPUT_BUFFER_EDGES},
    plan::gpio::{Bias, Direction, Drive, Edge, Function, LineRef, LineSpec},
};

/// The chips whose lines are on the Pi's header.
const HEADER_LABELS: [&str; 3] = ["pinctrl-rp1", "pinctrl-bcm2711", "pinctrl-bcm2835"];
const CONSUMER: &[u8] = b"kinglet-mapper";

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A chip of this machine.
pub struct Chip {
    file: File,
    pub path: String,
    pub label: String,
    pub lines: u32,
}

/// A line as `mapper scan` shows it.
pub struct LineDescription {
    pub offset: u32,
    pub name: String,
    pub user: Option<String>,
    pub output: bool,
}

/// All chips, in the order of their numbers (which mean nothing: ask for labels).
pub fn chips() -> Vec<Chip> {
    let mut names: Vec<OsString> = std::fs::read_dir("/dev")
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default();
    names.retain(|name| name.to_string_lossy().starts_with("gpiochip"));
    names.sort_by_key(|name| (name.len(), name.clone()));
    names.iter().filter_map(|name| open_chip(&format!("/dev/{}", name.to_string_lossy())).ok()).collect()
}

fn open_chip(path: &str) -> io::Result<Chip> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
    let mut info = ChipInfo { name: [0; 32], label: [0; 32], lines: 0 };
    // SAFETY: the descriptor is open, and `info` has the size and layout that the kernel writes (asserted above).
    unsafe { get_chip_info(file.as_raw_fd(), &mut info) }?;
    Ok(Chip { file, path: path.into(), label: text(&info.label), lines: info.lines })
}

impl Chip {
    pub fn line(&self, offset: u32) -> io::Result<LineDescription> {
        // SAFETY: all-zero bytes are a valid LineInfo (integers and byte arrays only).
        let mut info: LineInfo = unsafe { std::mem::zeroed() };
        info.offset = offset;
        // SAFETY: the descriptor is open, and `info` has the size and layout that the kernel reads and writes.
        unsafe { get_line_info(self.file.as_raw_fd(), &mut info) }?;
        let user = (info.flags & FLAG_USED != 0).then(|| text(&info.consumer));
        Ok(LineDescription { offset, name: text(&info.name), user, output: info.flags & FLAG_OUTPUT != 0 })
    }

    /// The lines for an error: how many there are, and what they are called.
    fn lines_text(&self) -> String {
        let names: Vec<String> = (0..self.lines)
            .filter_map(|offset| self.line(offset).ok())
            .map(|line| line.name)
            .filter(|name| !name.is_empty())
            .collect();
        let last = self.lines.saturating_sub(1);
        match names.is_empty() {
            true => format!("0 to {last}"),
            false => format!("0 to {last}, named {}", listed(names.iter().map(String::as_str))),
        }
    }

    fn offset(&self, line: &LineRef) -> Option<u32> {
        match line {
            LineRef::Offset(offset) => (*offset < self.lines).then_some(*offset),
            LineRef::Name(name) => {
                (0..self.lines).find(|offset| self.line(*offset).is_ok_and(|line| line.name == *name))
            }
        }
    }
}

/// The chips of this machine, looked up anew at each request: USB expanders come and go.
#[derive(Default)]
pub struct KernelChips;

impl Chips for KernelChips {
    fn request(&mut self, spec: &LineSpec) -> Result<Box<dyn Line>, GpioError> {
        let chips = chips();
        let (chip, offset) = find(&chips, spec)?;
        let names = Names { chip: chip.label.clone(), line: line_text(&spec.line) };
        take(chip, offset, spec, names).map(|line| Box::new(line) as Box<dyn Line>)
    }
}

fn line_text(line: &LineRef) -> String {
    match line {
        LineRef::Offset(offset) => offset.to_string(),
        LineRef::Name(name) => name.clone(),
    }
}

/// By the chip's label; without one the header's chip, or whichever has a line of that name.
fn find<'a>(chips: &'a [Chip], spec: &LineSpec) -> Result<(&'a Chip, u32), GpioError> {
    let there = || listed(chips.iter().map(|chip| chip.label.as_str()));
    let labelled = |label: &str| chips.iter().find(|chip| chip.label == label);
    let no_line = |chip: &Chip| GpioError::NoLine {
        chip: chip.label.clone(),
        line: line_text(&spec.line),
        there: chip.lines_text(),
    };
    if let Some(label) = &spec.chip {
        let chip =
            labelled(label).ok_or_else(|| GpioError::NoChip { wanted: label.clone(), there: there() })?;
        return chip.offset(&spec.line).map(|offset| (chip, offset)).ok_or_else(|| no_line(chip));
    }
    let header = HEADER_LABELS.iter().find_map(|label| labelled(label));
    if let Some(found) = header.and_then(|chip| Some((chip, chip.offset(&spec.line)?))) {
        return Ok(found);
    }
    if let LineRef::Name(name) = &spec.line {
        let found: Vec<(&Chip, u32)> =
            chips.iter().filter_map(|chip| Some((chip, chip.offset(&spec.line)?))).collect();
        match found.as_slice() {
            [only] => return Ok(*only),
            [] => {}
            several => {
                let there = listed(several.iter().map(|(chip, _)| chip.label.as_str()));
                return Err(GpioError::Ambiguous { line: name.clone(), there });
            }
        }
    }
    Err(header.map_or_else(|| GpioError::NoHeader { there: there() }, no_line))
}

#[derive(Clone)]
struct Names {
    chip: String,
    line: String,
}

impl Names {
    fn error(&self, action: &'static str, error: impl Into<io::Error>) -> GpioError {
        GpioError::Line { action, chip: self.chip.clone(), line: self.line.clone(), error: error.into() }
    }
}

/// `edges` and `debounce` are of inputs, `value` is of outputs.
fn config(spec: &LineSpec, edges: bool, debounce: bool, value: bool) -> LineConfig {
    let mut config = LineConfig::default();
    config.flags |= match spec.bias {
        Bias::AsIs => 0,
        Bias::PullUp => FLAG_BIAS_PULL_UP,
        Bias::PullDown => FLAG_BIAS_PULL_DOWN,
        Bias::Disabled => FLAG_BIAS_DISABLED,
    };
    if spec.active_low {
        config.flags |= FLAG_ACTIVE_LOW;
    }
    let mut attribute = |id: u32, value: u64| {
        config.attributes[config.attributes_len as usize] =
            ConfigAttribute { attribute: Attribute { id, padding: 0, value }, mask: 1 };
        config.attributes_len += 1;
    };
    match spec.direction {
        Direction::Input => {
            if debounce {
                let mut bytes = [0; 8];
                bytes[..4].copy_from_slice(&spec.debounce_us.to_ne_bytes());
                attribute(ATTRIBUTE_DEBOUNCE, u64::from_ne_bytes(bytes));
            }
            config.flags |= FLAG_INPUT;
            if edges {
                // Both, whatever was asked for: the value after the other edge must be known too. The driver filters.
                config.flags |= FLAG_EDGE_RISING | FLAG_EDGE_FALLING;
            }
        }
        Direction::Output => {
            attribute(ATTRIBUTE_OUTPUT_VALUES, u64::from(value));
            config.flags |= FLAG_OUTPUT;
            config.flags |= match spec.drive {
                Drive::PushPull => 0,
                Drive::OpenDrain => FLAG_OPEN_DRAIN,
                Drive::OpenSource => FLAG_OPEN_SOURCE,
            };
        }
    }
    config
}

fn request(chip: &Chip, offset: u32, config: LineConfig, event_buffer_size: u32) -> io::Result<File> {
    let mut request = LineRequest {
        offsets: [0; 64],
        consumer: [0; 32],
        config,
        lines_len: 1,
        event_buffer_size,
        padding: [0; 5],
        fd: -1,
    };
    request.offsets[0] = offset;
    request.consumer[..CONSUMER.len()].copy_from_slice(CONSUMER);
    // SAFETY: the descriptor is open, and `request` has the size and layout that the kernel reads and writes.
    unsafe { get_line(chip.file.as_raw_fd(), &mut request) }?;
    // SAFETY: the kernel gave this new descriptor to us alone.
    let file = unsafe { File::from_raw_fd(request.fd) };
    let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&file, nonblocking)?;
    Ok(file)
}

fn take(chip: &Chip, offset: u32, spec: &LineSpec, names: Names) -> Result<KernelLine, GpioError> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::EBUSY) => {
            let user = chip.line(offset).ok().and_then(|line| line.user).unwrap_or_default();
            GpioError::Busy { chip: names.chip.clone(), line: names.line.clone(), user }
        }
        _ => names.error("take", error),
    };
    if spec.direction == Direction::Output {
        let Some(value) = spec.initial else {
            // Taken as it is, read, and only then made an output with the same level: no glitch.
            let as_is = LineConfig {
                flags: if spec.active_low { FLAG_ACTIVE_LOW } else { 0 },
                ..LineConfig::default()
            };
            let file = request(chip, offset, as_is, 0).map_err(failed)?;
            let mut line = KernelLine { file, edges: false, debounces: false, names: names.clone() };
            let value = line.get()?;
            let mut output = config(spec, false, false, value);
            // SAFETY: the descriptor is open, and `output` has the size and layout that the kernel reads.
            unsafe { set_line_config(line.file.as_raw_fd(), &mut output) }
                .map_err(|error| names.error("drive", error))?;
            return Ok(line);
        };
        let file = request(chip, offset, config(spec, false, false, value != 0), 0).map_err(failed)?;
        return Ok(KernelLine { file, edges: false, debounces: false, names });
    }
    let buffer = match spec.function {
        Function::Level | Function::Pwm { .. } => INPUT_BUFFER_EDGES,
        Function::Count { .. } | Function::Frequency { .. } => COUNT_BUFFER_EDGES,
    };
    let edges = spec.edge != Edge::None;
    // The kernel may refuse to debounce, and a chip without interrupts (expanders) has no edges: the driver does it then.
    let ways = [(edges, spec.debounce_us > 0), (edges, false), (false, false)];
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for (at, (edges, debounces)) in ways.into_iter().enumerate() {
        if ways[..at].contains(&(edges, debounces)) || (!edges && debounces) {
            continue;
        }
        match request(chip, offset, config(spec, edges, debounces, false), buffer) {
            Ok(file) => return Ok(KernelLine { file, edges, debounces, names }),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENXIO | libc::EOPNOTSUPP | libc::EINVAL | ENOTSUPP)
                ) =>
            {
                last = error;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(last))
}

struct KernelLine {
    file: File,
    edges: bool,
    debounces: bool,
    names: Names,
}

impl Line for KernelLine {
    fn get(&mut self) -> Result<bool, GpioError> {
        let mut values = LineValues { bits: 0, mask: 1 };
        // SAFETY: the descriptor is open, and `values` has the size and layout that the kernel reads and writes.
        unsafe { get_line_values(self.file.as_raw_fd(), &mut values) }
            .map_err(|error| self.names.error("read", error))?;
        Ok(values.bits & 1 == 1)
    }

    fn set(&mut self, active: bool) -> Result<(), GpioError> {
        let mut values = LineValues { bits: u64::from(active), mask: 1 };
        // SAFETY: the descriptor is open, and `values` has the size and layout that the kernel reads.
        unsafe { set_line_values(self.file.as_raw_fd(), &mut values) }
            .map_err(|error| self.names.error("set", error))?;
        Ok(())
    }

    fn next_edge(&mut self) -> Result<Option<EdgeEvent>, GpioError> {
        let mut event = [0; EVENT_BYTES];
        match self.file.read(&mut event) {
            Ok(EVENT_BYTES) => Ok(Some(decode_event(&event))),
            Ok(_) => Err(self.names.error("read", io::ErrorKind::UnexpectedEof)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(self.names.error("read", error)),
        }
    }

    fn fd(&self) -> Option<RawFd> {
        self.edges.then(|| self.file.as_raw_fd())
    }

    fn debounces(&self) -> bool {
        self.debounces
    }
}

/// `struct gpio_v2_line_event`: timestamp u64, id u32, offset u32, number of the edge in the request u32, and of the line u32.
fn decode_event(event: &[u8; EVENT_BYTES]) -> EdgeEvent {
    let mut timestamp = [0; 8];
    timestamp.copy_from_slice(&event[..8]);
    let word = |at: usize| u32::from_ne_bytes([event[at], event[at + 1], event[at + 2], event[at + 3]]);
    EdgeEvent {
        active: word(8) == EVENT_RISING_EDGE,
        timestamp_ns: u64::from_ne_bytes(timestamp),
        sequence: word(20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_from_the_kernel_s_bytes() {
        let mut event = [0; EVENT_BYTES];
        event[..8].copy_from_slice(&7u64.to_ne_bytes());
        event[8..12].copy_from_slice(&1u32.to_ne_bytes());
        event[20..24].copy_from_slice(&41u32.to_ne_bytes());
        assert_eq!(decode_event(&event), EdgeEvent { active: true, timestamp_ns: 7, sequence: 41 });
        event[8..12].copy_from_slice(&2u32.to_ne_bytes());
        assert!(!decode_event(&event).active);
    }

    #[test]
    fn a_chip_that_is_not_there_is_named() {
        let spec = crate::gpio::fake::input(LineRef::Offset(1));
        let spec = LineSpec { chip: Some("no-such-chip".into()), ..spec };
        let Err(error) = KernelChips.request(&spec) else { panic!("there is no such chip") };
        assert!(error.to_string().contains("no GPIO chip with the label no-such-chip"));
    }
}
