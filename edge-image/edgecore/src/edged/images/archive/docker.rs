//! What `docker save` writes, before version 25 as its only form: manifest.json names each image's config and the tars of its
//! layers. There is no manifest in it, so one is made, always the same for the same image. Source: moby's image specification v1.2.

use std::io::{Read, Seek};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{ArchivedImage, Blob, Config, Problem, Reader, parse, qualified, source, unusable};
use crate::edged::limits::{ARCHIVE_IMAGES_MAX, IMAGE_LAYERS_MAX};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Of a plain tar, and of one whose packing the runtime finds out by itself.
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// An entry of manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    config: String,
    /// Null when the image was saved by its id.
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl<F: Read + Seek> Reader<F> {
    /// manifest.json; empty when there is none.
    pub(super) fn saved(&mut self) -> Result<Vec<Saved>, Problem> {
        match self.entries.get("manifest.json").copied() {
            None => Ok(Vec::new()),
            Some((offset, size)) => Ok(parse("manifest.json", &self.bytes("manifest.json", offset, size)?)?),
        }
    }

    pub(super) fn saved_images(&mut self, all: &[Saved]) -> Result<Vec<ArchivedImage>, Problem> {
        let mut images: Vec<ArchivedImage> = Vec::new();
        for saved in all {
            let tags = saved.repo_tags.as_deref().unwrap_or_default();
            let Some((first, more)) = tags.split_first() else { continue };
            if images.len() + tags.len() > ARCHIVE_IMAGES_MAX {
                return Err(unusable(format!(
                    "names more than {ARCHIVE_IMAGES_MAX} images; save them apart"
                )));
            }
            let image = self.saved_image(first, saved)?;
            let tagged = |name: &String| ArchivedImage { name: qualified(name), ..image.clone() };
            images.extend(more.iter().map(tagged));
            images.push(image);
        }
        match images.is_empty() {
            true => Err(unusable("names no image; save it by its name (docker save NAME:TAG)".into())),
            false => Ok(images),
        }
    }

    fn saved_image(&mut self, name: &str, saved: &Saved) -> Result<ArchivedImage, Problem> {
        if saved.layers.len() > IMAGE_LAYERS_MAX {
            return Err(unusable(format!("has an image with more than {IMAGE_LAYERS_MAX} layers")));
        }
        let (offset, size) = self.entry(&saved.config)?;
        let body = self.bytes(&saved.config, offset, size)?;
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&body)));
        if digest_of(&saved.config).is_some_and(|named| digest[7..] != *named) {
            return Err(format!("is damaged: {} has digest {digest}", saved.config).into());
        }
        let config: Config = parse(&saved.config, &body)?;
        config.check(name, saved.layers.len())?;
        let diff_ids = config.rootfs.diff_ids;
        let mut layers = Vec::with_capacity(saved.layers.len());
        for (path, diff_id) in saved.layers.iter().zip(&diff_ids) {
            layers.push(self.layer(path, diff_id)?);
        }
        let config = Blob { digest, media_type: CONFIG.into(), offset, size };
        let listed =
            |blob: &Blob| json!({ "mediaType": blob.media_type, "size": blob.size, "digest": blob.digest });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": listed(&config),
            "layers": layers.iter().map(listed).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&manifest)));
        Ok(ArchivedImage {
            path: self.path.clone(),
            name: qualified(name),
            manifest: Blob { digest, media_type: MANIFEST.into(), offset: 0, size: manifest.len() as u64 },
            made_manifest: Some(manifest.into()),
            config,
            layers,
            diff_ids,
        })
    }

    /// A plain layer's digest is the one in the config; the runtime compares it when the layer is stored.
    fn layer(&mut self, path: &str, diff_id: &str) -> Result<Blob, Problem> {
        let (offset, size) = self.entry(path)?;
        let first = self.bytes(path, offset, size.min(source::MAGIC_BYTES))?;
        let gzip = source::is_gzip(&first);
        let media_type = if gzip { LAYER_GZIP } else { LAYER };
        let digest = match gzip || first.starts_with(source::ZSTD) {
            true => self.digest(path, offset, size)?,
            false => diff_id.to_string(),
        };
        Ok(Blob { digest, media_type: media_type.into(), offset, size })
    }

    /// Where a file lies. Layers that several images share are links in what old versions wrote.
    fn entry(&self, path: &str) -> Result<(u64, u64), Problem> {
        let mut name = path.trim_start_matches("./").to_string();
        for _ in 0..4 {
            match (self.entries.get(&name), self.links.get(&name)) {
                (Some(found), _) => return Ok(*found),
                (None, Some(target)) => name.clone_from(target),
                (None, None) => break,
            }
        }
        Err(format!("lacks {path}").into())
    }
}

impl Saved {
    /// The first name of the image with this config.
    pub(super) fn name_of<'a>(all: &'a [Saved], config: &str) -> Option<&'a str> {
        let hex = config.strip_prefix("sha256:")?;
        let saved = all.iter().find(|saved| digest_of(&saved.config) == Some(hex))?;
        saved.repo_tags.as_deref()?.first().map(String::as_str)
    }
}

/// The digest that the name of a config says: `<hex>.json`, `sha256:<hex>`, `blobs/sha256/<hex>`.
fn digest_of(path: &str) -> Option<&str> {
    let name = path.rsplit(['/', ':']).next()?;
    let hex = name.strip_suffix(".json").unwrap_or(name);
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hex)
}
