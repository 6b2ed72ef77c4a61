//! A file tree in memory, with the origin of every entry; written out as a directory or as an initramfs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::{sha256_file, sha256_hex};

#[derive(Debug, Clone)]
pub enum Node {
    Dir,
    /// A character device: major, minor. Only in an initramfs, since making one in a directory needs root.
    Device(u32, u32),
    Link(String),
    Copy(PathBuf, u32),
    Bytes(Vec<u8>, u32),
}

#[derive(Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<String, (Node, String)>,
}

/// A row of the manifest.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Row {
    pub path: String,
    pub origin: String,
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Tree {
    /// Adds an entry at a path without a leading slash; its parents appear by themselves.
    pub fn add(&mut self, path: &str, node: Node, origin: &str) {
        let mut end = 0;
        while let Some(slash) = path[end..].find('/') {
            end += slash;
            self.nodes.entry(path[..end].to_owned()).or_insert_with(|| (Node::Dir, origin.to_owned()));
            end += 1;
        }
        self.nodes.insert(path.to_owned(), (node, origin.to_owned()));
    }

    /// Copies a directory of static files as it is.
    pub fn add_dir(&mut self, from: &Path, origin: &str) -> Result<()> {
        self.add_below(from, "", origin)
    }

    fn add_below(&mut self, from: &Path, prefix: &str, origin: &str) -> Result<()> {
        let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                bail!("odd file name in {}", from.display())
            };
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let meta = fs::symlink_metadata(entry.path())?;
            if meta.is_dir() {
                self.add(&path, Node::Dir, origin);
                self.add_below(&entry.path(), &path, origin)?;
            } else if meta.is_symlink() {
                self.add(
                    &path,
                    Node::Link(fs::read_link(entry.path())?.to_string_lossy().into_owned()),
                    origin,
                );
            } else {
                let mode = if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
                self.add(&path, Node::Copy(entry.path(), mode), origin);
            }
        }
        Ok(())
    }

    /// Regular files with the place their bytes are in.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.nodes.iter().filter_map(|(path, (node, _))| match node {
            Node::Copy(from, _) => Some((path.as_str(), from.as_path())),
            _ => None,
        })
    }

    pub fn manifest(&self) -> Result<Vec<Row>> {
        self.nodes
            .iter()
            .filter(|(_, (node, _))| matches!(node, Node::Copy(..) | Node::Bytes(..) | Node::Link(_)))
            .map(|(path, (node, origin))| {
                let (size, sha256) = match node {
                    Node::Copy(from, _) => (fs::metadata(from)?.len(), Some(sha256_file(from)?)),
                    Node::Bytes(bytes, _) => (bytes.len() as u64, Some(sha256_hex(bytes))),
                    _ => (0, None),
                };
                Ok(Row { path: format!("/{path}"), origin: origin.clone(), size, sha256 })
            })
            .collect()
    }

    /// Writes the tree into an empty directory, ready for mksquashfs.
    pub fn write_dir(&self, into: &Path) -> Result<()> {
        if into.exists() {
            fs::remove_dir_all(into).with_context(|| format!("cannot clear {}", into.display()))?;
        }
        fs::create_dir_all(into)?;
        for (path, (node, _)) in &self.nodes {
            let to = into.join(path);
            match node {
                Node::Dir => fs::create_dir_all(&to)?,
                Node::Device(..) => bail!("{path}: a device node cannot be made without root"),
                Node::Link(target) => symlink(target, &to)?,
                Node::Copy(from, mode) => {
                    fs::copy(from, &to)
                        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
                    fs::set_permissions(&to, fs::Permissions::from_mode(*mode))?;
                }
                Node::Bytes(bytes, mode) => {
                    fs::write(&to, bytes)?;
                    fs::set_permissions(&to, fs::Permissions::from_mode(*mode))?;
                }
            }
        }
        Ok(())
    }

    /// The tree as an uncompressed initramfs (cpio, "newc").
    pub fn cpio(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, (node, _))) in self.nodes.iter().enumerate() {
            let (mode, device, bytes) = match node {
                Node::Dir => (0o040_755, (0, 0), Vec::new()),
                Node::Device(major, minor) => (0o020_600, (*major, *minor), Vec::new()),
                Node::Link(target) => (0o120_777, (0, 0), target.clone().into_bytes()),
                Node::Copy(from, mode) => (
                    0o100_000 | mode,
                    (0, 0),
                    fs::read(from).with_context(|| format!("cannot read {}", from.display()))?,
                ),
                Node::Bytes(bytes, mode) => (0o100_000 | mode, (0, 0), bytes.clone()),
            };
            cpio_entry(&mut out, u32::try_from(number)? + 1, path, mode, device, &bytes)?;
        }
        cpio_entry(&mut out, 0, "TRAILER!!!", 0, (0, 0), &[])?;
        Ok(out)
    }
}

fn cpio_entry(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    device: (u32, u32),
    bytes: &[u8],
) -> Result<()> {
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(bytes.len())?,
        0,
        0,
        device.0,
        device.1,
        u32::try_from(path.len())? + 1,
        0,
    ];
    out.write_all(b"070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_and_a_manifest_come_out_with_parents_and_origins() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut tree = Tree::default();
        tree.add("usr/bin/a", Node::Bytes(b"x".to_vec(), 0o755), "ours 1");
        tree.add("bin", Node::Link("usr/bin".into()), "layout");
        let out = dir.path().join("root");
        tree.write_dir(&out).expect("written");
        assert_eq!(fs::read(out.join("bin/a")).expect("through the link"), b"x");
        assert_eq!(fs::metadata(out.join("usr/bin/a")).expect("meta").permissions().mode() & 0o777, 0o755);
        let rows = tree.manifest().expect("manifest");
        assert_eq!(rows.len(), 2, "directories are not listed: {rows:?}");
        assert_eq!(
            (rows[1].path.as_str(), rows[1].origin.as_str(), rows[1].size),
            ("/usr/bin/a", "ours 1", 1)
        );
    }

    #[test]
    fn the_initramfs_is_the_format_the_kernel_reads() {
        let mut tree = Tree::default();
        tree.add("init", Node::Bytes(b"abc".to_vec(), 0o755), "ours");
        let cpio = tree.cpio().expect("cpio");
        let expected = format!(
            "070701{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}init\0\0abc\0",
            1, 0o100_755, 0, 0, 1, 0, 3, 0, 0, 0, 0, 5, 0
        );
        let text = String::from_utf8_lossy(&cpio);
        assert!(text.starts_with(&expected), "{text}\n{expected}");
        assert_eq!(cpio.len() % 4, 0);
    }
}
