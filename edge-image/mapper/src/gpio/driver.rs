//! A GPIO device: input lines of our own, output lines at the line-holder.

use super::{Chips, Line};
use crate::{
    driver::{Driver, Reading, Wait},
    holder::Outputs,
    limits::EDGES_PER_TURN_MAX,
    plan::{
        Access, Property,
        gpio::{Direction, Edge, LineSpec},
        level,
    },
};

/// Outputs are asked for this often at least: a line-holder that was restarted holds nothing.
const REFRESH_MS: u64 = 5_000;

pub struct GpioDriver {
    slots: Vec<Slot>,
    outputs: Box<dyn Outputs>,
    properties: Vec<Property>,
}

enum Slot {
    Input {
        line: Box<dyn Line>,
        edge: Edge,
        last: bool,
        collect_ms: u64,
        next_ms: u64,
    },
    /// `wanted` is what was set last, `last` what the line showed then (they may differ on an open drain).
    Output {
        name: String,
        wanted: Option<bool>,
        last: bool,
        refresh_ms: u64,
        next_ms: u64,
    },
}

impl GpioDriver {
    /// Takes all lines of the device, and reads them. `device` is `<namespace>/<name>`.
    pub fn open(
        now_ms: u64,
        device: &str,
        properties: &[Property],
        chips: &mut dyn Chips,
        mut outputs: Box<dyn Outputs>,
        readings: &mut Vec<Reading>,
    ) -> Result<GpioDriver, String> {
        let mut slots = Vec::with_capacity(properties.len());
        for (at, property) in properties.iter().enumerate() {
            let Access::Line(spec) = &property.access else {
                return Err(format!("{} is no line", property.name));
            };
            let (slot, active) = match spec.direction {
                Direction::Input => input(now_ms, spec, property.collect_cycle_ms, chips)?,
                Direction::Output => output(now_ms, device, property, spec, outputs.as_mut())?,
            };
            readings.push(Reading::good(at, property.level_text(active)));
            slots.push(slot);
        }
        Ok(GpioDriver { slots, outputs, properties: properties.to_vec() })
    }
}

fn input(
    now_ms: u64,
    spec: &LineSpec,
    collect_ms: u64,
    chips: &mut dyn Chips,
) -> Result<(Slot, bool), String> {
    let mut line = chips.request(spec).map_err(|error| error.to_string())?;
    let last = line.get().map_err(|error| error.to_string())?;
    Ok((Slot::Input { line, edge: spec.edge, last, collect_ms, next_ms: now_ms + collect_ms }, last))
}

fn output(
    now_ms: u64,
    device: &str,
    property: &Property,
    spec: &LineSpec,
    outputs: &mut dyn Outputs,
) -> Result<(Slot, bool), String> {
    let desired = property.desired.as_deref().and_then(level);
    let name = format!("{device}/{}", property.name);
    // The desired value is the first level too: a lamp that is to burn does not blink when the node starts.
    let spec = LineSpec { initial: desired.or(spec.initial), ..spec.clone() };
    let mut last = outputs.request(&name, &spec)?;
    if let Some(wanted) = desired
        && wanted != last
    {
        last = outputs.set(&name, wanted)?;
    }
    let refresh_ms = if spec.deadline_ms == 0 { REFRESH_MS } else { REFRESH_MS.min(spec.deadline_ms / 3) };
    Ok((Slot::Output { name, wanted: desired, last, refresh_ms, next_ms: now_ms + refresh_ms }, last))
}

impl Driver for GpioDriver {
    fn waits(&self, waits: &mut Vec<Wait>) {
        for slot in &self.slots {
            if let Slot::Input { line, .. } = slot
                && let Some(fd) = line.fd()
            {
                waits.push(Wait { fd, write: false });
            }
        }
    }

    fn ready(&mut self, _now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let Slot::Input { line, edge, last, .. } = slot else { continue };
            let mut emptied = false;
            let before = *last;
            for _ in 0..EDGES_PER_TURN_MAX {
                let Some(event) = line.next_edge().map_err(|error| error.to_string())? else {
                    emptied = true;
                    break;
                };
                *last = event.active;
                let asked = match edge {
                    Edge::Both => true,
                    Edge::Rising => event.active,
                    Edge::Falling => !event.active,
                    Edge::None => false,
                };
                if asked {
                    readings.push(Reading::good(at, self.properties[at].level_text(event.active)));
                }
            }
            // The kernel drops edges when its queue is full; the level itself is the truth.
            if emptied && *edge == Edge::Both && line.fd().is_some() && *last != before {
                let now = line.get().map_err(|error| error.to_string())?;
                if now != *last {
                    *last = now;
                    readings.push(Reading::good(at, self.properties[at].level_text(now)));
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let (before, after) = match slot {
                Slot::Input { line, last, collect_ms, next_ms, .. }
                    if line.fd().is_none() && now_ms >= *next_ms =>
                {
                    *next_ms = now_ms + *collect_ms;
                    let before = *last;
                    *last = line.get().map_err(|error| error.to_string())?;
                    (before, *last)
                }
                Slot::Output { name, wanted, last, refresh_ms, next_ms } if now_ms >= *next_ms => {
                    *next_ms = now_ms + *refresh_ms;
                    let before = *last;
                    *last = self.outputs.refresh(name)?;
                    if let (Some(wanted), true) = (*wanted, before != *last) {
                        // The fail-safe value came while we were held up. We are back, and so is what was wanted.
                        *last = self.outputs.set(name, wanted)?;
                    }
                    (before, *last)
                }
                _ => continue,
            };
            if before != after {
                readings.push(Reading::good(at, self.properties[at].level_text(after)));
            }
        }
        Ok(())
    }

    fn deadline_ms(&self) -> Option<u64> {
        let times = self.slots.iter().filter_map(|slot| match slot {
            Slot::Input { line, next_ms, .. } => line.fd().is_none().then_some(*next_ms),
            Slot::Output { next_ms, .. } => Some(*next_ms),
        });
        times.min()
    }

    fn set(
        &mut self,
        now_ms: u64,
        property: usize,
        value: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        let name_of = &self.properties[property].name;
        let Some(wanted) = level(value) else { return Err(format!("{name_of}: {value:?} is no level")) };
        let Some(Slot::Output { name, wanted: kept, last, refresh_ms, next_ms }) =
            self.slots.get_mut(property)
        else {
            return Err(format!("{name_of} is not an output"));
        };
        *kept = Some(wanted);
        *last = self.outputs.set(name, wanted)?;
        *next_ms = now_ms + *refresh_ms;
        readings.push(Reading::good(property, self.properties[property].level_text(*last)));
        Ok(())
    }
}
