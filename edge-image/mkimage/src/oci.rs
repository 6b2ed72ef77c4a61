//! OCI archives from static programs: a tar with the OCI image layout, one layer, no base image and no registry.
//!
//! Invariant: the same input gives the same bytes (times are zero, entries sorted), so an image's digest says what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};

use crate::sha256_hex;

/// What an image is made of.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// Fully qualified: `docker.io/kinglet/hello:1`. A short name would be looked for in a registry.
    pub reference: String,
    /// OCI architecture: `arm64` or `amd64`.
    pub arch: String,
    pub files: Vec<File>,
    /// Symbolic links: where (absolute) and what they say.
    pub links: Vec<(String, String)>,
    pub entrypoint: Vec<String>,
    pub env: Vec<(String, String)>,
    pub user: Option<String>,
    pub ports: Vec<u16>,
    pub labels: BTreeMap<String, String>,
}

/// A file in the image: where from, where to (absolute), mode.
#[derive(Debug, Clone)]
pub struct File {
    pub from: PathBuf,
    pub to: String,
    pub mode: u32,
}

impl File {
    pub fn program(from: impl Into<PathBuf>, to: &str) -> File {
        File { from: from.into(), to: to.to_owned(), mode: 0o755 }
    }
}

/// The name of Debian's and Rust's architectures in OCI.
pub fn oci_arch(arch: &str) -> &str {
    match arch {
        "aarch64" => "arm64",
        "x86_64" => "amd64",
        other => other,
    }
}

/// Writes the archive and returns the manifest's digest (`sha256:...`).
pub fn write_archive(spec: &Spec, out: &Path) -> Result<String> {
    ensure!(
        spec.reference.matches('/').count() >= 2
            && spec.reference.rsplit('/').next().is_some_and(|last| last.contains(':')),
        "image name {:?} must be fully qualified with a tag, like docker.io/kinglet/hello:1",
        spec.reference
    );
    let layer = layer(&spec.files, &spec.links)?;
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    gzip.write_all(&layer)?;
    let packed = gzip.finish()?;
    let config = serde_json::to_vec(&config(spec, &sha256_hex(&layer)))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
    }))?;
    let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    listed["platform"] = json!({"architecture": spec.arch, "os": "linux"});
    // Docker's load reads the first annotation, containerd's import the second.
    let tag = spec.reference.rsplit(':').next().unwrap_or_default();
    listed["annotations"] =
        json!({"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": spec.reference});
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [listed],
    }))?;

    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", 0o644, &index)?;
    let mut blobs: Vec<(String, &[u8])> = [&config, &manifest, &packed]
        .iter()
        .map(|blob| (format!("blobs/sha256/{}", sha256_hex(blob)), blob.as_slice()))
        .collect();
    blobs.sort();
    for (path, blob) in blobs {
        append(&mut tar, &path, 0o644, blob)?;
    }
    let bytes = tar.into_inner()?;
    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(out, bytes).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(format!("sha256:{}", sha256_hex(&manifest)))
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256_hex(blob)), "size": blob.len()})
}

fn config(spec: &Spec, diff_id: &str) -> Value {
    let mut config = json!({ "Entrypoint": spec.entrypoint, "WorkingDir": "/" });
    if !spec.env.is_empty() {
        config["Env"] = spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    }
    if let Some(user) = &spec.user {
        config["User"] = json!(user);
    }
    if !spec.ports.is_empty() {
        config["ExposedPorts"] = spec.ports.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
    }
    if !spec.labels.is_empty() {
        config["Labels"] = json!(spec.labels);
    }
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": spec.arch,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "mkimage oci"}],
    })
}

fn layer(files: &[File], links: &[(String, String)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut sorted: Vec<&File> = files.iter().collect();
    sorted.sort_by(|a, b| a.to.cmp(&b.to));
    let mut dirs = BTreeSet::new();
    for to in sorted.iter().map(|file| &file.to).chain(links.iter().map(|(at, _)| at)) {
        let path = to.trim_start_matches('/');
        ensure!(!path.is_empty(), "{to:?} is no path for a file in an image");
        let mut parent = Path::new(path).parent();
        while let Some(dir) = parent.filter(|dir| !dir.as_os_str().is_empty()) {
            dirs.insert(dir.to_path_buf());
            parent = dir.parent();
        }
    }
    for dir in dirs {
        let mut header = header(0o755, 0);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, dir, std::io::empty())?;
    }
    for file in sorted {
        let bytes = fs::read(&file.from).with_context(|| format!("cannot read {}", file.from.display()))?;
        append(&mut tar, file.to.trim_start_matches('/'), file.mode, &bytes)?;
    }
    let links: BTreeMap<&str, &str> = links.iter().map(|(at, to)| (at.as_str(), to.as_str())).collect();
    for (at, to) in links {
        let mut header = header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, at.trim_start_matches('/'), to)?;
    }
    Ok(tar.into_inner()?)
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = header(mode, bytes.len() as u64);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, path, bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn spec(dir: &Path) -> Spec {
        fs::write(dir.join("prog"), b"\x7fELF").expect("write");
        Spec {
            reference: "docker.io/kinglet/hello:1".into(),
            arch: "arm64".into(),
            files: vec![File::program(dir.join("prog"), "/usr/bin/hello")],
            entrypoint: vec!["/usr/bin/hello".into()],
            ports: vec![8080],
            ..Spec::default()
        }
    }

    #[test]
    fn every_digest_in_the_archive_names_a_blob_with_that_hash() {
        let dir = tempfile::tempdir().expect("temp dir");
        let out = dir.path().join("hello.tar");
        let digest = write_archive(&spec(dir.path()), &out).expect("written");
        let mut blobs = BTreeMap::new();
        for entry in tar::Archive::new(fs::File::open(&out).expect("open")).entries().expect("entries") {
            let mut entry = entry.expect("entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("read");
            blobs.insert(entry.path().expect("path").to_string_lossy().into_owned(), bytes);
        }
        let index: Value = serde_json::from_slice(&blobs["index.json"]).expect("json");
        assert_eq!(index["manifests"][0]["digest"], digest);
        for (path, bytes) in &blobs {
            if let Some(hash) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(hash, sha256_hex(bytes));
            }
        }
        let manifest: Value =
            serde_json::from_slice(&blobs[&format!("blobs/sha256/{}", &digest[7..])]).expect("json");
        let config = manifest["config"]["digest"].as_str().expect("digest");
        let config: Value =
            serde_json::from_slice(&blobs[&format!("blobs/sha256/{}", &config[7..])]).expect("json");
        assert_eq!(config["architecture"], "arm64");
        let first = fs::read(&out).expect("read");
        write_archive(&spec(dir.path()), &out).expect("written again");
        assert_eq!(first, fs::read(&out).expect("read"), "the same input gives the same bytes");
    }

    #[test]
    fn a_short_name_is_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut short = spec(dir.path());
        short.reference = "hello:1".into();
        let error = write_archive(&short, &dir.path().join("x.tar")).expect_err("refused").to_string();
        assert!(error.contains("fully qualified"), "{error}");
    }
}
