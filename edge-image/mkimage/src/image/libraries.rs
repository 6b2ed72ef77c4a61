//! Shared libraries: those that some program in the tree needs, found by walking what each ELF file names.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::Unpacked;
use crate::elf;
use crate::tree::{Node, Tree};

/// Where Debian keeps arm64 libraries, and where the root has them.
const DIR: &str = "usr/lib/aarch64-linux-gnu";
const LOADER: &str = "ld-linux-aarch64.so.1";

/// Adds what the programs already in the tree need, from the packages that hold libraries.
pub(super) fn add(tree: &mut Tree, sources: &[&Unpacked]) -> Result<()> {
    let mut todo: Vec<(String, PathBuf)> =
        tree.files().map(|(path, from)| (path.to_owned(), from.to_owned())).collect();
    let mut done = BTreeSet::new();
    while let Some((path, from)) = todo.pop() {
        let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        // Modules are ELF too, but link nothing.
        if !elf::is_elf(&bytes) || path.ends_with(".ko") {
            continue;
        }
        let found = elf::linkage(&bytes).with_context(|| format!("{path} is damaged"))?;
        ensure!(
            found.is_aarch64,
            "{} is not an aarch64 program: build it with --target aarch64-unknown-linux-musl",
            from.display()
        );
        let loader = found.interpreter.map(|_| LOADER.to_owned());
        for name in found.needed.into_iter().chain(loader) {
            if !done.insert(name.clone()) {
                continue;
            }
            let (file, origin) = find(sources, &name).with_context(|| format!("/{path} needs it"))?;
            let to = format!("{DIR}/{name}");
            tree.add(&to, Node::Copy(file.clone(), 0o755), &origin);
            if name == LOADER {
                tree.add(
                    &format!("usr/lib/{LOADER}"),
                    Node::Link(format!("aarch64-linux-gnu/{LOADER}")),
                    &origin,
                );
            }
            todo.push((to, file));
        }
    }
    Ok(())
}

fn find(sources: &[&Unpacked], name: &str) -> Result<(PathBuf, String)> {
    for source in sources {
        for dir in [DIR, "lib/aarch64-linux-gnu"] {
            // Through the version link, so that the file itself is packed under the name asked for.
            if let Ok(file) = source.dir.join(dir).join(name).canonicalize() {
                return Ok((file, source.origin()));
            }
        }
    }
    bail!("no package in board/*.toml with `libraries = true` has {name}")
}
