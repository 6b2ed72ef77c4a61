//! When a container that ended, or an action that failed, is tried again: kubelet's rule. The first restart is immediate, the
//! next waits 10 s, each one after that twice as long, up to 5 minutes; after 10 quiet minutes counting starts anew.

use std::time::Duration;

use super::limits;

/// `now` is monotonic time. A back-off is in memory only: an agent restart forgives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restarts {
    /// The last exit that was counted, by container id.
    exit: String,
    due: Duration,
    next_delay: Option<Duration>,
    counted_at: Duration,
}

impl Restarts {
    /// Counts an exit once; later calls for the same container change nothing.
    pub fn note_exit(&mut self, now: Duration, container_id: &str) {
        if self.exit == container_id {
            return;
        }
        self.exit = container_id.to_string();
        let quiet = now.saturating_sub(self.counted_at) >= limits::BACKOFF_FORGET;
        let delay = self.next_delay.filter(|_| !quiet);
        self.due = now + delay.unwrap_or_default();
        self.next_delay = Some(next(delay));
        self.counted_at = self.due;
    }

    pub fn due(&self) -> Duration {
        self.due
    }

    /// True once a restart had to wait: kubectl then shows CrashLoopBackOff.
    pub fn is_waiting(&self, now: Duration) -> bool {
        now < self.due
    }

    pub fn delay(&self, now: Duration) -> Duration {
        self.due.saturating_sub(now)
    }
}

/// What an action failed with, and when it may be tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    pub due: Duration,
    delay: Duration,
}

impl Failure {
    pub fn after(
        previous: Option<&Failure>,
        now: Duration,
        reason: &'static str,
        message: String,
    ) -> Failure {
        let quiet = |failure: &&Failure| now.saturating_sub(failure.due) < limits::BACKOFF_FORGET;
        let delay = match previous.filter(quiet) {
            Some(failure) => (failure.delay * 2).clamp(limits::BACKOFF_FIRST, limits::BACKOFF_MAX),
            None => limits::BACKOFF_FIRST,
        };
        Failure { reason, message, due: now + delay, delay }
    }

    /// The runtime went away or the cloud has not sent a config map yet: that heals by itself, and soon.
    pub fn soon(now: Duration, reason: &'static str, message: String) -> Failure {
        Failure { reason, message, due: now + limits::RUNTIME_RETRY, delay: Duration::ZERO }
    }
}

fn next(delay: Option<Duration>) -> Duration {
    match delay {
        None => limits::BACKOFF_FIRST,
        Some(delay) => (delay * 2).clamp(limits::BACKOFF_FIRST, limits::BACKOFF_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn doubles_from_ten_seconds_to_five_minutes_and_forgets() {
        let mut restarts = Restarts::default();
        let mut now = s(1000);
        let mut waits = Vec::new();
        for n in 0..8 {
            restarts.note_exit(now, &format!("c{n}"));
            restarts.note_exit(now + s(1), &format!("c{n}"));
            waits.push(restarts.delay(now).as_secs());
            now = restarts.due() + s(1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        restarts.note_exit(now + s(598), "c8");
        assert!(restarts.is_waiting(now + s(600)), "ran for less than 10 minutes");
        let later = restarts.due() + s(601);
        restarts.note_exit(later, "c9");
        assert!(!restarts.is_waiting(later), "10 quiet minutes are forgiven");
    }

    #[test]
    fn failed_actions_wait_longer_each_time() {
        let first = Failure::after(None, s(0), "ErrImagePull", String::new());
        let second = Failure::after(Some(&first), first.due, "ErrImagePull", String::new());
        assert_eq!((first.due, second.due), (s(10), s(30)));
        let much_later = Failure::after(Some(&second), second.due + s(600), "ErrImagePull", String::new());
        assert_eq!(much_later.due, second.due + s(610));
    }
}
