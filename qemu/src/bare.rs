//! A kernel with one program and nothing else: no boot loader, no disk, no network. Seconds from start to end.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    console::Console,
    machine::{Programs, end},
};

#[derive(Debug)]
pub struct Bare {
    child: Child,
    pub console: Console,
}

/// A file of the initramfs: path without a slash at its beginning, content, executable.
pub type InitFile<'a> = (&'a str, &'a [u8], bool);

impl Bare {
    /// `files` holds `init`.
    pub fn start(programs: &Programs, kernel: &[u8], files: &[InitFile<'_>], dir: &Path) -> Result<Bare> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("kernel"), kernel)?;
        fs::write(dir.join("initramfs"), cpio(files))?;
        let log = dir.join("console.log");
        File::create(&log)?;
        let path = |name: &str| dir.join(name).display().to_string();
        let child = Command::new(&programs.qemu_system_aarch64)
            .args(["-M", "virt", "-cpu", "cortex-a72", "-accel", "tcg", "-display", "none", "-nodefaults"])
            .args(["-smp", "2", "-m", "256", "-no-reboot"])
            .args(["-kernel", &path("kernel"), "-initrd", &path("initramfs")])
            .args(["-append", "console=ttyAMA0 panic=-1 loglevel=4"])
            .args(["-serial", &format!("file:{}", log.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("qemu.err"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", programs.qemu_system_aarch64.display()))?;
        Ok(Bare { child, console: Console::new(log, dir.join("no-typing")) })
    }

    /// Waits for a console line with `marker` (after the one found last).
    pub fn wait_for(&mut self, marker: &str, within: Duration) -> Result<String> {
        let child = &mut self.child;
        self.console.wait_for(marker, within, || matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").
fn cpio(files: &[InitFile<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |inode: usize, path: &str, mode: u32, data: &[u8]| {
        let (links, len, name_len) = (1, data.len(), path.len() + 1);
        let fields = [inode as u32, mode, 0, 0, links, 0, len as u32, 0, 0, 0, 0, name_len as u32, 0];
        out.extend(b"070701");
        fields.iter().for_each(|field| out.extend(format!("{field:08x}").bytes()));
        out.extend(path.bytes().chain([0]));
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    let mut folders: Vec<&str> = Vec::new();
    for (path, _, _) in files {
        for (at, _) in path.match_indices('/') {
            if !folders.contains(&&path[..at]) {
                folders.push(&path[..at]);
            }
        }
    }
    for (inode, folder) in folders.iter().enumerate() {
        add(inode + 1, folder, 0o040_755, &[]);
    }
    for (inode, (path, data, executable)) in files.iter().enumerate() {
        add(1000 + inode, path, if *executable { 0o100_755 } else { 0o100_644 }, data);
    }
    add(0, "TRAILER!!!", 0, &[]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_its_folders_first_and_is_aligned() {
        let archive = cpio(&[("init", b"program", true), ("modules/a/b.ko", b"x", false)]);
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        let places: Vec<usize> = ["modules\0", "modules/a\0", "init\0", "modules/a/b.ko\0", "TRAILER!!!\0"]
            .map(|name| text.find(name).unwrap())
            .to_vec();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("070701").count(), 5);
    }
}
