//! The console: one line per event, each with the seconds since power on.

use std::io::Write;

/// Prints a line. A console that cannot be written must not stop PID 1.
pub fn say(text: &str) {
    let uptime = crate::clock::uptime().as_secs_f64();
    let line = format!("[{uptime:9.3}] kinglet: {text}\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
    let _ = std::io::stdout().flush();
}

/// `say!("{} ready", name)`
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::say(&format!($($arg)*)) };
}
