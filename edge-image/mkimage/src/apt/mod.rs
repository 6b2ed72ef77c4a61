//! Debian packages without root: private apt roots beside the build output.
//!
//! Is: the only place that knows apt and dpkg. Everything that goes into an image, and every tool the host may lack
//! (QEMU, kubectl, squashfs-tools, ...), comes through here: signed indexes, `apt-get download`, `dpkg -x`.
//! Is not: an installer. Nothing is installed on the host and no package script is ever run.
//! Invariant: a deb in the cache has the SHA256 that a signed index (or the lock) gave for it.
//! Start at [`Root::open`].

pub mod lock;
pub mod mirror;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub use mirror::Mirror;

use crate::progress::Progress;
use crate::sha256_file;

/// One line of sources: a suite of the Debian archive.
#[derive(Debug, Clone)]
pub struct Suite {
    /// As in dists/: `trixie`, `trixie-security`, `trixie-backports`, `sid`.
    pub name: &'static str,
    pub components: &'static str,
    /// A moving suite's index expires within a week; mirrors that are frozen or slow then serve an expired one. Only for suites
    /// whose packages are locked by hash.
    pub may_be_expired: bool,
}

/// A package that an index offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub name: String,
    pub version: String,
    pub suite: String,
}

/// What an index says about one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deb {
    pub name: String,
    pub version: String,
    pub sha256: String,
    pub size: u64,
}

/// A private apt root for one architecture.
#[derive(Debug)]
pub struct Root {
    dir: PathBuf,
    cache: PathBuf,
    arch: String,
}

impl Root {
    /// Writes the configuration and fetches the indexes when they are older than a day (or were made for other sources).
    pub fn open(dir: &Path, cache: &Path, arch: &str, mirror: &Mirror, suites: &[Suite]) -> Result<Root> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            ensure!(
                crate::find_program(program).is_some(),
                "{program} is not on this machine. Packages are fetched with Debian's apt: use a Debian or Ubuntu host, or the Containerfile in the repository"
            );
        }
        for sub in
            ["etc/preferences.d", "etc/sources.list.d", "etc/apt.conf.d", "lists/partial", "archives/partial"]
        {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot make {}", dir.join(sub).display()))?;
        }
        fs::create_dir_all(cache)?;
        let dir = dir.canonicalize()?;
        let root = Root { cache: cache.canonicalize()?, arch: arch.to_owned(), dir };
        let sources: String = suites.iter().map(|suite| mirror.line(suite)).collect();
        root.configure(&sources, mirror)?;
        Ok(root)
    }

    fn configure(&self, sources: &str, mirror: &Mirror) -> Result<()> {
        let dir = self.dir.display();
        fs::write(self.dir.join("status"), "")?;
        fs::write(
            self.dir.join("apt.conf"),
            format!(
                r#"Dir::Etc "{dir}/etc"; Dir::Etc::sourcelist "{dir}/etc/sources.list"; Dir::Etc::sourceparts "{dir}/etc/sources.list.d";
Dir::Etc::main "{dir}/etc/none"; Dir::Etc::parts "{dir}/etc/apt.conf.d"; Dir::Etc::preferencesparts "{dir}/etc/preferences.d";
Dir::State "{dir}"; Dir::State::lists "{dir}/lists"; Dir::State::status "{dir}/status";
Dir::Cache "{dir}"; Dir::Cache::archives "{dir}/archives";
Dir::Log "{dir}";
APT::Architecture "{arch}"; APT::Architectures {{ "{arch}"; }};
APT::Install-Recommends "false"; APT::Sandbox::User "root"; APT::Get::AllowUnauthenticated "false";
Acquire::Languages "none"; Acquire::Retries "3"; Acquire::http::Timeout "30"; Acquire::https::Timeout "30";
"#,
                arch = self.arch
            ),
        )?;
        let list = self.dir.join("etc/sources.list");
        let stamp = self.dir.join("updated");
        let unchanged = fs::read_to_string(&list).is_ok_and(|have| have == sources);
        let fresh = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() < 24 * 3600));
        if unchanged && fresh {
            return Ok(());
        }
        fs::write(&list, sources)?;
        let progress = Progress::step(&format!("package indexes for {}", self.arch));
        self.run("apt-get", &["-q", "-q", "update"]).with_context(|| {
            format!(
                "cannot fetch Debian's package indexes from {}: check the network, or name another mirror with --debian-mirror URL",
                mirror.debian
            )
        })?;
        fs::write(&stamp, "")?;
        progress.done();
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = self
            .command(program)
            .args(args)
            .current_dir(&self.dir)
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if !out.status.success() {
            let errors = String::from_utf8_lossy(&out.stderr);
            let last: Vec<&str> = errors
                .lines()
                .filter(|line| line.starts_with("E:") || line.starts_with("W:"))
                .take(6)
                .collect();
            bail!("{program} {} failed: {}", args.first().unwrap_or(&""), last.join("; "));
        }
        Ok(text)
    }

    /// Every version the indexes offer of these packages, newest first per package.
    pub fn offers(&self, names: &[&str]) -> Result<Vec<Offer>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut args = vec!["madison"];
        args.extend(names);
        Ok(parse_madison(&self.run("apt-cache", &args)?))
    }

    /// All package names that begin so.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(self.run("apt-cache", &["pkgnames", prefix])?.lines().map(str::to_owned).collect())
    }

    /// Hash and size of exact versions.
    pub fn describe(&self, wanted: &[(String, String)]) -> Result<Vec<Deb>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let specs: Vec<String> = wanted.iter().map(|(name, version)| format!("{name}={version}")).collect();
        let mut args = vec!["show", "--no-all-versions"];
        args.extend(specs.iter().map(String::as_str));
        let found = parse_show(&self.run("apt-cache", &args)?);
        wanted
            .iter()
            .map(|(name, version)| {
                found
                    .get(&(name.clone(), version.clone()))
                    .cloned()
                    .with_context(|| format!("the index has no {name} {version}"))
            })
            .collect()
    }

    /// The packages and all they depend on, as apt would install them on an empty system.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<(String, String)>> {
        let mut args = vec!["install", "-s", "-q", "-y", "--no-install-recommends"];
        args.extend(names);
        let mut found: Vec<(String, String)> = self
            .run("apt-get", &args)?
            .lines()
            .filter_map(|line| {
                let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
                let version = rest.split_once('(')?.1.split_whitespace().next()?;
                Some((name.split(':').next().unwrap_or(name).to_owned(), version.to_owned()))
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// The file of a deb in the cache, named by its hash, whether or not it is there yet.
    pub fn cached(&self, deb: &Deb) -> PathBuf {
        self.cache.join(format!("{}_{}_{}.deb", deb.name, deb.version.replace(':', "%3a"), &deb.sha256[..12]))
    }

    /// Downloads what the cache lacks. Returns the files in the order given.
    pub fn fetch(&self, debs: &[Deb]) -> Result<Vec<PathBuf>> {
        let missing: Vec<&Deb> = debs.iter().filter(|deb| !self.cached(deb).exists()).collect();
        if !missing.is_empty() {
            self.download(&missing)?;
        }
        Ok(debs.iter().map(|deb| self.cached(deb)).collect())
    }

    fn download(&self, missing: &[&Deb]) -> Result<()> {
        let bytes: u64 = missing.iter().map(|deb| deb.size).sum();
        let partial = tempfile::Builder::new().prefix("fetch").tempdir_in(&self.cache)?;
        let progress = Progress::bytes(&format!("{} packages for {}", missing.len(), self.arch), bytes);
        let specs: Vec<String> = missing.iter().map(|deb| format!("{}={}", deb.name, deb.version)).collect();
        let errors = partial.path().join("errors");
        let mut child = self
            .command("apt-get")
            .args(["-q", "-q", "download"])
            .args(&specs)
            .current_dir(partial.path())
            .stdout(std::process::Stdio::null())
            .stderr(fs::File::create(&errors)?)
            .spawn()
            .context("cannot run apt-get")?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            progress.at(dir_size(partial.path()));
            std::thread::sleep(std::time::Duration::from_millis(200));
        };
        let text = fs::read_to_string(&errors).unwrap_or_default();
        ensure!(
            status.success(),
            "cannot download packages: {}. Run the same command again: what is already there is kept",
            text.lines().filter(|line| line.starts_with("E:")).collect::<Vec<_>>().join("; ")
        );
        for entry in fs::read_dir(partial.path())? {
            let path = entry?.path();
            if path.extension().is_none_or(|ext| ext != "deb") {
                continue;
            }
            let sha256 = sha256_file(&path)?;
            let Some(deb) = missing.iter().find(|deb| deb.sha256 == sha256) else {
                bail!(
                    "{} has SHA256 {sha256}, which no index gave for it: the mirror is inconsistent, try again later",
                    path.display()
                );
            };
            fs::rename(&path, self.cached(deb))?;
        }
        for deb in missing {
            ensure!(self.cached(deb).exists(), "apt-get download did not bring {} {}", deb.name, deb.version);
        }
        progress.done();
        Ok(())
    }
}

/// Unpacks the files of a package; its scripts are not run.
pub fn unpack(deb: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    let status =
        Command::new("dpkg-deb").arg("-x").arg(deb).arg(into).status().context("cannot run dpkg-deb")?;
    ensure!(status.success(), "dpkg-deb cannot unpack {}", deb.display());
    Ok(())
}

fn dir_size(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

fn parse_madison(text: &str) -> Vec<Offer> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.split(" | ").map(str::trim);
            let (name, version, origin) = (parts.next()?, parts.next()?, parts.next()?);
            let suite = origin.split_whitespace().nth(1)?.split('/').next()?;
            Some(Offer { name: name.to_owned(), version: version.to_owned(), suite: suite.to_owned() })
        })
        .collect()
}

fn parse_show(text: &str) -> BTreeMap<(String, String), Deb> {
    let mut found = BTreeMap::new();
    for block in text.split("\n\n") {
        let field = |key: &str| {
            block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).map(str::to_owned)
        };
        if let (Some(name), Some(version), Some(sha256), Some(size)) =
            (field("Package"), field("Version"), field("SHA256"), field("Size"))
            && let Ok(size) = size.parse()
        {
            found.insert((name.clone(), version.clone()), Deb { name, version, sha256, size });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn madison_and_show_are_read() {
        let offers = parse_madison(
            " containerd | 2.1.9+ds1-5 | http://mirror/debian sid/main arm64 Packages\ncontainerd | 1.7.24~ds1-6 | http://mirror/debian-security trixie-security/main arm64 Packages\n",
        );
        assert_eq!(offers.len(), 2);
        assert_eq!(offers[1].suite, "trixie-security");
        let shown = parse_show(
            "Package: a\nVersion: 1:2-3\nSize: 12\nSHA256: ff00\nDescription: x\n y: z\n\nPackage: b\nVersion: 1\n",
        );
        assert_eq!(shown.len(), 1, "an entry without a hash is no entry");
        assert_eq!(shown[&("a".into(), "1:2-3".into())].size, 12);
    }
}
