//! What services print: kept in memory, bounded; warnings and errors also go to the console.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::limits::LOG_BYTES_MAX;
use crate::say;

const DIR: &str = "/run/kinglet/log";
/// Lines of one service that a minute of console may show.
const CONSOLE_LINES_PER_MINUTE: u32 = 30;
const LINE_MAX: usize = 2000;
/// Words that make a line worth the console.
const ALARMS: [&str; 6] = ["ERROR", "WARN", "panicked", "level=error", "level=fatal", "error:"];
/// Our own children: every line of theirs is for the console.
const HELPERS: [&str; 2] = ["sntp", "grow"];
/// Chunks read in one go: a talkative service must not keep the loop from feeding the watchdog.
const CHUNKS_MAX: usize = 16;

#[derive(Debug)]
pub struct Log {
    pub name: &'static str,
    /// Who writes into the pipe; the log is given up when this process is reaped.
    pub pid: i32,
    pipe: PipeReader,
    /// The other end is closed. Such a pipe is ready for ever, so it is not waited for any more.
    pub is_closed: bool,
    file: Option<File>,
    written: u64,
    line: Vec<u8>,
    last: String,
    last_alarm: String,
    shown: u32,
    minute: u64,
}

impl Log {
    pub fn new(name: &'static str, pid: i32, pipe: PipeReader) -> Log {
        let path = format!("{DIR}/{name}.log");
        let file = OpenOptions::new().create(true).append(true).open(&path).ok();
        let written = fs::metadata(&path).map_or(0, |meta| meta.len());
        Log {
            name,
            pid,
            pipe,
            is_closed: false,
            file,
            written,
            line: Vec::new(),
            last: String::new(),
            last_alarm: String::new(),
            shown: 0,
            minute: 0,
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// What it said last about an error, else what it said last.
    pub fn last_words(&self) -> &str {
        if self.last_alarm.is_empty() { &self.last } else { &self.last_alarm }
    }

    /// Takes what is there; never waits.
    pub fn take(&mut self) {
        let mut chunk = [0; 4096];
        for _ in 0..CHUNKS_MAX {
            let n = match self.pipe.read(&mut chunk) {
                Ok(n) if n > 0 => n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    self.is_closed = true;
                    self.end_line();
                    return;
                }
            };
            self.keep(&chunk[..n]);
            for byte in &chunk[..n] {
                if *byte == b'\n' {
                    self.end_line();
                } else if self.line.len() < LINE_MAX {
                    self.line.push(*byte);
                }
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.written + bytes.len() as u64 > LOG_BYTES_MAX / 2 {
            let path = format!("{DIR}/{}.log", self.name);
            let _ = fs::rename(&path, format!("{path}.1"));
            self.file = OpenOptions::new().create(true).append(true).open(&path).ok();
            self.written = 0;
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.written += bytes.len() as u64;
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        if line.is_empty() {
            return;
        }
        // Our programs end with `edgecore: what is wrong`.
        let is_alarm = ALARMS.iter().any(|word| line.contains(word))
            || line.starts_with("edgecore: ")
            || line.starts_with("mapper: ");
        if is_alarm || HELPERS.contains(&self.name) {
            let minute = crate::clock::uptime().as_secs() / 60;
            if minute != self.minute {
                (self.minute, self.shown) = (minute, 0);
            }
            self.shown += 1;
            if self.shown <= CONSOLE_LINES_PER_MINUTE {
                say!("{}: {line}", self.name);
            }
        }
        if is_alarm && !line.starts_with("WARN") {
            self.last_alarm.clone_from(&line);
        }
        self.last = line;
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn the_last_words_are_kept_until_the_process_is_reaped_and_nothing_waits() {
        let (reader, mut writer) = pipe().expect("pipe");
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("flag");
        let mut log = Log::new("test", 1, reader);
        log.take();
        assert!(!log.is_closed, "nothing there yet, and nothing waited for");
        writer.write_all(b"starting\nERROR: no route\nstop").expect("write");
        log.take();
        assert_eq!(log.last_words(), "ERROR: no route");
        drop(writer);
        log.take();
        assert!(log.is_closed);
        assert_eq!(log.last_words(), "ERROR: no route", "an error says more than what came after it");
        assert_eq!(log.last, "stop", "also a line without an end counts");
    }
}
