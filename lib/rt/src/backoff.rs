//! How long to wait before the next try.

use std::time::Duration;

/// Exponential back-off with full jitter: the n-th wait is a random time up to `min(max, base * 2^n)`, and at least `floor`, so that
/// many nodes do not come back at the same moment and one node never spins. A plain value: the caller brings randomness and sleeps.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub const fn new(base: Duration, max: Duration) -> Backoff {
        Backoff { base, max, failures: 0 }
    }

    /// The wait after one more failure, from a random number.
    pub fn delay(&mut self, random: u64) -> Duration {
        let ceiling =
            self.base.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.max);
        self.failures = self.failures.saturating_add(1).min(31);
        let floor = self.base / 2;
        let span = ceiling.saturating_sub(floor);
        floor + span.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// The wait after one more failure.
    pub fn random_delay(&mut self) -> Duration {
        self.delay(crate::random_u64())
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let highest: Vec<u64> =
            (0..9).map(|_| backoff.delay(u64::MAX).as_secs_f64().round() as u64).collect();
        assert_eq!(highest, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        for _ in 0..100 {
            assert_eq!(backoff.delay(0), Duration::from_millis(500), "never below half the base");
        }
        backoff.reset();
        assert!(backoff.random_delay() <= Duration::from_secs(1));
    }
}
