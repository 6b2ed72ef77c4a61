//! The Raspberry Pi image: what the boards' firmware looks for on the card, and a boot on the one Pi that QEMU can be.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use qemu::{Programs, RaspberryPi3, disk};

use crate::steps::{Steps, wait_for};

/// Per board: the firmware's own files, which it looks for at the top, and its device tree, which it looks for in the slot.
const NEEDED: [(&str, &[&str]); 8] = [
    ("Pi 3 A+", &["bootcode.bin", "start.elf", "fixup.dat", "a/bcm2837-rpi-3-a-plus.dtb"]),
    ("Pi 3 B", &["bootcode.bin", "start.elf", "fixup.dat", "a/bcm2837-rpi-3-b.dtb"]),
    ("Pi 3 B+", &["bootcode.bin", "start.elf", "fixup.dat", "a/bcm2837-rpi-3-b-plus.dtb"]),
    ("Pi Zero 2 W", &["bootcode.bin", "start.elf", "fixup.dat", "a/bcm2837-rpi-zero-2-w.dtb"]),
    ("Pi 4", &["start4.elf", "fixup4.dat", "a/bcm2711-rpi-4-b.dtb"]),
    ("Pi 400", &["start4.elf", "fixup4.dat", "a/bcm2711-rpi-400.dtb"]),
    // The Pi 5's firmware is in its flash.
    ("Pi 5", &["a/bcm2712-rpi-5-b.dtb"]),
    ("Pi 5, stepping D0", &["a/bcm2712-d-rpi-5-b.dtb"]),
];
/// The firmware may be passed on only with its licence.
const FOR_ALL: [&str; 6] = [
    "config.txt",
    "a/cmdline.txt",
    "a/kernel8.img",
    "a/initrd",
    "licence-firmware.txt",
    "provision-example.toml",
];
/// A device tree begins with this.
const FDT_MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];

/// QEMU's SD card wants a power of two; larger than the image, so that the data partition has to grow.
const CARD_MB: u64 = 2048;
const BOOT: Duration = Duration::from_secs(180);
const STEP: Duration = Duration::from_secs(120);

/// Every board finds its files.
pub fn card(image: &Path) -> Result<()> {
    for (board, files) in NEEDED {
        for name in FOR_ALL.iter().chain(files) {
            let bytes =
                disk::read_boot_bytes(image, name).with_context(|| format!("a {board} needs {name}"))?;
            ensure!(!bytes.is_empty(), "a {board} needs {name}, which is empty");
            ensure!(!name.ends_with(".dtb") || bytes.starts_with(&FDT_MAGIC), "{name} is no device tree");
        }
    }
    let config = String::from_utf8(disk::read_boot_bytes(image, "config.txt")?)?;
    // Filters hold until the next one: what names the slot must come after the one for all.
    let (_, for_all) = config.rsplit_once("[all]\n").context("config.txt ends in a filter for one board")?;
    for line in ["os_prefix=a/", "kernel=kernel8.img", "cmdline=cmdline.txt", "initramfs initrd followkernel"]
    {
        ensure!(for_all.lines().any(|have| have == line), "config.txt does not say {line:?} to all boards");
    }
    let cmdline = String::from_utf8(disk::read_boot_bytes(image, "a/cmdline.txt")?)?;
    for console in ["console=tty1", "console=ttyS1,115200", "console=ttyAMA10,115200"] {
        ensure!(cmdline.split_whitespace().any(|word| word == console), "no {console} in {cmdline:?}");
    }
    Ok(())
}

/// A Pi 3 goes from its card to a network address and a ready containerd, and says so on the card.
pub fn boots(image: &Path, programs: &Programs, dir: &Path, steps: &mut Steps) -> Result<()> {
    steps.step("the card holds what each board's firmware looks for", || card(image))?;
    let copy = dir.join("card.img");
    let provision = "cloud = \"10.0.2.2:1\"\nnode_name = \"pi\"\n";
    disk::provision(image, &copy, CARD_MB, provision)?;
    let (mut pi, _) = steps.step("Pi 3: kernel, initramfs, root from the card", || {
        let mut pi = RaspberryPi3::start(programs, &copy, dir)?;
        pi.wait_for("for rpi, kernel", BOOT)?;
        Ok(pi)
    })?;
    steps.step("Pi 3: the data partition takes the whole card, the clock leaves 1970", || {
        pi.wait_for("data partition: grown to 1279 MB", STEP)?;
        pi.wait_for("before the last known time", STEP)
    })?;
    steps.step("Pi 3: network through USB", || pi.wait_for("network usb0: 10.0.2.15/24", STEP))?;
    steps.step("Pi 3: containerd", || pi.wait_for("containerd ready", STEP))?;
    steps.step("Pi 3: status.txt on the card names board, address and what is missing", || {
        wait_for(STEP, "status.txt", || {
            let text = disk::read_boot_file(&copy, disk::STATUS)?;
            let all = ["rpi", "10.0.2.15", "provision.toml has no token"];
            Ok(all.iter().all(|part| text.contains(part)).then_some(()))
        })
    })?;
    pi.power_cut();
    Ok(())
}
