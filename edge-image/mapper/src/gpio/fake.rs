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
use crate::{
    holder::{Holder, Outputs},
    limits::{COUNT_BUFFER_EDGES, INPUT_BUFFER_EDGES},
    plan::{
        gpio::{Bias, Direction, Drive, Edge, Function, LineRef, LineSpec},
        pwm::PwmSpec,
        safety::Safety,
    },
    pwm::{PwmChips, PwmError, PwmOutput},
};

pub const LABEL: &str = "fake-chip";
const LINES: u32 = 8;

#[derive(Default)]
struct Wire {
    /// Physical level.
    high: bool,
    /// How often it changed.
    changes: u32,
    taken: bool,
    plugged: u32,
    output: bool,
    /// What is outside pulls it there; an open drain that lets go shows it.
    pulled: bool,
    open_drain: bool,
    edges: VecDeque<EdgeEvent>,
    /// Makes the line's descriptor readable.
    bell: Option<UnixStream>,
    active_low: bool,
    sequence: u32,
    /// Room for edges, as the kernel's buffer has.
    room: usize,
}

#[derive(Clone, Default)]
pub struct World {
    wires: Rc<RefCell<BTreeMap<u32, Wire>>>,
    /// Without chips: as if the expander were unplugged.
    pub unplugged: Rc<RefCell<bool>>,
    /// How often it was plugged in again: lines from before are dead.
    plugged: Rc<RefCell<u32>>,
    /// The clock that stamps edges.
    pub now_ns: Rc<RefCell<u64>>,
    /// As if the chip could not debounce, or had no interrupts.
    pub debounces: Rc<RefCell<bool>>,
    pub no_interrupts: Rc<RefCell<bool>>,
}

impl World {
    pub fn flip(&self, offset: u32, high: bool) {
        let mut wires = self.wires.borrow_mut();
        let wire = wires.entry(offset).or_default();
        wire.pulled = high;
        if wire.high == high {
            return;
        }
        wire.high = high;
        if let Some(bell) = &mut wire.bell {
            // The edge has its number whether there is room for it or not; the oldest one goes.
            wire.sequence = wire.sequence.wrapping_add(1);
            if wire.edges.len() >= wire.room {
                wire.edges.pop_front();
            }
            let timestamp_ns = *self.now_ns.borrow();
            let active = high != wire.active_low;
            wire.edges.push_back(EdgeEvent { active, timestamp_ns, sequence: wire.sequence });
            let _ = bell.write(&[0]);
        }
    }

    /// Out and in again.
    pub fn replug(&self) {
        *self.plugged.borrow_mut() += 1;
    }

    /// How often an output was driven to another level.
    pub fn changes(&self, offset: u32) -> u32 {
        self.wires.borrow().get(&offset).map_or(0, |wire| wire.changes)
    }

    fn there(&self) -> String {
        if *self.unplugged.borrow() { "none".into() } else { LABEL.into() }
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
        let label = spec.chip.clone().ok_or_else(|| GpioError::NoHeader { there: LABEL.into() })?;
        if label != LABEL || *self.unplugged.borrow() {
            return Err(GpioError::NoChip { wanted: label, there: self.there() });
        }
        let (offset, name) = match &spec.line {
            LineRef::Offset(offset) => (Some(*offset).filter(|offset| *offset < LINES), offset.to_string()),
            LineRef::Name(name) if name == "pump" => (Some(3), name.clone()),
            LineRef::Name(name) => {
                (name.strip_prefix("LINE").and_then(|rest| rest.parse().ok()), name.clone())
            }
        };
        let offset = offset.ok_or_else(|| GpioError::NoLine {
            chip: label.clone(),
            line: name.clone(),
            there: "0 to 7, named pump".into(),
        })?;
        let mut wires = self.wires.borrow_mut();
        let wire = wires.entry(offset).or_default();
        if (wire.taken && wire.plugged == *self.plugged.borrow()) || offset == 7 {
            let user = if offset == 7 { "camera" } else { "kinglet-mapper" };
            return Err(GpioError::Busy { chip: label, line: name, user: user.into() });
        }
        wire.taken = true;
        wire.plugged = *self.plugged.borrow();
        wire.active_low = spec.active_low;
        wire.output = spec.direction == Direction::Output;
        wire.open_drain = spec.drive == Drive::OpenDrain;
        wire.sequence = 0;
        if let (true, Some(initial)) = (wire.output, spec.initial) {
            wire.high = (initial != 0) != spec.active_low;
        }
        let mut fd = None;
        wire.room =
            if spec.function == Function::Level { INPUT_BUFFER_EDGES } else { COUNT_BUFFER_EDGES } as usize;
        if !wire.output && spec.edge != Edge::None && !*self.no_interrupts.borrow() {
            let (bell, ear) = UnixStream::pair().expect("a socket pair");
            ear.set_nonblocking(true).expect("nonblocking");
            bell.set_nonblocking(true).expect("nonblocking");
            wire.bell = Some(bell);
            fd = Some(ear);
        }
        Ok(Box::new(FakeLine { world: self.clone(), offset, ear: fd, plugged: *self.plugged.borrow() }))
    }
}

struct FakeLine {
    world: World,
    offset: u32,
    ear: Option<UnixStream>,
    plugged: u32,
}

impl FakeLine {
    fn check(&self) -> Result<(), GpioError> {
        let dead = *self.world.unplugged.borrow() || self.plugged != *self.world.plugged.borrow();
        if dead { Err(unplugged()) } else { Ok(()) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Wire) -> T) -> T {
        act(self.world.wires.borrow_mut().entry(self.offset).or_default())
    }
}

impl Line for FakeLine {
    fn get(&mut self) -> Result<bool, GpioError> {
        self.check()?;
        Ok(self.with(|wire| wire.high != wire.active_low))
    }

    fn set(&mut self, active: bool) -> Result<(), GpioError> {
        self.check()?;
        self.with(|wire| {
            if wire.output {
                let driven = active != wire.active_low;
                let high = if driven && wire.open_drain { wire.pulled } else { driven };
                wire.changes += u32::from(wire.high != high);
                wire.high = high;
                return Ok(());
            }
            let error = std::io::ErrorKind::PermissionDenied.into();
            Err(GpioError::Line { action: "set", chip: LABEL.into(), line: "?".into(), error })
        })
    }

    fn next_edge(&mut self) -> Result<Option<EdgeEvent>, GpioError> {
        self.check()?;
        let next = self.with(|wire| wire.edges.pop_front());
        if let (None, Some(ear)) = (next, &mut self.ear) {
            let mut bells = [0; 4096];
            while std::io::Read::read(ear, &mut bells).is_ok_and(|len| len == bells.len()) {}
        }
        Ok(next)
    }

    fn fd(&self) -> Option<RawFd> {
        self.ear.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn debounces(&self) -> bool {
        *self.world.debounces.borrow()
    }
}

impl Drop for FakeLine {
    fn drop(&mut self) {
        let plugged = self.plugged;
        self.with(|wire| {
            if wire.plugged != plugged {
                return;
            }
            wire.taken = false;
            wire.bell = None;
            wire.edges.clear();
        });
    }
}

fn unplugged() -> GpioError {
    GpioError::NoChip { wanted: LABEL.into(), there: "none".into() }
}

pub fn input(line: LineRef) -> LineSpec {
    LineSpec {
        chip: Some(LABEL.into()),
        line,
        direction: Direction::Input,
        function: Function::Level,
        bias: Bias::AsIs,
        active_low: false,
        edge: Edge::Both,
        debounce_us: 0,
        drive: Drive::PushPull,
        initial: None,
        safety: Safety::default(),
    }
}

pub fn output(line: LineRef) -> LineSpec {
    LineSpec { direction: Direction::Output, ..input(line) }
}

/// PWM chips of one channel each in memory.
#[derive(Clone, Default)]
pub struct PwmWorld(pub Rc<RefCell<BTreeMap<u32, u32>>>);

impl PwmChips for PwmWorld {
    fn request(&mut self, spec: &PwmSpec) -> Result<Box<dyn PwmOutput>, PwmError> {
        if let Some(initial) = spec.initial {
            self.0.borrow_mut().insert(spec.channel, initial);
        }
        Ok(Box::new((self.clone(), spec.channel)))
    }
}

impl PwmOutput for (PwmWorld, u32) {
    fn get(&mut self) -> Result<u32, PwmError> {
        Ok(self.0.0.borrow().get(&self.1).copied().unwrap_or(0))
    }

    fn set(&mut self, millionths: u32) -> Result<(), PwmError> {
        self.0.0.borrow_mut().insert(self.1, millionths);
        Ok(())
    }
}

/// The line-holder without its socket. `running` false: as if the process were not there.
#[derive(Clone)]
pub struct DirectOutputs {
    pub holder: Rc<RefCell<Holder>>,
    pub running: Rc<RefCell<bool>>,
    pub now_us: Rc<RefCell<u64>>,
}

impl DirectOutputs {
    pub fn new(world: &World) -> DirectOutputs {
        let holder = Rc::new(RefCell::new(holder(world)));
        DirectOutputs { holder, running: Rc::new(RefCell::new(true)), now_us: Rc::default() }
    }

    /// Another line-holder that knows nothing.
    pub fn restart(&self, world: &World) {
        // The lines of the old one are free before the new one takes them.
        self.holder.replace(Holder::new(
            Box::new(World::default()),
            Box::new(PwmWorld::default()),
            BTreeMap::new(),
        ));
        self.holder.replace(holder(world));
    }

    /// The line-holder's own clock: it acts by itself.
    pub fn tick(&self, now_us: u64) {
        *self.now_us.borrow_mut() = now_us;
        let mut holder = self.holder.borrow_mut();
        holder.count(now_us);
        holder.tick(now_us);
    }
}

fn holder(world: &World) -> Holder {
    Holder::new(Box::new(world.clone()), Box::new(PwmWorld::default()), BTreeMap::new())
}

impl Outputs for DirectOutputs {
    fn ask(&mut self, request: &str) -> Result<String, String> {
        match *self.running.borrow() {
            true => Ok(self.holder.borrow_mut().handle(*self.now_us.borrow(), request)),
            false => Err("the line-holder does not answer".into()),
        }
    }
}
