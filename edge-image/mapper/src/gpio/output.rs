//! An output (a line, a duty cycle) as the mapper sees it: what is wanted, when the fail-safe value is due, and what the
//! line-holder last said.

use crate::{
    driver::Surroundings,
    holder::{Answer, Outputs, State, Target, Why},
    plan::{
        Property,
        gpio::{Function, LineSpec, duty_text},
    },
};

/// Outputs are asked for this often at least: a line-holder that was restarted holds nothing.
const REFRESH_MS: u64 = 5_000;

pub struct Output {
    /// At the line-holder.
    name: String,
    target: Target,
    wanted: Option<u32>,
    /// When the desired value was made, on the monotonic clock; it can be before this process began.
    wanted_ms: i64,
    last: Answer,
    refresh_ms: u64,
    pub next_ms: u64,
}

impl Output {
    /// Takes it from the line-holder. `wish` is the desired value with its age.
    pub fn open(
        now_ms: u64,
        name: String,
        target: Target,
        wish: Option<(u32, u64)>,
        outputs: &mut dyn Outputs,
    ) -> Result<Output, String> {
        let (wanted, age_ms) = wish.map_or((None, 0), |(value, age_ms)| (Some(value), age_ms));
        let deadline_ms = target.safety().deadline_ms;
        let refresh_ms = if deadline_ms == 0 { REFRESH_MS } else { REFRESH_MS.min(deadline_ms / 3) };
        let wanted_ms = now_ms as i64 - age_ms as i64;
        let last = Answer { value: 0, state: State::Steady };
        let mut output =
            Output { name, target, wanted, wanted_ms, last, refresh_ms, next_ms: now_ms + refresh_ms };
        let due = output.due(now_ms, None);
        output.last = output.request(due, outputs)?;
        // One that fell back is left there until the surroundings are known.
        if let (Some(value), true) = (wanted, is_far(due))
            && !matches!(output.last.state, State::FailSafe(_))
            && u64::from(value) != output.last.value
        {
            output.last = outputs.set(&output.name, value, due)?;
        }
        Ok(output)
    }

    /// A wish that comes while the fail-safe value is due is kept for later.
    pub fn set(
        &mut self,
        now_ms: u64,
        value: u32,
        age_ms: u64,
        around: &Surroundings,
        outputs: &mut dyn Outputs,
    ) -> Result<(), String> {
        (self.wanted, self.wanted_ms) = (Some(value), now_ms as i64 - age_ms as i64);
        let due = self.due(now_ms, Some(around));
        if !is_far(due) {
            return self.look(now_ms, around, outputs);
        }
        self.last = outputs.set(&self.name, value, due)?;
        self.plan_next(now_ms);
        Ok(())
    }

    /// Takes it, or adopts it as it is. What is wanted is its first value: a lamp that is to burn does not blink at a start.
    fn request(&self, due: Option<(u64, Why)>, outputs: &mut dyn Outputs) -> Result<Answer, String> {
        let first = if is_far(due) { self.wanted } else { self.target.safety().value };
        let mut target = self.target.clone();
        match &mut target {
            Target::Line(line) => line.initial = first.or(line.initial),
            Target::Pwm(pwm) => pwm.initial = first.or(pwm.initial),
        }
        outputs.request(&self.name, &target)
    }

    /// In how many milliseconds the fail-safe value is due although somebody speaks for the output.
    fn due(&self, now_ms: u64, around: Option<&Surroundings>) -> Option<(u64, Why)> {
        let safety = self.target.safety();
        let left = |since_ms: i64, wait_ms: u64| (since_ms + wait_ms as i64 - now_ms as i64).max(0) as u64;
        let link = around
            .and_then(|around| around.cloud_lost_ms)
            .filter(|_| safety.link_lost_ms > 0)
            .map(|lost_ms| (left(lost_ms as i64, safety.link_lost_ms), Why::Link));
        let stale = (safety.desired_age_ms_max > 0 && self.wanted.is_some())
            .then(|| (left(self.wanted_ms, safety.desired_age_ms_max), Why::Stale));
        [link, stale].into_iter().flatten().min_by_key(|(ms, _)| *ms)
    }

    /// Speaks for the output, brings it back from its fail-safe value when the reason is over, and hears what it has.
    pub fn look(
        &mut self,
        now_ms: u64,
        around: &Surroundings,
        outputs: &mut dyn Outputs,
    ) -> Result<(), String> {
        let due = self.due(now_ms, Some(around));
        // Without the agent nobody is told what happens here: then nobody speaks for the output, and its deadline runs.
        let asked = if around.agent { outputs.refresh(&self.name, due) } else { self.get(outputs) };
        self.last = match asked {
            Ok(answer) => answer,
            // A line-holder that was restarted.
            Err(_) => self.request(due, outputs)?,
        };
        let over = around.agent && is_far(due);
        if let (State::FailSafe(_), true, Some(safe)) = (self.last.state, over, self.target.safety().value) {
            self.last = outputs.set(&self.name, self.wanted.unwrap_or(safe), due)?;
        }
        self.plan_next(now_ms);
        Ok(())
    }

    fn get(&self, outputs: &mut dyn Outputs) -> Result<Answer, String> {
        outputs.about(&format!("get {}", self.name))
    }

    /// `pulse`, `blink`, `toggle` with their numbers.
    pub fn call(
        &mut self,
        now_ms: u64,
        verb: &str,
        numbers: &[&str],
        outputs: &mut dyn Outputs,
    ) -> Result<(), String> {
        self.last = outputs.about(&format!("{verb} {} {}", self.name, numbers.join(" ")))?;
        if verb == "toggle" {
            (self.wanted, self.wanted_ms) = (Some(self.last.value as u32), now_ms as i64);
        }
        self.plan_next(now_ms);
        Ok(())
    }

    fn plan_next(&mut self, now_ms: u64) {
        let pause_ms = match self.last.state {
            State::Pulse { left_ms } => self.refresh_ms.min(left_ms + 1),
            _ => self.refresh_ms,
        };
        self.next_ms = now_ms + pause_ms;
    }

    /// The value to report; none while the line changes by itself for long.
    pub fn value(&self, property: &Property) -> Option<String> {
        match (&self.target, self.last.state) {
            (_, State::Blink) => None,
            (Target::Line(LineSpec { function: Function::Level, .. }), _) => {
                Some(property.level_text(self.last.value != 0).into())
            }
            _ => Some(duty_text(self.last.value as u32)),
        }
    }

    pub fn complaint(&self, property: &Property) -> Option<String> {
        let State::FailSafe(why) = self.last.state else { return None };
        let safety = self.target.safety();
        let reason = match why {
            Why::Silence => {
                format!("the node's agent or this mapper was silent for more than {} ms", safety.deadline_ms)
            }
            Why::Link => {
                format!("the link to the cloud has been gone for more than {} ms", safety.link_lost_ms)
            }
            Why::Stale => format!("the desired value is older than {} ms", safety.desired_age_ms_max),
        };
        let value = self.value(property).unwrap_or_default();
        Some(format!("{} is at its fail-safe value {value}: {reason}", property.name))
    }
}

/// The fail-safe value is not due now.
fn is_far(due: Option<(u64, Why)>) -> bool {
    due.is_none_or(|(ms, _)| ms > 0)
}
