//! The serial console: QEMU writes all of it to a file, and a socket takes what is typed.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a waiting reader looks at the log.
const POLL: Duration = Duration::from_millis(50);
/// Lines shown when a wait fails.
const LINES_SHOWN: usize = 40;

#[derive(Debug)]
pub struct Console {
    log: PathBuf,
    socket: PathBuf,
    /// Where the next [`Console::wait_for`] begins to search.
    searched: u64,
    typing: Option<UnixStream>,
}

impl Console {
    pub(crate) fn new(log: PathBuf, socket: PathBuf) -> Console {
        Console { log, socket, searched: 0, typing: None }
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything the guest has printed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Types into the console (of an image with a shell). The connection is kept: QEMU forgets what the guest has not yet read when
    /// it closes.
    pub fn write(&mut self, text: &str) -> Result<()> {
        if self.typing.is_none() {
            let socket = UnixStream::connect(&self.socket).context("cannot open the console's socket")?;
            let mut echo = socket.try_clone()?;
            // The log has all of it already; unread, it would stop QEMU. Ends with the machine.
            std::thread::spawn(move || std::io::copy(&mut echo, &mut std::io::sink()));
            self.typing = Some(socket);
        }
        if let Some(socket) = &mut self.typing {
            socket.write_all(text.as_bytes())?;
        }
        Ok(())
    }

    /// Waits for a line that contains `marker`, after the last one found, and returns that line.
    /// `alive` is asked between looks; when it says no, the wait ends with an error.
    pub(crate) fn wait_for(
        &mut self,
        marker: &str,
        within: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<String> {
        let end = Instant::now() + within;
        loop {
            let was_alive = alive();
            if let Some(line) = self.find(marker)? {
                return Ok(line);
            }
            if !was_alive {
                bail!(
                    "QEMU ended before the console said {marker:?}. Its last lines ({}):\n{}",
                    self.log.display(),
                    self.tail()
                );
            }
            if Instant::now() > end {
                bail!(
                    "the console did not say {marker:?} within {within:?}. Its last lines ({}):\n{}",
                    self.log.display(),
                    self.tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    fn find(&mut self, marker: &str) -> Result<Option<String>> {
        let Ok(mut file) = File::open(&self.log) else { return Ok(None) };
        file.seek(SeekFrom::Start(self.searched))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut start = 0;
        while let Some(len) = bytes[start..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&bytes[start..start + len]);
            start += len + 1;
            if line.contains(marker) {
                self.searched += start as u64;
                return Ok(Some(line.trim_end().to_owned()));
            }
        }
        self.searched += start as u64;
        Ok(None)
    }

    /// The last lines, for an error's text.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_goes_on_after_the_line_found_last_and_only_takes_whole_lines() {
        let dir = tempfile::tempdir().expect("temp dir");
        let log = dir.path().join("log");
        fs::write(&log, "boot ok\nready 1\nready 2\nready 3 but no newline").expect("write");
        let mut console = Console::new(log, dir.path().join("none"));
        let mut next = || console.wait_for("ready", Duration::ZERO, || true);
        assert_eq!(next().expect("first"), "ready 1");
        assert_eq!(next().expect("second"), "ready 2");
        let error = next().expect_err("third is unfinished").to_string();
        assert!(error.contains("did not say \"ready\"") && error.contains("boot ok"), "{error}");
    }
}
