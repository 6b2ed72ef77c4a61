//! The end: everything is asked to stop, data is made safe, the power goes off.

use std::fs;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use super::supervisor::Parts;
use crate::limits::STOP_WITHIN;
use crate::{clock, say};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    PowerOff,
    Reboot,
}

impl std::fmt::Display for End {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            End::PowerOff => "powering off",
            End::Reboot => "rebooting",
        })
    }
}

pub fn end(mut parts: Parts, end: End) {
    // Agents first: a pod that ends while edgecore lives would be started again.
    for pid in parts.agents {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if let Some(shell) = parts.shell {
        // One that somebody types into takes no notice of SIGTERM.
        let _ = kill(Pid::from_raw(shell), Signal::SIGKILL);
    }
    let everyone = Pid::from_raw(-1);
    let _ = kill(everyone, Signal::SIGTERM);
    wait_for_all(&mut parts.watchdog);
    let _ = kill(everyone, Signal::SIGKILL);
    wait_for_all(&mut parts.watchdog);
    clock::save();
    sync();
    unmount_all();
    say!("{}", if end == End::PowerOff { "power off" } else { "reboot" });
    if let Some(watchdog) = parts.watchdog {
        watchdog.stop();
    }
    let mode = if end == End::PowerOff { RebootMode::RB_POWER_OFF } else { RebootMode::RB_AUTOBOOT };
    let _ = reboot(mode);
    // A board that cannot switch itself off stays here, with its data safe.
    loop {
        std::thread::park();
    }
}

/// Until no child is left, or time is up.
fn wait_for_all(watchdog: &mut Option<crate::watchdog::Watchdog>) {
    let end = Instant::now() + STOP_WITHIN;
    while Instant::now() < end {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {
                if let Some(watchdog) = watchdog {
                    watchdog.feed();
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Last mounted first; what does not go is made read-only.
fn unmount_all() {
    let text = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let places: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    for place in places
        .iter()
        .rev()
        .filter(|place| place.starts_with("/var") || place.starts_with("/run") || place.starts_with("/boot"))
    {
        if umount2(*place, MntFlags::empty()).is_err() {
            let _ = umount2(*place, MntFlags::MNT_DETACH);
            let _ = mount(
                None::<&str>,
                *place,
                None::<&str>,
                MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
                None::<&str>,
            );
        }
    }
    sync();
}
