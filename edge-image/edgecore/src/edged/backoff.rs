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
    /// What this exit has to wait, as a whole.
    delay: Duration,
    next_delay: Option<Duration>,
    counted_at: Duration,
    exited_at: Option<Duration>,
}

impl Restarts {
    /// Counts an exit once; later calls for the same container change nothing and return false. `killed`: by us, for a probe. A
    /// kubelet starts such a container anew without asking how long ago *it* ended; its waiting time runs from the exit before.
    pub fn note_exit(&mut self, now: Duration, container_id: &str, killed: bool) -> bool {
        if self.exit == container_id {
            return false;
        }
        self.exit = container_id.to_string();
        let from = if killed { self.exited_at } else { Some(now) };
        self.exited_at = Some(now);
        (self.due, self.delay) = (now, Duration::ZERO);
        let Some(from) = from else { return true };
        let quiet = now.saturating_sub(self.counted_at) >= limits::BACKOFF_FORGET;
        let delay = self.next_delay.filter(|_| !quiet);
        self.due = (from + delay.unwrap_or_default()).max(now);
        if self.due > now {
            self.delay = delay.unwrap_or_default();
        }
        self.next_delay = Some(next(delay));
        self.counted_at = self.due;
        true
    }

    /// What the exit of this container has to wait, as a whole: the text that shows it must not change while nothing does.
    /// Stays until the next container is there, as kubelet's waiting reason does.
    pub fn delay_of(&self, container_id: &str) -> Option<Duration> {
        (self.exit == container_id && !self.delay.is_zero()).then_some(self.delay)
    }

    pub fn due(&self) -> Duration {
        self.due
    }

    /// True once a restart had to wait: kubectl then shows CrashLoopBackOff.
    pub fn is_waiting(&self, now: Duration) -> bool {
        now < self.due
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

    /// Tried again at a time that is known.
    pub fn until(due: Duration, reason: &'static str, message: String) -> Failure {
        Failure { reason, message, due, delay: Duration::ZERO }
    }

    /// The runtime went away or the cloud has not sent a config map yet: that heals by itself, and soon.
    pub fn soon(now: Duration, reason: &'static str, message: String) -> Failure {
        Failure { reason, message, due: now + limits::RUNTIME_RETRY, delay: Duration::ZERO }
    }
}

/// `10s`, `1m20s`, `5m0s`: as Go prints a duration of whole seconds, which is how a kubelet's texts have it.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
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
            let id = format!("c{n}");
            assert!(restarts.note_exit(now, &id, false));
            assert!(!restarts.note_exit(now + s(1), &id, false), "once");
            waits.push((restarts.due() - now).as_secs());
            assert_eq!(restarts.delay_of(&id), (n > 0).then(|| restarts.due() - now));
            now = restarts.due() + s(1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        restarts.note_exit(now + s(598), "c8", false);
        assert!(restarts.is_waiting(now + s(600)), "ran for less than 10 minutes");
        let later = restarts.due() + s(601);
        restarts.note_exit(later, "c9", false);
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
