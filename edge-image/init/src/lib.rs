//! PID 1: from the kernel's first instruction of userspace to a supervised node, and back to power off.
//!
//! Is: one process with one loop that mounts, loads modules, brings up the network and the clock, feeds the watchdog, joins the node by
//! its provisioning file, and keeps containerd, edgecore, the mapper and the line-holder running. The same program is `/init` in the
//! initramfs, where it only finds the root of the slot and goes there.
//! Is not: a shell, a logger of pods, or anybody's library.
//! Invariants: PID 1 never blocks on the network and never exits; killing a service never kills a container; the clock never runs before
//! the build time or the last saved time; a secret used from the boot partition is blanked there; every failure is one line on the
//! console and in `status.txt` with its remedy.
//! Start at [`system::run`].

pub mod clock;
pub mod console;
pub mod dhcp;
pub mod disk;
pub mod extras;
pub mod initramfs;
pub mod kmod;
pub mod limits;
pub mod mounts;
pub mod name;
pub mod net;
pub mod provision;
pub mod service;
pub mod sntp;
pub mod status;
mod sys;
pub mod system;
pub mod uevent;
pub mod watchdog;

/// Which of the program's roles this process has.
pub fn run() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("sntp") => sntp::run(&args.collect::<Vec<_>>()),
        Some("grow") => disk::grow(&args.collect::<Vec<_>>()),
        _ if std::process::id() != 1 => {
            eprintln!("init: this is the device's first process and does nothing on a running system");
            std::process::exit(2);
        }
        _ if std::path::Path::new("/modules/load").exists() => initramfs::run(),
        _ => system::run(),
    }
}
