//! The schedule of a polled device: each property at its collectCycle, wishes first, one job at a time.

use std::collections::VecDeque;

use super::{
    Failure, Source,
    worker::{Job, Worker},
};
use crate::{
    driver::{Driver, Reading, Wait},
    limits::{ANSWER_MS_MAX, PASSING_FAILURES_MAX},
    plan::Property,
};

pub struct PolledDriver {
    worker: Worker,
    slots: Vec<Slot>,
    /// Wishes, at most one for each property.
    wishes: VecDeque<(usize, String)>,
    /// When the job under way is overdue.
    busy_until_ms: Option<u64>,
    hangs: bool,
}

struct Slot {
    name: String,
    collect_ms: u64,
    next_ms: u64,
    value: Option<String>,
    failures: u32,
    trouble: Option<String>,
}

impl PolledDriver {
    pub fn open(
        now_ms: u64,
        properties: &[Property],
        source: Box<dyn Source>,
    ) -> Result<PolledDriver, String> {
        let slot = |property: &Property| Slot {
            name: property.name.clone(),
            collect_ms: property.collect_cycle_ms,
            next_ms: now_ms,
            value: None,
            failures: 0,
            trouble: None,
        };
        let wishes =
            properties.iter().enumerate().filter_map(|(at, p)| Some((at, p.desired.clone()?))).collect();
        let (worker, slots) = (Worker::start(source)?, properties.iter().map(slot).collect());
        let mut driver = PolledDriver { worker, slots, wishes, busy_until_ms: None, hangs: false };
        driver.go_on(now_ms);
        Ok(driver)
    }

    /// Gives the worker the next job, if it is idle and one is due.
    fn go_on(&mut self, now_ms: u64) {
        if self.busy_until_ms.is_some() {
            return;
        }
        let job = match self.wishes.pop_front() {
            Some((property, value)) => Job::Write(property, value),
            None => {
                // The one that has waited longest, so that a fast cycle does not starve a slow one.
                let due = self.slots.iter().enumerate().filter(|(_, slot)| slot.next_ms <= now_ms);
                let Some((at, _)) = due.min_by_key(|(_, slot)| slot.next_ms) else { return };
                self.slots[at].next_ms = now_ms + self.slots[at].collect_ms;
                Job::Read(at)
            }
        };
        let given = self.worker.give(job);
        debug_assert!(given, "it was idle");
        self.busy_until_ms = Some(now_ms + ANSWER_MS_MAX);
    }

    fn take(&mut self, readings: &mut Vec<Reading>) -> Result<bool, String> {
        let Some(done) = self.worker.take() else { return Ok(false) };
        (self.busy_until_ms, self.hangs) = (None, false);
        let (Job::Read(at) | Job::Write(at, _)) = done.job;
        let slot = &mut self.slots[at];
        match done.result {
            Ok(value) => {
                let is_news = slot.value.as_ref() != Some(&value) || slot.failures > 0;
                (slot.failures, slot.trouble) = (0, None);
                if is_news {
                    readings.push(Reading::good(at, value.clone()));
                }
                slot.value = Some(value);
            }
            Err(Failure::Gone(reason)) => return Err(reason),
            Err(Failure::Passing(reason)) => {
                slot.failures += 1;
                slot.trouble = Some(format!("{}: {reason}", slot.name));
                match (&slot.value, slot.failures) {
                    (Some(value), 1) => readings.push(Reading::stale(at, value.clone())),
                    (Some(_), PASSING_FAILURES_MAX) => {
                        slot.value = None;
                        readings.push(Reading::bad(at));
                    }
                    (None, 1) => readings.push(Reading::bad(at)),
                    _ => {}
                }
            }
        }
        Ok(true)
    }
}

impl Driver for PolledDriver {
    fn waits(&self, waits: &mut Vec<Wait>) {
        waits.push(Wait { fd: self.worker.fd(), write: false });
    }

    fn ready(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        if self.take(readings)? {
            self.go_on(now_ms);
        }
        Ok(())
    }

    fn tick(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        if self.busy_until_ms.is_some_and(|until_ms| until_ms <= now_ms) {
            // It cannot be ended while it is in the kernel. Values are stale until it answers; others go on.
            (self.busy_until_ms, self.hangs) = (Some(u64::MAX), true);
            for (at, slot) in self.slots.iter().enumerate() {
                readings.extend(slot.value.clone().map(|value| Reading::stale(at, value)));
            }
            for slot in &mut self.slots {
                slot.failures = slot.failures.max(1);
            }
        }
        self.go_on(now_ms);
        Ok(())
    }

    fn deadline_ms(&self) -> Option<u64> {
        match self.busy_until_ms {
            Some(u64::MAX) => None,
            Some(until_ms) => Some(until_ms),
            None => self.slots.iter().map(|slot| slot.next_ms).min(),
        }
    }

    fn set(
        &mut self,
        now_ms: u64,
        property: usize,
        value: &str,
        _readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        self.wishes.retain(|(waiting, _)| *waiting != property);
        self.wishes.push_back((property, value.to_owned()));
        self.go_on(now_ms);
        Ok(())
    }

    fn complaint(&self) -> Option<String> {
        if self.hangs {
            return Some(format!(
                "the bus has not answered for more than {} s; is a wire loose?",
                ANSWER_MS_MAX / 1000
            ));
        }
        let all: Vec<&str> = self.slots.iter().filter_map(|slot| slot.trouble.as_deref()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}
