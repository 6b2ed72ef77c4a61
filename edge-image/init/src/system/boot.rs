//! From an empty root to mounted data, loaded drivers and a clock that is not absurd. Nothing here may fail for good: what goes wrong
//! becomes a line and a problem, and the boot goes on with what there is.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, umount};
use nix::sys::reboot::set_cad_enabled;
use nix::unistd::sync;
use serde::Deserialize;

use crate::disk::{Boot, Disk};
use crate::kmod::Modules;
use crate::limits::PROVISION_BYTES_MAX;
use crate::provision::{self, Mistake, Provision};
use crate::status::Problem;
use crate::watchdog::Watchdog;
use crate::{clock, extras, mounts, name, net, say, sys};

/// What mkimage wrote about the image.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Release {
    pub version: String,
    pub board: String,
    pub kernel: String,
    pub epoch: u64,
    pub dev: bool,
}

#[derive(Debug)]
pub struct Started {
    pub release: Release,
    pub disk: Option<Disk>,
    pub modules: Modules,
    pub watchdog: Option<Watchdog>,
    /// Nothing if there is no file.
    pub provision: Result<Option<Provision>, Mistake>,
    /// The last good file, without its token.
    pub kept: Option<Provision>,
    pub problem: Option<Problem>,
    pub serial: String,
    pub boot_number: u64,
    /// The data partition is mounted, not memory in its place.
    pub has_data: bool,
    pub clock_floor: u64,
    /// A clock chip knew a time after the floor.
    pub clock_is_set: bool,
}

/// A device whose boot partition is damaged or was emptied keeps its static address, time servers and name.
const KEPT: &str = "/var/lib/kinglet/provision.toml";

fn load_kept() -> Option<Provision> {
    provision::parse(&fs::read(KEPT).ok()?).ok()
}

fn keep(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if let Some((span, blank)) = provision::blank_token(&bytes) {
        bytes[span].copy_from_slice(&blank);
    }
    // Once per change, not once per boot.
    if fs::read(KEPT).ok().as_ref() != Some(&bytes)
        && let Err(error) = write_atomic(Path::new(KEPT), &bytes)
    {
        say!("cannot keep a copy of {}: {error}", provision::FILE);
    }
}

/// A power cut leaves the old content or the new.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("new");
    let mut file = fs::File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(partial, path)
}

pub fn boot() -> Started {
    let mut problems = mounts::first();
    problems.extend(mounts::rest());
    let release = load_release();
    let dev = if release.dev { ", with a console shell" } else { "" };
    say!("image {} for {}, kernel {}{dev}", release.version, release.board, release.kernel);
    for line in &problems {
        say!("{line}");
    }
    let mut modules = Modules::open(Path::new("/lib/modules"));
    for line in modules.load_listed().into_iter().chain(modules.load_for_devices()) {
        say!("{line}");
    }
    let wanted = Boot::load();
    let mut watchdog = if wanted.no_watchdog { None } else { Watchdog::open() };
    match &watchdog {
        Some(watchdog) => say!("watchdog: resets after {} s", watchdog.seconds),
        None if wanted.no_watchdog => say!("watchdog: off, as the kernel's command line says"),
        None => say!("watchdog: this board has none"),
    }
    set_kernel_values();
    let mut problem = None;
    let disk = wanted.disk.and_then(Disk::find);
    let data = disk
        .as_ref()
        .map_or_else(|| Err("the disk was not found".to_owned()), |disk| mount_data(disk, &mut watchdog));
    let has_data = data.is_ok();
    if let Err(error) = data {
        say!("data partition: {error}; running from memory, nothing will be kept");
        problem = Some(Problem {
            error: format!("data partition: {error}"),
            remedy: "replace the card, or write the image again".to_owned(),
        });
        let _ = mounts::attach(
            "tmpfs",
            "/var",
            "tmpfs",
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            "mode=0755,size=50%",
        );
    }
    for dir in [
        "/var/lib/kinglet",
        "/var/lib/containerd",
        "/var/lib/kubelet",
        "/var/etc/kubeedge",
        "/var/lib/cni",
        "/var/log/pods",
        "/var/tmp",
        "/var/data",
        "/run/kinglet/log",
        "/run/cni",
    ] {
        let _ = fs::create_dir_all(dir);
    }
    // CNI's memory of which sandbox got which address. Network namespaces end with the power, so this must too: it is written
    // without fsync, and one file cut short would keep its pod from ever being torn down and started again.
    let volatile = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(error) = mounts::attach("tmpfs", "/var/lib/cni", "tmpfs", volatile, "mode=0700,size=4m") {
        say!("{error}");
    }
    let clock_floor = clock::floor(release.epoch, clock::load_saved(release.epoch), None);
    let raised = clock::raise_to(clock_floor);
    if let Some(behind) = raised {
        say!("clock: was {behind} s before the last known time, now {}", clock::render(clock::now()));
    }
    let provision = load_provision(disk.as_ref());
    match &provision {
        Ok(read) => read.as_ref().map_or((), |(bytes, _)| keep(bytes)),
        Err(mistake) => say!("{mistake}"),
    }
    if let Some(disk) = disk.as_ref().filter(|_| has_data) {
        take_extras(disk);
        set_pins(disk);
    }
    Started {
        serial: serial(),
        boot_number: count_boot(),
        release,
        disk,
        modules,
        watchdog,
        provision: provision.map(|read| read.map(|(_, provision)| provision)),
        kept: load_kept(),
        problem,
        has_data,
        clock_floor,
        clock_is_set: raised.is_none(),
    }
}

/// What the kernel's defaults do not suit. A kernel without one of them has no use for it.
fn set_kernel_values() {
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/bridge/bridge-nf-call-iptables", "1"),
        ("net/bridge/bridge-nf-call-ip6tables", "1"),
        ("kernel/panic", "10"),
        ("kernel/panic_on_oops", "1"),
        // As kubelet has it: a pod's limit is what bounds its memory.
        ("vm/overcommit_memory", "1"),
        ("fs/inotify/max_user_instances", "512"),
        // Modules are loaded by this program; the kernel would look for a modprobe that is not there.
        ("kernel/modprobe", ""),
    ] {
        let _ = fs::write(format!("/proc/sys/{key}"), value);
    }
    // Ctrl-Alt-Del becomes a signal for this program instead of a reset.
    let _ = set_cad_enabled(false);
}

fn load_release() -> Release {
    let text = fs::read_to_string("/etc/kinglet/release.toml").unwrap_or_default();
    toml::from_str(&text).unwrap_or_default()
}

/// Checks, grows and mounts the data partition.
fn mount_data(disk: &Disk, watchdog: &mut Option<Watchdog>) -> Result<(), String> {
    match disk.grow_data_partition() {
        Ok(Some(megabytes)) => say!("data partition: grown to {megabytes} MB"),
        Ok(None) => {}
        Err(error) => say!("data partition: cannot use the whole disk: {error}"),
    }
    let partition = disk.partition(4);
    check(&partition, "-p", watchdog).or_else(|_| check(&partition, "-y", watchdog))?;
    let source = partition.display().to_string();
    mounts::attach(
        &source,
        "/var",
        "ext4",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
        "commit=30",
    )?;
    Ok(())
}

/// Runs e2fsck, feeding the watchdog: a large card takes minutes.
fn check(partition: &Path, how: &str, watchdog: &mut Option<Watchdog>) -> Result<(), String> {
    /// Errors were left uncorrected, or worse.
    const FAILED: i32 = 4;
    let mut child = match Command::new("/usr/sbin/e2fsck")
        .arg(how)
        .arg(partition)
        .stdout(std::process::Stdio::null())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => {
            say!("data partition: not checked, cannot run e2fsck: {error}");
            return Ok(());
        }
    };
    loop {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            Ok(Some(status)) if status.code().is_some_and(|code| code < FAILED) => {
                if status.code() != Some(0) {
                    say!("data partition: errors were corrected");
                }
                return Ok(());
            }
            Ok(Some(status)) => return Err(format!("e2fsck {how} could not correct it ({status})")),
            Err(error) => return Err(format!("e2fsck was lost: {error}")),
        }
        if let Some(watchdog) = watchdog {
            watchdog.feed();
        }
    }
}

fn count_boot() -> u64 {
    const FILE: &str = "/var/lib/kinglet/boots";
    let number = fs::read_to_string(FILE)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(0)
        .saturating_add(1);
    let _ = fs::write(FILE, format!("{number}\n"));
    number
}

/// What stands for `{serial}` in names.
fn serial() -> String {
    name::serial(&fs::read_to_string("/proc/device-tree/serial-number").unwrap_or_default(), net::first_mac())
}

const BOOT: &str = "/boot";

/// Mounts the boot partition for as long as `work` runs. FAT has no journal: it is only mounted while something is read or written.
pub fn with_boot_partition<T>(
    disk: &Disk,
    writable: bool,
    work: impl FnOnce(&Path) -> std::io::Result<T>,
) -> Result<T, String> {
    let flags = MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC
        | if writable { MsFlags::MS_SYNCHRONOUS } else { MsFlags::MS_RDONLY };
    mounts::attach(&disk.partition(1).display().to_string(), BOOT, "vfat", flags, "umask=0077")?;
    let done = work(Path::new(BOOT)).map_err(|error| format!("boot partition: {error}"));
    if writable {
        sync();
    }
    let _ = umount(BOOT);
    done
}

fn load_provision(disk: Option<&Disk>) -> Result<Option<(Vec<u8>, Provision)>, Mistake> {
    let disk = disk.ok_or_else(|| Mistake {
        line: None,
        what: "the disk was not found".to_owned(),
        remedy: "write the image again".to_owned(),
    })?;
    let read = with_boot_partition(disk, false, |dir| {
        let path = dir.join(provision::FILE);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() > PROVISION_BYTES_MAX => Err(std::io::Error::other(format!(
                "{} is larger than {} kB",
                provision::FILE,
                PROVISION_BYTES_MAX >> 10
            ))),
            Ok(_) => fs::read(path).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    });
    match read {
        Ok(Some(bytes)) => provision::parse(&bytes).map(|provision| Some((bytes, provision))),
        Ok(None) => Ok(None),
        Err(what) => Err(Mistake {
            line: None,
            what,
            remedy: "write it again on a PC, or write the image again".to_owned(),
        }),
    }
}

/// Devices and static pods that somebody laid on the boot partition.
fn take_extras(disk: &Disk) {
    let read = with_boot_partition(disk, false, |dir| {
        Ok(extras::FOLDERS.map(|(name, to)| (name, to, extras::read(&dir.join(name)))))
    });
    let folders = match read {
        Ok(folders) => folders,
        Err(error) => return say!("{error}; devices and static pods stay as they are"),
    };
    for (name, to, files) in folders {
        let written = match files {
            Ok(None) => continue,
            Ok(Some(files)) => extras::write(Path::new(to), &files),
            Err(error) => Err(error),
        };
        match written {
            Ok(0) => {}
            Ok(changes) => say!("{name}/ of the boot partition: {changes} files changed"),
            Err(error) => say!("{name}/ of the boot partition: {error}; what was taken before stays"),
        }
    }
}

/// Levels of GPIO lines from the next power-on on. Only where the firmware reads them from a file.
fn set_pins(disk: &Disk) {
    const EDGECORE: &str = "/usr/bin/edgecore";
    let known = with_boot_partition(disk, false, |dir| extras::block(&dir.join(extras::CONFIG)));
    let Ok(Some((_, known))) = known else { return };
    let wanted = match Command::new(EDGECORE).args(["pins", extras::DEVICES]).output() {
        Ok(done) if done.status.success() => done.stdout,
        Ok(done) => return say!("pins: {}", String::from_utf8_lossy(&done.stderr).trim()),
        Err(error) => return say!("pins: cannot run {EDGECORE}: {error}"),
    };
    if wanted == known {
        return;
    }
    match with_boot_partition(disk, true, |dir| extras::write_block(&dir.join(extras::CONFIG), &wanted)) {
        Ok(_) => say!("pins: levels from power-on have changed; they hold from the next start on"),
        Err(error) => say!("pins: {error}"),
    }
}

/// Overwrites the token where it lies.
pub fn blank_token(disk: &Disk) -> Result<(), String> {
    with_boot_partition(disk, true, |dir| {
        let path = dir.join(provision::FILE);
        let Some((span, blank)) = provision::blank_token(&fs::read(&path)?) else { return Ok(()) };
        // Opened without truncation: the same clusters are written again.
        let file = fs::OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(&blank, span.start as u64)?;
        file.sync_all()
    })
}

/// The kernel's name for this system, which pods and logs see.
pub fn set_hostname(name: &str) {
    let _ = nix::unistd::sethostname(name);
    let _ = fs::write("/run/hostname", format!("{name}\n"));
    let _ = sys::interface_up("lo");
}
