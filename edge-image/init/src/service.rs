//! Services: programs that are kept running. The rules are a value; starting and killing is the caller's.

use std::time::{Duration, Instant};

use crate::limits::{RECOVERED, RESTART_FIRST, RESTART_MAX, RESTART_RESET};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not to be started (yet).
    Held,
    /// To be started at this time.
    Due(Instant),
    Running {
        pid: i32,
        since: Instant,
    },
    /// Its program is not in the image.
    Missing,
}

#[derive(Debug)]
pub struct Service {
    pub name: &'static str,
    pub program: &'static str,
    pub args: Vec<String>,
    pub state: State,
    wait: Duration,
    pub restarts: u32,
    /// How it ended last, while that is still of interest.
    pub problem: String,
}

impl Service {
    pub fn new(name: &'static str, program: &'static str, args: &[&str]) -> Service {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Service {
            name,
            program,
            args,
            state: State::Held,
            wait: RESTART_FIRST,
            restarts: 0,
            problem: String::new(),
        }
    }

    /// Lets it be started now.
    pub fn release(&mut self, now: Instant) {
        if self.state == State::Held {
            self.state = State::Due(now);
        }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Due(at) if at <= now)
    }

    pub fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    pub fn started(&mut self, pid: i32, now: Instant) {
        self.state = State::Running { pid, since: now };
    }

    /// Whether it keeps ending soon after it was started.
    pub fn is_crash_looping(&self, now: Instant) -> bool {
        let runs_again = matches!(self.state, State::Running { since, .. } if now.saturating_duration_since(since) >= RECOVERED);
        self.wait > RESTART_FIRST * 2 && !runs_again
    }

    /// It ended. Returns how long until it is started again.
    pub fn ended(&mut self, now: Instant) -> Duration {
        if let State::Running { since, .. } = self.state
            && now.saturating_duration_since(since) >= RESTART_RESET
        {
            self.wait = RESTART_FIRST;
        }
        let wait = self.wait;
        self.wait = (self.wait * 2).min(RESTART_MAX);
        self.restarts = self.restarts.saturating_add(1);
        self.state = State::Due(now + wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_slows_down_and_a_long_run_forgives() {
        let mut now = Instant::now();
        let mut service = Service::new("x", "/bin/x", &[]);
        assert!(!service.is_due(now), "held until released");
        service.release(now);
        assert!(service.is_due(now));
        let mut waits = Vec::new();
        for pid in 1..12 {
            service.started(pid, now);
            assert_eq!(service.pid(), Some(pid));
            let wait = service.ended(now);
            assert!(!service.is_due(now));
            now += wait;
            assert!(service.is_due(now));
            waits.push(wait);
        }
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(waits.last(), Some(&RESTART_MAX));
        service.started(99, now);
        assert_eq!(service.ended(now + RESTART_RESET), RESTART_FIRST);
    }

    /// Random lives: never two processes at once, a first restart within a second, and a bounded rate of starts.
    #[test]
    fn under_any_order_of_ends_the_invariants_hold() {
        for seed in 1..200_u64 {
            let mut state = seed;
            let mut next = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let start = Instant::now();
            let mut now = start;
            let mut service = Service::new("x", "/bin/x", &[]);
            service.release(now);
            let (mut starts, mut ends) = (0_u32, 0_u32);
            while now < start + Duration::from_secs(3600) {
                if service.is_due(now) {
                    assert_eq!(service.pid(), None, "seed {seed}: two processes");
                    starts += 1;
                    service.started(starts as i32, now);
                } else if let Some(pid) = service.pid() {
                    assert_eq!(pid, starts as i32);
                    let lived = Duration::from_millis(next() % 100_000 / (1 + next() % 1000));
                    now += lived;
                    let recovered = lived >= RESTART_RESET;
                    let wait = service.ended(now);
                    ends += 1;
                    assert!(wait <= RESTART_MAX, "seed {seed}");
                    assert!(
                        !recovered || wait < Duration::from_secs(1),
                        "seed {seed}: late after a good run"
                    );
                    service.release(now);
                    assert!(!service.is_due(now), "seed {seed}: released twice is not started at once");
                } else {
                    now += Duration::from_millis(1 + next() % 500);
                }
            }
            assert_eq!(service.restarts, ends);
            assert!(starts < 600, "seed {seed}: {starts} starts in an hour");
        }
    }

    #[test]
    fn a_crash_loop_is_told_until_it_runs_again() {
        let now = Instant::now();
        let mut service = Service::new("x", "/bin/x", &[]);
        service.started(1, now);
        service.ended(now);
        assert!(!service.is_crash_looping(now), "once is no loop");
        service.started(2, now);
        service.ended(now);
        service.started(3, now);
        assert!(service.is_crash_looping(now));
        assert!(!service.is_crash_looping(now + RECOVERED));
    }
}
