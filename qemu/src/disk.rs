//! The boot partition of an image, read and written from outside: what a person does with a card reader.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const SECTOR: u64 = 512;
/// The name of the file that a person fills in.
pub const PROVISION: &str = "provision.toml";
/// The name of the file that tells how the last boot went.
pub const STATUS: &str = "status.txt";

/// Copies `image` to `to` (sparse, or shared blocks where the file system can), makes it `size_mb` large, as a card larger than the
/// image would be, and writes the provisioning file.
pub fn provision(image: &Path, to: &Path, size_mb: u64, text: &str) -> Result<()> {
    let status = Command::new("cp")
        .args(["--reflink=auto", "--sparse=always"])
        .arg(image)
        .arg(to)
        .status()
        .context("cannot run cp")?;
    ensure!(status.success(), "cannot copy {} to {}", image.display(), to.display());
    let file = OpenOptions::new().write(true).open(to)?;
    if file.metadata()?.len() < size_mb << 20 {
        file.set_len(size_mb << 20)?;
    }
    write_boot_file(to, PROVISION, text.as_bytes())
}

/// Writes a file into the boot partition of an image that no machine is using.
pub fn write_boot_file(image: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let fs = open(image, true)?;
    let mut file = fs
        .root_dir()
        .create_file(name)
        .with_context(|| format!("cannot make {name} on the boot partition"))?;
    file.truncate()?;
    file.write_all(bytes)?;
    file.flush()?;
    Ok(())
}

/// Reads a file from the boot partition.
pub fn read_boot_file(image: &Path, name: &str) -> Result<String> {
    let fs = open(image, false)?;
    let mut text = String::new();
    fs.root_dir()
        .open_file(name)
        .with_context(|| format!("the boot partition of {} has no {name}", image.display()))?
        .read_to_string(&mut text)?;
    Ok(text)
}

fn open(image: &Path, writable: bool) -> Result<fatfs::FileSystem<Window>> {
    let file = OpenOptions::new()
        .read(true)
        .write(writable)
        .open(image)
        .with_context(|| format!("cannot open {}", image.display()))?;
    let window = Window::first_partition(file, image)?;
    fatfs::FileSystem::new(window, fatfs::FsOptions::new())
        .with_context(|| format!("{}: the boot partition is not FAT", image.display()))
}

/// A part of a file that looks like a file.
#[derive(Debug)]
struct Window {
    file: File,
    start: u64,
    len: u64,
    at: u64,
}

impl Window {
    fn first_partition(mut file: File, image: &Path) -> Result<Window> {
        let mut sector = [0; SECTOR as usize];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut sector)
            .with_context(|| format!("{} is too short for a disk", image.display()))?;
        if sector[510..] != [0x55, 0xaa] {
            bail!("{} has no partition table", image.display());
        }
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]]))
        };
        Ok(Window { file, start: word(446 + 8) * SECTOR, len: word(446 + 12) * SECTOR, at: 0 })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_boot_file_is_written_and_read_and_the_rest_of_the_disk_is_left_alone() {
        let dir = tempfile::tempdir().expect("temp dir");
        let image = dir.path().join("a.img");
        let mut file = File::create_new(&image).expect("create");
        file.set_len(6 << 20).expect("len");
        let mut mbr = [0; 512];
        mbr[446 + 4] = 0x0c;
        mbr[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
        mbr[446 + 12..446 + 16].copy_from_slice(&8192u32.to_le_bytes());
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        file.write_all(&mbr).expect("mbr");
        drop(file);
        let file = OpenOptions::new().read(true).write(true).open(&image).expect("open");
        fatfs::format_volume(
            &mut Window::first_partition(file, &image).expect("window"),
            fatfs::FormatVolumeOptions::new(),
        )
        .expect("format");

        let copy = dir.path().join("b.img");
        provision(&image, &copy, 16, "cloud = \"a:1\"\n").expect("provisioned");
        assert_eq!(read_boot_file(&copy, PROVISION).expect("read"), "cloud = \"a:1\"\n");
        write_boot_file(&copy, PROVISION, b"x").expect("shorter");
        assert_eq!(read_boot_file(&copy, PROVISION).expect("read"), "x");
        assert_eq!(fs::metadata(&copy).expect("meta").len(), 16 << 20);
        assert_eq!(fs::read(&copy).expect("read")[5 << 20..].iter().filter(|byte| **byte != 0).count(), 0);
        let error = read_boot_file(&image, PROVISION).expect_err("the original is untouched").to_string();
        assert!(error.contains("has no provision.toml"), "{error}");
    }
}
