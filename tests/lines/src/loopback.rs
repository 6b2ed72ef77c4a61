//! A chip whose other end is in this process, for any thread: outputs are told through a channel, inputs are flipped here.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Instant,
};

use mapper::{
    gpio::{Chips, EdgeEvent, GpioError, Line},
    plan::{
        gpio::{Direction, LineRef, LineSpec},
        pwm::PwmSpec,
    },
    pwm::{PwmChips, PwmError, PwmOutput},
};

pub const LABEL: &str = "loopback";

#[derive(Default)]
struct Wire {
    level: bool,
    sequence: u32,
    edges: VecDeque<EdgeEvent>,
    bell: Option<UnixStream>,
}

#[derive(Clone)]
pub struct Loopback {
    wires: Arc<Mutex<BTreeMap<u32, Wire>>>,
    told: mpsc::SyncSender<(bool, Instant)>,
}

impl Loopback {
    /// Each level that an output is set to comes through the channel, with its time.
    pub fn new() -> (Loopback, mpsc::Receiver<(bool, Instant)>) {
        let (told, seen) = mpsc::sync_channel(64);
        (Loopback { wires: Arc::default(), told }, seen)
    }

    fn with<T>(&self, line: u32, act: impl FnOnce(&mut Wire) -> T) -> T {
        act(self.wires.lock().unwrap_or_else(PoisonError::into_inner).entry(line).or_default())
    }

    pub fn flip(&self, line: u32) {
        self.with(line, |wire| {
            wire.level = !wire.level;
            wire.sequence += 1;
            let timestamp_ns = mapper::monotonic_us() * 1000;
            wire.edges.push_back(EdgeEvent { active: wire.level, timestamp_ns, sequence: wire.sequence });
            if let Some(bell) = &mut wire.bell {
                let _ = bell.write(&[0]);
            }
        });
    }
}

impl Chips for Loopback {
    fn request(&mut self, spec: &LineSpec) -> Result<Box<dyn Line>, GpioError> {
        let LineRef::Offset(offset) = spec.line else {
            return Err(GpioError::NoHeader { there: LABEL.into() });
        };
        let mut ear = None;
        if spec.direction == Direction::Input {
            let (bell, listening) = UnixStream::pair().expect("a socket pair");
            listening.set_nonblocking(true).expect("nonblocking");
            self.with(offset, |wire| wire.bell = Some(bell));
            ear = Some(listening);
        }
        Ok(Box::new(Held { chip: self.clone(), offset, ear }))
    }
}

struct Held {
    chip: Loopback,
    offset: u32,
    ear: Option<UnixStream>,
}

impl Line for Held {
    fn get(&mut self) -> Result<bool, GpioError> {
        Ok(self.chip.with(self.offset, |wire| wire.level))
    }

    fn set(&mut self, active: bool) -> Result<(), GpioError> {
        self.chip.with(self.offset, |wire| wire.level = active);
        let _ = self.chip.told.try_send((active, Instant::now()));
        Ok(())
    }

    fn next_edge(&mut self) -> Result<Option<EdgeEvent>, GpioError> {
        let next = self.chip.with(self.offset, |wire| wire.edges.pop_front());
        if let (None, Some(ear)) = (next, &mut self.ear) {
            let _ = ear.read(&mut [0; 64]);
        }
        Ok(next)
    }

    fn fd(&self) -> Option<RawFd> {
        self.ear.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn debounces(&self) -> bool {
        true
    }
}

/// No duty cycles here.
pub struct NoPwm;

impl PwmChips for NoPwm {
    fn request(&mut self, _spec: &PwmSpec) -> Result<Box<dyn PwmOutput>, PwmError> {
        Err(PwmError::NoHeader { there: "none".into() })
    }
}
