//! How often the node may report devices to the cloud: each report is a write at the Kubernetes API there, and that API, not the
//! link, is what many values of many devices wear out (thirty devices at three values a second drive a stock one to its limits).
//!
//! A virtual schedule (generic cell rate): a report is due every `every_ms`; what was not used is saved up to a burst, so that a
//! rare change goes at once. What a person waits for (a state, a wish) may run ahead of the schedule, within bounds; the values
//! wait for it afterwards.

use crate::limits::{REPORT_BURST, REPORT_BURST_URGENT};

const _: () = assert!(REPORT_BURST <= REPORT_BURST_URGENT);

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    every_ms: i64,
    /// When all reports so far would have been sent, had they kept to the schedule.
    planned_ms: i64,
}

impl Pace {
    pub fn new(every_ms: i64) -> Pace {
        Pace { every_ms: every_ms.max(1), planned_ms: 0 }
    }

    /// Takes a report's turn, if it has one now.
    pub fn take(&mut self, now_ms: i64, urgent: bool) -> bool {
        if self.next_ms(urgent) > now_ms {
            return false;
        }
        self.planned_ms = self.planned_ms.max(now_ms) + self.every_ms;
        true
    }

    /// From when on a report has its turn.
    pub fn next_ms(&self, urgent: bool) -> i64 {
        let ahead = if urgent { REPORT_BURST_URGENT } else { REPORT_BURST };
        // The report itself is the last one of the burst.
        self.planned_ms - (ahead - 1) * self.every_ms
    }

    /// The clock went back.
    pub fn shift(&mut self, back_ms: i64) {
        self.planned_ms -= back_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_then_the_schedule_counts() {
        let mut pace = Pace::new(2_000);
        let now_ms = 1_000_000;
        let burst = (0..100).filter(|_| pace.take(now_ms, false)).count() as i64;
        assert_eq!(burst, REPORT_BURST);
        assert_eq!(pace.next_ms(false), now_ms + 2_000);
        assert!(!pace.take(now_ms + 1_999, false) && pace.take(now_ms + 2_000, false));
        // What a person waits for goes ahead, and the values pay for it.
        assert!(pace.take(now_ms + 2_000, true));
        assert_eq!(pace.next_ms(false), now_ms + 6_000);
        let taken = (0..3_600_000).step_by(100).filter(|ms| pace.take(now_ms + 6_000 + ms, false)).count();
        assert_eq!(taken, 1_800);
    }

    #[test]
    fn even_urgent_reports_have_a_bound() {
        let mut pace = Pace::new(2_000);
        let taken = (0..1_000).filter(|_| pace.take(5_000, true)).count() as i64;
        assert_eq!(taken, REPORT_BURST_URGENT);
    }
}
