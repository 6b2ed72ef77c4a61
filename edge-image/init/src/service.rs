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
}
