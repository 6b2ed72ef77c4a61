//! A Raspberry Pi 3 from power to our console. QEMU has no Pi firmware, so what the firmware would do is done here, from the card's own
//! files: kernel, initramfs, device tree and command line of the slot that config.txt names.
//!
//! Differs from a real board: the network is a USB stick (the board's own chip is not emulated), and the watchdog has to stay off,
//! because QEMU's resets the machine the moment it is started.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::console::Console;
use crate::disk::read_boot_bytes;
use crate::machine::{Programs, end};

const DEVICE_TREE: &str = "bcm2837-rpi-3-b.dtb";

/// A running board. It needs a card whose size is a power of two.
#[derive(Debug)]
pub struct RaspberryPi3 {
    child: Child,
    pub console: Console,
}

impl RaspberryPi3 {
    /// Starts the card's system; writes go into the card's file.
    pub fn start(programs: &Programs, card: &Path, dir: &Path) -> Result<RaspberryPi3> {
        fs::create_dir_all(dir)?;
        let len = card.metadata().with_context(|| format!("no card {}", card.display()))?.len();
        ensure!(len.is_power_of_two(), "{}: QEMU's SD card wants a power of two as its size", card.display());
        let config = String::from_utf8(read_boot_bytes(card, "config.txt")?)?;
        let setting = |key: &str| {
            let found = config.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.with_context(|| format!("config.txt sets no {key}"))
        };
        let prefix = setting("os_prefix")?;
        let initramfs = config
            .lines()
            .find_map(|line| line.strip_prefix("initramfs ")?.strip_suffix(" followkernel"))
            .context("config.txt names no initramfs")?;
        for (name, to) in [(setting("kernel")?, "kernel"), (initramfs, "initramfs"), (DEVICE_TREE, "dtb")] {
            fs::write(dir.join(to), read_boot_bytes(card, &format!("{prefix}{name}"))?)?;
        }
        let cmdline = read_boot_bytes(card, &format!("{prefix}{}", setting("cmdline")?))?;
        let cmdline = format!("{} kinglet.watchdog=off", String::from_utf8(cmdline)?.trim());
        let log = dir.join("console.log");
        File::create(&log)?;
        let path = |name: &str| dir.join(name).display().to_string();
        let child = Command::new(&programs.qemu_system_aarch64)
            .args(["-M", "raspi3b", "-display", "none", "-no-reboot"])
            .args(["-kernel", &path("kernel"), "-initrd", &path("initramfs"), "-dtb", &path("dtb")])
            .args(["-append", &cmdline])
            .arg("-drive")
            .arg(format!("if=sd,format=raw,cache=unsafe,file={}", card.display()))
            // The header's serial port is the second; the first belongs to Bluetooth.
            .args(["-serial", "null", "-serial", &format!("file:{}", log.display())])
            .args(["-netdev", "user,id=net", "-device", "usb-net,netdev=net"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("qemu.err"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", programs.qemu_system_aarch64.display()))?;
        Ok(RaspberryPi3 { child, console: Console::new(log, dir.join("no-typing")) })
    }

    /// Waits for a console line with `marker` (after the one found last).
    pub fn wait_for(&mut self, marker: &str, within: Duration) -> Result<String> {
        let child = &mut self.child;
        self.console.wait_for(marker, within, || matches!(child.try_wait(), Ok(None)))
    }

    /// Pulls the plug.
    pub fn power_cut(self) {}
}

impl Drop for RaspberryPi3 {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
