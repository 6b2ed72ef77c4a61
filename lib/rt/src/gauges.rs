//! Figures that modules show: a name, a help line and a number that the module keeps. Whoever serves metrics reads them all.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::limits::GAUGES_LEN_MAX;

/// Made as a `static` by the module whose figure it is; shown from its first use on.
pub struct Gauge {
    name: &'static str,
    help: &'static str,
    value: AtomicU64,
    listed: AtomicU64,
}

static LIST: Mutex<Vec<&'static Gauge>> = Mutex::new(Vec::new());

impl Gauge {
    /// `name` with its unit, `kinglet_outbox_messages`; `help` one line.
    pub const fn new(name: &'static str, help: &'static str) -> Gauge {
        Gauge { name, help, value: AtomicU64::new(0), listed: AtomicU64::new(0) }
    }

    pub fn set(&'static self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
        self.list();
    }

    pub fn add(&'static self, more: u64) {
        self.value.fetch_add(more, Ordering::Relaxed);
        self.list();
    }

    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    fn list(&'static self) {
        if self.listed.swap(1, Ordering::Relaxed) == 0 {
            let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
            if list.len() < GAUGES_LEN_MAX {
                list.push(self);
            }
        }
    }
}

/// Name, help and value of every gauge that was set in this process, by name.
pub fn gauges() -> Vec<(&'static str, &'static str, u64)> {
    let list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all: Vec<_> = list.iter().map(|gauge| (gauge.name, gauge.help, gauge.get())).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_shown_once_it_was_set() {
        static SET: Gauge = Gauge::new("test_set", "A gauge of a test.");
        static SILENT: Gauge = Gauge::new("test_silent", "Another one.");
        SET.set(3);
        SET.add(2);
        assert_eq!(SILENT.get(), 0);
        let ours: Vec<_> = gauges().into_iter().filter(|gauge| gauge.0.starts_with("test_")).collect();
        assert_eq!(ours, [("test_set", "A gauge of a test.", 5)]);
    }
}
