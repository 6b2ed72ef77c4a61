//! The Raspberry Pi image: what the boards' firmware looks for on the card, and a boot on the one Pi that QEMU can be, as the person with
//! one Pi has it: no cloud, and a folder `devices/` on the card.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use qemu::{CHIP_ADDRESS, Programs, RaspberryPi3, THERMOMETER_ADDRESS, disk};

use crate::{
    pushed::Pushed,
    steps::{Steps, wait_for},
};

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

/// A Pi 3 goes from its card to a network address and a ready containerd, says so on the card, and drives what the card describes.
/// `library` is the folder of models.
pub fn boots(image: &Path, library: &Path, programs: &Programs, dir: &Path, steps: &mut Steps) -> Result<()> {
    steps.step("the card holds what each board's firmware looks for", || card(image))?;
    let copy = dir.join("card.img");
    disk::provision(image, &copy, CARD_MB, "node_name = \"pi\"\n")?;
    let pushed = Pushed::listen()?;
    describe_devices(&copy, library, pushed.port())?;
    let (mut pi, _) = steps.step("Pi 3: kernel, initramfs, root from the card", || {
        let mut pi = RaspberryPi3::start(programs, &copy, dir, &bme280())?;
        pi.wait_for("for rpi, kernel", BOOT)?;
        Ok(pi)
    })?;
    steps.step("Pi 3: the data partition takes the whole card, the clock leaves 1970", || {
        pi.wait_for("data partition: grown to 1279 MB", STEP)?;
        pi.wait_for("before the last known time", STEP)
    })?;
    steps.step("Pi 3: network through USB", || pi.wait_for("network usb0: 10.0.2.15/24", STEP))?;
    steps.step("Pi 3: containerd", || pi.wait_for("containerd ready", STEP))?;
    steps.step("Pi 3: status.txt on the card names board, address and that there is no cloud", || {
        wait_for(STEP, "status.txt", || {
            let text = disk::read_boot_file(&copy, disk::STATUS)?;
            let all = ["rpi", "10.0.2.15", "state:    Alone", "cloud:    (none)"];
            Ok(all.iter().all(|part| text.contains(part)).then_some(()))
        })
    })?;
    devices(&mut pi, &pushed, steps)?;
    pi.power_cut();
    Ok(())
}

/// What the files on the card describe, at the SoC's own controllers.
fn devices(pi: &mut RaspberryPi3, pushed: &Pushed, steps: &mut Steps) -> Result<()> {
    steps.step("Pi 3: an LED from devices/ of the card is lit, line 17 of pinctrl-bcm2835", || {
        pushed.wait_for(STEP, "led", "lit=true")?;
        ensure!(pi.line(17)?, "the value says that it is lit, the line does not");
        Ok(())
    })?;
    steps.step("Pi 3: a thermometer by its registers on I2C is read, and its limit written", || {
        pushed.wait_for(STEP, "thermometer", "limit=42")?;
        // Half degrees: the chip's resolution after a reset.
        for (celsius, value) in [(21.5, "temperature=21.5"), (-3.5, "temperature=-3.5")] {
            pi.set_celsius(celsius)?;
            pushed.wait_for(STEP, "thermometer", value)?;
        }
        Ok(())
    })?;
    steps.step("Pi 3: a BME280 of the library on I2C", || {
        ["temperature=8.12", "pressure=953.28", "humidity=20.8"]
            .into_iter()
            .try_for_each(|value| pushed.wait_for(STEP, "bme280", value))
    })?;
    steps.step("Pi 3: hardware PWM runs at the desired duty cycle", || {
        pushed.wait_for(STEP, "fan", "speed=25")?;
        let duty = pi.duty()?;
        ensure!(duty == Some(0.25), "the PWM unit is at {duty:?}");
        Ok(())
    })?;
    Ok(())
}

/// A chip whose numbers and values are those of edge-image/mapper/src/polled/chip/tests.rs.
fn bme280() -> [u8; 256] {
    let mut registers = [0; 256];
    for (at, text) in [
        (0x88, "916f526818fcd6922dd7d00bbc193bfff9ff7827a4d3bd10004b"),
        (0xd0, "60"),
        (0xe1, "8201011422031e"),
        (0xf7, "55d27075cbe05e1e"),
    ] {
        for (byte, digits) in registers[at..].iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
            *byte = digits.iter().fold(0, |value, digit| {
                value << 4 | char::from(*digit).to_digit(16).expect("hexadecimal") as u8
            });
        }
    }
    registers
}

/// Two models of the library as they are, and two devices of our own. All tell their values over HTTP: nobody sees into a release image.
fn describe_devices(card: &Path, library: &Path, port: u16) -> Result<()> {
    let push = |path: &str| {
        format!(
            "pushMethod: {{http: {{hostName: \"http://10.0.2.2\", port: {port}, requestPath: /{path}, timeout: 5}}}}"
        )
    };
    for (name, old, new) in [
        ("led", "reportToCloud: true\n", format!("{}\n", push("led"))),
        ("bme280", "collectCycle: 10000", format!("collectCycle: 500, {}", push("bme280"))),
    ] {
        let path = library.join(format!("{name}.yaml"));
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(text.contains(old), "{} has no {old:?}", path.display());
        let text = text.replace(old, &new).replace("initial: \"0\"", "initial: \"1\"");
        disk::write_boot_file(card, &format!("devices/{name}.yaml"), text.as_bytes())?;
    }
    ensure!(CHIP_ADDRESS == 0x76, "the library's BME280 is at 0x76");
    let own = OWN
        .replace("ADDRESS", &THERMOMETER_ADDRESS.to_string())
        .replace("PUSH-THERMOMETER", &push("thermometer"))
        .replace("PUSH-FAN", &push("fan"));
    disk::write_boot_file(card, "devices/own.yaml", own.as_bytes())
}

const OWN: &str = "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: thermometer}
spec:
  protocol: i2c
  properties:
  - name: temperature
    type: FLOAT
    accessMode: ReadOnly
    visitors: {protocolName: i2c, configData: {register: 0, length: 2, signed: true, mask: \"0xfff0\", scale: 0.0625}}
  - name: limit
    type: INT
    accessMode: ReadWrite
    visitors: {protocolName: i2c, configData: {register: 3, length: 2, signed: true, mask: \"0xfff0\", scale: 0.0625, write: true}}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: thermometer}
spec:
  deviceModelRef: {name: thermometer}
  protocol: {protocolName: i2c, configData: {bus: 1, address: ADDRESS}}
  properties:
  - {name: temperature, collectCycle: 500, PUSH-THERMOMETER}
  - {name: limit, collectCycle: 500, desired: {value: \"42\"}, PUSH-THERMOMETER}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: fan}
spec:
  protocol: pwm
  properties:
  - {name: speed, type: FLOAT, accessMode: ReadWrite, unit: \"%\"}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: fan}
spec:
  deviceModelRef: {name: fan}
  protocol: {protocolName: pwm}
  properties:
  - name: speed
    desired: {value: \"25\"}
    visitors: {protocolName: pwm, configData: {channel: 0, pwmHz: 1000}}
    PUSH-FAN
";
