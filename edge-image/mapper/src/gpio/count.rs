//! A counted line; the line-holder has it.

use crate::{
    holder::{Outputs, State, Target},
    plan::gpio::{Function, LineSpec, decimal_text},
};

pub struct Count {
    pub name: String,
    pub spec: LineSpec,
    collect_ms: u64,
    pub next_ms: u64,
    count: u64,
    pub lost: u64,
    told: String,
}

impl Count {
    pub fn open(
        now_ms: u64,
        name: String,
        spec: &LineSpec,
        collect_ms: u64,
        outputs: &mut dyn Outputs,
    ) -> Result<Count, String> {
        let answer = outputs.request(&name, &Target::Line(spec.clone()))?;
        let (spec, count) = (spec.clone(), answer.value);
        Ok(Count { name, spec, collect_ms, next_ms: now_ms, count, lost: 0, told: String::new() })
    }

    /// Sets the count: the meter's reading.
    pub fn reset(&mut self, count: &str, outputs: &mut dyn Outputs) -> Result<(), String> {
        self.count = outputs.about(&format!("reset {} {count}", self.name))?.value;
        Ok(())
    }

    /// The value, when it is another one than before.
    pub fn tick(&mut self, now_ms: u64, outputs: &mut dyn Outputs) -> Result<Option<String>, String> {
        self.next_ms = now_ms + self.collect_ms;
        let mut answer = outputs.about(&format!("get {}", self.name));
        if answer.is_err() {
            // A line-holder that was restarted knows the count of its last save at best; ours may be newer.
            let found = outputs.request(&self.name, &Target::Line(self.spec.clone()))?;
            answer = match found.value < self.count {
                true => outputs.about(&format!("reset {} {}", self.name, self.count)),
                false => Ok(found),
            };
        }
        let answer = answer?;
        let State::Count { lost, millihertz } = answer.state else {
            return Err(format!("the line-holder counts nothing for {}", self.name));
        };
        (self.count, self.lost) = (answer.value, lost);
        let value = match self.spec.function {
            Function::Frequency { scale } => decimal_text(millihertz as f64 / 1000.0 * scale, 3),
            Function::Count { scale: 1.0 } => answer.value.to_string(),
            Function::Count { scale } => decimal_text(answer.value as f64 * scale, 6),
            Function::Level | Function::Pwm { .. } => answer.value.to_string(),
        };
        let is_news = value != self.told;
        self.told.clone_from(&value);
        Ok(is_news.then_some(value))
    }
}
