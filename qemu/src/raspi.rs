//! A Raspberry Pi 3 from power to our console. QEMU has no Pi firmware, so what the firmware would do is done here, from the card's own
//! files: kernel, initramfs, device tree and command line of the slot that config.txt names.
//!
//! On the header's I2C (pins 3 and 5) are a TMP105 thermometer, and an EEPROM that stands for a chip with registers. Lines and the PWM
//! unit are looked at in the SoC's registers (BCM2835 ARM Peripherals, sections 6.1 and 9.6; on a Pi 3 at 0x3f000000).
//!
//! Differs from a real board: the network is a USB stick (the board's own chip is not emulated), and the watchdog has to stay off,
//! because QEMU's resets the machine the moment it is started. SPI has no chip, inputs cannot be driven.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use serde_json::json;

use crate::console::Console;
use crate::disk::read_boot_bytes;
use crate::machine::{Programs, SOCKETS_WITHIN, end};
use crate::qmp::Qmp;
use crate::qtest::Qtest;

const DEVICE_TREE: &str = "bcm2837-rpi-3-b.dtb";

pub const THERMOMETER_ADDRESS: u8 = 0x48;
pub const CHIP_ADDRESS: u8 = 0x76;
/// The levels of lines 0 to 31 (GPLEV0).
const LEVELS: u64 = 0x3f20_0034;
/// Control, range and data of the PWM unit's first channel.
const PWM: [u64; 3] = [0x3f20_c000, 0x3f20_c010, 0x3f20_c014];

/// A running board. It needs a card whose size is a power of two.
#[derive(Debug)]
pub struct RaspberryPi3 {
    child: Child,
    qmp: Qmp,
    wires: Qtest,
    pub console: Console,
}

impl RaspberryPi3 {
    /// Starts the card's system; writes go into the card's file. `chip` is what the registers at [`CHIP_ADDRESS`] hold.
    pub fn start(programs: &Programs, card: &Path, dir: &Path, chip: &[u8; 256]) -> Result<RaspberryPi3> {
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
        // A disk has sectors of 512 bytes, and QEMU's EEPROM then takes one bit of the address from the one before: both halves are the same.
        fs::write(dir.join("chip"), [*chip, *chip].concat())?;
        let sockets = ["qmp.sock", "qtest.sock"].map(|name| dir.join(name));
        ensure!(dir.as_os_str().len() < 90, "{} is too long a path for sockets", dir.display());
        let path = |name: &str| dir.join(name).display().to_string();
        let mut child = Command::new(&programs.qemu_system_aarch64)
            .args(["-M", "raspi3b", "-display", "none", "-no-reboot"])
            .args(["-kernel", &path("kernel"), "-initrd", &path("initramfs"), "-dtb", &path("dtb")])
            .args(["-append", &cmdline])
            .arg("-drive")
            .arg(format!("if=sd,format=raw,cache=unsafe,file={}", card.display()))
            // The header's serial port is the second; the first belongs to Bluetooth.
            .args(["-serial", "null", "-serial", &format!("file:{}", log.display())])
            .args(["-netdev", "user,id=net", "-device", "usb-net,netdev=net"])
            .args(["-device", &format!("tmp105,id=thermometer,bus=i2c-bus.1,address={THERMOMETER_ADDRESS}")])
            .args(["-drive", &format!("if=none,id=chip,format=raw,file={}", path("chip"))])
            .arg("-device")
            .arg(format!(
                "at24c-eeprom,bus=i2c-bus.1,address={CHIP_ADDRESS},drive=chip,rom-size=512,address-size=1"
            ))
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp.sock"))])
            .args(["-qtest", &format!("unix:{},server=on,wait=off", path("qtest.sock"))])
            .args(["-qtest-log", "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("qemu.err"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", programs.qemu_system_aarch64.display()))?;
        let opened = Qmp::open(&sockets[0], SOCKETS_WITHIN)
            .and_then(|qmp| Ok((qmp, Qtest::open(&sockets[1], SOCKETS_WITHIN)?)));
        let (qmp, wires) = opened.inspect_err(|_| end(&mut child)).with_context(|| {
            let said = fs::read_to_string(dir.join("qemu.err")).unwrap_or_default();
            format!("QEMU did not start: {}", said.trim())
        })?;
        Ok(RaspberryPi3 { child, qmp, wires, console: Console::new(log, dir.join("no-typing")) })
    }

    /// How warm it is at the thermometer.
    pub fn set_celsius(&mut self, celsius: f64) -> Result<()> {
        let thousandths = (celsius * 1000.0).round() as i64;
        let arguments = json!({"path": "/machine/peripheral/thermometer", "property": "temperature", "value": thousandths});
        self.qmp.call("qom-set", arguments).map(drop)
    }

    /// The level of a line of the header.
    pub fn line(&mut self, number: u8) -> Result<bool> {
        ensure!(number < 32, "lines of the header are 0 to 27, not {number}");
        Ok(self.wires.read(LEVELS)? >> number & 1 == 1)
    }

    /// The share of the time that the first PWM channel is on; `None` while it is off.
    pub fn duty(&mut self) -> Result<Option<f64>> {
        let [control, range, data] = PWM;
        if self.wires.read(control)? & 1 == 0 {
            return Ok(None);
        }
        Ok(Some(f64::from(self.wires.read(data)?) / f64::from(self.wires.read(range)?.max(1))))
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
