//! One running virt machine.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::console::Console;
use crate::gpio::Gpio;
use crate::qmp::{Qmp, connect};

/// Of the USB serial adapter; part of its name in /dev/serial/by-id.
pub const USB_SERIAL_NUMBER: &str = "KINGLET1";

/// QEMU needs a while for its sockets when the host is busy.
pub(crate) const SOCKETS_WITHIN: Duration = Duration::from_secs(30);

/// Where the programs are (`mkimage::tools` fetches them).
#[derive(Debug, Clone)]
pub struct Programs {
    pub qemu_system_aarch64: PathBuf,
    pub qemu_img: PathBuf,
    /// The boot loader given as firmware; the image brings everything after it.
    pub u_boot: PathBuf,
}

impl Programs {
    /// In a directory made by `mkimage tools` (`target/tools`).
    pub fn in_tools(dir: &Path) -> Programs {
        Programs {
            qemu_system_aarch64: dir.join("bin/qemu-system-aarch64"),
            qemu_img: dir.join("bin/qemu-img"),
            u_boot: dir.join("root/usr/lib/u-boot/qemu_arm64/u-boot.bin"),
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Config {
    pub programs: Programs,
    /// A raw disk image.
    pub image: PathBuf,
    /// Write into a qcow2 file beside the log instead of into the image. The overlay is kept between starts in the same directory.
    pub overlay: bool,
    pub memory_mb: u32,
    pub cpus: u8,
    /// Guest TCP ports to reach from this host; see [`Machine::host_port`].
    pub forward: Vec<u16>,
    /// Serial ports of the guest, /dev/ttyS0 onwards, each at the other end of a [`Machine::serial`].
    pub serial_ports: u8,
    /// A USB serial adapter at [`Machine::usb_serial`], plugged in while that is connected.
    pub usb_serial: bool,
    /// For the console log and the sockets. Socket paths are limited to 107 bytes: keep it short.
    pub dir: PathBuf,
    /// End QEMU instead of rebooting.
    pub no_reboot: bool,
}

impl Config {
    pub fn new(programs: Programs, image: impl Into<PathBuf>, dir: impl Into<PathBuf>) -> Config {
        Config {
            programs,
            image: image.into(),
            overlay: false,
            memory_mb: 512,
            cpus: 2,
            forward: Vec::new(),
            serial_ports: 0,
            usb_serial: false,
            dir: dir.into(),
            no_reboot: false,
        }
    }
}

#[derive(Debug)]
pub struct Machine {
    child: Child,
    dir: PathBuf,
    qmp: Qmp,
    gpio: Gpio,
    ports: Vec<(u16, u16)>,
    pub console: Console,
}

impl Machine {
    pub fn start(config: &Config) -> Result<Machine> {
        fs::create_dir_all(&config.dir)?;
        let dir = config.dir.canonicalize()?;
        ensure!(dir.as_os_str().len() < 90, "{} is too long a path for sockets", dir.display());
        for program in [&config.programs.qemu_system_aarch64, &config.programs.u_boot, &config.image] {
            ensure!(program.exists(), "{} does not exist", program.display());
        }
        for old in ["console.sock", "qmp.sock", "qtest.sock", "console.log"] {
            let _ = fs::remove_file(dir.join(old));
        }
        let disk = if config.overlay {
            overlay(config, &dir)?
        } else {
            format!("file={},format=raw,cache=unsafe", config.image.display())
        };
        let errors = dir.join("qemu.err");
        let child = Command::new(&config.programs.qemu_system_aarch64)
            .args(arguments(config, &dir, &disk))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?)
            .spawn()
            .with_context(|| format!("cannot start {}", config.programs.qemu_system_aarch64.display()))?;
        let mut guard = Guard(Some(child));
        let opened = Qmp::open(&dir.join("qmp.sock"), SOCKETS_WITHIN).and_then(|mut qmp| {
            Ok((
                Gpio::open(&dir.join("qtest.sock"), &mut qmp, SOCKETS_WITHIN)?,
                forwarded(&mut qmp, &config.forward)?,
                qmp,
            ))
        });
        let (gpio, ports, qmp) = match opened {
            Ok(all) => all,
            Err(error) => {
                let said = fs::read_to_string(&errors).unwrap_or_default();
                return Err(error.context(format!("QEMU did not start: {}", said.trim())));
            }
        };
        let console = Console::new(dir.join("console.log"), dir.join("console.sock"));
        let child = guard.0.take().context("the process is still ours")?;
        Ok(Machine { child, dir, qmp, gpio, ports, console })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The port on 127.0.0.1 that leads to a guest port named in [`Config::forward`].
    pub fn host_port(&self, guest: u16) -> Result<u16> {
        let found = self.ports.iter().find(|(port, _)| *port == guest);
        found.map(|(_, host)| *host).with_context(|| format!("guest port {guest} is not forwarded"))
    }

    /// Waits for a console line with `marker` (after the one found last).
    pub fn wait_for(&mut self, marker: &str, within: Duration) -> Result<String> {
        let child = &mut self.child;
        self.console.wait_for(marker, within, || matches!(child.try_wait(), Ok(None)))
    }

    pub fn gpio(&mut self) -> &mut Gpio {
        &mut self.gpio
    }

    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The far end of a serial cable: port 0 is the guest's /dev/ttyS0. One connection at a time.
    pub fn serial(&self, port: u8) -> Result<UnixStream> {
        connect(&self.dir.join(format!("serial{port}.sock")), SOCKETS_WITHIN)
    }

    /// Plugs the USB serial adapter in; dropping what is returned unplugs it.
    pub fn usb_serial(&self) -> Result<UnixStream> {
        connect(&self.dir.join("usb0.sock"), SOCKETS_WITHIN)
    }

    /// Pulls the plug. What the guest had not written to its disk is lost.
    pub fn power_cut(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Presses the power button and waits for the guest to shut down.
    pub fn power_down(mut self, within: Duration) -> Result<()> {
        self.qmp.call("system_powerdown", json!({}))?;
        let end = Instant::now() + within;
        while self.is_running() {
            if Instant::now() > end {
                bail!(
                    "the guest did not power off within {within:?}. Its last lines:\n{}",
                    self.console.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Processor seconds QEMU has used so far: user and system.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        // The kernel reports these in USER_HZ, which is 100 on every Linux.
        Ok(ticks as f64 / 100.0)
    }

    /// Stops the machine's processor, as a bus analyser would; [`Machine::resume`] lets it go on.
    pub fn pause(&mut self) -> Result<()> {
        self.qmp.call("stop", json!({})).map(drop)
    }

    pub fn resume(&mut self) -> Result<()> {
        self.qmp.call("cont", json!({})).map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends the process when starting fails half-way.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

/// Kills a process and waits for its end.
pub(crate) fn end(child: &mut Child) {
    if let Ok(None) = child.try_wait()
        && let Ok(pid) = i32::try_from(child.id())
    {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = child.wait();
    }
}

fn arguments(config: &Config, dir: &Path, disk: &str) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    // With ACPI the machine has no PL061, and so no lines and no power key.
    add(&["-M", "virt,acpi=off", "-cpu", "cortex-a72", "-accel", "tcg", "-display", "none", "-nodefaults"]);
    add(&["-smp", &config.cpus.to_string(), "-m", &config.memory_mb.to_string()]);
    add(&["-bios", &config.programs.u_boot.display().to_string()]);
    add(&[
        "-chardev",
        &format!(
            "socket,id=console,path={},server=on,wait=off,logfile={}",
            path("console.sock"),
            path("console.log")
        ),
    ]);
    add(&["-serial", "chardev:console"]);
    add(&["-drive", &format!("if=none,id=disk,{disk}"), "-device", "virtio-blk-pci,drive=disk"]);
    let forward: String =
        config.forward.iter().map(|port| format!(",hostfwd=tcp:127.0.0.1:0-:{port}")).collect();
    add(&["-netdev", &format!("user,id=net{forward}"), "-device", "virtio-net-pci,netdev=net,romfile="]);
    add(&["-device", "virtio-rng-pci", "-device", "i6300esb", "-action", "watchdog=reset"]);
    for port in 0..config.serial_ports {
        add(&[
            "-chardev",
            &format!(
                "socket,id=serial{port},path={},server=on,wait=off",
                path(&format!("serial{port}.sock"))
            ),
        ]);
        add(&["-device", &format!("pci-serial,chardev=serial{port}")]);
    }
    if config.usb_serial {
        let socket = format!("socket,id=usb0,path={},server=on,wait=off", path("usb0.sock"));
        add(&["-device", "qemu-xhci", "-chardev", &socket]);
        // Not always-plugged: the guest sees it come and go with the connection.
        add(&["-device", &format!("usb-serial,chardev=usb0,serial={USB_SERIAL_NUMBER}")]);
    }
    add(&["-qmp", &format!("unix:{},server=on,wait=off", path("qmp.sock"))]);
    add(&["-qtest", &format!("unix:{},server=on,wait=off", path("qtest.sock")), "-qtest-log", "/dev/null"]);
    if config.no_reboot {
        add(&["-no-reboot"]);
    }
    args
}

fn overlay(config: &Config, dir: &Path) -> Result<String> {
    let file = dir.join("overlay.qcow2");
    if !file.exists() {
        let status = Command::new(&config.programs.qemu_img)
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(config.image.canonicalize()?)
            .arg(&file)
            .status()
            .context("cannot run qemu-img")?;
        ensure!(status.success(), "qemu-img cannot make {}", file.display());
    }
    Ok(format!("file={},format=qcow2,cache=writeback", file.display()))
}

/// Which host ports QEMU chose, in the order of `wanted`.
fn forwarded(qmp: &mut Qmp, wanted: &[u16]) -> Result<Vec<(u16, u16)>> {
    let table = qmp.human("info usernet")?;
    let rows = parse_forwards(&table);
    wanted
        .iter()
        .map(|guest| {
            rows.iter()
                .find(|(port, _)| port == guest)
                .copied()
                .with_context(|| format!("QEMU does not forward to guest port {guest}: {table}"))
        })
        .collect()
}

/// Rows like `TCP[HOST_FORWARD] 13 127.0.0.1 43021 10.0.2.15 8080 0 0` as (guest, host).
fn parse_forwards(table: &str) -> Vec<(u16, u16)> {
    table
        .lines()
        .filter(|line| line.contains("HOST_FORWARD"))
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some((words.get(5)?.parse().ok()?, words.get(3)?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_ports_are_read_from_qemus_table() {
        let table = "Hub -1 (net):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  TCP[HOST_FORWARD]  13       127.0.0.1 43021              * 8080     0     0\n  TCP[ESTABLISHED]   14 1.1.1.1 1 2.2.2.2 8080 0 0\n";
        assert_eq!(parse_forwards(table), [(8080, 43021)]);
    }

    #[test]
    fn every_socket_lies_in_the_machines_own_directory() {
        let programs = Programs::in_tools(Path::new("/tools"));
        let mut config = Config::new(programs, "/image", "/dir");
        config.serial_ports = 2;
        config.usb_serial = true;
        config.forward = vec![8080];
        let args = arguments(&config, Path::new("/dir"), "file=/image").join(" ");
        assert!(args.contains("hostfwd=tcp:127.0.0.1:0-:8080"), "{args}");
        for socket in ["console", "qmp", "qtest", "serial0", "serial1", "usb0"] {
            assert!(args.contains(&format!("/dir/{socket}.sock")), "{args}");
        }
    }
}
