//! Time as something that is handed in, so that tests need not wait for it.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use crate::BoxFuture;

pub trait Clock: Send + Sync {
    /// Wall clock, Unix milliseconds. It can jump.
    fn now_ms(&self) -> u64;
    /// Time since some fixed point; never goes back. For delays and timeouts.
    fn monotonic(&self) -> Duration;
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

#[derive(Clone, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        // A clock before 1970 is a clock that was never set.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Time that passes only when told. Clones mean the same clock.
#[derive(Clone, Debug)]
pub struct SimClock {
    /// Wall clock in milliseconds, monotonic time.
    now: Arc<watch::Sender<(u64, Duration)>>,
}

impl SimClock {
    pub fn new(now_ms: u64) -> SimClock {
        SimClock { now: Arc::new(watch::Sender::new((now_ms, Duration::ZERO))) }
    }

    /// Both clocks go on; sleepers whose time has come wake up.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|(now_ms, monotonic)| {
            *now_ms += by.as_millis() as u64;
            *monotonic += by;
        });
    }

    /// The wall clock is set (NTP, a user); no time passes.
    pub fn set_ms(&self, to_ms: u64) {
        self.now.send_modify(|(now_ms, _)| *now_ms = to_ms);
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.now.borrow().0
    }

    fn monotonic(&self) -> Duration {
        self.now.borrow().1
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut now = self.now.subscribe();
        let until = now.borrow().1 + duration;
        Box::pin(async move {
            // A clock that is dropped stands still for ever.
            if now.wait_for(|(_, monotonic)| *monotonic >= until).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_sleepers_wake_when_their_time_has_come_and_not_by_a_jump_of_the_wall_clock() {
        crate::runtime().unwrap().block_on(async {
            let clock = SimClock::new(1_000);
            let sleep = tokio::spawn(clock.sleep(Duration::from_secs(10)));
            clock.set_ms(1_000_000_000);
            clock.advance(Duration::from_secs(9));
            tokio::task::yield_now().await;
            assert!(!sleep.is_finished());
            clock.advance(Duration::from_secs(1));
            sleep.await.unwrap();
            assert_eq!((clock.now_ms(), clock.monotonic()), (1_000_010_000, Duration::from_secs(10)));
        });
    }

    #[test]
    fn the_system_clock_runs() {
        let clock = SystemClock::new();
        assert!(clock.now_ms() > 1_700_000_000_000);
        assert!(clock.monotonic() <= clock.monotonic());
    }
}
