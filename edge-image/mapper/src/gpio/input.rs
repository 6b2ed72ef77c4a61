//! What edges of an input line mean: debounced, bounded, and none missed in silence. A value; the driver has the line.

use super::EdgeEvent;
use crate::{
    limits::{EDGE_BURST_MAX, EDGE_TROUBLE_MS, EDGES_PER_SECOND_MAX},
    plan::gpio::Edge,
};

const MS: u64 = 1_000_000;
const TOKEN_NS: u64 = 1_000 * MS / EDGES_PER_SECOND_MAX;

/// A level to report, and when the line took it (monotonic clock).
pub type Told = (bool, u64);

pub struct Input {
    edge: Edge,
    /// Zero when the kernel debounces, or nobody.
    debounce_ns: u64,
    level: bool,
    /// A level that has to stand for the debounce time first.
    pending: Option<Told>,
    sequence: Option<u32>,
    /// A token bucket: what is over it is one report of the last level.
    tokens: u64,
    refilled_ns: u64,
    held: Option<Told>,
    lost: u64,
    coalesced: u64,
    trouble: Option<Trouble>,
}

/// Told until [`EDGE_TROUBLE_MS`] after it was seen last; the figures are renewed as seldom, so that they are no flood of their own.
struct Trouble {
    text: String,
    until_ns: u64,
    renew_ns: u64,
}

impl Input {
    pub fn new(now_ns: u64, edge: Edge, debounce_ns: u64, level: bool) -> Input {
        Input {
            edge,
            debounce_ns,
            level,
            pending: None,
            sequence: None,
            tokens: EDGE_BURST_MAX,
            refilled_ns: now_ns,
            held: None,
            lost: 0,
            coalesced: 0,
            trouble: None,
        }
    }

    pub fn level(&self) -> bool {
        self.level
    }

    /// Takes an edge. True when edges before it are missing: then the level is to be read from the line.
    pub fn edge(&mut self, now_ns: u64, event: &EdgeEvent, told: &mut Vec<Told>) -> bool {
        let gap = self
            .sequence
            .replace(event.sequence)
            .map_or(0, |before| u64::from(event.sequence.wrapping_sub(before).wrapping_sub(1)));
        if gap > 0 {
            self.lost += gap;
            self.complain(now_ns);
        }
        self.see(now_ns, event.active, event.timestamp_ns, told);
        gap > 0
    }

    /// The level that the line has: of a line without edges, or after missing ones.
    pub fn read(&mut self, now_ns: u64, level: bool, told: &mut Vec<Told>) {
        match self.pending {
            // It went back, nobody knows when: it has not settled.
            Some((pending, _)) if pending != level => self.pending = None,
            None if level != self.level => self.see(now_ns, level, now_ns, told),
            _ => {}
        }
    }

    fn see(&mut self, now_ns: u64, active: bool, at_ns: u64, told: &mut Vec<Told>) {
        if self.debounce_ns == 0 {
            self.accept(now_ns, (active, at_ns), told);
            return;
        }
        // What came before it stood long enough, although nobody looked.
        if let Some((level, since_ns)) = self.pending
            && at_ns.saturating_sub(since_ns) >= self.debounce_ns
        {
            self.pending = None;
            self.accept(now_ns, (level, since_ns), told);
        }
        self.pending = (active != self.level).then_some((active, at_ns));
    }

    /// Lets the clock in: a level that has settled, and one that was held back.
    pub fn tick(&mut self, now_ns: u64, told: &mut Vec<Told>) {
        if let Some((level, since_ns)) = self.pending
            && now_ns.saturating_sub(since_ns) >= self.debounce_ns
        {
            self.pending = None;
            self.accept(now_ns, (level, since_ns), told);
        }
        self.refill(now_ns);
        if self.tokens > 0
            && let Some(last) = self.held.take()
        {
            self.tokens -= 1;
            told.push(last);
        }
        if self.trouble.as_ref().is_some_and(|trouble| now_ns >= trouble.until_ns) {
            self.trouble = None;
        }
    }

    pub fn deadline_ns(&self) -> Option<u64> {
        let settled = self.pending.map(|(_, since_ns)| since_ns + self.debounce_ns);
        let held = self.held.map(|_| self.refilled_ns + TOKEN_NS);
        let quiet = self.trouble.as_ref().map(|trouble| trouble.until_ns);
        [settled, held, quiet].into_iter().flatten().min()
    }

    /// More edges come than are reported: the line is looked at by the clock until then.
    pub fn is_storming(&self) -> bool {
        self.held.is_some()
    }

    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|trouble| trouble.text.as_str())
    }

    fn accept(&mut self, now_ns: u64, (active, at_ns): Told, told: &mut Vec<Told>) {
        self.level = active;
        let asked = match self.edge {
            Edge::Both | Edge::None => true,
            Edge::Rising => active,
            Edge::Falling => !active,
        };
        if !asked {
            return;
        }
        self.refill(now_ns);
        if self.tokens == 0 {
            self.coalesced += u64::from(self.held.replace((active, at_ns)).is_some());
            self.complain(now_ns);
            return;
        }
        if self.held.take().is_some() {
            self.coalesced += 1;
        }
        self.tokens -= 1;
        told.push((active, at_ns));
    }

    fn refill(&mut self, now_ns: u64) {
        let new = now_ns.saturating_sub(self.refilled_ns) / TOKEN_NS;
        self.tokens = (self.tokens + new).min(EDGE_BURST_MAX);
        self.refilled_ns += new * TOKEN_NS;
    }

    fn complain(&mut self, now_ns: u64) {
        let until_ns = now_ns + EDGE_TROUBLE_MS * MS;
        match &mut self.trouble {
            Some(trouble) if now_ns < trouble.renew_ns => trouble.until_ns = until_ns,
            _ => {
                let text = format!(
                    "more than {EDGES_PER_SECOND_MAX} edges a second: {} were put together, {} more were lost in the kernel; \
                     set debounceMs, or function: count",
                    self.coalesced, self.lost
                );
                self.trouble = Some(Trouble { text, until_ns, renew_ns: until_ns });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mqtt::broker::testing::Random;

    use super::*;

    #[test]
    fn a_bouncing_contact_is_one_press() {
        let (mut input, mut told) = (Input::new(0, Edge::Both, 5 * MS, false), Vec::new());
        let mut edge = |at_ms: u64, active, sequence, told: &mut Vec<Told>| {
            input.tick(at_ms * MS, told);
            input.edge(at_ms * MS, &EdgeEvent { active, timestamp_ns: at_ms * MS, sequence }, told)
        };
        for (sequence, at_ms) in [100, 101, 102, 103, 104].into_iter().enumerate() {
            assert!(!edge(at_ms, sequence % 2 == 0, sequence as u32 + 1, &mut told));
        }
        assert!(told.is_empty() && !edge(200, false, 6, &mut told));
        assert_eq!(told, [(true, 104 * MS)]);
        input.tick(205 * MS, &mut told);
        assert_eq!(
            told,
            [(true, 104 * MS), (false, 200 * MS)],
            "stamped when it began, not when it was sure"
        );
        assert_eq!(input.deadline_ns(), None);
    }

    /// Any storm, under seeds: reports are bounded, the last level is always told, and each missing number is counted.
    #[test]
    fn storms_under_seeds() {
        for seed in 0..200 {
            let mut random = Random(seed);
            let debounce_ns = [0, 0, 3 * MS][random.below(3)];
            let mut input = Input::new(0, Edge::Both, debounce_ns, false);
            let (mut now_ns, mut sequence, mut lost, mut level) = (0u64, 0u32, 0u64, false);
            let (mut told, mut first) = (Vec::new(), true);
            for _ in 0..2000 {
                now_ns += random.below(2_000_000) as u64;
                level = !level;
                sequence += 1;
                if random.below(9) == 0 {
                    // The kernel dropped it. The next edge of the same level has a gap before it.
                    lost += u64::from(!first);
                    continue;
                }
                first = false;
                if input.edge(now_ns, &EdgeEvent { active: level, timestamp_ns: now_ns, sequence }, &mut told)
                {
                    input.read(now_ns, level, &mut told);
                }
            }
            sequence += 1;
            level = !level;
            input.edge(now_ns, &EdgeEvent { active: level, timestamp_ns: now_ns, sequence }, &mut told);
            while let Some(due_ns) = input.deadline_ns() {
                assert!(due_ns <= now_ns + EDGE_TROUBLE_MS * MS);
                now_ns = now_ns.max(due_ns);
                input.tick(now_ns, &mut told);
            }
            assert_eq!((input.level(), input.lost), (level, lost), "seed {seed}");
            if told.is_empty() {
                // Bounced for two seconds and ended where it began.
                assert!(debounce_ns > 0 && !level, "seed {seed}");
            } else {
                assert_eq!(told.last().map(|(level, _)| *level), Some(level), "seed {seed}");
            }
            let bound = EDGE_BURST_MAX + 2 + now_ns / TOKEN_NS;
            assert!(told.len() as u64 <= bound, "seed {seed}: {} reports", told.len());
            assert!(told.is_sorted_by_key(|(_, at_ns)| *at_ns), "seed {seed}: in order");
        }
    }

    #[test]
    fn a_storm_is_told_and_forgotten() {
        let (mut input, mut told) = (Input::new(0, Edge::Rising, 0, false), Vec::new());
        for sequence in 0..1000 {
            let event = EdgeEvent { active: sequence % 2 == 0, timestamp_ns: 7, sequence };
            input.edge(7, &event, &mut told);
        }
        assert!(input.is_storming() && told.len() as u64 == EDGE_BURST_MAX);
        assert!(input.trouble().unwrap().contains("edges a second"));
        input.tick(EDGE_TROUBLE_MS * MS + 7, &mut told);
        assert!(input.trouble().is_none() && !input.is_storming());
        assert_eq!(told.last(), Some(&(true, 7)), "the last rising edge came after all");
    }
}
