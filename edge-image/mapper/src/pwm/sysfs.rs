//! PWM by the kernel's files (Documentation/driver-api/pwm.rst): `pwmchipN/{npwm,export,pwmM/{period,duty_cycle,polarity,enable}}`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{PwmChips, PwmError, PwmOutput};
use crate::plan::pwm::PwmSpec;

/// The chips whose channels reach the Pi's header: Pi 5, Pi 4, Pi 3 and Zero 2 W.
const HEADER_CHIPS: [&str; 3] = ["1f00098000.pwm", "fe20c000.pwm", "3f20c000.pwm"];

pub struct SysfsPwm {
    root: PathBuf,
}

/// A chip as `mapper scan` shows it.
pub struct Chip {
    pub label: String,
    pub channels: u32,
    folder: PathBuf,
}

impl Default for SysfsPwm {
    fn default() -> SysfsPwm {
        SysfsPwm::new("/sys/class/pwm")
    }
}

impl SysfsPwm {
    /// `root` is `/sys/class/pwm`, or a test's.
    pub fn new(root: impl Into<PathBuf>) -> SysfsPwm {
        SysfsPwm { root: root.into() }
    }

    pub fn chips(&self) -> Vec<Chip> {
        let entries = fs::read_dir(&self.root)
            .map(|entries| entries.flatten().collect())
            .unwrap_or_else(|_| Vec::new());
        let mut chips: Vec<Chip> = entries
            .iter()
            .filter(|entry: &&fs::DirEntry| entry.file_name().to_string_lossy().starts_with("pwmchip"))
            .filter_map(|entry| {
                let folder = entry.path();
                let device = fs::canonicalize(folder.join("device")).ok()?;
                let label = device.file_name()?.to_string_lossy().into_owned();
                let channels = read(&folder.join("npwm")).ok()?;
                Some(Chip { label, channels: channels as u32, folder })
            })
            .collect();
        chips.sort_by(|a, b| a.label.cmp(&b.label));
        chips
    }
}

fn read(path: &Path) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

impl PwmChips for SysfsPwm {
    fn request(&mut self, spec: &PwmSpec) -> Result<Box<dyn PwmOutput>, PwmError> {
        let chips = self.chips();
        let there = || match chips.is_empty() {
            true => "none (is the PWM driver on? on a Pi: dtoverlay=pwm)".to_owned(),
            false => chips.iter().map(|chip| chip.label.as_str()).collect::<Vec<_>>().join(", "),
        };
        let named = |label: &str| chips.iter().find(|chip| chip.label == label);
        let chip = match &spec.chip {
            Some(label) => {
                named(label).ok_or_else(|| PwmError::NoChip { wanted: label.clone(), there: there() })?
            }
            None => HEADER_CHIPS
                .iter()
                .find_map(|label| named(label))
                .ok_or_else(|| PwmError::NoHeader { there: there() })?,
        };
        if spec.channel >= chip.channels {
            let last = chip.channels.saturating_sub(1);
            return Err(PwmError::NoChannel { chip: chip.label.clone(), channel: spec.channel, last });
        }
        let folder = chip.folder.join(format!("pwm{}", spec.channel));
        let mut channel =
            Channel { folder, chip: chip.label.clone(), channel: spec.channel, period_ns: spec.period_ns };
        channel.open(&chip.folder, spec)?;
        Ok(Box::new(channel))
    }
}

struct Channel {
    folder: PathBuf,
    chip: String,
    channel: u32,
    period_ns: u32,
}

impl Channel {
    fn failed(&self, action: &'static str, error: io::Error) -> PwmError {
        let (chip, channel) = (self.chip.clone(), self.channel);
        match error.raw_os_error() {
            Some(libc::EBUSY) if action == "take" => PwmError::Busy { chip, channel },
            _ => PwmError::Channel { action, chip, channel, error },
        }
    }

    fn write(&self, action: &'static str, file: &str, value: impl ToString) -> Result<(), PwmError> {
        fs::write(self.folder.join(file), value.to_string()).map_err(|error| self.failed(action, error))
    }

    fn read(&self, file: &str) -> Result<u64, PwmError> {
        read(&self.folder.join(file)).map_err(|error| self.failed("read", error))
    }

    fn open(&mut self, chip: &Path, spec: &PwmSpec) -> Result<(), PwmError> {
        if !self.folder.exists() {
            fs::write(chip.join("export"), self.channel.to_string())
                .map_err(|error| self.failed("take", error))?;
        }
        let enabled = self.read("enable")? == 1;
        let before = if enabled { self.get()? } else { 0 };
        let polarity = if spec.inverted { "inversed" } else { "normal" };
        let has = fs::read_to_string(self.folder.join("polarity")).unwrap_or_default();
        if has.trim() != polarity {
            // The kernel changes the polarity of a stopped channel only. Chips without polarity have no such file.
            if enabled {
                self.write("stop", "enable", 0)?;
            }
            if spec.inverted || !has.is_empty() {
                self.write("invert", "polarity", polarity)?;
            }
        }
        if self.read("period")? != u64::from(spec.period_ns) {
            // A duty cycle that is longer than the new period would be refused with it.
            self.write("set", "duty_cycle", 0)?;
            self.write("set the frequency of", "period", spec.period_ns)?;
        }
        self.set(spec.initial.unwrap_or(before))?;
        self.write("start", "enable", 1)
    }
}

impl PwmOutput for Channel {
    fn get(&mut self) -> Result<u32, PwmError> {
        let (duty, period) = (self.read("duty_cycle")?, self.read("period")?);
        // Rounded up: what was set is read back the same, although nanoseconds are coarser than millionths.
        Ok((duty * 1_000_000).div_ceil(period.max(1)).min(1_000_000) as u32)
    }

    fn set(&mut self, millionths: u32) -> Result<(), PwmError> {
        let duty_ns = u64::from(self.period_ns) * u64::from(millionths.min(1_000_000)) / 1_000_000;
        self.write("set", "duty_cycle", duty_ns)
    }
}
