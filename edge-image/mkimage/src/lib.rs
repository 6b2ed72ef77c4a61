//! Builds everything that is shipped as an image, without root and without loop devices.
//!
//! Is: the packer of device images ([`image`]), OCI archives ([`oci`]) and of the tools needed for both ([`tools`]), all from Debian
//! packages fetched in private apt roots ([`apt`]) and from our own static programs, whose paths it is given.
//! Is not: a build system. It compiles nothing; `xtask` does.
//! Invariants: every file in an image has an origin in its manifest; the same inputs give the same bytes.
//! Start at [`tools::ensure`] and [`oci::write_archive`].

pub mod apt;
mod boot;
pub mod cli;
pub mod deb;
pub mod disk;
pub mod elf;
mod extras;
pub mod fat;
pub mod image;
mod modules;
pub mod oci;
pub mod progress;
pub mod tools;
mod tree;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&chunk[..n]);
    }
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}
