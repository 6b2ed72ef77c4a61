//! File systems that are not on a disk, and cgroup v2.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};

/// Controllers that containers are limited by.
const CONTROLLERS: &str = "+cpuset +cpu +io +memory +pids";
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Mounts; the error names the place.
pub fn attach(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<(), String> {
    mount(Some(source), target, Some(kind), flags, Some(data))
        .map_err(|error| format!("cannot mount {kind} on {target}: {}", error.desc()))
}

fn plain() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC
}

/// What both the initramfs and the root need before anything else.
pub fn first() -> Vec<String> {
    let mut failed = Vec::new();
    for (source, target, kind, flags, data) in [
        ("proc", "/proc", "proc", plain(), ""),
        ("sysfs", "/sys", "sysfs", plain(), ""),
        ("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0755"),
    ] {
        if !is_mounted(target) {
            failed.extend(attach(source, target, kind, flags, data).err());
        }
    }
    failed
}

/// The rest, in the root.
pub fn rest() -> Vec<String> {
    let mut failed = Vec::new();
    for dir in ["/dev/pts", "/dev/shm"] {
        let _ = fs::create_dir_all(dir);
    }
    for (source, target, kind, flags, data) in [
        (
            "devpts",
            "/dev/pts",
            "devpts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "mode=0620,gid=5,ptmxmode=0666",
        ),
        ("tmpfs", "/dev/shm", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777,size=25%"),
        ("tmpfs", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=25%"),
        ("tmpfs", "/tmp", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777,size=25%"),
        ("cgroup2", CGROUPS, "cgroup2", plain(), "nsdelegate,memory_recursiveprot"),
    ] {
        failed.extend(attach(source, target, kind, flags, data).err());
    }
    // Containers' mounts must be able to spread; the kernel starts with private ones.
    let shared = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>);
    failed.extend(shared.err().map(|error| format!("cannot share mounts: {}", error.desc())));
    failed.extend(
        fs::write(format!("{CGROUPS}/cgroup.subtree_control"), CONTROLLERS)
            .err()
            .map(|error| format!("cannot enable cgroup controllers: {error}")),
    );
    failed
}

fn is_mounted(target: &str) -> bool {
    fs::read_to_string("/proc/mounts")
        .is_ok_and(|text| text.lines().any(|line| line.split(' ').nth(1) == Some(target)))
}

/// Makes a cgroup for a service and returns the file that a process writes itself into.
pub fn service_cgroup(name: &str) -> Result<fs::File, String> {
    let parent = Path::new(CGROUPS).join("system");
    let dir = parent.join(name);
    fs::create_dir_all(&dir).map_err(|error| format!("cannot make cgroup {}: {error}", dir.display()))?;
    // So that what a service uses can be read from its group.
    let _ = fs::write(parent.join("cgroup.subtree_control"), CONTROLLERS);
    fs::OpenOptions::new()
        .write(true)
        .open(dir.join("cgroup.procs"))
        .map_err(|error| format!("cannot open cgroup {}: {error}", dir.display()))
}
