//! Puts an archived image into containerd: content, unpacked layers, and only then the image's name.
//!
//! Order is what makes it safe against a power cut: containerd's metadata is synced at each change, its files are not. So the
//! name, which makes the image present for CRI, is written after the file system was synced; an import that was cut off leaves
//! content without a name, which is checked before it is used again. A lease keeps the collector away while the import runs.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use containerd_client::{services::v1 as api, types};
use sha2::{Digest, Sha256};
use tonic::{Code, Request, Status, transport::Channel};

use super::archive::{ArchivedImage, Blob, Source};
use crate::edged::limits::{CONTENT_CHUNK_BYTES, IMPORT_LEASE};

/// CRI's namespace in containerd.
pub const NAMESPACE: &str = "k8s.io";
/// CRI lists images that carry it without asking further.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// What came from an archive stays: CRI of containerd 1.7 tells it on, and kubelets keep such images as well.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("containerd cannot {action} of image {image}: {message}")]
    Containerd { action: &'static str, image: String, message: String, unavailable: bool },
    #[error("image archive {path}: {problem}; copy it again")]
    Archive { path: String, problem: String },
}

/// What an import needs to know of the runtime.
#[derive(Clone, Debug)]
pub struct Target {
    pub snapshotter: String,
}

pub struct Importer<'a> {
    pub(super) channel: Channel,
    pub(super) image: &'a ArchivedImage,
    pub(super) target: &'a Target,
    pub(super) lease: String,
}

/// A request in CRI's namespace, under a lease if there is one.
pub(super) fn request<T>(message: T, lease: &str) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("containerd-namespace", NAMESPACE.parse().expect("a constant is a header value"));
    if !lease.is_empty()
        && let Ok(lease) = lease.parse()
    {
        metadata.insert("containerd-lease", lease);
    }
    request
}

/// Imports, so that the image has its content, its layers unpacked and synced by `sync`, and its name.
pub async fn import<S, F>(
    channel: Channel,
    image: &ArchivedImage,
    target: &Target,
    sync: S,
) -> Result<(), ImportError>
where
    S: FnOnce() -> F,
    F: Future<Output = ()>,
{
    let mut importer = Importer { channel, image, target, lease: String::new() };
    importer.open_lease().await?;
    let result = async {
        importer.complete_content(true).await?;
        importer.unpack().await?;
        sync().await;
        // CRI finds an image by its config's digest as well as by its name.
        importer.name(&image.config.digest).await?;
        importer.name(&image.name).await
    }
    .await;
    importer.close_lease().await;
    result
}

/// Names of images that came from archives; none when containerd does not answer.
pub async fn pinned_names(channel: Channel) -> Vec<String> {
    let filter = format!("labels.\"{}\"=={}", PINNED.0, PINNED.1);
    let list = request(api::ListImagesRequest { filters: vec![filter] }, "");
    let listed = api::images_client::ImagesClient::new(channel).list(list).await;
    listed
        .map_or(Vec::new(), |answer| answer.into_inner().images.into_iter().map(|image| image.name).collect())
}

/// True when name, content and their lengths are what the archive says.
pub async fn is_whole(channel: Channel, image: &ArchivedImage) -> Result<bool, ImportError> {
    let target = Target { snapshotter: String::new() };
    let importer = Importer { channel: channel.clone(), image, target: &target, lease: String::new() };
    let request = importer.request(api::GetImageRequest { name: image.name.clone() });
    let named = match api::images_client::ImagesClient::new(channel).get(request).await {
        Ok(answer) => answer.into_inner().image.and_then(|found| found.target),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(importer.failed("read the name", &status)),
    };
    if named.is_none_or(|target| target.digest != image.manifest.digest) {
        return Ok(false);
    }
    for blob in importer.blobs() {
        if importer.stored_size(blob).await? != Some(blob.size as i64) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Importer<'_> {
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        request(message, &self.lease)
    }

    pub(super) fn failed(&self, action: &'static str, status: &Status) -> ImportError {
        ImportError::Containerd {
            action,
            image: self.image.name.clone(),
            message: status.message().to_string(),
            unavailable: status.code() == Code::Unavailable,
        }
    }

    pub(super) fn damaged(&self, problem: String) -> ImportError {
        ImportError::Archive { path: self.image.path.display().to_string(), problem }
    }

    /// Layers first: what refers to others comes after them.
    fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.image.layers.iter().chain([&self.image.config, &self.image.manifest])
    }

    pub(super) async fn open_lease(&mut self) -> Result<(), ImportError> {
        let expire = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO) + IMPORT_LEASE;
        let expire = crate::edged::status::rfc3339(expire.as_secs() as i64);
        let id = format!("kinglet-import-{:016x}", rt::random_u64());
        let labels = HashMap::from([("containerd.io/gc.expire".to_string(), expire)]);
        let request = self.request(api::CreateRequest { id: id.clone(), labels });
        let mut leases = api::leases_client::LeasesClient::new(self.channel.clone());
        leases
            .create(request)
            .await
            .map_err(|status| self.failed("make the lease for the import", &status))?;
        self.lease = id;
        Ok(())
    }

    pub(super) async fn close_lease(&mut self) {
        let id = std::mem::take(&mut self.lease);
        let request = self.request(api::DeleteRequest { id, sync: false });
        // It expires anyway.
        let _ = api::leases_client::LeasesClient::new(self.channel.clone()).delete(request).await;
    }

    async fn stored_size(&self, blob: &Blob) -> Result<Option<i64>, ImportError> {
        let request = self.request(api::InfoRequest { digest: blob.digest.clone() });
        match api::content_client::ContentClient::new(self.channel.clone()).info(request).await {
            Ok(answer) => Ok(answer.into_inner().info.map(|info| info.size)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed("look up content", &status)),
        }
    }

    /// Stores what is not there. `from_archive`: false when only containerd has the blobs; then a missing or damaged one is the end,
    /// and the answer false.
    pub(super) async fn complete_content(&self, from_archive: bool) -> Result<bool, ImportError> {
        let mut damaged = false;
        for blob in self.blobs() {
            let intact = match self.stored_size(blob).await? {
                Some(size) if size == blob.size as i64 && self.is_intact(blob).await? => true,
                Some(_) if from_archive => {
                    self.delete_content(blob).await?;
                    damaged = true;
                    false
                }
                _ => false,
            };
            if !intact && !from_archive {
                return Ok(false);
            }
        }
        if damaged {
            self.collect().await?;
        }
        let mut missing = Vec::new();
        for blob in self.blobs() {
            if self.stored_size(blob).await?.is_none() {
                missing.push(blob);
            }
        }
        // In the order of the archive: one in gzip is unpacked once.
        missing.sort_by_key(|blob| blob.offset);
        let mut source = None;
        for blob in missing {
            source = self.upload(blob, source).await?;
        }
        Ok(true)
    }

    /// Deleted content is a file until containerd collects; stored again before that, it would be the damaged file once more.
    async fn collect(&self) -> Result<(), ImportError> {
        let mut leases = api::leases_client::LeasesClient::new(self.channel.clone());
        let id = format!("{}-collect", self.lease);
        let create = self.request(api::CreateRequest { id: id.clone(), labels: HashMap::new() });
        leases.create(create).await.map_err(|status| self.failed("collect damaged content", &status))?;
        let delete = self.request(api::DeleteRequest { id, sync: true });
        leases.delete(delete).await.map_err(|status| self.failed("collect damaged content", &status))?;
        Ok(())
    }

    /// Content that an import left behind when the power failed may have the right length and still be zeros.
    async fn is_intact(&self, blob: &Blob) -> Result<bool, ImportError> {
        let request =
            self.request(api::ReadContentRequest { digest: blob.digest.clone(), offset: 0, size: 0 });
        let mut content = api::content_client::ContentClient::new(self.channel.clone());
        let Ok(answer) = content.read(request).await else { return Ok(false) };
        let (mut stream, mut hash) = (answer.into_inner(), Sha256::new());
        loop {
            match stream.message().await {
                Ok(Some(part)) => hash.update(&part.data),
                Ok(None) => break,
                Err(_) => return Ok(false),
            }
        }
        Ok(format!("sha256:{}", hex::encode(hash.finalize())) == blob.digest)
    }

    async fn delete_content(&self, blob: &Blob) -> Result<(), ImportError> {
        let request = self.request(api::DeleteContentRequest { digest: blob.digest.clone() });
        match api::content_client::ContentClient::new(self.channel.clone()).delete(request).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(self.failed("remove damaged content", &status))
            }
            _ => Ok(()),
        }
    }

    /// `source`: the archive, where the last upload left it.
    async fn upload(
        &self,
        blob: &Blob,
        source: Option<Source<File>>,
    ) -> Result<Option<Source<File>>, ImportError> {
        let unreadable = |error: std::io::Error| self.damaged(format!("cannot be read ({error})"));
        let (tx, mut rx) = tokio::sync::mpsc::channel(1);
        let outgoing = futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx));
        let labels = self.references(blob);
        let reference = format!("kinglet-{}-{}", self.lease, blob.digest);
        let made = self.image.made_manifest.clone().filter(|_| blob == &self.image.manifest);
        let (path, blob_here) = (self.image.path.clone(), blob.clone());
        let feed = rt::blocking(move || {
            let mut source = source;
            let mut made = made.as_deref();
            let mut offset = 0;
            loop {
                let mut data = vec![0; CONTENT_CHUNK_BYTES.min((blob_here.size - offset) as usize)];
                match (&mut made, &mut source) {
                    (Some(made), _) => made.read_exact(&mut data)?,
                    (None, Some(source)) => {
                        if offset == 0 {
                            source.seek(SeekFrom::Start(blob_here.offset))?;
                        }
                        source.read_exact(&mut data)?;
                    }
                    (None, None) => {
                        source = Some(Source::open(File::open(&path)?)?.0);
                        continue;
                    }
                }
                let last = offset + data.len() as u64 == blob_here.size;
                let action = if last { api::WriteAction::Commit } else { api::WriteAction::Write };
                let message = api::WriteContentRequest {
                    action: action.into(),
                    r#ref: reference.clone(),
                    total: blob_here.size as i64,
                    expected: blob_here.digest.clone(),
                    offset: offset as i64,
                    labels: if last { labels.clone() } else { HashMap::new() },
                    data,
                };
                offset += message.data.len() as u64;
                // A closed channel: containerd ended the call, and says why in its answer.
                if tx.blocking_send(message).is_err() || last {
                    return Ok(source);
                }
            }
        });
        let mut content = api::content_client::ContentClient::new(self.channel.clone());
        let receive = async {
            let mut answers = content.write(self.request(outgoing)).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        };
        let (fed, received): (std::io::Result<_>, Result<(), Status>) = tokio::join!(feed, receive);
        match received {
            Ok(()) => fed.map_err(unreadable),
            Err(status) if status.code() == Code::AlreadyExists => fed.map_err(unreadable),
            Err(status) if status.code() == Code::FailedPrecondition => {
                Err(self.damaged(format!("is damaged in blob {} ({})", blob.digest, status.message())))
            }
            Err(status) => {
                Err(fed.map_err(unreadable).err().unwrap_or(self.failed("store content", &status)))
            }
        }
    }

    /// What the collector must keep because of this blob.
    fn references(&self, blob: &Blob) -> HashMap<String, String> {
        let mut labels = HashMap::new();
        if blob == &self.image.manifest {
            labels
                .insert("containerd.io/gc.ref.content.config".to_string(), self.image.config.digest.clone());
            for (n, layer) in self.image.layers.iter().enumerate() {
                labels.insert(format!("containerd.io/gc.ref.content.l.{n}"), layer.digest.clone());
            }
        }
        if blob == &self.image.config
            && let Some(chain) = chain_ids(&self.image.diff_ids).pop()
        {
            labels.insert(format!("containerd.io/gc.ref.snapshot.{}", self.target.snapshotter), chain);
        }
        labels
    }

    async fn unpack(&self) -> Result<(), ImportError> {
        let chains = chain_ids(&self.image.diff_ids);
        let mut parent = String::new();
        for (layer, chain) in self.image.layers.iter().zip(chains) {
            self.unpack_layer(layer, &parent, &chain).await?;
            parent = chain;
        }
        Ok(())
    }

    pub(super) async fn unpack_layer(
        &self,
        layer: &Blob,
        parent: &str,
        chain: &str,
    ) -> Result<(), ImportError> {
        use api::snapshots as snap;
        let mut snapshots = snap::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let snapshotter = self.target.snapshotter.clone();
        let key = format!("kinglet-{}-{chain}", self.lease);
        // A layer unpacked by an import that was cut off may be damaged. It cannot be removed while another image uses it; then
        // that image was synced, and with it the layer.
        let remove = snap::RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key: chain.to_string() };
        match snapshots.remove(self.request(remove)).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) if status.code() == Code::FailedPrecondition => return Ok(()),
            Err(status) => return Err(self.failed("remove an old layer", &status)),
        }
        let prepare = snap::PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_string(),
            labels: HashMap::new(),
        };
        let mounts = snapshots.prepare(self.request(prepare)).await;
        let mounts = mounts.map_err(|status| self.failed("prepare a layer", &status))?.into_inner().mounts;
        let diff = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.clone(),
            size: layer.size as i64,
            annotations: HashMap::new(),
        };
        let apply = api::ApplyRequest { diff: Some(diff), mounts, payloads: HashMap::new(), sync_fs: false };
        let applied =
            api::diff_client::DiffClient::new(self.channel.clone()).apply(self.request(apply)).await;
        if let Err(status) = applied {
            let drop = snap::RemoveSnapshotRequest { snapshotter, key };
            // Else it stays until the lease ends.
            let _ = snapshots.remove(self.request(drop)).await;
            return Err(self.failed("unpack a layer", &status));
        }
        let commit =
            snap::CommitSnapshotRequest { snapshotter, name: chain.to_string(), key, labels: HashMap::new() };
        match snapshots.commit(self.request(commit)).await {
            Err(status) if status.code() != Code::AlreadyExists => Err(self.failed("keep a layer", &status)),
            _ => Ok(()),
        }
    }

    fn labels(&self) -> HashMap<String, String> {
        let from_archive = self.image.path.is_absolute().then_some(PINNED);
        [MANAGED].into_iter().chain(from_archive).map(|(key, value)| (key.into(), value.into())).collect()
    }

    pub(super) async fn name(&self, name: &str) -> Result<(), ImportError> {
        let manifest = &self.image.manifest;
        let image = api::Image {
            name: name.to_string(),
            labels: self.labels(),
            target: Some(types::Descriptor {
                media_type: manifest.media_type.clone(),
                digest: manifest.digest.clone(),
                size: manifest.size as i64,
                annotations: HashMap::new(),
            }),
            created_at: None,
            updated_at: None,
        };
        let mut images = api::images_client::ImagesClient::new(self.channel.clone());
        let create = api::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        match images.create(self.request(create)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(self.failed("keep the name", &status)),
        }
        // Whoever marked it before meant it.
        let get = self.request(api::GetImageRequest { name: name.to_string() });
        let known = images.get(get).await.ok().and_then(|answer| answer.into_inner().image);
        let mut image = image;
        image.labels =
            known.map_or(HashMap::new(), |known| known.labels).into_iter().chain(image.labels).collect();
        let update =
            api::UpdateImageRequest { image: Some(image), update_mask: None, source_date_epoch: None };
        images
            .update(self.request(update))
            .await
            .map_err(|status| self.failed("change the name", &status))?;
        Ok(())
    }
}

/// The name of each unpacked layer: OCI's chain of digests.
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        let chain = match chains.last() {
            None => diff_id.clone(),
            Some(parent) => {
                format!("sha256:{}", hex::encode(Sha256::digest(format!("{parent} {diff_id}").as_bytes())))
            }
        };
        chains.push(chain);
    }
    chains
}
