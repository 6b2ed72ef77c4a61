//! gpio-sim (Documentation/admin-guide/gpio/gpio-sim.rst): a chip of the kernel's whose wires are files.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
};

use super::conformance::Wires;

pub const LABEL: &str = "kinglet-sim";
const CONFIGFS: &str = "/sys/kernel/config";
const LINES: u32 = 8;

pub struct Sim {
    /// In configfs.
    device: PathBuf,
    /// In sysfs: the folder with `sim_gpioN`.
    lines: PathBuf,
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {text:?} to {}: {error}", path.display()))
}

fn read(path: &Path) -> Result<String, String> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn make(path: &Path) -> Result<(), String> {
    fs::create_dir(path).map_err(|error| format!("cannot make {}: {error}", path.display()))
}

/// Loads a module with what it needs, as init does: lines of `modules.map` are name, path, dependencies.
fn load(modules: &Path, name: &str) -> Result<(), String> {
    let map = read(&modules.join("modules.map"))?;
    let lines = map.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<&str>>());
    let Some(words) = lines.into_iter().find(|words| words.first() == Some(&name)) else {
        // Built into the kernel.
        return Ok(());
    };
    for dependency in words.iter().skip(2) {
        load(modules, dependency)?;
    }
    let path = modules.join(words.get(1).ok_or_else(|| format!("modules.map: {name} has no path"))?);
    let file = fs::File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(format!("cannot load {name}: {error}")),
    }
}

impl Sim {
    pub fn is_there() -> bool {
        Path::new(CONFIGFS).join("gpio-sim").exists()
    }

    pub fn make(modules: Option<&str>) -> Result<Sim, String> {
        if let Some(modules) = modules {
            load(Path::new(modules), "gpio_sim")?;
        }
        let folder = Path::new(CONFIGFS).join("gpio-sim");
        if !folder.exists() {
            mount(None::<&str>, CONFIGFS, Some("configfs"), MsFlags::empty(), None::<&str>)
                .map_err(|error| format!("cannot mount configfs at {CONFIGFS}: {error}"))?;
        }
        let device = folder.join("kinglet");
        let bank = device.join("bank0");
        make(&device)?;
        make(&bank)?;
        write(&bank.join("num_lines"), &LINES.to_string())?;
        write(&bank.join("label"), LABEL)?;
        make(&bank.join("line3"))?;
        write(&bank.join("line3/name"), "pump")?;
        make(&bank.join("line7"))?;
        make(&bank.join("line7/hog"))?;
        write(&bank.join("line7/hog/name"), "camera")?;
        write(&bank.join("line7/hog/direction"), "output-high")?;
        write(&device.join("live"), "1")?;
        let lines = Path::new("/sys/devices/platform")
            .join(read(&device.join("dev_name"))?)
            .join(read(&bank.join("chip_name"))?);
        // A container's /dev may be older than the chip.
        let chip = read(&bank.join("chip_name"))?;
        let node = Path::new("/dev").join(&chip);
        if !node.exists() {
            let numbers = read(&Path::new("/sys/bus/gpio/devices").join(&chip).join("dev"))?;
            let (major, minor) = numbers.split_once(':').ok_or("a device without numbers")?;
            let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
            let device = nix::sys::stat::makedev(number(major)?, number(minor)?);
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
            nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFCHR, mode, device)
                .map_err(|error| format!("cannot make {}: {error}", node.display()))?;
        }
        Ok(Sim { device, lines })
    }
}

impl Wires for Sim {
    fn label(&self) -> String {
        LABEL.into()
    }

    fn pull(&mut self, line: u32, high: bool) {
        let path = self.lines.join(format!("sim_gpio{line}/pull"));
        if let Err(error) = write(&path, if high { "pull-up" } else { "pull-down" }) {
            println!("lines: {error}");
        }
    }

    fn is_high(&mut self, line: u32) -> bool {
        read(&self.lines.join(format!("sim_gpio{line}/value"))).is_ok_and(|value| value == "1")
    }

    fn unplug(&mut self) {
        if let Err(error) = write(&self.device.join("live"), "0") {
            println!("lines: {error}");
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = fs::write(self.device.join("live"), "0");
        for folder in ["bank0/line7/hog", "bank0/line7", "bank0/line3", "bank0", ""] {
            match fs::remove_dir(self.device.join(folder)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    println!("lines: {folder:?} stays: {error}")
                }
                _ => {}
            }
        }
    }
}
