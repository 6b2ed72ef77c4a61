//! Programs that the host may lack, fetched and run without installing anything.
//!
//! Is: QEMU, kubectl, image tools and a C compiler from one Debian release, unpacked under `target/tools` together with that
//! release's own C library and loader, so that the same files run on Debian 12, 13 or Ubuntu.
//! Is not: part of any image. What goes into an image is in `board/lock.toml`.
//! Invariant: a group's stamp is written only when all of it is in place; two processes may call [`ensure`] at once.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::apt::{Deb, Mirror, Root, Suite, unpack};
use crate::progress::Progress;

/// The release all tools come from, whatever the host is.
const SUITES: [Suite; 3] = [
    Suite { name: "trixie", components: "main", may_be_expired: false },
    Suite { name: "trixie-updates", components: "main", may_be_expired: false },
    Suite { name: "trixie-security", components: "main", may_be_expired: false },
];

/// Raised when the layout of the directory changes, so that an old one is made anew.
const LAYOUT: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Kubectl,
    /// `qemu-system-aarch64`, `qemu-img`, U-Boot for the virt machine.
    Qemu,
    /// `mksquashfs`, `unsquashfs`, `mke2fs`, `e2fsck`, `debugfs`, `xz`, `zstd`.
    Image,
    /// `clang`, for hosts whose own compiler does not know the device's architecture (cross/cc).
    Compiler,
    /// A static busybox, for the pods of tests: `usr/bin/busybox`.
    Busybox,
}

impl Group {
    pub const ALL: [Group; 5] = [Group::Kubectl, Group::Qemu, Group::Image, Group::Compiler, Group::Busybox];

    fn name(self) -> &'static str {
        match self {
            Group::Kubectl => "kubectl",
            Group::Qemu => "qemu",
            Group::Image => "image",
            Group::Compiler => "compiler",
            Group::Busybox => "busybox",
        }
    }

    fn packages(self) -> &'static [&'static str] {
        match self {
            Group::Kubectl => &["kubectl"],
            Group::Qemu => &["qemu-system-arm", "qemu-utils", "u-boot-qemu"],
            Group::Image => &["squashfs-tools", "e2fsprogs", "xz-utils", "zstd"],
            Group::Compiler => &["clang-19"],
            Group::Busybox => &["busybox-static"],
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Group::Kubectl => &["kubectl"],
            Group::Qemu => &["qemu-system-aarch64", "qemu-img"],
            Group::Image => &["mksquashfs", "unsquashfs", "mke2fs", "e2fsck", "debugfs", "xz", "zstd"],
            Group::Compiler => &["clang-19"],
            // Static: it runs inside an image, not through a wrapper.
            Group::Busybox => &[],
        }
    }
}

/// Packages that apt would bring for a whole system and that no tool here loads.
const NOT_NEEDED: &[&str] = &[
    "adduser",
    // What a compiler would link with; cross/cc only compiles.
    "binutils",
    "binutils-common",
    "binutils-x86-64-linux-gnu",
    "gcc-14",
    "gcc-14-base",
    "libc-dev-bin",
    "libc6-dev",
    "libgcc-14-dev",
    "libobjc-14-dev",
    "libstdc++-14-dev",
    "linux-libc-dev",
    "llvm-19",
    "llvm-19-dev",
    "llvm-19-runtime",
    "libllvm19-dev",
    "rpcsvc-proto",
    "base-passwd",
    "debconf",
    "libaudit-common",
    "libcrypt1",
    "libdb5.3t64",
    "libdebconfclient0",
    "libpam-modules",
    "libpam-modules-bin",
    "libpam0g",
    "libsemanage-common",
    "libsemanage2",
    "login.defs",
    "passwd",
];

/// Where to put things and whom to ask.
#[derive(Debug, Clone)]
pub struct Options {
    /// The workspace's target directory; `KINGLET_TOOLS` names another place for the tools, to be shared between checkouts.
    pub target_dir: PathBuf,
    pub debian_mirror: Option<String>,
}

/// What [`ensure`] made available.
#[derive(Debug, Clone)]
pub struct Tools {
    dir: PathBuf,
}

impl Options {
    pub fn tools_dir(&self) -> PathBuf {
        std::env::var_os("KINGLET_TOOLS").map_or_else(|| self.target_dir.join("tools"), PathBuf::from)
    }
}

impl Tools {
    /// Where everything is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A program by name. It needs no environment.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// A data file as its package has it, e.g. `usr/lib/u-boot/qemu_arm64/u-boot.bin`.
    pub fn file(&self, path: &str) -> PathBuf {
        self.dir.join("root").join(path)
    }

    pub fn u_boot_virt(&self) -> PathBuf {
        self.file("usr/lib/u-boot/qemu_arm64/u-boot.bin")
    }

    /// `name version` lines of all that was fetched.
    pub fn versions(&self) -> String {
        Group::ALL
            .iter()
            .filter_map(|group| fs::read_to_string(stamp_path(&self.dir, *group)).ok())
            .flat_map(|text| text.lines().skip(1).map(|line| format!("{line}\n")).collect::<Vec<_>>())
            .collect()
    }
}

fn stamp_path(dir: &Path, group: Group) -> PathBuf {
    dir.join(format!("{}.stamp", group.name()))
}

fn is_ready(dir: &Path, group: Group) -> bool {
    fs::read_to_string(stamp_path(dir, group))
        .is_ok_and(|text| text.lines().next() == Some(&format!("layout {LAYOUT}")))
}

/// Makes the groups available: instantly when they are, else by download.
pub fn ensure(groups: &[Group], options: &Options) -> Result<Tools> {
    let dir = options.tools_dir();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    if groups.iter().all(|group| is_ready(&dir, *group)) {
        return Ok(Tools { dir });
    }
    let lock = fs::File::create(dir.join("lock"))?;
    lock.lock().context("cannot lock the tools directory")?;
    let missing: Vec<Group> = groups.iter().copied().filter(|group| !is_ready(&dir, *group)).collect();
    if !missing.is_empty() {
        let mirror = Mirror::find(Path::new("/etc/apt"), options.debian_mirror.as_deref())?;
        for group in missing {
            bring(&dir, group, &mirror)?;
        }
    }
    Ok(Tools { dir })
}

fn bring(dir: &Path, group: Group, mirror: &Mirror) -> Result<()> {
    let mut taken = bring_programs(dir, group, mirror)?;
    taken.sort();
    let stamp = format!("layout {LAYOUT}\n{}\n", taken.join("\n"));
    let path = stamp_path(dir, group);
    let partial = path.with_extension("partial");
    fs::write(&partial, stamp)?;
    fs::rename(partial, path)?;
    Ok(())
}

fn bring_programs(dir: &Path, group: Group, mirror: &Mirror) -> Result<Vec<String>> {
    let arch = host_arch()?;
    let root = Root::open(&dir.join(format!("apt-{arch}")), &dir.join("debs"), arch, mirror, &SUITES)?;
    let exact: Vec<_> = root
        .closure(group.packages())?
        .into_iter()
        .filter(|(name, _)| !NOT_NEEDED.contains(&name.as_str()))
        .collect();
    let debs = root.describe(&exact)?;
    unpack_all(&root, &debs, &dir.join("root"), group.name())?;
    for program in group.programs() {
        wrap(dir, program)?;
    }
    Ok(debs.iter().map(|deb| format!("{} {}", deb.name, deb.version)).collect())
}

fn unpack_all(root: &Root, debs: &[Deb], into: &Path, what: &str) -> Result<()> {
    let files = root.fetch(debs)?;
    let progress = Progress::step(&format!("unpack {what}"));
    for file in &files {
        unpack(file, into)?;
    }
    progress.done();
    Ok(())
}

/// A small script that starts the program with the C library it was built for.
fn wrap(dir: &Path, program: &str) -> Result<()> {
    let root = dir.join("root");
    let place =
        ["usr/bin", "usr/sbin", "sbin", "bin"].iter().find(|place| root.join(place).join(program).exists());
    let place = place.with_context(|| format!("the packages did not bring {program}"))?;
    let loader = ["usr/lib64", "lib64", "usr/lib", "lib"]
        .iter()
        .flat_map(|place| {
            ["ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"].map(|name| format!("{place}/{name}"))
        })
        .find(|path| root.join(path).exists())
        .context("the packages did not bring a loader")?;
    let libs = format!("{}-linux-gnu", std::env::consts::ARCH);
    // Programs that look for their data beside their own path, which is the loader's here.
    let more = match program {
        "qemu-system-aarch64" => " -L \"$root/usr/share/qemu\"",
        "clang-19" => " -resource-dir \"$root/usr/lib/llvm-19/lib/clang/19\"",
        _ => "",
    };
    let script = format!(
        "#!/bin/sh\n# Runs {program} from the unpacked packages, with their own C library.\nroot=\"$(cd \"${{0%/*}}/../root\" && pwd)\" || exit 127\nexec \"$root/{loader}\" --library-path \"$root/usr/lib/{libs}:$root/lib/{libs}\" \"$root/{place}/{program}\"{more} \"$@\"\n"
    );
    let path = dir.join("bin").join(program);
    fs::create_dir_all(dir.join("bin"))?;
    let mut file = fs::File::create(&path)?;
    file.write_all(script.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    ensure!(path.exists(), "cannot write {}", path.display());
    Ok(())
}

fn host_arch() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("tools are fetched for x86-64 and arm64 hosts; this is {other}"),
    }
}
