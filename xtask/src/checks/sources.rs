//! Rules that are about text: where dependencies are declared, where `unsafe` may stand, what must not be committed.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// Folders whose code may hold `unsafe` (CONTRIBUTING.md).
const UNSAFE_ALLOWED: &[&str] = &[
    "edge-image/init/",
    "edge-image/pause/",
    "edge-image/examples/",
    "edge-image/mapper/",
    "edge-image/mkimage/src/elf",
    "lib/rt/src/sys",
];

pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in rust_files(root)? {
        let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file)?;
        findings.extend(unsafe_blocks(&name, &text));
    }
    for folder in ["lib", "edge-image", "cloud", "board", "qemu", "tests", "xtask"] {
        for manifest in files(&root.join(folder), "Cargo.toml")? {
            let name = manifest.strip_prefix(root)?.to_string_lossy().into_owned();
            // A workspace of its own (pause) cannot inherit.
            let text = std::fs::read_to_string(&manifest)?;
            if !text.contains("[workspace]") {
                findings.extend(own_versions(&name, &text));
            }
        }
    }
    findings.extend(dependency_lines(root)?);
    Ok(findings)
}

/// `unsafe` only where it is allowed, and never without a SAFETY comment in the three lines above it.
fn unsafe_blocks(name: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let is_block = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
    };
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| is_block(line)) {
        let number = index + 1;
        if line.contains('"') {
            continue;
        }
        if !UNSAFE_ALLOWED.iter().any(|folder| name.starts_with(folder)) {
            findings.push(format!("{name}:{number}: unsafe is not allowed here (CONTRIBUTING.md)"));
        } else if !lines[index.saturating_sub(6)..=index]
            .iter()
            .any(|l| l.contains("SAFETY") || l.contains("# Safety"))
        {
            findings.push(format!("{name}:{number}: unsafe without a SAFETY comment"));
        }
    }
    findings
}

/// Dependencies name the workspace's version, never their own.
fn own_versions(name: &str, text: &str) -> Vec<String> {
    let Ok(manifest) = text.parse::<toml::Table>() else { return vec![format!("{name}: not TOML")] };
    let mut findings = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (crate_name, value) in manifest.get(section).and_then(|s| s.as_table()).into_iter().flatten() {
            let inherits = value.get("workspace").and_then(|w| w.as_bool()) == Some(true);
            // A crate that tests itself with a feature switched on names its own folder.
            let itself = value.get("path").and_then(|path| path.as_str()) == Some(".");
            if !inherits && !itself {
                findings.push(format!(
                    "{name}: {crate_name} must be `workspace = true`; versions stand in the root Cargo.toml"
                ));
            }
        }
    }
    findings
}

/// Every dependency of the workspace has its line in docs/dependencies.md.
fn dependency_lines(root: &Path) -> Result<Vec<String>> {
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml"))?.parse()?;
    let described = std::fs::read_to_string(root.join("docs/dependencies.md")).unwrap_or_default();
    let dependencies = manifest["workspace"]["dependencies"].as_table().cloned().unwrap_or_default();
    let foreign = dependencies.iter().filter(|(_, value)| value.get("path").is_none());
    Ok(foreign
        .filter(|(name, _)| !described.contains(&format!("`{name}`")))
        .map(|(name, _)| format!("docs/dependencies.md: no line for `{name}`"))
        .collect())
}

pub fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    files(folder, ".rs")
}

/// All files below `folder` whose name ends with `suffix`, but for build output and hidden folders.
fn files(folder: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_needs_a_place_and_a_reason() {
        let bare = "fn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(unsafe_blocks("lib/wire/src/lib.rs", bare).len(), 1);
        assert_eq!(unsafe_blocks("edge-image/init/src/sys.rs", bare).len(), 1);
        let explained = "fn f() {\n    // SAFETY: g has no preconditions.\n    unsafe { g() }\n}\n";
        assert!(unsafe_blocks("edge-image/init/src/sys.rs", explained).is_empty());
    }

    #[test]
    fn versions_stand_in_the_root() {
        let text = "[dependencies]\nserde = \"1\"\ntokio = { workspace = true, features = [\"rt\"] }\n";
        assert_eq!(own_versions("lib/x/Cargo.toml", text).len(), 1);
    }
}
