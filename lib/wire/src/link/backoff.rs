//! Waits between attempts: full jitter under a doubling limit.

#[derive(Clone, Debug)]
pub struct Backoff {
    first_ms: u64,
    max_ms: u64,
    limit_ms: u64,
    random: u64,
}

impl Backoff {
    pub fn new(first_ms: u64, max_ms: u64, seed: u64) -> Backoff {
        // A xorshift generator stays at zero for ever.
        Backoff { first_ms, max_ms, limit_ms: first_ms, random: seed | 1 }
    }

    pub fn reset(&mut self) {
        self.limit_ms = self.first_ms;
    }

    /// Evenly from zero to the limit, which doubles.
    pub fn next_ms(&mut self) -> u64 {
        let wait = self.draw() % (self.limit_ms + 1);
        self.limit_ms = (self.limit_ms * 2).min(self.max_ms);
        wait
    }

    /// So long and up to a quarter more, for those who were all told the same.
    pub fn above(&mut self, wait_ms: u64) -> u64 {
        wait_ms + self.draw() % (wait_ms / 4 + 1)
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
