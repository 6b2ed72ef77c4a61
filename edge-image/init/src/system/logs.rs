//! What services print: kept in memory, bounded; warnings and errors also go to the console.

use std::fs::{self, File, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::limits::LOG_BYTES_MAX;
use crate::say;

const DIR: &str = "/run/kinglet/log";
/// Lines of one service that a minute of console may show.
const CONSOLE_LINES_PER_MINUTE: u32 = 30;
const LINE_MAX: usize = 2000;
/// Words that make a line worth the console.
const ALARMS: [&str; 6] = ["ERROR", "WARN", "panicked", "level=error", "level=fatal", "error:"];

#[derive(Debug)]
pub struct Log {
    pub name: &'static str,
    pipe: PipeReader,
    file: Option<File>,
    written: u64,
    line: Vec<u8>,
    pub last: String,
    shown: u32,
    minute: u64,
}

impl Log {
    pub fn new(name: &'static str, pipe: PipeReader) -> Log {
        let path = format!("{DIR}/{name}.log");
        let file = OpenOptions::new().create(true).append(true).open(&path).ok();
        let written = fs::metadata(&path).map_or(0, |meta| meta.len());
        Log { name, pipe, file, written, line: Vec::new(), last: String::new(), shown: 0, minute: 0 }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes what is there; call it when the pipe is readable. False when the other end is closed.
    pub fn take(&mut self) -> bool {
        let mut chunk = [0; 4096];
        let n = match self.pipe.read(&mut chunk) {
            Ok(0) | Err(_) => return false,
            Ok(n) => n,
        };
        self.keep(&chunk[..n]);
        for byte in &chunk[..n] {
            if *byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LINE_MAX {
                self.line.push(*byte);
            }
        }
        true
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
        if self.name == "sntp" || ALARMS.iter().any(|word| line.contains(word)) {
            let minute = crate::clock::uptime().as_secs() / 60;
            if minute != self.minute {
                (self.minute, self.shown) = (minute, 0);
            }
            self.shown += 1;
            if self.shown <= CONSOLE_LINES_PER_MINUTE {
                say!("{}: {line}", self.name);
            }
        }
        self.last = line;
    }
}
