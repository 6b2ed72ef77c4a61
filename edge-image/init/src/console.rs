//! The console: one line per event, each with the seconds since power on, on every console that the kernel's command line names. A
//! board has a screen and a serial port, and which of them somebody looks at is not known.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use nix::fcntl::OFlag;

/// Consoles besides standard output, which is /dev/console and stands for one of them. Nothing before /sys and /dev are there.
static OTHERS: Mutex<Option<Vec<File>>> = Mutex::new(None);

/// Prints a line. A console that cannot be written must not stop PID 1.
pub fn say(text: &str) {
    let uptime = crate::clock::uptime().as_secs_f64();
    let line = format!("[{uptime:9.3}] kinglet: {text}\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
    let _ = std::io::stdout().flush();
    // Only PID 1 prints lines; a child's come to it through a pipe.
    if std::process::id() != 1 {
        return;
    }
    let Ok(mut others) = OTHERS.lock() else { return };
    if others.is_none() {
        *others = open_others();
    }
    for console in others.iter_mut().flatten() {
        let _ = console.write_all(line.as_bytes());
    }
}

fn open_others() -> Option<Vec<File>> {
    let active = fs::read_to_string("/sys/class/tty/console/active").ok()?;
    let open = |name| {
        let flags = OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        OpenOptions::new().write(true).custom_flags(flags.bits()).open(format!("/dev/{name}")).ok()
    };
    Some(others(&active).into_iter().filter_map(open).collect())
}

/// The kernel lists /dev/console's own last.
fn others(active: &str) -> Vec<&str> {
    let mut names: Vec<&str> = active.split_whitespace().collect();
    names.pop();
    names
}

/// `say!("{} ready", name)`
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::say(&format!($($arg)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_active_console_is_standard_output_already() {
        assert_eq!(others("ttyS1 tty1\n"), ["ttyS1"]);
        assert!(others("ttyAMA0\n").is_empty());
        assert!(others("").is_empty());
    }
}
