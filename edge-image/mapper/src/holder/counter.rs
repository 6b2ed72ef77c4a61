//! Counting edges: S0 meters, flow sensors, fans. A value that takes the kernel's edges; the line-holder has the line.

use crate::{gpio::EdgeEvent, plan::gpio::Edge};

#[derive(Clone, Debug)]
pub struct Counter {
    edge: Edge,
    /// Zero when the kernel debounces.
    debounce_ns: u64,
    pub count: u64,
    /// Edges that the kernel dropped because its buffer was full: the count is at least this much too low.
    pub lost: u64,
    sequence: Option<u32>,
    last_ns: Option<u64>,
    /// Of the last edge that moved the line, counted or not.
    moved_ns: Option<u64>,
    window: Option<(u64, u64)>,
    period_ns: Option<u64>,
}

/// Frequency is taken over at least this long, so that fast signals are averaged and slow ones are told edge by edge.
const WINDOW_NS: u64 = 1_000_000_000;

impl Counter {
    pub fn new(edge: Edge, debounce_ns: u64, count: u64) -> Counter {
        let (sequence, last_ns, moved_ns, window, period_ns) = (None, None, None, None, None);
        Counter { edge, debounce_ns, count, lost: 0, sequence, last_ns, moved_ns, window, period_ns }
    }

    pub fn take(&mut self, event: &EdgeEvent) {
        if let Some(before) = self.sequence.replace(event.sequence) {
            self.lost += u64::from(event.sequence.wrapping_sub(before).wrapping_sub(1));
        }
        let now_ns = event.timestamp_ns;
        // A contact that bounces: only an edge after a rest counts.
        let rested = self
            .moved_ns
            .replace(now_ns)
            .is_none_or(|moved| now_ns.saturating_sub(moved) >= self.debounce_ns);
        let asked = match self.edge {
            Edge::Rising => event.active,
            Edge::Falling => !event.active,
            Edge::Both => true,
            Edge::None => false,
        };
        if !asked || !rested {
            return;
        }
        self.count += 1;
        self.last_ns = Some(now_ns);
        match self.window {
            None => self.window = Some((now_ns, 0)),
            Some((start_ns, edges)) => {
                let (took_ns, edges) = (now_ns.saturating_sub(start_ns), edges + 1);
                let full = took_ns >= WINDOW_NS;
                self.window = Some(if full { (now_ns, 0) } else { (start_ns, edges) });
                if full || self.period_ns.is_none() {
                    self.period_ns = Some((took_ns / edges).max(1));
                }
            }
        }
    }

    /// Thousandths of a hertz. Falls by itself when no edge comes: it is never more than what the silence allows.
    pub fn millihertz(&self, now_ns: u64) -> u64 {
        let (Some(period_ns), Some(last_ns)) = (self.period_ns, self.last_ns) else { return 0 };
        let silence_ns = now_ns.saturating_sub(last_ns);
        // After an hour without an edge nothing turns any more, whatever the arithmetic says.
        if silence_ns > 3600 * WINDOW_NS {
            return 0;
        }
        1_000_000_000_000 / period_ns.max(silence_ns)
    }
}

#[cfg(test)]
mod tests {
    use mqtt::broker::testing::Random;

    use super::*;

    const MS: u64 = 1_000_000;

    fn edge(sequence: u32, at_ms: u64, active: bool) -> EdgeEvent {
        EdgeEvent { active, timestamp_ns: at_ms * MS, sequence }
    }

    #[test]
    fn count_and_frequency_of_a_meter() {
        let mut meter = Counter::new(Edge::Rising, 0, 41);
        for pulse in 0..100u32 {
            meter.take(&edge(2 * pulse + 1, u64::from(pulse) * 100, true));
            meter.take(&edge(2 * pulse + 2, u64::from(pulse) * 100 + 30, false));
        }
        assert_eq!((meter.count, meter.lost), (141, 0));
        assert_eq!(meter.millihertz(9_950 * MS), 10_000);
        assert_eq!(meter.millihertz(11_900 * MS), 500, "two seconds of silence: at most half a hertz");
        assert_eq!(meter.millihertz(4_000_000 * MS), 0);
    }

    #[test]
    fn a_slow_meter_is_known_after_its_second_pulse() {
        let mut meter = Counter::new(Edge::Rising, 0, 0);
        meter.take(&edge(1, 0, true));
        assert_eq!(meter.millihertz(10 * MS), 0);
        meter.take(&edge(3, 72_000, true));
        assert_eq!((meter.count, meter.millihertz(72_001 * MS)), (2, 13));
        assert_eq!(meter.lost, 1, "a number was missing");
    }

    /// Bursts of bounces around each true edge, under seeds: each press counts once, and every dropped number is found.
    #[test]
    fn bounces_and_gaps_under_seeds() {
        for seed in 0..200 {
            let mut random = Random(seed);
            let mut meter = Counter::new(Edge::Rising, 5 * MS, 0);
            let (mut at_us, mut sequence, mut lost) = (1_000u64, 0u32, 0u64);
            // The first event tells where the numbers stand.
            let mut first = true;
            for _ in 0..50 {
                at_us += 20_000 + random.below(50_000) as u64;
                for active in [true, false] {
                    at_us += 10_000;
                    let bounces = random.below(4) * 2;
                    for bounce in 0..=bounces {
                        sequence += 1;
                        // What the kernel drops is in the middle of a burst: the first edge came.
                        if bounce > 0 && random.below(5) == 0 {
                            lost += 1;
                            continue;
                        }
                        let level = active == (bounce % 2 == 0);
                        meter.take(&EdgeEvent { active: level, timestamp_ns: at_us * 1000, sequence });
                        first = false;
                        at_us += random.below(400) as u64;
                    }
                }
            }
            assert!(!first);
            // Numbers dropped at the very end of the run are seen with the next edge.
            sequence += 1;
            meter.take(&EdgeEvent { active: false, timestamp_ns: (at_us + 50_000) * 1000, sequence });
            assert_eq!((meter.count, meter.lost), (50, lost), "seed {seed}");
        }
    }
}
