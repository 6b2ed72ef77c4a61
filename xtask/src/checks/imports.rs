//! The import rules of docs/architecture.md, read from `cargo metadata`.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Which folders a package below `from` may import from. The first row that fits counts.
const RULES: &[(&str, &[&str])] = &[
    ("lib/", &["lib/"]),
    ("board/", &[]),
    ("qemu", &["board/"]),
    ("tests/e2e", &["qemu"]),
    ("tests/interop", &["tests/e2e"]),
    ("tests/mqtt", &["tests/e2e"]),
    // The suite of GPIO chips and the way from message to pin: the mapper's own parts, without its processes.
    ("tests/lines", &["edge-image/mapper", "lib/"]),
    ("tests/nodes", &["lib/"]),
    ("edge-image/mkimage", &["board/", "lib/"]),
    ("edge-image/mapper", &["board/", "lib/"]),
    ("edge-image/", &["lib/"]),
    ("cloud/", &["lib/", "cloud/"]),
    ("xtask", &["edge-image/mkimage", "board/", "qemu", "tests/e2e", "tests/interop", "tests/mqtt"]),
];

/// May the package in folder `from` import the one in folder `to`? Folders are relative to the root, without a slash in front.
fn allowed(from: &str, to: &str) -> bool {
    let rule = RULES.iter().find(|(prefix, _)| from.starts_with(prefix));
    rule.is_some_and(|(_, targets)| targets.iter().any(|target| to.starts_with(target)))
}

/// One line for every forbidden edge.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new().manifest_path(root.join("Cargo.toml")).no_deps().exec()?;
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let from = relative(root, package.manifest_path.as_std_path())?;
        for dependency in &package.dependencies {
            let Some(path) = &dependency.path else { continue };
            let to = relative(root, &path.as_std_path().join("Cargo.toml"))?;
            // A test may look at its product from outside in; end-to-end tests may not, whatever the kind.
            let is_test = dependency.kind == DependencyKind::Development && !from.starts_with("tests/");
            if !is_test && !allowed(&from, &to) {
                findings.push(format!(
                    "{from}/Cargo.toml: {} must not import {}; see docs/architecture.md",
                    package.name, dependency.name
                ));
            }
        }
    }
    findings.extend(modules(
        root,
        "edge-image/edgecore/src",
        &["hub", "meta", "edged", "twin", "bus", "node", "tunnel", "device_folder", "discovery"],
    )?);
    Ok(findings)
}

/// Inside edgecore modules meet in `contract`, not in each other.
fn modules(root: &Path, folder: &str, names: &[&str]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for module in names {
        for file in super::sources::rust_files(&root.join(folder).join(module))? {
            let text = std::fs::read_to_string(&file)?;
            for (number, line) in text.lines().enumerate() {
                let foreign = names.iter().find(|other| *other != module && names_module(line, other));
                if let Some(other) = foreign {
                    let file = file.strip_prefix(root)?.display();
                    findings.push(format!(
                        "{file}:{}: module {module} names module {other}; meet in contract",
                        number + 1
                    ));
                }
            }
        }
    }
    Ok(findings)
}

fn names_module(line: &str, module: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.contains(&format!("crate::{module}::")) || code.contains(&format!("crate::{module};"))
}

fn relative(root: &Path, manifest: &Path) -> Result<String> {
    let folder = manifest.parent().context("a manifest has a folder")?;
    Ok(folder
        .strip_prefix(root)
        .context("a path dependency outside the workspace")?
        .to_string_lossy()
        .into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edge_and_cloud_meet_only_in_lib() {
        assert!(allowed("edge-image/edgecore", "lib/wire"));
        assert!(allowed("cloud/cloudcore", "cloud/apiserver"));
        for (from, to) in [
            ("edge-image/edgecore", "cloud/apiserver"),
            ("cloud/cloudcore", "edge-image/edgecore"),
            ("lib/wire", "cloud/cloudcore"),
            ("tests/e2e", "lib/wire"),
            ("tests/interop", "cloud/cloudcore"),
            ("tests/e2e", "edge-image/edgecore"),
            ("edge-image/edgecore", "edge-image/mapper"),
            ("somewhere/new", "lib/wire"),
        ] {
            assert!(!allowed(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn a_module_is_named_in_code_and_not_in_a_comment() {
        assert!(names_module("use crate::hub::Link;", "hub"));
        assert!(!names_module("// see crate::hub::Link", "hub"));
    }
}
