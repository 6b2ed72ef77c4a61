//! Debian packages, written without Debian's tools: `ar` around two tar files.
//!
//! Is: the writer ([`write`]), and what the node's package has in it ([`node`]). Is not: a builder of programs.
//! Invariant: the same inputs give the same bytes; no file has a time or an owner of this machine.
//! Source of the format: deb(5), Debian policy chapters 5, 6 and 10.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};

/// A file of a package; its path has no leading slash.
#[derive(Clone, Debug)]
pub struct File {
    pub path: String,
    pub mode: u32,
    pub bytes: Vec<u8>,
}

/// A package.
#[derive(Clone, Debug, Default)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// `amd64`, `arm64`.
    pub arch: String,
    /// Further fields of `control`, in their order.
    pub fields: Vec<(&'static str, String)>,
    pub files: Vec<File>,
    /// Paths among the files whose changes by an administrator are kept.
    pub conffiles: Vec<&'static str>,
    /// `postinst`, `prerm`, `postrm`.
    pub scripts: Vec<(&'static str, Vec<u8>)>,
}

impl Package {
    /// `kinglet-edgecore_0.1.0_arm64.deb`
    pub fn file_name(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version, self.arch)
    }
}

/// Writes a package to `out`.
pub fn write(package: &Package, out: &Path) -> Result<()> {
    for file in &package.files {
        let relative =
            !file.path.starts_with('/') && !file.path.split('/').any(|part| part.is_empty() || part == "..");
        ensure!(relative, "{:?} is not a path for a package", file.path);
    }
    let control = control_archive(package)?;
    let mut data = tar::Builder::new(gzip());
    add_files(&mut data, &package.files)?;
    let data = data.into_inner()?.finish()?;
    let mut ar = b"!<arch>\n".to_vec();
    for (name, bytes) in
        [("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", &control), ("data.tar.gz", &data)]
    {
        writeln!(ar, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, "100644", bytes.len())?;
        ar.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            ar.push(b'\n');
        }
    }
    fs::write(out, ar).with_context(|| format!("cannot write {}", out.display()))
}

fn gzip() -> flate2::write::GzEncoder<Vec<u8>> {
    GzBuilder::new().mtime(0).write(Vec::new(), Compression::best())
}

fn control_archive(package: &Package) -> Result<Vec<u8>> {
    let installed_kib: usize = package.files.iter().map(|file| file.bytes.len().div_ceil(1024)).sum();
    let mut control =
        format!("Package: {}\nVersion: {}\nArchitecture: {}\n", package.name, package.version, package.arch);
    writeln!(control, "Installed-Size: {installed_kib}")?;
    for (name, value) in &package.fields {
        writeln!(control, "{name}: {value}")?;
    }
    let mut sums = String::new();
    for file in package.files.iter().filter(|file| !package.conffiles.contains(&file.path.as_str())) {
        writeln!(sums, "{}  {}", md5_hex(&file.bytes), file.path)?;
    }
    let conffiles: String = package.conffiles.iter().map(|path| format!("/{path}\n")).collect();
    let text = |path: &str, text: String| File { path: path.into(), mode: 0o644, bytes: text.into_bytes() };
    let mut files = vec![text("control", control), text("md5sums", sums), text("conffiles", conffiles)];
    files.extend(package.scripts.iter().map(|(name, bytes)| File {
        path: (*name).into(),
        mode: 0o755,
        bytes: bytes.clone(),
    }));
    let mut tar = tar::Builder::new(gzip());
    add_files(&mut tar, &files)?;
    Ok(tar.into_inner()?.finish()?)
}

/// Files with their folders before them, all root's.
fn add_files<W: std::io::Write>(tar: &mut tar::Builder<W>, files: &[File]) -> Result<()> {
    let mut files: Vec<&File> = files.iter().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut folders = BTreeSet::from([String::new()]);
    let mut header = |kind: tar::EntryType, path: &str, mode: u32, bytes: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        header.set_username("root")?;
        header.set_groupname("root")?;
        // The crate's own way drops the "./" that packages have.
        let path = format!("./{path}");
        let name = &mut header.as_gnu_mut().context("it was made as one")?.name;
        ensure!(path.len() < name.len(), "{path} is too long for a package");
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, bytes)?;
        Ok(())
    };
    header(tar::EntryType::Directory, "", 0o755, &[])?;
    for file in files {
        let ends = file.path.match_indices('/').map(|(at, _)| &file.path[..at]);
        for folder in ends {
            if folders.insert(folder.to_owned()) {
                header(tar::EntryType::Directory, &format!("{folder}/"), 0o755, &[])?;
            }
        }
        header(tar::EntryType::Regular, &file.path, file.mode, &file.bytes)?;
    }
    Ok(())
}

/// What `dpkg --verify` compares; it protects against nothing but broken disks.
fn md5_hex(bytes: &[u8]) -> String {
    hex::encode(md5(bytes))
}

/// RFC 1321.
fn md5(bytes: &[u8]) -> [u8; 16] {
    const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
    let table: [u32; 64] = std::array::from_fn(|n| ((n as f64 + 1.0).sin().abs() * 4_294_967_296.0) as u32);
    let mut state = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    let mut padded = bytes.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((bytes.len() as u64).wrapping_mul(8).to_le_bytes());
    for block in padded.chunks_exact(64) {
        let word = |at: usize| {
            u32::from_le_bytes([block[4 * at], block[4 * at + 1], block[4 * at + 2], block[4 * at + 3]])
        };
        let [mut a, mut b, mut c, mut d] = state;
        for n in 0..64 {
            let (mix, at) = match n / 16 {
                0 => ((b & c) | (!b & d), n),
                1 => ((d & b) | (!d & c), (5 * n + 1) % 16),
                2 => (b ^ c ^ d, (3 * n + 5) % 16),
                _ => (c ^ (b | !d), (7 * n) % 16),
            };
            let sum = a.wrapping_add(mix).wrapping_add(table[n]).wrapping_add(word(at));
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(SHIFTS[n / 16][n % 4]));
        }
        for (whole, part) in state.iter_mut().zip([a, b, c, d]) {
            *whole = whole.wrapping_add(part);
        }
    }
    let mut digest = [0; 16];
    for (at, word) in state.iter().enumerate() {
        digest[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
    }
    digest
}

/// What the node's package is made of.
#[derive(Clone, Debug)]
pub struct Node {
    /// `edge-image/deb` of the checkout: units, scripts, texts.
    pub texts: PathBuf,
    pub version: String,
    /// `amd64`, `arm64`.
    pub arch: String,
    pub edgecore: PathBuf,
    pub mapper: PathBuf,
    /// OCI archive of the sandbox image.
    pub pause: PathBuf,
}

/// The package `kinglet-edgecore`: a node on a host that is not our image. The configuration is no file of the package: `join` and
/// `adopt` write it, and on a node of KubeEdge's it is there already.
pub fn node(parts: &Node) -> Result<Package> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let text = |name: &str| read(&parts.texts.join(name));
    let mut files = Vec::new();
    let mut add = |path: &str, mode: u32, bytes: Vec<u8>| files.push(File { path: path.into(), mode, bytes });
    add("usr/bin/edgecore", 0o755, read(&parts.edgecore)?);
    add("usr/bin/mapper", 0o755, read(&parts.mapper)?);
    add("usr/share/kinglet/images/pause.tar", 0o644, read(&parts.pause)?);
    for unit in ["kinglet-edgecore.service", "kinglet-line-holder.service", "kinglet-mapper.service"] {
        add(&format!("usr/lib/systemd/system/{unit}"), 0o644, text(unit)?);
    }
    add("usr/share/kinglet/cni/10-kinglet.conflist", 0o644, text("10-kinglet.conflist")?);
    add("usr/share/kinglet/containerd-check.conf", 0o644, text("containerd-check.conf")?);
    add("etc/default/kinglet", 0o644, text("default")?);
    add("usr/share/doc/kinglet-edgecore/README", 0o644, text("README")?);
    add("usr/share/doc/kinglet-edgecore/copyright", 0o644, text("copyright")?);
    let mut changelog = gzip();
    writeln!(
        changelog,
        "kinglet-edgecore ({}) unstable; urgency=medium\n\n  * See the history of the sources.\n\n -- {MAINTAINER}  Sat, 21 Nov 2026 08:00:00 +0000",
        parts.version
    )?;
    add("usr/share/doc/kinglet-edgecore/changelog.gz", 0o644, changelog.finish()?);
    let field = |name, value: &str| (name, value.to_owned());
    Ok(Package {
        name: "kinglet-edgecore".into(),
        version: parts.version.clone(),
        arch: parts.arch.clone(),
        fields: vec![
            field("Maintainer", MAINTAINER),
            field("Section", "admin"),
            field("Priority", "optional"),
            field("Recommends", "containerd | containerd.io, containernetworking-plugins, iptables"),
            field(
                "Description",
                "Kubernetes edge node that works with KubeEdge's cloud\n A small agent that runs pods through containerd, also without a network, mirrors devices over\n MQTT, and speaks KubeEdge's protocol. It takes a node over from KubeEdge's edgecore without\n restarting a container, and gives it back. With it: the mapper for GPIO, serial lines and Modbus.",
            ),
        ],
        files,
        conffiles: vec!["etc/default/kinglet"],
        scripts: ["postinst", "prerm", "postrm"]
            .into_iter()
            .map(|name| Ok((name, text(name)?)))
            .collect::<Result<_>>()?,
    })
}

const MAINTAINER: &str = "The Kinglet authors <kinglet@example.invalid>";

#[cfg(test)]
mod tests;
