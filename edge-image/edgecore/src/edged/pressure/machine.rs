//! Which thresholds are crossed, which conditions the node has, and what is to be made free, as a plain state machine.

use std::{collections::BTreeMap, time::Duration};

use super::{NodeCondition, Readings, Signal, Threshold, quantity_text, settings::PressureSettings};
use crate::edged::limits;

/// A threshold that is crossed and asks for room.
#[derive(Clone, Debug, PartialEq)]
pub struct Crossed {
    pub signal: Signal,
    /// For messages.
    pub threshold: String,
    pub available: String,
    /// How long an evicted pod may take.
    pub grace: Duration,
}

pub struct Machine {
    settings: PressureSettings,
    /// By position in the settings: since when it is crossed.
    crossed: BTreeMap<usize, Duration>,
    /// When a condition's cause was seen last.
    caused: BTreeMap<NodeCondition, Duration>,
    /// A pod that is being evicted, and since when.
    evicting: Option<(String, Duration)>,
}

impl Machine {
    pub fn new(settings: PressureSettings) -> Machine {
        Machine { settings, crossed: BTreeMap::new(), caused: BTreeMap::new(), evicting: None }
    }

    /// The conditions that the node has, in the order of their names.
    pub fn conditions(&self) -> Vec<NodeCondition> {
        self.caused.keys().copied().collect()
    }

    /// Takes in what is measured. `still_there` tells whether a pod, by uid, still runs or stops. Returns what to make room for.
    pub fn observe(
        &mut self,
        now: Duration,
        readings: &Readings,
        still_there: impl Fn(&str) -> bool,
    ) -> Option<Crossed> {
        for (n, threshold) in self.settings.thresholds.iter().enumerate() {
            let below = is_below(threshold, readings, self.crossed.contains_key(&n));
            match below {
                true => drop(self.crossed.entry(n).or_insert(now)),
                false => drop(self.crossed.remove(&n)),
            }
        }
        for n in self.crossed.keys() {
            self.caused.insert(self.settings.thresholds[*n].signal.condition(), now);
        }
        let transition = self.settings.transition_period;
        self.caused.retain(|_, seen| *seen == now || now.saturating_sub(*seen) < transition);
        if let Some((uid, since)) = &self.evicting {
            if still_there(uid) && now.saturating_sub(*since) < limits::EVICTION_WAIT {
                return None;
            }
            self.evicting = None;
        }
        let thresholds = &self.settings.thresholds;
        let due = self.crossed.iter().filter(|(n, since)| {
            thresholds[**n].grace.is_none_or(|grace| now.saturating_sub(**since) >= grace)
        });
        let (n, _) = due.min_by_key(|(n, _)| (thresholds[**n].signal, thresholds[**n].grace.is_some()))?;
        let threshold = &thresholds[*n];
        let level = readings.get(&threshold.signal)?;
        let text = |value| quantity_text(value, threshold.signal.is_bytes());
        Some(Crossed {
            signal: threshold.signal,
            threshold: text(threshold.amount.of(level.capacity)),
            available: text(level.available),
            grace: match threshold.grace {
                Some(_) => self.settings.soft_grace_max,
                None => limits::EVICTION_GRACE_HARD,
            },
        })
    }

    pub fn evicting(&mut self, now: Duration, uid: &str) {
        self.evicting = Some((uid.to_string(), now));
    }
}

/// Once crossed, a threshold is over only with its minimum reclaim on top. A signal that was not read is not crossed.
fn is_below(threshold: &Threshold, readings: &Readings, was: bool) -> bool {
    let Some(level) = readings.get(&threshold.signal) else { return false };
    let more = threshold.reclaim.filter(|_| was).map_or(0, |amount| amount.of(level.capacity));
    level.available < threshold.amount.of(level.capacity).saturating_add(more)
}
