//! The hardware watchdog: a board whose PID 1 hangs is reset, and the boot after that is the rollback.

use std::fs::{File, OpenOptions};
use std::io::Write;

use crate::limits::WATCHDOG_SECONDS;
use crate::sys;

#[derive(Debug)]
pub struct Watchdog {
    file: File,
    pub seconds: i32,
}

impl Watchdog {
    /// Opening it starts it. A board without one runs without.
    pub fn open() -> Option<Watchdog> {
        let file = OpenOptions::new().write(true).open("/dev/watchdog").ok()?;
        let seconds = sys::set_watchdog_timeout(&file, WATCHDOG_SECONDS).unwrap_or(0);
        Some(Watchdog { file, seconds })
    }

    pub fn feed(&mut self) {
        let _ = self.file.write_all(b"\0");
    }

    /// Stops it: `V` is the agreed word that this end is meant. Power off then has all the time it needs.
    pub fn stop(mut self) {
        let _ = self.file.write_all(b"V");
    }
}
