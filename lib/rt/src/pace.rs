//! A pace that is kept on average: a virtual schedule (generic cell rate). A turn comes every `every_ms`; what was not used is saved
//! up to a burst, so that what is rare goes at once. Who may take a larger burst runs ahead of the schedule; the others wait for it
//! afterwards.

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    every_ms: i64,
    /// When all turns so far would have been over, had they kept to the schedule.
    planned_ms: i64,
}

impl Pace {
    pub fn new(every_ms: u32) -> Pace {
        Pace { every_ms: i64::from(every_ms.max(1)), planned_ms: 0 }
    }

    /// Takes a turn, if there is one now for somebody who may take `burst` at once.
    pub fn take(&mut self, now_ms: i64, burst: u32) -> bool {
        if self.next_ms(burst) > now_ms {
            return false;
        }
        self.planned_ms = self.planned_ms.max(now_ms) + self.every_ms;
        true
    }

    /// From when on there is a turn.
    pub fn next_ms(&self, burst: u32) -> i64 {
        // The turn itself is the last one of the burst.
        self.planned_ms - (i64::from(burst) - 1) * self.every_ms
    }

    /// The last turn was not needed.
    pub fn give_back(&mut self) {
        self.planned_ms -= self.every_ms;
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
        assert_eq!((0..100).filter(|_| pace.take(now_ms, 32)).count(), 32);
        assert_eq!(pace.next_ms(32), now_ms + 2_000);
        assert!(!pace.take(now_ms + 1_999, 32) && pace.take(now_ms + 2_000, 32));
        // A larger burst goes ahead, and the others pay for it.
        assert!(pace.take(now_ms + 2_000, 64));
        assert_eq!(pace.next_ms(32), now_ms + 6_000);
        pace.give_back();
        assert_eq!(pace.next_ms(32), now_ms + 4_000);
        let taken = (0..3_600_000).step_by(100).filter(|ms| pace.take(now_ms + 4_000 + ms, 32)).count();
        assert_eq!(taken, 1_800);
        assert!(!pace.take(0, 32), "the clock went back");
        pace.shift(now_ms + 4_000 + 3_600_000);
        assert!(pace.take(2_000, 32), "and with it the schedule");
    }
}
