//! The boot partition: a FAT file system inside a disk image, written without mounting it.

use std::fs::{File, OpenOptions};
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

const SECTOR: u64 = 512;
/// As large as FAT32 allows on a partition of this size: fewer clusters, faster loading by simple boot loaders.
const CLUSTER: u32 = 2048;

/// A part of a file that looks like a file of its own. Public, because a person's card reader (crate qemu) needs it too.
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
    pub fn first_partition(image: &Path, writable: bool) -> Result<Window> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(image)
            .with_context(|| format!("cannot open {}", image.display()))?;
        let mut sector = [0; SECTOR as usize];
        file.read_exact(&mut sector)
            .with_context(|| format!("{} is too short for a disk", image.display()))?;
        ensure!(sector[510..] == [0x55, 0xaa], "{} has no partition table", image.display());
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
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let room = self.room(into.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let n = self.file.read(&mut into[..room])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Window {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        let room = self.room(from.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let n = self.file.write(&from[..room])?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
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
            None => Err(std::io::Error::from(std::io::ErrorKind::InvalidInput)),
        }
    }
}

/// Formats `len` bytes and fills them with files, whose paths may have directories. In memory, because the crate reads and writes the
/// allocation table four bytes at a time; zeros cost nothing there.
pub fn make(len: u64, volume_id: u32, files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut volume = Cursor::new(vec![0; usize::try_from(len)?]);
    let options = fatfs::FormatVolumeOptions::new()
        .fat_type(fatfs::FatType::Fat32)
        .bytes_per_cluster(CLUSTER)
        .volume_id(volume_id)
        .volume_label(*b"KINGLET    ");
    fatfs::format_volume(&mut volume, options).context("cannot format the boot partition")?;
    volume.set_position(0);
    let fs = fatfs::FileSystem::new(&mut volume, fatfs::FsOptions::new())
        .context("cannot open the boot partition")?;
    for (path, bytes) in files {
        let mut dir = fs.root_dir();
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().context("an empty file name")?;
        for part in parts {
            dir = dir.create_dir(part)?;
        }
        let mut file =
            dir.create_file(name).with_context(|| format!("cannot make {path} on the boot partition"))?;
        file.write_all(bytes).with_context(|| format!("{path} does not fit on the boot partition"))?;
        file.flush()?;
    }
    fs.unmount()?;
    Ok(volume.into_inner())
}
