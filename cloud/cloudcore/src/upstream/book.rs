//! What one node reported of its devices and is not written yet, as a plain value: newer reports merge into older ones, writes keep
//! a pace, and a report is answered when what it said is stored.
//!
//! Thirty devices at three values a second would be ninety writes a second at the Kubernetes API, which is what a stock cloudcore
//! makes of them.
//!
//! Invariants: a report is answered after its values, or newer ones of the same properties that are themselves unanswered, are
//! stored; the newest value of each property is written in the end.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use rt::Pace;
use wire::Message;

use super::devices::{StateReport, TwinReport};
use crate::limits::{
    DEVICE_ANSWERS_MAX, DEVICE_PROPERTIES_TOLD_MAX, DEVICE_TIMES_EVERY_MS, DEVICE_WRITE_BURST,
    DEVICE_WRITE_BURST_FIRST, DEVICE_WRITE_BURST_STATE, DEVICE_WRITE_FIRST_EVERY, DEVICE_WRITE_RETRY_MS,
    DEVICES_WAITING_MAX,
};

/// Namespace and name.
pub type DeviceId = (String, String);

/// What a report says.
#[derive(Clone, Debug)]
pub enum Said {
    /// A `None` twin was deleted.
    Twins(BTreeMap<String, Option<TwinReport>>),
    State(StateReport),
}

/// Everything that is to be written of one device.
#[derive(Debug, Default)]
pub struct Pending {
    pub twins: BTreeMap<String, Option<TwinReport>>,
    pub state: Option<StateReport>,
    /// Oldest first.
    answers: VecDeque<Waiting>,
    since_ms: i64,
    retry_at_ms: i64,
    /// A property's first value is among them.
    first: bool,
    /// Its turn was one of those of first values.
    has_first_turn: bool,
}

#[derive(Debug)]
struct Waiting {
    /// The properties that the report named; none: the state.
    names: Vec<String>,
    answer: Message,
}

impl Pending {
    fn burst(&self) -> u32 {
        if self.state.is_some() { DEVICE_WRITE_BURST_STATE } else { DEVICE_WRITE_BURST }
    }
}

#[derive(Debug)]
pub enum Outcome {
    Written,
    /// The object says it already, or but for times, or nobody wants it.
    Unchanged,
    Failed,
}

#[derive(Debug)]
pub struct Book {
    pace: Pace,
    first_pace: Pace,
    /// Hashes of the properties that were told: wrong once in ages, and then a value waits its turn.
    told: HashSet<u64>,
    pending: BTreeMap<DeviceId, Pending>,
    /// When a device's status was last written, while that matters.
    written: BTreeMap<DeviceId, i64>,
}

impl Book {
    pub fn new(write_every_ms: u32) -> Book {
        Book {
            pace: Pace::new(write_every_ms),
            first_pace: Pace::new(write_every_ms.saturating_mul(DEVICE_WRITE_FIRST_EVERY)),
            told: HashSet::new(),
            pending: BTreeMap::new(),
            written: BTreeMap::new(),
        }
    }

    /// Takes a report and the answer that it waits for; returns the answers to be given now.
    pub fn put(&mut self, now_ms: i64, id: DeviceId, said: Said, answer: Message) -> Vec<Message> {
        if self.pending.len() >= DEVICES_WAITING_MAX && !self.pending.contains_key(&id) {
            return Vec::new();
        }
        let first = match &said {
            Said::Twins(twins) => is_first(&mut self.told, &id, twins.keys()),
            Said::State(_) => false,
        };
        let pending =
            self.pending.entry(id).or_insert_with(|| Pending { since_ms: now_ms, ..Pending::default() });
        pending.first |= first;
        let names: Vec<String> = match said {
            Said::Twins(twins) => {
                let names = twins.keys().cloned().collect();
                pending.twins.extend(twins);
                names
            }
            Said::State(state) => {
                pending.state = Some(state);
                Vec::new()
            }
        };
        // Whoever said nothing that this one does not say has nothing to wait for.
        let superseded = |waiting: &Waiting| {
            waiting.names.is_empty() == names.is_empty()
                && waiting.names.iter().all(|name| names.binary_search(name).is_ok())
        };
        let (over, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut pending.answers).into_iter().partition(superseded);
        pending.answers = kept;
        pending.answers.push_back(Waiting { names, answer });
        let mut answers: Vec<Message> = over.into_iter().map(|waiting| waiting.answer).collect();
        if pending.answers.len() > DEVICE_ANSWERS_MAX {
            answers.extend(pending.answers.pop_front().map(|waiting| waiting.answer));
        }
        answers
    }

    /// When [`Book::next`] is next of use.
    pub fn next_ms(&self) -> Option<i64> {
        self.pending.values().map(|pending| self.at_ms(pending).max(pending.since_ms)).min()
    }

    fn at_ms(&self, pending: &Pending) -> i64 {
        let turn_ms = self.pace.next_ms(pending.burst());
        let first_ms = pending.first.then(|| self.first_pace.next_ms(DEVICE_WRITE_BURST_FIRST));
        first_ms.map_or(turn_ms, |first_ms| first_ms.min(turn_ms)).max(pending.retry_at_ms)
    }

    /// What is to be written now: states, then first values, then who waits longest. Answer with [`Book::done`] before asking again.
    pub fn next(&mut self, now_ms: i64) -> Option<(DeviceId, Pending)> {
        let due = self.pending.iter().filter(|(_, pending)| self.at_ms(pending) <= now_ms);
        let next = due.min_by_key(|(_, pending)| (pending.state.is_none(), !pending.first, pending.since_ms));
        let (id, first, burst) = next.map(|(id, pending)| (id.clone(), pending.first, pending.burst()))?;
        let has_first_turn = first && self.first_pace.take(now_ms, DEVICE_WRITE_BURST_FIRST);
        if !has_first_turn && !self.pace.take(now_ms, burst) {
            return None;
        }
        self.written.retain(|_, at| *at + DEVICE_TIMES_EVERY_MS > now_ms);
        let (id, pending) = self.pending.remove_entry(&id)?;
        Some((id, Pending { has_first_turn, ..pending }))
    }

    /// All that is not written, whatever the pace: the link has ended.
    pub fn drain(&mut self) -> Vec<(DeviceId, Pending)> {
        std::mem::take(&mut self.pending).into_iter().collect()
    }

    /// New times alone are worth a write.
    pub fn is_calm(&self, now_ms: i64, id: &DeviceId) -> bool {
        self.written.get(id).is_none_or(|at| *at + DEVICE_TIMES_EVERY_MS <= now_ms)
    }

    /// Returns the answers to be given now.
    pub fn done(&mut self, now_ms: i64, id: DeviceId, pending: Pending, outcome: &Outcome) -> Vec<Message> {
        match outcome {
            Outcome::Written => _ = self.written.insert(id, now_ms),
            Outcome::Unchanged if pending.has_first_turn => self.first_pace.give_back(),
            Outcome::Unchanged => self.pace.give_back(),
            Outcome::Failed => {
                self.again(now_ms, id, pending);
                return Vec::new();
            }
        }
        pending.answers.into_iter().map(|waiting| waiting.answer).collect()
    }

    /// What failed goes below what came meanwhile.
    fn again(&mut self, now_ms: i64, id: DeviceId, failed: Pending) {
        let newer = self.pending.remove(&id).unwrap_or_default();
        let mut twins = failed.twins;
        twins.extend(newer.twins);
        let mut answers = failed.answers;
        answers.extend(newer.answers);
        let pending = Pending {
            twins,
            state: newer.state.or(failed.state),
            answers,
            since_ms: failed.since_ms,
            retry_at_ms: now_ms + DEVICE_WRITE_RETRY_MS,
            first: failed.first || newer.first,
            has_first_turn: false,
        };
        self.pending.insert(id, pending);
    }
}

/// Whether one of the properties is not told yet; now they are.
fn is_first<'a>(told: &mut HashSet<u64>, id: &DeviceId, names: impl Iterator<Item = &'a String>) -> bool {
    let mut first = false;
    for name in names {
        let mut hasher = DefaultHasher::new();
        (id, name).hash(&mut hasher);
        first |= told.len() < DEVICE_PROPERTIES_TOLD_MAX && told.insert(hasher.finish());
    }
    first
}

#[cfg(test)]
mod tests;
