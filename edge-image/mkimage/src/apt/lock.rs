//! The package lock: which version of each package an image is made of.
//!
//! A release build takes exactly what the lock says. A build in CI may meet a mirror that has dropped a locked version: it then takes
//! the newest of the same suite and the same major.minor, prints that, and the image's manifest records it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Deb, Offer, Root};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The kernel's version as it stands in its packages' names, e.g. `7.2.12+deb13-arm64`.
    pub kernel: String,
    #[serde(rename = "package", default)]
    pub packages: Vec<Locked>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    pub name: String,
    pub suite: String,
    pub version: String,
    pub sha256: String,
    pub size: u64,
}

/// What to do when the mirror no longer has a locked version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Stop.
    Release,
    /// Take the newest with the same suite and major.minor.
    Ci,
}

/// A package that the image wants: name (may contain `{kernel}`) and suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    pub name: String,
    pub suite: String,
}

/// What was taken, and whether that is what the lock says.
#[derive(Debug, Clone)]
pub struct Chosen {
    pub want: Want,
    pub deb: Deb,
    pub instead_of: Option<String>,
}

const HEADER: &str = "# Which version of each Debian package an image is made of. Written by `cargo run -p mkimage -- lock`; do not edit.\n\n";

impl Lock {
    pub fn load(path: &Path) -> Result<Lock> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the package lock {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("the package lock {} is damaged", path.display()))
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, format!("{HEADER}{}", toml::to_string(self)?))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The newest of everything: what `mkimage lock` writes.
    pub fn newest(root: &Root, wants: &[Want]) -> Result<Lock> {
        let kernel = newest_kernel(root)?;
        let mut lock = Lock { kernel, packages: Vec::new() };
        let names: Vec<String> = wants.iter().map(|want| lock.resolve_name(&want.name)).collect();
        let offers = root.offers(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let mut exact = Vec::new();
        for (want, name) in wants.iter().zip(&names) {
            let offer = newest_in(&offers, name, &want.suite)
                .with_context(|| format!("{} has no package {name}", want.suite))?;
            exact.push((name.clone(), offer.version.clone()));
        }
        for (want, deb) in wants.iter().zip(root.describe(&exact)?) {
            lock.packages.push(Locked {
                name: want.name.clone(),
                suite: want.suite.clone(),
                version: deb.version,
                sha256: deb.sha256,
                size: deb.size,
            });
        }
        lock.packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(lock)
    }

    pub fn resolve_name(&self, name: &str) -> String {
        name.replace("{kernel}", &self.kernel)
    }

    /// Picks a version for every wanted package by the policy. Changes `self.kernel` only under [`Policy::Ci`].
    pub fn choose(&mut self, root: &Root, wants: &[Want], policy: Policy) -> Result<Vec<Chosen>> {
        if let Some(chosen) = self.all_from_lock(root, wants) {
            return Ok(chosen);
        }
        let mut names: Vec<String> = wants.iter().map(|want| self.resolve_name(&want.name)).collect();
        let mut offers = root.offers(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let kernel_gone = wants
            .iter()
            .zip(&names)
            .any(|(want, name)| want.name != *name && !offers.iter().any(|offer| offer.name == *name));
        if kernel_gone {
            let other = same_kernel_series(root, &self.kernel)?;
            match (policy, other) {
                (Policy::Ci, Some(other)) => {
                    eprintln!(
                        "note: kernel {} is gone from the mirror, taking {other} (recorded in the manifest)",
                        self.kernel
                    );
                    self.kernel = other;
                    names = wants.iter().map(|want| self.resolve_name(&want.name)).collect();
                    offers = root.offers(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
                }
                (_, other) => return Err(gone("the kernel", &self.kernel, other.as_deref())),
            }
        }
        let mut exact = Vec::new();
        let mut instead = BTreeMap::new();
        for (want, name) in wants.iter().zip(&names) {
            let locked =
                self.packages.iter().find(|package| package.name == want.name && package.suite == want.suite);
            let Some(locked) = locked else {
                bail!(
                    "{} ({}) is not in the package lock: run `cargo run -p mkimage -- lock`",
                    want.name,
                    want.suite
                );
            };
            if offers.iter().any(|offer| offer.name == *name && offer.version == locked.version) {
                exact.push((name.clone(), locked.version.clone()));
                continue;
            }
            let near = newest_in(&offers, name, &want.suite).filter(|offer| {
                kernel_gone && want.name != *name || same_series(&offer.version, &locked.version)
            });
            match (policy, near) {
                (Policy::Ci, Some(offer)) => {
                    eprintln!(
                        "note: {name} {} is gone from the mirror, taking {} (recorded in the manifest)",
                        locked.version, offer.version
                    );
                    instead.insert(name.clone(), locked.version.clone());
                    exact.push((name.clone(), offer.version.clone()));
                }
                (_, near) => {
                    return Err(gone(name, &locked.version, near.map(|offer| offer.version.as_str())));
                }
            }
        }
        let debs = root.describe(&exact)?;
        for (want, deb) in wants.iter().zip(&debs) {
            let locked = self
                .packages
                .iter()
                .find(|package| package.name == want.name && package.version == deb.version);
            if let Some(locked) = locked.filter(|locked| locked.sha256 != deb.sha256) {
                bail!(
                    "{} {} has SHA256 {} on the mirror, the lock says {}: somebody changed a released package",
                    deb.name,
                    deb.version,
                    deb.sha256,
                    locked.sha256
                );
            }
        }
        Ok(wants
            .iter()
            .cloned()
            .zip(debs)
            .map(|(want, deb)| Chosen { instead_of: instead.get(&deb.name).cloned(), want, deb })
            .collect())
    }

    /// When the cache already holds every locked package, no index is asked.
    fn all_from_lock(&self, root: &Root, wants: &[Want]) -> Option<Vec<Chosen>> {
        wants
            .iter()
            .map(|want| {
                let locked = self
                    .packages
                    .iter()
                    .find(|package| package.name == want.name && package.suite == want.suite)?;
                let deb = Deb {
                    name: self.resolve_name(&want.name),
                    version: locked.version.clone(),
                    sha256: locked.sha256.clone(),
                    size: locked.size,
                };
                root.cached(&deb).exists().then(|| Chosen { want: want.clone(), deb, instead_of: None })
            })
            .collect()
    }
}

fn gone(name: &str, version: &str, near: Option<&str>) -> anyhow::Error {
    let offer = near.map_or_else(String::new, |near| format!(" (it now has {near})"));
    anyhow::anyhow!(
        "the mirror no longer has {name} {version}{offer}. To move the lock on: `cargo run -p mkimage -- lock`, then test and commit board/lock.toml; to build once with what there is: --ci"
    )
}

/// `trixie` stands for the release with its point-release and security updates.
fn suite_matches(offer: &str, wanted: &str) -> bool {
    offer == wanted || wanted == "trixie" && (offer == "trixie-security" || offer == "trixie-updates")
}

fn newest_in<'o>(offers: &'o [Offer], name: &str, suite: &str) -> Option<&'o Offer> {
    // madison lists newest first
    offers.iter().find(|offer| offer.name == name && suite_matches(&offer.suite, suite))
}

/// Same upstream major.minor: `1.7.24~ds1-6` and `1.7.25-1`.
fn same_series(a: &str, b: &str) -> bool {
    let series = |version: &str| {
        let upstream = version.split_once(':').map_or(version, |(_, after)| after);
        upstream.split(|c: char| !c.is_ascii_digit()).take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    series(a) == series(b)
}

fn kernel_numbers(version: &str) -> Vec<u32> {
    version.split(['.', '+']).take(3).filter_map(|part| part.parse().ok()).collect()
}

fn kernels(root: &Root) -> Result<Vec<String>> {
    let mut found: Vec<String> = root
        .names("linux-modules-")?
        .iter()
        .filter_map(|name| name.strip_prefix("linux-modules-"))
        .filter(|version| {
            version.ends_with("+deb13-arm64") && version.starts_with(|c: char| c.is_ascii_digit())
        })
        .map(str::to_owned)
        .collect();
    found.sort_by_key(|version| kernel_numbers(version));
    Ok(found)
}

/// The kernel the backports' meta package stands for (several series lie side by side in the index; the newest is not the blessed one).
fn newest_kernel(root: &Root) -> Result<String> {
    let offers = root.offers(&["linux-image-arm64"])?;
    let meta = newest_in(&offers, "linux-image-arm64", "trixie-backports")
        .context("trixie-backports has no linux-image-arm64")?;
    let numbers = meta.version.split('-').next().unwrap_or_default();
    Ok(format!("{numbers}+deb13-arm64"))
}

fn same_kernel_series(root: &Root, version: &str) -> Result<Option<String>> {
    let series = kernel_numbers(version).into_iter().take(2).collect::<Vec<_>>();
    Ok(kernels(root)?.into_iter().rev().find(|found| kernel_numbers(found).starts_with(&series)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_compared_by_major_and_minor() {
        assert!(same_series("1.7.24~ds1-6+deb13u1", "1.7.25-1"));
        assert!(same_series("1:9.2-1", "9.2.4"));
        assert!(!same_series("1.7.24", "1.8.0"));
        assert!(!same_series("2.41-12", "2.42-1"));
    }

    #[test]
    fn a_lock_with_an_unknown_key_is_refused() {
        let text = "kernel = \"7.2.1+deb13-arm64\"\n[[package]]\nname='a'\nsuite='trixie'\nversion='1'\nsha256='0'\nsize=1\n";
        assert!(toml::from_str::<Lock>(text).is_ok());
        assert!(toml::from_str::<Lock>(&text.replace("size", "sizes")).is_err());
    }
}
