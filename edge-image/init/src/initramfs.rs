//! The initramfs: load the disk's drivers, find the disk, mount the root of the slot, go there.

use std::convert::Infallible;
use std::ffi::CString;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

use nix::mount::{MsFlags, mount};
use nix::unistd::{chroot, execv};

use crate::disk::{Boot, Disk};
use crate::limits::DISK_WITHIN;
use crate::{kmod, mounts, say};

/// Does not return: it becomes the root's init, or stops with a reason and lets the kernel reboot.
pub fn run() {
    for problem in mounts::first() {
        say!("{problem}");
    }
    let list = fs::read_to_string("/modules/load").unwrap_or_default();
    for name in list.lines() {
        if let Err(problem) = kmod::load_file(&Path::new("/modules").join(name)) {
            say!("{problem}");
        }
    }
    let Err(problem) = enter_root();
    say!("cannot start: {problem}");
    // The kernel panics when PID 1 ends, and reboots after `panic=` seconds: that is what counts a failed start.
    std::process::exit(1);
}

fn enter_root() -> Result<Infallible, String> {
    let boot = Boot::load();
    let id = boot
        .disk
        .ok_or("the kernel's command line has no kinglet.disk: the boot partition is not from this image")?;
    let disk = wait_for_disk(id)?;
    let (slot, number) = if boot.slot_b { ("b", 3) } else { ("a", 2) };
    let root = disk.partition(number);
    let source = root.display().to_string();
    mounts::attach(&source, "/root", "squashfs", MsFlags::MS_RDONLY, "")
        .map_err(|error| format!("{error}: slot {slot} holds no root"))?;
    for dir in ["/dev", "/proc", "/sys"] {
        let to = format!("/root{dir}");
        mount(Some(dir), to.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|error| format!("cannot move {dir}: {}", error.desc()))?;
    }
    free_memory();
    let failed = |what: &str, error: nix::Error| format!("cannot {what}: {}", error.desc());
    env::set_current_dir("/root").map_err(|error| format!("cannot enter the root: {error}"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|error| failed("move the root", error))?;
    chroot(".").map_err(|error| failed("change the root", error))?;
    env::set_current_dir("/").map_err(|error| format!("cannot enter the root: {error}"))?;
    let init = CString::new("/sbin/init").map_err(|error| error.to_string())?;
    execv(&init, &[&init]).map_err(|error| failed("start /sbin/init", error))
}

fn wait_for_disk(id: u32) -> Result<Disk, String> {
    let end = Instant::now() + DISK_WITHIN;
    loop {
        if let Some(disk) = Disk::find(id) {
            return Ok(disk);
        }
        if Instant::now() > end {
            return Err(format!(
                "no disk with id {id:08x} after {} s: is the card or disk still there?",
                DISK_WITHIN.as_secs()
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The initramfs lives in memory until its files are gone.
fn free_memory() {
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
}
