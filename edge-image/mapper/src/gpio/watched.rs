//! An input line of our own, and what its edges mean.

use std::os::fd::RawFd;

use super::{
    Chips, Line,
    input::{Input, Told},
};
use crate::{
    limits::{EDGES_PER_TURN_MAX, INPUT_BUFFER_EDGES, STORM_PAUSE_MS},
    plan::gpio::LineSpec,
};

pub struct Watched {
    line: Box<dyn Line>,
    pub input: Input,
    collect_ms: u64,
    next_ms: u64,
}

impl Watched {
    /// Takes the line and reads it.
    pub fn open(
        now_ms: u64,
        spec: &LineSpec,
        collect_ms: u64,
        chips: &mut dyn Chips,
    ) -> Result<Watched, String> {
        let mut line = chips.request(spec).map_err(|error| error.to_string())?;
        let level = line.get().map_err(|error| error.to_string())?;
        let debounce_ns = if line.debounces() { 0 } else { u64::from(spec.debounce_us) * 1000 };
        let input = Input::new(now_ms * 1_000_000, spec.edge, debounce_ns, level);
        Ok(Watched { line, input, collect_ms, next_ms: now_ms + collect_ms })
    }

    /// All edges that wait, at most a buffer full.
    pub fn ready(&mut self, now_ms: u64, told: &mut Vec<Told>) -> Result<(), String> {
        let now_ns = now_ms * 1_000_000;
        let mut gap = false;
        let edges_max =
            if self.input.is_storming() { INPUT_BUFFER_EDGES as usize } else { EDGES_PER_TURN_MAX };
        let mut emptied = false;
        for _ in 0..edges_max {
            let Some(event) = self.line.next_edge().map_err(|error| error.to_string())? else {
                emptied = true;
                break;
            };
            gap |= self.input.edge(now_ns, &event, told);
        }
        self.next_ms = now_ms + STORM_PAUSE_MS;
        // The level is the truth where edges are missing.
        if gap && emptied {
            let level = self.line.get().map_err(|error| error.to_string())?;
            self.input.read(now_ns, level, told);
        }
        Ok(())
    }

    pub fn tick(&mut self, now_ms: u64, told: &mut Vec<Told>) -> Result<(), String> {
        let now_ns = now_ms * 1_000_000;
        if self.line.fd().is_none() {
            // Also when a level is to settle: it has to be the one that the line still has.
            let level = self.line.get().map_err(|error| error.to_string())?;
            self.input.read(now_ns, level, told);
            self.next_ms = now_ms + self.collect_ms;
        } else if now_ms >= self.next_ms && self.input.is_storming() {
            self.ready(now_ms, told)?;
        }
        self.input.tick(now_ns, told);
        Ok(())
    }

    pub fn deadline_ms(&self) -> Option<u64> {
        let looked_at = self.line.fd().is_none() || self.input.is_storming();
        let settles = self.input.deadline_ns().map(|at_ns| at_ns.div_ceil(1_000_000));
        [looked_at.then_some(self.next_ms), settles].into_iter().flatten().min()
    }

    /// What to wait for: nothing while a storm is looked at by the clock, and for a line without edges.
    pub fn fd(&self) -> Option<RawFd> {
        self.line.fd().filter(|_| !self.input.is_storming())
    }
}
