//! A serial line without a wire: a pseudo terminal whose far end the test plays.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::openpty,
    unistd::ttyname,
};

pub struct SerialLine {
    far_end: File,
    path: PathBuf,
    /// What was heard since it was last looked for.
    heard: String,
    /// Held open, so that the line stays up while no program has it open.
    _near_end: OwnedFd,
}

impl SerialLine {
    pub fn new() -> Result<SerialLine> {
        let pair = openpty(None, None).context("open a pseudo terminal")?;
        let path = ttyname(&pair.slave).context("name of the pseudo terminal")?;
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("set up the pseudo terminal")?;
        let far_end = File::from(pair.master);
        Ok(SerialLine { far_end, path, heard: String::new(), _near_end: pair.slave })
    }

    /// What a program opens as its serial port.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a sensor of text lines says.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.far_end.write_all(format!("{line}\n").as_bytes()).context("write to the serial line")
    }

    /// Whether the near end has said this line since the last time. Does not wait.
    pub fn hear(&mut self, line: &str) -> Result<bool> {
        let mut piece = [0; 1024];
        loop {
            match self.far_end.read(&mut piece) {
                Ok(len) => self.heard.push_str(&String::from_utf8_lossy(&piece[..len])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("read the serial line"),
            }
        }
        let found = self.heard.lines().any(|heard| heard == line);
        if found {
            self.heard.clear();
        }
        Ok(found)
    }
}
