//! A program under test: its output goes to a log file, and it ends with the value that owns it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub struct Process {
    name: String,
    child: Child,
    pub log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Process> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name} ({})", command.get_program().display()))?;
        Ok(Process { name: name.into(), child, log: log.into() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status if it has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL: as a crash or a power cut would end it.
    pub fn kill(mut self) {
        self.end(Signal::SIGKILL, Duration::from_secs(5));
    }

    /// SIGTERM, and an error if it has not ended in time or ended with a failure.
    pub fn stop(mut self, within: Duration) -> Result<()> {
        match self.end(Signal::SIGTERM, within) {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                bail!("{} ended with {status} on SIGTERM; log: {}", self.name, self.log.display())
            }
            None => {
                bail!("{} did not end within {within:?} of SIGTERM; log: {}", self.name, self.log.display())
            }
        }
    }

    fn end(&mut self, signal: Signal, within: Duration) -> Option<std::process::ExitStatus> {
        if let Some(status) = self.ended() {
            return Some(status);
        }
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM, Duration::from_secs(5));
    }
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A number of kB from `/proc/<pid>/status`, such as `VmRSS`.
pub fn proc_status_kb(pid: u32, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .with_context(|| format!("no {field}"))?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
