//! A serial line without a wire: a pseudo terminal whose far end the test plays.

use std::{
    fs::File,
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{pty::openpty, unistd::ttyname};

pub struct SerialLine {
    far_end: File,
    path: PathBuf,
    /// Held open, so that the line stays up while no program has it open.
    _near_end: OwnedFd,
}

impl SerialLine {
    pub fn new() -> Result<SerialLine> {
        let pair = openpty(None, None).context("open a pseudo terminal")?;
        let path = ttyname(&pair.slave).context("name of the pseudo terminal")?;
        Ok(SerialLine { far_end: File::from(pair.master), path, _near_end: pair.slave })
    }

    /// What a program opens as its serial port.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a sensor of text lines says.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.far_end.write_all(format!("{line}\n").as_bytes()).context("write to the serial line")
    }
}
