//! Chips in memory. The test's side is [`World`]: it flips inputs and looks at outputs. Passes the same suite as the kernel's.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io::Write,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    rc::Rc,
};

use super::{Chips, EdgeEvent, GpioError, Line};
use crate::plan::gpio::{Bias, Direction, Drive, Edge, LineRef, LineSpec};

pub const LABEL: &str = "fake-chip";
const LINES: u32 = 8;

#[derive(Default)]
struct Wire {
    /// Physical level.
    high: bool,
    taken: bool,
    output: bool,
    edges: VecDeque<EdgeEvent>,
    /// Makes the line's descriptor readable.
    bell: Option<UnixStream>,
    active_low: bool,
}

#[derive(Clone, Default)]
pub struct World {
    wires: Rc<RefCell<BTreeMap<u32, Wire>>>,
    /// Without chips: as if the expander were unplugged.
    pub unplugged: Rc<RefCell<bool>>,
}

impl World {
    pub fn flip(&self, offset: u32, high: bool) {
        let mut wires = self.wires.borrow_mut();
        let wire = wires.entry(offset).or_default();
        if wire.high == high {
            return;
        }
        wire.high = high;
        if let Some(bell) = &mut wire.bell {
            wire.edges.push_back(EdgeEvent { active: high != wire.active_low, timestamp_ns: 1 });
            let _ = bell.write(&[0]);
        }
    }

    pub fn high(&self, offset: u32) -> bool {
        self.wires.borrow().get(&offset).is_some_and(|wire| wire.high)
    }

    pub fn taken(&self, offset: u32) -> bool {
        self.wires.borrow().get(&offset).is_some_and(|wire| wire.taken)
    }
}

impl Chips for World {
    fn request(&mut self, spec: &LineSpec) -> Result<Box<dyn Line>, GpioError> {
        let label = spec.chip.clone().ok_or(GpioError::NoHeader)?;
        if label != LABEL || *self.unplugged.borrow() {
            return Err(GpioError::NoChip(label));
        }
        let (offset, name) = match &spec.line {
            LineRef::Offset(offset) => (Some(*offset).filter(|offset| *offset < LINES), offset.to_string()),
            LineRef::Name(name) => {
                (name.strip_prefix("LINE").and_then(|rest| rest.parse().ok()), name.clone())
            }
        };
        let offset = offset.ok_or_else(|| GpioError::NoLine { chip: label.clone(), line: name.clone() })?;
        let mut wires = self.wires.borrow_mut();
        let wire = wires.entry(offset).or_default();
        if wire.taken {
            return Err(GpioError::Busy { chip: label, line: name, user: "fake".into() });
        }
        wire.taken = true;
        wire.active_low = spec.active_low;
        wire.output = spec.direction == Direction::Output;
        if let (true, Some(initial)) = (wire.output, spec.initial) {
            wire.high = initial != spec.active_low;
        }
        let mut fd = None;
        if !wire.output && spec.edge != Edge::None {
            let (bell, ear) = UnixStream::pair().expect("a socket pair");
            ear.set_nonblocking(true).expect("nonblocking");
            bell.set_nonblocking(true).expect("nonblocking");
            wire.bell = Some(bell);
            fd = Some(ear);
        }
        Ok(Box::new(FakeLine { world: self.clone(), offset, ear: fd }))
    }
}

struct FakeLine {
    world: World,
    offset: u32,
    ear: Option<UnixStream>,
}

impl FakeLine {
    fn with<T>(&self, act: impl FnOnce(&mut Wire) -> T) -> T {
        act(self.world.wires.borrow_mut().entry(self.offset).or_default())
    }
}

impl Line for FakeLine {
    fn get(&mut self) -> Result<bool, GpioError> {
        if *self.world.unplugged.borrow() {
            return Err(GpioError::NoChip(LABEL.into()));
        }
        Ok(self.with(|wire| wire.high != wire.active_low))
    }

    fn set(&mut self, active: bool) -> Result<(), GpioError> {
        self.with(|wire| {
            if wire.output {
                wire.high = active != wire.active_low;
                return Ok(());
            }
            let error = std::io::ErrorKind::PermissionDenied.into();
            Err(GpioError::Line { action: "set", chip: LABEL.into(), line: "?".into(), error })
        })
    }

    fn next_edge(&mut self) -> Result<Option<EdgeEvent>, GpioError> {
        if *self.world.unplugged.borrow() {
            return Err(GpioError::NoChip(LABEL.into()));
        }
        let mut bell = [0; 1];
        if let Some(ear) = &mut self.ear {
            let _ = std::io::Read::read(ear, &mut bell);
        }
        Ok(self.with(|wire| wire.edges.pop_front()))
    }

    fn fd(&self) -> Option<RawFd> {
        self.ear.as_ref().map(AsRawFd::as_raw_fd)
    }
}

impl Drop for FakeLine {
    fn drop(&mut self) {
        self.with(|wire| {
            wire.taken = false;
            wire.bell = None;
            wire.edges.clear();
        });
    }
}

pub fn input(line: LineRef) -> LineSpec {
    LineSpec {
        chip: Some(LABEL.into()),
        line,
        direction: Direction::Input,
        bias: Bias::AsIs,
        active_low: false,
        edge: Edge::Both,
        debounce_ms: 0,
        drive: Drive::PushPull,
        initial: None,
        failsafe: None,
        deadline_ms: 0,
    }
}

pub fn output(line: LineRef) -> LineSpec {
    LineSpec { direction: Direction::Output, ..input(line) }
}
