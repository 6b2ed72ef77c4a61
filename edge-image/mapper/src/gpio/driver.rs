//! A GPIO or PWM device: input lines of our own; outputs and counted lines at the line-holder.

use super::{Chips, count::Count, input::Told, output::Output, watched::Watched};
use crate::{
    driver::{Driver, Reading, Surroundings, Wait},
    holder::{SharedOutputs, Target},
    plan::{
        Access, Property, gpio,
        gpio::{Direction, LineSpec},
    },
};

pub struct GpioDriver {
    slots: Vec<Slot>,
    outputs: SharedOutputs,
    properties: Vec<Property>,
    ages_ms: Vec<u64>,
    around: Surroundings,
}

enum Slot {
    Input(Watched),
    Output(Output),
    Count(Count),
}

impl GpioDriver {
    /// Takes all lines of the device, and reads them. `device` is `<namespace>/<name>`.
    pub fn open(
        now_ms: u64,
        device: &str,
        properties: &[Property],
        chips: &mut dyn Chips,
        outputs: SharedOutputs,
        readings: &mut Vec<Reading>,
    ) -> Result<GpioDriver, String> {
        let mut driver = GpioDriver {
            slots: Vec::with_capacity(properties.len()),
            outputs,
            properties: properties.to_vec(),
            ages_ms: vec![0; properties.len()],
            around: Surroundings::default(),
        };
        for (at, property) in properties.iter().enumerate() {
            let slot = driver.slot(now_ms, device, property, chips)?;
            driver.slots.push(slot);
            driver.tell(at, readings);
        }
        Ok(driver)
    }

    fn slot(
        &mut self,
        now_ms: u64,
        device: &str,
        property: &Property,
        chips: &mut dyn Chips,
    ) -> Result<Slot, String> {
        let name = format!("{device}/{}", property.name);
        let target = match &property.access {
            Access::Line(spec) if Target::Line(spec.clone()).counts() => {
                return self.count(now_ms, name, property, spec).map(Slot::Count);
            }
            Access::Line(spec) if spec.direction == Direction::Input => {
                return Watched::open(now_ms, spec, property.collect_cycle_ms, chips).map(Slot::Input);
            }
            Access::Line(spec) => Target::Line(spec.clone()),
            Access::Pwm(spec) => Target::Pwm(spec.clone()),
            _ => return Err(format!("{} is no line", property.name)),
        };
        let value = property.desired.as_deref().map(|text| value_of(property, text)).transpose()?;
        let wish = value.map(|value| (value, property.desired_age_ms(crate::wall_ms())));
        Output::open(now_ms, name, target, wish, &mut self.outputs).map(Slot::Output)
    }

    /// Count and frequency of one meter are one line at the line-holder.
    fn count(
        &mut self,
        now_ms: u64,
        name: String,
        property: &Property,
        spec: &LineSpec,
    ) -> Result<Count, String> {
        let same = self.slots.iter().find_map(|slot| match slot {
            Slot::Count(count) if count.spec.counts_as(spec) => Some(count.name.clone()),
            _ => None,
        });
        let name = same.unwrap_or(name);
        Count::open(now_ms, name, spec, property.collect_cycle_ms, &mut self.outputs)
    }

    /// The value that a slot has now.
    fn tell(&mut self, at: usize, readings: &mut Vec<Reading>) {
        let property = &self.properties[at];
        let value = match &self.slots[at] {
            Slot::Input(watched) => Some(property.level_text(watched.input.level()).to_owned()),
            Slot::Output(output) => output.value(property),
            Slot::Count(_) => None,
        };
        readings.extend(value.map(|value| Reading::good(at, value)));
    }

    fn tell_edges(&self, at: usize, told: Vec<Told>, readings: &mut Vec<Reading>) {
        let clocks = (crate::monotonic_us() * 1000, crate::wall_ms());
        for (active, at_ns) in told {
            let value = self.properties[at].level_text(active);
            readings.push(Reading { at_ms: Some(wall_of(at_ns, clocks)), ..Reading::good(at, value) });
        }
    }

    /// The slot of a method's first word, or the only one that can do it.
    fn find<'a>(
        &self,
        argument: &'a str,
        can: impl Fn(&Slot) -> bool,
    ) -> Result<(usize, Vec<&'a str>), String> {
        let words: Vec<&str> = argument.split_ascii_whitespace().collect();
        let named =
            words.first().and_then(|word| self.properties.iter().position(|property| property.name == *word));
        if let Some(at) = named {
            return match can(&self.slots[at]) {
                true => Ok((at, words[1..].to_vec())),
                false => Err(format!("{} cannot do that", words[0])),
            };
        }
        let able: Vec<usize> = (0..self.slots.len()).filter(|at| can(&self.slots[*at])).collect();
        match able.as_slice() {
            [at] => Ok((*at, words)),
            [] => Err("no property of this device can do that".into()),
            several => {
                let names: Vec<&str> = several.iter().map(|at| self.properties[*at].name.as_str()).collect();
                Err(format!("begin the argument with the property: {}", names.join(", ")))
            }
        }
    }
}

/// The wall clock's time of an edge, from both clocks now (nanoseconds since the start, milliseconds since 1970).
fn wall_of(edge_ns: u64, (now_ns, wall_ms): (u64, u64)) -> i64 {
    wall_ms as i64 - (now_ns.saturating_sub(edge_ns) / 1_000_000) as i64
}

fn value_of(property: &Property, text: &str) -> Result<u32, String> {
    match &property.access {
        Access::Line(spec) => gpio::value(spec.function, text),
        _ => gpio::duty(text),
    }
    .map_err(|error| format!("{}: {error}", property.name))
}

impl Driver for GpioDriver {
    fn waits(&self, waits: &mut Vec<Wait>) {
        for slot in &self.slots {
            if let Slot::Input(watched) = slot
                && let Some(fd) = watched.fd()
            {
                waits.push(Wait { fd, write: false });
            }
        }
    }

    fn ready(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        for at in 0..self.slots.len() {
            let Slot::Input(watched) = &mut self.slots[at] else { continue };
            if watched.fd().is_none() {
                continue;
            }
            let mut told = Vec::new();
            watched.ready(now_ms, &mut told)?;
            self.tell_edges(at, told, readings);
        }
        Ok(())
    }

    fn tick(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        for at in 0..self.slots.len() {
            match &mut self.slots[at] {
                Slot::Input(watched) if watched.deadline_ms().is_some_and(|due_ms| now_ms >= due_ms) => {
                    let mut told = Vec::new();
                    watched.tick(now_ms, &mut told)?;
                    self.tell_edges(at, told, readings);
                }
                Slot::Output(output) if now_ms >= output.next_ms => {
                    let before = output.value(&self.properties[at]);
                    output.look(now_ms, &self.around, &mut self.outputs)?;
                    if output.value(&self.properties[at]) != before {
                        self.tell(at, readings);
                    }
                }
                Slot::Count(count) if now_ms >= count.next_ms => {
                    let value = count.tick(now_ms, &mut self.outputs)?;
                    readings.extend(value.map(|value| Reading::good(at, value)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn deadline_ms(&self) -> Option<u64> {
        let times = self.slots.iter().filter_map(|slot| match slot {
            Slot::Input(watched) => watched.deadline_ms(),
            Slot::Output(output) => Some(output.next_ms),
            Slot::Count(count) => Some(count.next_ms),
        });
        times.min()
    }

    fn desired_age(&mut self, property: usize, age_ms: u64) {
        self.ages_ms[property] = age_ms;
    }

    fn set(
        &mut self,
        now_ms: u64,
        property: usize,
        value: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        let wanted = value_of(&self.properties[property], value)?;
        let age_ms = std::mem::take(&mut self.ages_ms[property]);
        match &mut self.slots[property] {
            Slot::Output(output) => output.set(now_ms, wanted, age_ms, &self.around, &mut self.outputs)?,
            _ => return Err(format!("{} is not an output", self.properties[property].name)),
        }
        self.tell(property, readings);
        Ok(())
    }

    fn call(
        &mut self,
        now_ms: u64,
        method: &str,
        argument: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        match method {
            "pulse" | "blink" | "toggle" => {
                let (at, numbers) = self.find(argument, |slot| matches!(slot, Slot::Output(_)))?;
                let Slot::Output(output) = &mut self.slots[at] else { return Ok(()) };
                output.call(now_ms, method, &numbers, &mut self.outputs)?;
                self.tell(at, readings);
            }
            "reset" => {
                let (at, numbers) = self.find(argument, |slot| matches!(slot, Slot::Count(_)))?;
                let Slot::Count(count) = &mut self.slots[at] else { return Ok(()) };
                let number = numbers.first().copied().unwrap_or("0");
                count.reset(number, &mut self.outputs)?;
                let value = count.tick(now_ms, &mut self.outputs)?;
                readings.extend(value.map(|value| Reading::good(at, value)));
            }
            other => {
                return Err(format!("no such method: {other}; there are pulse, blink, toggle and reset"));
            }
        }
        Ok(())
    }

    fn surroundings(
        &mut self,
        now_ms: u64,
        around: &Surroundings,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        self.around = *around;
        for at in 0..self.slots.len() {
            let Slot::Output(output) = &mut self.slots[at] else { continue };
            let before = output.value(&self.properties[at]);
            output.look(now_ms, around, &mut self.outputs)?;
            if output.value(&self.properties[at]) != before {
                self.tell(at, readings);
            }
        }
        Ok(())
    }

    fn complaint(&self) -> Option<String> {
        let all: Vec<String> = self
            .slots
            .iter()
            .zip(&self.properties)
            .filter_map(|(slot, property)| match slot {
                Slot::Input(watched) => {
                    watched.input.trouble().map(|text| format!("{}: {text}", property.name))
                }
                Slot::Output(output) => output.complaint(property),
                Slot::Count(count) if count.lost > 0 => {
                    Some(format!("{}: {} edges were too fast to be counted", property.name, count.lost))
                }
                Slot::Count(_) => None,
            })
            .collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_edge_is_stamped_on_the_wall_clock() {
        let now = (50_000_000_000, 1_700_000_000_000);
        assert_eq!(super::wall_of(49_750_000_000, now), 1_699_999_999_750);
        assert_eq!(
            super::wall_of(50_000_000_001, now),
            1_700_000_000_000,
            "a clock that was read a moment ago"
        );
    }
}
