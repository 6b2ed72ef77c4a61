//! OCI archives on disk: which images they hold, and where their blobs lie in the file.
//!
//! Reads headers and JSON only, seeks over layers. Not here: containerd. Invariants: every length is bounded before it is read;
//! an error names the archive, what is wrong with it, and the remedy; nothing of a broken archive is offered as an image.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::edged::limits::{ARCHIVE_ENTRIES_MAX, IMAGE_JSON_BYTES_MAX, IMAGE_LAYERS_MAX};

#[derive(Debug, thiserror::Error)]
#[error("image archive {path}: {problem}; copy it again")]
pub struct ArchiveError {
    pub path: PathBuf,
    pub problem: String,
}

/// Where a blob lies in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: String,
    pub media_type: String,
    pub offset: u64,
    pub size: u64,
}

/// One image of an archive.
#[derive(Clone, Debug)]
pub struct ArchivedImage {
    pub path: PathBuf,
    /// Fully qualified: `docker.io/kinglet/hello:1`.
    pub name: String,
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<Blob>,
    /// Digests of the layers' uncompressed tars, from the config.
    pub diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architecture: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// The architecture's name in OCI.
pub fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The images of an archive.
pub fn read(path: &Path) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let broken = |problem: String| ArchiveError { path: path.to_owned(), problem };
    let file = File::open(path).map_err(|error| broken(format!("cannot be opened ({error})")))?;
    Reader::index(file, path).and_then(|mut reader| reader.images()).map_err(broken)
}

struct Reader {
    file: File,
    path: PathBuf,
    /// By name in the tar: offset and length.
    entries: HashMap<String, (u64, u64)>,
}

impl Reader {
    fn index(mut file: File, path: &Path) -> Result<Reader, String> {
        let length = file.metadata().map_err(|error| format!("cannot be read ({error})"))?.len();
        let mut entries = HashMap::new();
        let mut archive = tar::Archive::new(&mut file);
        let unreadable = |error: std::io::Error| format!("is not a whole tar file ({error})");
        for entry in archive.entries_with_seek().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(format!("is cut off: it has {length} bytes, more are named in it"));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
            entries.insert(name, (offset, size));
            if entries.len() > ARCHIVE_ENTRIES_MAX {
                return Err(format!("has more than {ARCHIVE_ENTRIES_MAX} entries"));
            }
        }
        Ok(Reader { file, path: path.to_owned(), entries })
    }

    fn images(&mut self) -> Result<Vec<ArchivedImage>, String> {
        let (offset, size) =
            *self.entries.get("index.json").ok_or("has no index.json, so it is not an OCI archive")?;
        let index: Index = parse("index.json", &self.bytes("index.json", offset, size)?)?;
        let mut images = Vec::new();
        for descriptor in &index.manifests {
            let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
                .iter()
                .find_map(|key| descriptor.annotations.get(*key))
                .ok_or("names no image in index.json (annotation io.containerd.image.name)")?;
            images.push(self.image(name, descriptor, 0)?);
        }
        match images.is_empty() {
            true => Err("holds no image".into()),
            false => Ok(images),
        }
    }

    fn image(&mut self, name: &str, descriptor: &Descriptor, depth: u32) -> Result<ArchivedImage, String> {
        let manifest = self.blob(descriptor)?;
        let body = self.checked_json(&manifest)?;
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
            let index: Index = parse(&manifest.digest, &body)?;
            let ours = |d: &&Descriptor| {
                d.platform.as_ref().is_none_or(|p| p.architecture == machine() && p.os == "linux")
            };
            let inner = index.manifests.iter().find(ours);
            let inner =
                inner.filter(|_| depth == 0).ok_or_else(|| format!("has no {name} for {}", machine()))?;
            return self.image(name, inner, depth + 1);
        }
        let parsed: Manifest = parse(&manifest.digest, &body)?;
        if parsed.layers.len() > IMAGE_LAYERS_MAX {
            return Err(format!("has an image with more than {IMAGE_LAYERS_MAX} layers"));
        }
        let config = self.blob(&parsed.config)?;
        let config_body: Config = parse(&config.digest, &self.checked_json(&config)?)?;
        if config_body.architecture != machine() {
            let theirs = config_body.architecture;
            return Err(format!("holds {name} for {theirs}, this machine is {}", machine()));
        }
        let layers =
            parsed.layers.iter().map(|layer| self.blob(layer)).collect::<Result<Vec<Blob>, String>>()?;
        if layers.len() != config_body.rootfs.diff_ids.len() {
            return Err(format!("has {} layers for {name}, its config names another number", layers.len()));
        }
        let diff_ids = config_body.rootfs.diff_ids;
        Ok(ArchivedImage {
            path: self.path.clone(),
            name: qualified(name),
            manifest,
            config,
            layers,
            diff_ids,
        })
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Blob, String> {
        let digest = descriptor.digest.clone();
        let hex = digest
            .strip_prefix("sha256:")
            .ok_or_else(|| format!("uses digest {digest:?}, which is not sha256"))?;
        let found = self.entries.get(&format!("blobs/sha256/{hex}"));
        let (offset, size) = *found.ok_or_else(|| format!("lacks blob {digest}"))?;
        if size != descriptor.size {
            return Err(format!("has {size} bytes for blob {digest}, {} are expected", descriptor.size));
        }
        Ok(Blob { digest, media_type: descriptor.media_type.clone(), offset, size })
    }

    fn checked_json(&mut self, blob: &Blob) -> Result<Vec<u8>, String> {
        let bytes = self.bytes(&blob.digest, blob.offset, blob.size)?;
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        if digest != blob.digest {
            return Err(format!("is damaged: blob {} has digest {digest}", blob.digest));
        }
        Ok(bytes)
    }

    fn bytes(&mut self, what: &str, offset: u64, size: u64) -> Result<Vec<u8>, String> {
        if size > IMAGE_JSON_BYTES_MAX {
            return Err(format!("has {size} bytes of {what}, over the limit of {IMAGE_JSON_BYTES_MAX}"));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        let read = |file: &mut File, bytes: &mut Vec<u8>| {
            file.seek(SeekFrom::Start(offset))?;
            Read::take(file, size).read_to_end(bytes)
        };
        read(&mut self.file, &mut bytes).map_err(|error| format!("cannot be read ({error})"))?;
        Ok(bytes)
    }
}

/// Entry for a fuzzer: JSON of images.
pub fn fuzz_image_json(data: &[u8]) {
    let _ = (manifest_of_index(data), parts_of_manifest(data), diff_ids_of_config(data));
}

/// The manifest for this machine out of an index.
pub(super) fn manifest_of_index(body: &[u8]) -> Option<Blob> {
    let index: Index = serde_json::from_slice(body).ok()?;
    let ours =
        |d: &Descriptor| d.platform.as_ref().is_none_or(|p| p.architecture == machine() && p.os == "linux");
    index.manifests.into_iter().find(ours).map(Descriptor::blob)
}

/// Config and layers of a manifest.
pub(super) fn parts_of_manifest(body: &[u8]) -> Option<(Blob, Vec<Blob>)> {
    let manifest: Manifest = serde_json::from_slice(body).ok()?;
    let few = manifest.layers.len() <= IMAGE_LAYERS_MAX;
    few.then(|| (manifest.config.blob(), manifest.layers.into_iter().map(Descriptor::blob).collect()))
}

pub(super) fn diff_ids_of_config(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice::<Config>(body).ok().map(|config| config.rootfs.diff_ids)
}

impl Descriptor {
    /// Lies in containerd, not in an archive.
    fn blob(self) -> Blob {
        Blob { digest: self.digest, media_type: self.media_type, offset: 0, size: self.size }
    }
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("has a damaged {what} ({error})"))
}

/// The name as containerd keeps it: with registry and tag.
pub fn qualified(name: &str) -> String {
    let (first, rest) = name.split_once('/').unwrap_or(("", name));
    let is_registry = first.contains(['.', ':']) || first == "localhost";
    let name = match (is_registry, first) {
        (true, _) => name.to_string(),
        (false, "") => format!("docker.io/library/{rest}"),
        (false, _) => format!("docker.io/{name}"),
    };
    let last = name.rsplit('/').next().unwrap_or(&name);
    if last.contains([':', '@']) { name } else { format!("{name}:latest") }
}
