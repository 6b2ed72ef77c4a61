//! A partition of a disk image, as a file of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

const SECTOR: u64 = 512;

/// A part of a file that looks like a file of its own.
#[derive(Debug)]
pub struct Window {
    file: File,
    start: u64,
    len: u64,
    at: u64,
}

impl Window {
    pub fn new(file: File, start: u64, len: u64) -> Window {
        Window { file, start, len, at: 0 }
    }

    /// The first partition of an image with an MBR.
    pub fn first_partition(image: &Path, writable: bool) -> io::Result<Window> {
        let mut file = OpenOptions::new().read(true).write(writable).open(image)?;
        let mut sector = [0; SECTOR as usize];
        file.read_exact(&mut sector)?;
        if sector[510..] != [0x55, 0xaa] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no partition table"));
        }
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]]))
        };
        Ok(Window::new(file, word(446 + 8) * SECTOR, word(446 + 12) * SECTOR))
    }

    fn room(&self, wanted: usize) -> usize {
        wanted.min(usize::try_from(self.len - self.at).unwrap_or(usize::MAX))
    }
}

impl Read for Window {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = self.room(into.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let n = self.file.read(&mut into[..room])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Window {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let room = self.room(from.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let n = self.file.write(&from[..room])?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        match at.filter(|at| *at <= self.len) {
            Some(at) => {
                self.at = at;
                Ok(at)
            }
            None => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }
}
