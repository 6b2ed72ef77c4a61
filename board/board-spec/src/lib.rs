//! Boards as data: the only reader of `board/*.toml`.
//!
//! Is: the shape of `board/base.toml` (what every image holds) and `board/<name>.toml` (how boards differ), with unknown keys refused.
//! Is not: a place for code that asks which board this is. Such code is a key missing here.
//! Start at [`Board::load`]; [`Window`] is how the partitions it describes are reached inside an image.

mod window;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use window::Window;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a valid board description")]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("no board {name:?}: there is {known}")]
    Unknown { name: String, known: String },
    #[error("board {board}: {problem}")]
    Invalid { board: String, problem: String },
}

/// A board with what all boards share.
#[derive(Debug, Clone)]
pub struct Board {
    pub base: Base,
    pub own: Own,
}

/// `board/base.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    pub layout: Layout,
    /// Directories of the root that hold no file.
    pub dirs: Vec<String>,
    pub modules: Modules,
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
}

/// `board/<name>.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Own {
    pub name: String,
    pub summary: String,
    /// Words of the kernel's command line.
    pub cmdline: Vec<String>,
    pub boot: Boot,
    /// Where its GPIO lines come out.
    pub header: Option<Header>,
    #[serde(default)]
    pub modules: Modules,
    #[serde(rename = "package", default)]
    pub packages: Vec<Package>,
}

/// How the board gets from power to kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum Boot {
    /// U-Boot, which is not in the image, runs `boot.scr` from the boot partition.
    UBoot { kernel_address: u64, initramfs_address: u64, device_tree: String },
    /// The Pi's firmware reads `config.txt` from the boot partition.
    RaspberryPi {
        /// Lines of config.txt besides the kernel and the initramfs.
        config: Vec<String>,
        /// Device trees of the kernel's package, by their path under dtb/.
        device_trees: Vec<String>,
    },
}

/// The pins that people wire devices to. Lines are named `GPIO<n>`; n is also the line's offset in each of the chips.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Pin 1, 2, 3 ...: a line, or a supply. Empty: the board has no header, only lines.
    pub pins: Vec<String>,
    /// Lines that are pulled up from power-on; the header's others are pulled down.
    pub pulled_up: Vec<String>,
    #[serde(rename = "chip")]
    pub chips: Vec<HeaderChip>,
    #[serde(rename = "use", default)]
    pub uses: Vec<LineUse>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderChip {
    pub label: String,
    /// Of the boards that have it, for people.
    pub boards: String,
}

/// What else than a GPIO line some lines are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineUse {
    pub lines: Vec<String>,
    /// `uart`, `i2c-1`, `spi0`, `1-wire`, `pwm`, or words for people.
    pub function: String,
    /// Why it matters although nobody configured that function.
    pub always: Option<String>,
}

impl Header {
    /// The pin of a line, counted from 1.
    pub fn pin(&self, line: &str) -> Option<usize> {
        self.pins.iter().position(|pin| pin == line).map(|at| at + 1)
    }
}

/// Sizes of the four MBR partitions in MiB. The first begins at 1 MiB.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    pub boot_mib: u32,
    pub root_mib: u32,
    pub data_mib: u32,
}

impl Layout {
    /// Start and length of the partitions in MiB: boot, root A, root B, data.
    pub fn partitions(&self) -> [(u32, u32); 4] {
        let (boot, root) = (self.boot_mib, self.root_mib);
        [(1, boot), (1 + boot, root), (1 + boot + root, root), (1 + boot + 2 * root, self.data_mib)]
    }

    pub fn total_mib(&self) -> u32 {
        1 + self.boot_mib + 2 * self.root_mib + self.data_mib
    }
}

/// Kernel modules by name; what they depend on is found by mkimage.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Modules {
    /// Needed to reach the root: loaded by the initramfs.
    pub initramfs: Vec<String>,
    /// Loaded by the root's init, in this order.
    pub load: Vec<String>,
    /// Loaded when a device asks for them.
    pub on_demand: Vec<String>,
}

/// A Debian package and what of it goes where.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Package {
    /// `{kernel}` stands for the locked kernel version.
    pub name: String,
    pub suite: String,
    /// Files for the root, at the same path there.
    pub files: Vec<String>,
    /// Shared libraries: those that some program in the root needs.
    pub libraries: bool,
    /// Holds the kernel, its modules or its device trees.
    pub kernel: bool,
    /// Files for the boot partition: path in the package to name there.
    pub boot: BTreeMap<String, String>,
    /// Only in images with a shell.
    pub dev: bool,
}

impl Board {
    /// Reads `base.toml` and `<name>.toml` in `dir`.
    pub fn load(dir: &Path, name: &str) -> Result<Board, Error> {
        let known = Board::names(dir)?;
        if !known.iter().any(|board| board == name) {
            return Err(Error::Unknown { name: name.to_owned(), known: known.join(", ") });
        }
        let board =
            Board { base: read(&dir.join("base.toml"))?, own: read(&dir.join(format!("{name}.toml")))? };
        board.check(name)?;
        Ok(board)
    }

    /// What a board's file says, for programs that carry the file in them.
    pub fn own(text: &str) -> Result<Own, Error> {
        toml::from_str(text).map_err(|source| Error::Parse { path: "a built-in board".into(), source })
    }

    /// The boards described in `dir`.
    pub fn names(dir: &Path) -> Result<Vec<String>, Error> {
        let entries = fs::read_dir(dir).map_err(|source| Error::Read { path: dir.to_owned(), source })?;
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
            .filter(|name| name != "base" && name != "lock")
            .collect();
        names.sort();
        Ok(names)
    }

    /// Packages of base and board.
    pub fn packages(&self, dev: bool) -> impl Iterator<Item = &Package> {
        self.base.packages.iter().chain(&self.own.packages).filter(move |package| dev || !package.dev)
    }

    /// Modules of base and board, one kind of them.
    pub fn modules(&self, kind: impl Fn(&Modules) -> &Vec<String>) -> Vec<String> {
        kind(&self.base.modules).iter().chain(kind(&self.own.modules)).cloned().collect()
    }

    fn check(&self, name: &str) -> Result<(), Error> {
        let invalid = |problem: String| Err(Error::Invalid { board: name.to_owned(), problem });
        if self.own.name != name {
            return invalid(format!("the file is named {name:?} but says name = {:?}", self.own.name));
        }
        if let Some(package) =
            self.packages(true).find(|package| package.name.is_empty() || package.suite.is_empty())
        {
            return invalid(format!("package {:?} needs a name and a suite", package.name));
        }
        if self.base.layout.boot_mib < 64 || self.base.layout.data_mib < 32 {
            return invalid("the boot partition needs 64 MiB and data 32 MiB at least".to_owned());
        }
        if let Some(header) = &self.own.header
            && let Some(stray) = header
                .pulled_up
                .iter()
                .chain(header.uses.iter().flat_map(|line_use| &line_use.lines))
                .find(|line| !header.pins.is_empty() && header.pin(line).is_none())
        {
            return invalid(format!("{stray} is on no pin of the header"));
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|source| Error::Parse { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_board_in_the_repository_is_valid() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let names = Board::names(&dir).expect("boards");
        assert!(names.contains(&"qemu-virt".to_owned()) && names.contains(&"rpi".to_owned()), "{names:?}");
        for name in names {
            let board = Board::load(&dir, &name).expect("valid");
            assert!(board.packages(false).any(|package| package.kernel), "{name} has a kernel");
            // QEMU's SD card wants a power of two, and every board shares the layout.
            assert!(board.base.layout.total_mib().is_power_of_two());
        }
    }

    #[test]
    fn the_pis_header_is_the_one_that_is_printed_everywhere() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let header = Board::load(&dir, "rpi").expect("valid").own.header.expect("a header");
        assert_eq!(header.pins.len(), 40);
        for (line, pin) in
            [("GPIO2", 3), ("GPIO17", 11), ("GPIO18", 12), ("GPIO10", 19), ("GPIO0", 27), ("GPIO21", 40)]
        {
            assert_eq!(header.pin(line), Some(pin), "{line}");
        }
        assert_eq!(header.pin("GPIO28"), None);
        let grounds: Vec<usize> = (1..=40).filter(|pin| header.pins[pin - 1] == "GND").collect();
        assert_eq!(grounds, [6, 9, 14, 20, 25, 30, 34, 39]);
        let mut lines: Vec<&String> = header.pins.iter().filter(|pin| pin.starts_with("GPIO")).collect();
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), 28, "each line once");
    }

    #[test]
    fn unknown_keys_and_boards_are_refused() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let error = Board::load(&dir, "toaster").expect_err("unknown").to_string();
        assert!(error.contains("qemu-virt"), "{error}");
        let text = fs::read_to_string(dir.join("qemu-virt.toml")).expect("read");
        assert!(toml::from_str::<Own>(&text).is_ok());
        assert!(toml::from_str::<Own>(&format!("colour = 1\n{text}")).is_err());
    }
}
