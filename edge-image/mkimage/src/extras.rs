//! What a person may lay on the boot partition besides `provision.toml`: `devices/` (Devices and their models) and `manifests/`
//! (static pods). An image can bring them along; init takes them over at each boot.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pins::PowerOn;
use serde_json::Value;

/// As edgecore takes files of its folders.
const FILE_BYTES_MAX: u64 = 256 << 10;
const FILES_MAX: usize = 128;

/// The files of `dir`, in order, as `<folder>/<name>`.
pub fn folder(dir: &Path, folder: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        if ![".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            bytes.len() as u64 <= FILE_BYTES_MAX,
            "{} is larger than {} kB, which no node takes: make several files of it",
            path.display(),
            FILE_BYTES_MAX >> 10
        );
        files.push((format!("{folder}/{name}"), bytes));
    }
    ensure!(
        files.len() <= FILES_MAX,
        "{} has more than {FILES_MAX} files, which no node takes",
        dir.display()
    );
    files.sort();
    Ok(files)
}

/// The levels from power-on that the devices' files ask for.
pub fn power_on(devices: &[(String, Vec<u8>)]) -> Result<BTreeMap<u32, PowerOn>> {
    let mut objects = Vec::new();
    for (name, bytes) in devices {
        let text = std::str::from_utf8(bytes).with_context(|| format!("{name} is not text"))?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("{name} is not YAML; kinglet-mapper check says more"))?;
        for document in documents {
            match document.get("items").and_then(Value::as_array) {
                Some(items) => objects.extend(items.iter().cloned()),
                None => objects.push(document),
            }
        }
    }
    Ok(pins::power_on(&objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_of_models_gives_levels_for_the_firmware() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../devices");
        let files = folder(&dir, "devices").unwrap();
        let relay: Vec<_> =
            files.iter().filter(|(name, _)| name == "devices/relay-board-4.yaml").cloned().collect();
        let text = pins::config_text(&power_on(&relay).unwrap());
        assert_eq!(text, "gpio=5=op,dh\ngpio=6=op,dh\ngpio=7=op,dh\ngpio=8=op,dh\n");
        let error = power_on(&[("devices/x.yaml".to_owned(), b"a: [".to_vec())]).unwrap_err();
        assert!(format!("{error:#}").contains("devices/x.yaml is not YAML"), "{error:#}");
    }

    #[test]
    fn a_folder_is_taken_within_what_a_node_takes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.yaml"), "b").unwrap();
        fs::write(dir.path().join("a.json"), "{}").unwrap();
        fs::write(dir.path().join("notes.txt"), "no").unwrap();
        let names: Vec<String> =
            folder(dir.path(), "manifests").unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["manifests/a.json", "manifests/b.yaml"]);
        fs::write(dir.path().join("c.yaml"), vec![b' '; (FILE_BYTES_MAX + 1) as usize]).unwrap();
        assert!(folder(dir.path(), "devices").unwrap_err().to_string().contains("256 kB"));
        assert!(folder(&dir.path().join("none"), "devices").is_err());
    }
}
