//! The power key, as an input device. Boards without one have none.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

pub fn open() -> Vec<File> {
    let Ok(entries) = fs::read_dir("/dev/input") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .filter_map(|entry| {
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(entry.path()).ok()
        })
        .collect()
}

/// Whether one of the events waiting is the power key going down.
pub fn power_pressed(device: &mut File) -> bool {
    const EVENT_BYTES: usize = 24;
    let mut events = [0; EVENT_BYTES * 16];
    let n = device.read(&mut events).unwrap_or(0);
    events[..n].chunks_exact(EVENT_BYTES).any(is_power_key_down)
}

/// `struct input_event` of a 64-bit kernel: two words of time, then type, code, value.
fn is_power_key_down(event: &[u8]) -> bool {
    const KEY: u16 = 1;
    const POWER: u16 = 116;
    let word = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    word(16) == KEY && word(18) == POWER && word(20) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_key_going_down_counts() {
        let event = |kind: u16, code: u16, value: u16| {
            let mut bytes = [0; 24];
            for (at, word) in [(16, kind), (18, code), (20, value)] {
                bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
            }
            is_power_key_down(&bytes)
        };
        assert!(event(1, 116, 1));
        assert!(!event(1, 116, 0), "coming up");
        assert!(!event(1, 30, 1), "another key");
        assert!(!event(0, 116, 1), "not a key");
    }
}
