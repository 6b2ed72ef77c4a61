//! Kernel modules: found by name in the kernel's package, unpacked, with everything they depend on, in loading order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::elf;

/// Modules by name, `-` and `_` being the same.
#[derive(Debug)]
pub struct Index {
    xz: PathBuf,
    scratch: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module taken: unpacked file and what it says about itself.
#[derive(Debug, Clone)]
pub struct Module {
    pub name: String,
    /// Below `kernel/`, without `.xz`.
    pub path: String,
    pub file: PathBuf,
    pub depends: Vec<String>,
    pub aliases: Vec<String>,
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

impl Index {
    /// `modules`: the package's `usr/lib/modules/VERSION`; `base`: the one that holds `modules.builtin`; `scratch`: for unpacked files.
    pub fn open(modules: &Path, base: &Path, scratch: &Path, xz: &Path) -> Result<Index> {
        let mut files = BTreeMap::new();
        walk(&modules.join("kernel"), &mut files)?;
        ensure!(!files.is_empty(), "{} holds no modules", modules.display());
        let builtin = fs::read_to_string(base.join("modules.builtin"))
            .context("the kernel's base package has no modules.builtin")?
            .lines()
            .filter_map(|line| Some(normal(line.rsplit('/').next()?.strip_suffix(".ko")?)))
            .collect();
        fs::create_dir_all(scratch)?;
        Ok(Index { xz: xz.to_owned(), scratch: scratch.to_owned(), files, builtin })
    }

    /// The modules named and all they depend on, each after what it needs.
    pub fn closure(&self, names: &[String]) -> Result<Vec<Module>> {
        let mut taken = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.take(&normal(name), &mut taken, &mut seen)?;
        }
        Ok(taken)
    }

    fn take(&self, name: &str, taken: &mut Vec<Module>, seen: &mut BTreeSet<String>) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(packed) = self.files.get(name) else {
            bail!("this kernel has no module {name}: correct the list in board/*.toml");
        };
        let module = self.read(name, packed)?;
        for needed in &module.depends {
            self.take(needed, taken, seen)?;
        }
        taken.push(module);
        Ok(())
    }

    fn read(&self, name: &str, packed: &Path) -> Result<Module> {
        let file = self.scratch.join(format!("{name}.ko"));
        if !file.exists() {
            let out = Command::new(&self.xz).arg("-dc").arg(packed).output().context("cannot run xz")?;
            ensure!(out.status.success(), "cannot unpack {}", packed.display());
            let partial = file.with_extension("partial");
            fs::write(&partial, out.stdout)?;
            fs::rename(partial, &file)?;
        }
        let info =
            elf::modinfo(&fs::read(&file)?).with_context(|| format!("{} is damaged", packed.display()))?;
        let of = |key: &str| {
            info.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        let text = packed.to_string_lossy();
        let path =
            text.split_once("/kernel/").map_or(name, |(_, path)| path).trim_end_matches(".xz").to_owned();
        let mut depends: Vec<String> = of("depends")
            .iter()
            .flat_map(|list| list.split(','))
            .filter(|name| !name.is_empty())
            .map(normal)
            .collect();
        // Soft dependencies that come first; those the kernel does not have as modules are built in or optional.
        depends.extend(
            of("softdep")
                .iter()
                .filter_map(|text| text.split_once("pre:"))
                .flat_map(|(_, rest)| {
                    rest.split("post:")
                        .next()
                        .unwrap_or_default()
                        .split_whitespace()
                        .map(normal)
                        .collect::<Vec<_>>()
                })
                .filter(|name| self.files.contains_key(name)),
        );
        Ok(Module { name: name.to_owned(), path, file, depends, aliases: of("alias") })
    }
}

fn walk(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else if let Some(name) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(".ko"))
        {
            files.insert(normal(name.0), path);
        }
    }
    Ok(())
}
