//! Image archives on disk, OCI's and Docker's, plain or in gzip: which images they hold, and where their blobs lie in the tar.
//!
//! Reads headers and JSON only, seeks over layers. Not here: containerd. Invariants: every length is bounded before it is read;
//! an error names the archive, what is wrong with it, and the remedy; nothing of a broken archive is offered as an image.

mod docker;
mod source;

pub use source::{Source, is_archive};

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use docker::Saved;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::edged::limits::{
    ARCHIVE_ENTRIES_MAX, ARCHIVE_IMAGES_MAX, ARCHIVE_KEPT_BYTES_MAX, ARCHIVE_KEPT_ENTRY_BYTES_MAX,
    CONTENT_CHUNK_BYTES, IMAGE_JSON_BYTES_MAX, IMAGE_LAYERS_MAX,
};

/// `problem` ends with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("image archive {path}: {problem}")]
pub struct ArchiveError {
    pub path: PathBuf,
    pub problem: String,
}

/// What is wrong with an archive, with the remedy.
struct Problem(String);

/// What damage looks like.
impl From<String> for Problem {
    fn from(problem: String) -> Problem {
        Problem(format!("{problem}; copy it again"))
    }
}

/// Another copy would not help: the text says what does.
fn unusable(problem: String) -> Problem {
    Problem(problem)
}

/// Where a blob lies in the archive's tar.
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
    /// The manifest itself, where the archive has none and it was made here.
    pub made_manifest: Option<Arc<[u8]>>,
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
    let opened = File::open(path).map_err(|error| Problem::from(format!("cannot be opened ({error})")));
    opened
        .and_then(|file| Reader::index(file, path)?.images())
        .map_err(|Problem(problem)| ArchiveError { path: path.to_owned(), problem })
}

struct Reader<F> {
    source: Source<F>,
    path: PathBuf,
    /// By name in the tar: offset and length.
    entries: HashMap<String, (u64, u64)>,
    /// By name in the tar: where it leads.
    links: HashMap<String, String>,
    /// Of a packed archive by offset: small files, and how others begin. To read one later is to unpack from the start.
    kept: HashMap<u64, Vec<u8>>,
}

impl<F: Read + Seek> Reader<F> {
    fn index(file: F, path: &Path) -> Result<Reader<F>, Problem> {
        let unreadable = |error: std::io::Error| format!("is not a whole tar file ({error})");
        let (mut source, first) = Source::open(file).map_err(unreadable)?;
        if let Some((packed, remedy)) = source::foreign(&first) {
            return Err(unusable(format!("is packed with {packed}, which is not read here; {remedy}")));
        }
        let length = match &mut source {
            Source::Plain(file) => file.seek(SeekFrom::End(0)).and_then(|end| file.rewind().map(|()| end)),
            // Its end is met when it is unpacked.
            Source::Gzip { .. } => Ok(u64::MAX),
        };
        let (length, packed) = (length.map_err(unreadable)?, source.is_packed());
        let (mut entries, mut links, mut kept) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (mut kept_bytes, mut end) = (0, 0);
        let mut archive = tar::Archive::new(&mut source);
        for entry in archive.entries_with_seek().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let (offset, size) = (entry.raw_file_position(), entry.size());
            end = offset
                .checked_add(size)
                .filter(|end| *end <= length)
                .ok_or_else(|| format!("is cut off: it has {length} bytes, more are named in it"))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
            if let Some(target) = entry.link_name_bytes() {
                let target = String::from_utf8_lossy(&target).into_owned();
                let hard = entry.header().entry_type().is_hard_link();
                links.insert(name, if hard { target } else { beside(&entry.path_bytes(), &target) });
            } else {
                if packed {
                    let whole =
                        size <= ARCHIVE_KEPT_ENTRY_BYTES_MAX && kept_bytes + size <= ARCHIVE_KEPT_BYTES_MAX;
                    let keep = if whole { size } else { size.min(source::MAGIC_BYTES) };
                    let mut bytes = Vec::with_capacity(keep as usize);
                    entry.by_ref().take(keep).read_to_end(&mut bytes).map_err(unreadable)?;
                    kept_bytes += if whole { size } else { 0 };
                    kept.insert(offset, bytes);
                }
                entries.insert(name, (offset, size));
            }
            if entries.len() + links.len() > ARCHIVE_ENTRIES_MAX {
                return Err(unusable(format!("has more than {ARCHIVE_ENTRIES_MAX} entries")));
            }
        }
        if packed {
            // A packed archive that was cut off ends before its last file does.
            source.seek(SeekFrom::Start(end)).map_err(unreadable)?;
        }
        Ok(Reader { source, path: path.to_owned(), entries, links, kept })
    }

    fn images(&mut self) -> Result<Vec<ArchivedImage>, Problem> {
        let saved = self.saved()?;
        let Some((offset, size)) = self.entries.get("index.json").copied() else {
            return match saved.is_empty() {
                true => Err(unusable(
                    "has no index.json and no manifest.json, so it is no image archive; make one with docker save".into(),
                )),
                false => self.saved_images(&saved),
            };
        };
        let index: Index = parse("index.json", &self.bytes("index.json", offset, size)?)?;
        if index.manifests.len() > ARCHIVE_IMAGES_MAX {
            return Err(unusable(format!("names more than {ARCHIVE_IMAGES_MAX} images; save them apart")));
        }
        let mut images = Vec::new();
        for descriptor in &index.manifests {
            let annotated = |key: &str| descriptor.annotations.get(key).map(String::as_str);
            let reference = annotated("org.opencontainers.image.ref.name");
            // Some write a whole name there, some only a tag.
            let whole = reference.filter(|name| name.contains(['/', ':']));
            let name = annotated("io.containerd.image.name").or(whole);
            let mut image = self.image(name.or(reference).unwrap_or_default(), descriptor, 0)?;
            if name.is_none() {
                let name = Saved::name_of(&saved, &image.config.digest).or(reference).ok_or_else(|| {
                    let remedy = "save it by its name (docker save NAME:TAG)";
                    unusable(format!(
                        "names no image in index.json (annotation io.containerd.image.name); {remedy}"
                    ))
                })?;
                image.name = qualified(name);
            }
            images.push(image);
        }
        match images.is_empty() {
            true => Err(unusable("holds no image".into())),
            false => Ok(images),
        }
    }

    fn image(&mut self, name: &str, descriptor: &Descriptor, depth: u32) -> Result<ArchivedImage, Problem> {
        let manifest = self.blob(descriptor)?;
        let body = self.checked_json(&manifest)?;
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
            let index: Index = parse(&manifest.digest, &body)?;
            let ours = |d: &&Descriptor| {
                d.platform.as_ref().is_none_or(|p| p.architecture == machine() && p.os == "linux")
            };
            let inner = index.manifests.iter().find(ours);
            let inner = inner
                .filter(|_| depth == 0)
                .ok_or_else(|| unusable(format!("has no {name} for {}", machine())))?;
            return self.image(name, inner, depth + 1);
        }
        let parsed: Manifest = parse(&manifest.digest, &body)?;
        if parsed.layers.len() > IMAGE_LAYERS_MAX {
            return Err(unusable(format!("has an image with more than {IMAGE_LAYERS_MAX} layers")));
        }
        let config = self.blob(&parsed.config)?;
        let config_body: Config = parse(&config.digest, &self.checked_json(&config)?)?;
        config_body.check(name, parsed.layers.len())?;
        let layers = parsed.layers.iter().map(|layer| self.blob(layer)).collect::<Result<_, Problem>>()?;
        Ok(ArchivedImage {
            path: self.path.clone(),
            name: qualified(name),
            manifest,
            made_manifest: None,
            config,
            layers,
            diff_ids: config_body.rootfs.diff_ids,
        })
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Blob, Problem> {
        let digest = descriptor.digest.clone();
        let hex = digest
            .strip_prefix("sha256:")
            .ok_or_else(|| unusable(format!("uses digest {digest:?}, which is not sha256")))?;
        let found = self.entries.get(&format!("blobs/sha256/{hex}"));
        let (offset, size) = *found.ok_or_else(|| format!("lacks blob {digest}"))?;
        if size != descriptor.size {
            let expected = descriptor.size;
            return Err(format!("has {size} bytes for blob {digest}, {expected} are expected").into());
        }
        Ok(Blob { digest, media_type: descriptor.media_type.clone(), offset, size })
    }

    fn checked_json(&mut self, blob: &Blob) -> Result<Vec<u8>, Problem> {
        let bytes = self.bytes(&blob.digest, blob.offset, blob.size)?;
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        match digest == blob.digest {
            true => Ok(bytes),
            false => Err(format!("is damaged: blob {} has digest {digest}", blob.digest).into()),
        }
    }

    fn bytes(&mut self, what: &str, offset: u64, size: u64) -> Result<Vec<u8>, Problem> {
        if size > IMAGE_JSON_BYTES_MAX {
            return Err(unusable(format!(
                "has {size} bytes of {what}, over the limit of {IMAGE_JSON_BYTES_MAX}"
            )));
        }
        if let Some(bytes) = self.kept.get(&offset).and_then(|kept| kept.get(..size as usize)) {
            return Ok(bytes.to_vec());
        }
        let mut bytes = Vec::with_capacity(size as usize);
        let mut read = || {
            self.source.seek(SeekFrom::Start(offset))?;
            self.source.by_ref().take(size).read_to_end(&mut bytes)
        };
        match read().map_err(|error| format!("cannot be read ({error})"))? as u64 {
            read if read == size => Ok(bytes),
            read => Err(format!("is cut off: {what} has {size} bytes, {read} are there").into()),
        }
    }

    /// The digest of a blob that nothing names.
    fn digest(&mut self, what: &str, offset: u64, size: u64) -> Result<String, Problem> {
        let unreadable = |error: std::io::Error| format!("has a damaged {what} ({error})");
        self.source.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        let (mut hash, mut left) = (Sha256::new(), size);
        let mut part = vec![0; CONTENT_CHUNK_BYTES];
        while left > 0 {
            let wanted = left.min(part.len() as u64) as usize;
            self.source.read_exact(&mut part[..wanted]).map_err(unreadable)?;
            hash.update(&part[..wanted]);
            left -= wanted as u64;
        }
        Ok(format!("sha256:{}", hex::encode(hash.finalize())))
    }
}

impl Config {
    fn check(&self, name: &str, layers: usize) -> Result<(), Problem> {
        if self.architecture != machine() {
            let (theirs, ours) = (&self.architecture, machine());
            return Err(unusable(format!(
                "holds {name} for {theirs}, this machine is {ours}; save it for linux/{ours}"
            )));
        }
        match layers == self.rootfs.diff_ids.len() {
            true => Ok(()),
            false => Err(format!("has {layers} layers for {name}, its config names another number").into()),
        }
    }
}

/// A link's target as a name in the tar. One that leads out of it names nothing.
fn beside(link: &[u8], target: &str) -> String {
    let link = String::from_utf8_lossy(link);
    let mut parts: Vec<&str> = link.trim_start_matches("./").split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Entry for a fuzzer: an archive as it may lie on a stick.
pub fn fuzz_image_archive(data: &[u8]) {
    let _ = Reader::index(std::io::Cursor::new(data), Path::new("some.tar"))
        .and_then(|mut reader| reader.images());
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
