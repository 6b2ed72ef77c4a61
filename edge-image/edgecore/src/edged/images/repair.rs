//! Makes an image whole again whose layers a power cut or a bad card damaged, while containers may use it.
//!
//! A layer is unpacked again over its own folder: containers that run keep the files they have open, and nothing must be removed
//! first. What containerd no longer knows is unpacked as by an import. The source is the archive if there is one, else the content
//! that containerd still has, hashed first; if that is damaged as well, only a pull helps.

use std::{collections::HashMap, fs, os::unix::fs::FileTypeExt, path::Path};

use containerd_client::{services::v1 as api, types};
use sha2::{Digest, Sha256};
use tonic::{Code, transport::Channel};

use super::{
    archive::{self, ArchivedImage, Blob},
    import::{ImportError, Importer, Target, chain_ids},
};
use crate::edged::limits::{IMAGE_JSON_BYTES_MAX, IMAGE_LAYERS_MAX, LAYER_FILES_MAX};

/// How a repair ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repaired {
    Whole,
    /// Neither an archive nor containerd has what the image is made of.
    NeedsPull,
}

/// Repairs. `from_archive`: the image's blobs lie in its archive, else in containerd.
pub async fn repair<S, F>(
    channel: Channel,
    image: &ArchivedImage,
    from_archive: bool,
    target: &Target,
    sync: S,
) -> Result<Repaired, ImportError>
where
    S: FnOnce() -> F,
    F: Future<Output = ()>,
{
    let mut importer = Importer { channel, image, target, lease: String::new() };
    importer.open_lease().await?;
    let result = async {
        if !importer.complete_content(from_archive).await? {
            return Ok(Repaired::NeedsPull);
        }
        importer.unpack_again().await?;
        sync().await;
        importer.name(&image.config.digest).await?;
        importer.name(&image.name).await?;
        Ok(Repaired::Whole)
    }
    .await;
    importer.close_lease().await;
    result
}

/// An image as containerd has it; `None` when it has not, or not whole enough to read.
pub async fn stored(channel: Channel, name: &str) -> Option<ArchivedImage> {
    let request = |digest: &str| {
        super::import::request(api::ReadContentRequest { digest: digest.into(), offset: 0, size: 0 }, "")
    };
    let read = async |digest: &str| -> Option<Vec<u8>> {
        let mut content = api::content_client::ContentClient::new(channel.clone());
        let mut stream = content.read(request(digest)).await.ok()?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await.ok()? {
            bytes.extend_from_slice(&part.data);
            (bytes.len() as u64 <= IMAGE_JSON_BYTES_MAX).then_some(())?;
        }
        let found = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        (found == digest).then_some(bytes)
    };
    let get = super::import::request(api::GetImageRequest { name: name.into() }, "");
    let found = api::images_client::ImagesClient::new(channel.clone()).get(get).await.ok()?;
    let mut target = found.into_inner().image?.target?;
    let mut body = read(&target.digest).await?;
    if target.media_type.contains("index") || target.media_type.contains("manifest.list") {
        let inner = archive::manifest_of_index(&body)?;
        body = read(&inner.digest).await?;
        target = types::Descriptor { digest: inner.digest, media_type: inner.media_type, ..target };
    }
    let manifest =
        Blob { digest: target.digest, media_type: target.media_type, offset: 0, size: body.len() as u64 };
    let (config, layers) = archive::parts_of_manifest(&body)?;
    let diff_ids = archive::diff_ids_of_config(&read(&config.digest).await?)?;
    let whole = diff_ids.len() == layers.len();
    whole.then(|| ArchivedImage {
        path: name.into(),
        name: name.into(),
        manifest,
        made_manifest: None,
        config,
        layers,
        diff_ids,
    })
}

impl Importer<'_> {
    async fn unpack_again(&self) -> Result<(), ImportError> {
        let chains = chain_ids(&self.image.diff_ids);
        let mut known = 0;
        for chain in &chains {
            if !self.has_layer(chain).await? {
                break;
            }
            known += 1;
        }
        let folders = match known {
            0 => Vec::new(),
            _ => self.folders(&chains[known - 1]).await?,
        };
        // Another snapshotter than overlayfs tells no folders; its layers are made anew where nothing holds them.
        let in_place = if folders.len() == known { known } else { 0 };
        for n in 0..in_place {
            self.unpack_over(&self.image.layers[n], &folders[..=n]).await?;
        }
        for chain in chains[in_place..].iter().rev() {
            self.forget_layer(chain).await?;
        }
        let mut parent = in_place.checked_sub(1).map_or(String::new(), |n| chains[n].clone());
        for (layer, chain) in self.image.layers.iter().zip(&chains).skip(in_place) {
            self.unpack_layer(layer, &parent, chain).await?;
            parent.clone_from(chain);
        }
        Ok(())
    }

    async fn has_layer(&self, chain: &str) -> Result<bool, ImportError> {
        use api::snapshots as snap;
        let snapshotter = self.target.snapshotter.clone();
        let request = self.request(snap::StatSnapshotRequest { snapshotter, key: chain.into() });
        match snap::snapshots_client::SnapshotsClient::new(self.channel.clone()).stat(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.failed("look up a layer", &status)),
        }
    }

    /// Removes a layer's name; one that a container still uses stays.
    async fn forget_layer(&self, chain: &str) -> Result<(), ImportError> {
        use api::snapshots as snap;
        let snapshotter = self.target.snapshotter.clone();
        let request = self.request(snap::RemoveSnapshotRequest { snapshotter, key: chain.into() });
        match snap::snapshots_client::SnapshotsClient::new(self.channel.clone()).remove(request).await {
            Err(status) if !matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                Err(self.failed("remove a damaged layer", &status))
            }
            _ => Ok(()),
        }
    }

    /// The folders of a layer and those below it, the lowest first, out of the mounts of a view; empty when they cannot be told.
    async fn folders(&self, chain: &str) -> Result<Vec<String>, ImportError> {
        use api::snapshots as snap;
        if self.target.snapshotter != "overlayfs" {
            return Ok(Vec::new());
        }
        let mut snapshots = snap::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let (snapshotter, key) = (self.target.snapshotter.clone(), format!("kinglet-{}-view", self.lease));
        let view = || snap::ViewSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: chain.into(),
            labels: HashMap::new(),
        };
        let mut made = 0;
        let mounts = loop {
            match snapshots.view(self.request(view())).await {
                Ok(answer) => break answer.into_inner().mounts,
                // It names the folder that is gone: made empty here, filled by unpacking.
                Err(status) if made < IMAGE_LAYERS_MAX && remake(status.message()) => made += 1,
                Err(status) => return Err(self.failed("look at a layer", &status)),
            }
        };
        // Its lease ends it if this does not.
        let _ = snapshots.remove(self.request(snap::RemoveSnapshotRequest { snapshotter, key })).await;
        Ok(folders_of(&mounts))
    }

    /// `folders`: those below first, the layer's own last.
    async fn unpack_over(&self, layer: &Blob, folders: &[String]) -> Result<(), ImportError> {
        let Some((own, below)) = folders.split_last() else { return Ok(()) };
        let folder = own.clone();
        let prepared = rt::blocking(move || prepare(Path::new(&folder))).await;
        prepared.map_err(|problem| self.damaged(format!("layer {own} cannot be repaired ({problem})")))?;
        let mut options = vec![format!("upperdir={own}"), format!("workdir={own}.work")];
        if !below.is_empty() {
            let lower: Vec<&str> = below.iter().rev().map(String::as_str).collect();
            options.push(format!("lowerdir={}", lower.join(":")));
        }
        // Not mounted by containerd: of an overlay it takes the upper folder and unpacks there.
        let mount = types::Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options,
        };
        let diff = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.clone(),
            size: layer.size as i64,
            annotations: HashMap::new(),
        };
        let apply = api::ApplyRequest {
            diff: Some(diff),
            mounts: vec![mount],
            payloads: HashMap::new(),
            sync_fs: false,
        };
        let mut client = api::diff_client::DiffClient::new(self.channel.clone());
        client
            .apply(self.request(apply))
            .await
            .map_err(|status| self.failed("unpack a layer again", &status))?;
        Ok(())
    }
}

/// Makes the folder of a layer that overlayfs says is missing: `... stat /.../snapshots/7/fs: no such file or directory`.
fn remake(message: &str) -> bool {
    let missing = message
        .strip_suffix(": no such file or directory")
        .and_then(|rest| rest.rsplit_once("stat "))
        .map(|(_, path)| Path::new(path));
    missing.is_some_and(|path| {
        let layer = path.ends_with("fs") && path.is_absolute() && path.iter().any(|part| part == "snapshots");
        layer && !path.exists() && fs::create_dir_all(path).is_ok()
    })
}

/// Out of `bind` (one layer) or `overlay` (several, the topmost first).
fn folders_of(mounts: &[types::Mount]) -> Vec<String> {
    let [mount] = mounts else { return Vec::new() };
    match mount.r#type.as_str() {
        "bind" => vec![mount.source.clone()],
        "overlay" => {
            let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
            let mut folders: Vec<String> =
                lower.map_or(Vec::new(), |text| text.split(':').map(str::to_string).collect());
            folders.reverse();
            folders
        }
        _ => Vec::new(),
    }
}

/// Makes a folder that is gone, and clears away what unpacking does not overwrite: marks of deleted files.
fn prepare(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let (mut folders, mut seen) = (vec![folder.to_path_buf()], 0_usize);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            seen += 1;
            if seen > LAYER_FILES_MAX {
                return Err(std::io::Error::other(format!("it has more than {LAYER_FILES_MAX} files")));
            }
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_char_device() {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Whether a failed step may be the image's fault. Generous: a repair of a whole image costs time once and changes nothing.
pub fn is_suspect(message: &str) -> bool {
    const SIGNS: [&str; 12] = [
        "exec format error",
        "no such file or directory",
        "input/output error",
        "structure needs cleaning",
        "failed to mount",
        "missing parent",
        "parent snapshot",
        "does not exist",
        "content digest",
        "failed to get image from containerd",
        "exec user process",
        "not found",
    ];
    let message = message.to_ascii_lowercase();
    SIGNS.iter().any(|sign| message.contains(sign))
}

/// Exit codes of programs that could not be loaded, or touched pages that are not there.
pub fn is_suspect_exit(code: i32) -> bool {
    matches!(code, 126..=128 | 132 | 135 | 139)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_out_of_mounts() {
        let mount = |kind: &str, source: &str, options: &[&str]| types::Mount {
            r#type: kind.into(),
            source: source.into(),
            target: String::new(),
            options: options.iter().map(|option| option.to_string()).collect(),
        };
        assert_eq!(folders_of(&[mount("bind", "/s/1/fs", &["ro"])]), ["/s/1/fs"]);
        let two = mount("overlay", "overlay", &["index=off", "lowerdir=/s/2/fs:/s/1/fs"]);
        assert_eq!(folders_of(&[two]), ["/s/1/fs", "/s/2/fs"]);
        assert!(folders_of(&[mount("zfs", "pool", &[])]).is_empty() && folders_of(&[]).is_empty());
    }

    #[test]
    fn what_points_at_the_image() {
        for text in [
            "failed to create containerd task: ... exec: \"/hello\": stat /hello: no such file or directory",
            "exec /hello: exec format error",
            "missing parent \"k8s.io/22/sha256:ab\" bucket: not found",
        ] {
            assert!(is_suspect(text), "{text}");
        }
        assert!(!is_suspect("port 8080 is already allocated"));
        assert!(is_suspect_exit(139) && !is_suspect_exit(1) && !is_suspect_exit(137));
    }
}
