//! Images on the node: preloaded archives first, a registry only for what they do not hold.
//!
//! Not here: which pod wants what. Invariants: an image counts as present when its name is in containerd, its content has the
//! lengths its archive says, and its files are synced; a broken archive stops only its own images.

pub mod archive;
pub mod collect;
pub mod credentials;
pub mod folder;
pub mod import;
pub mod name;
pub mod preloaded;
pub mod prepull;
pub mod pull;
pub mod repair;
pub mod suspects;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use archive::{ArchivedImage, qualified};
use collect::{CollectSettings, Tracker};
use folder::Watcher;
use import::{ImportError, Target};
use name::{Policy, Reference};
use preloaded::Preloaded;
use pull::{Puller, Want};
use repair::Repaired;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, RwLock};
use tonic::transport::Channel;

use super::{
    cri::Cri,
    events::{Event, Recorder},
    limits,
    stats::disk::file_system,
    worker::{Retry, WorkError},
};
use crate::{config::Config, contract::Handles};

/// Local records of pulls that are not synced yet.
const PULLING: &str = "imagepull";
/// The boot in which the images were looked at last.
const BOOT: &str = "imageboot";

/// What the runtime's configuration says that an import must know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeFacts {
    pub snapshotter: String,
    /// The folder that holds containerd's content and layers; `None` when it does not say.
    pub root_dir: Option<PathBuf>,
    pub sandbox_image: Option<String>,
}

pub struct Images {
    cri: Cri,
    channel: Channel,
    preload_dir: PathBuf,
    archives: Arc<std::sync::Mutex<Preloaded>>,
    facts: RwLock<RuntimeFacts>,
    /// By name. Read anew when an image is asked for that is not in it.
    preloaded: RwLock<BTreeMap<String, Arc<ArchivedImage>>>,
    /// One import at a time: memory, and two pods that want the same image.
    importing: Mutex<()>,
    puller: Puller,
    /// Repairs since the start, by image.
    healed: std::sync::Mutex<BTreeMap<String, u32>>,
    settings: ImageSettings,
    tracker: Mutex<Tracker>,
    watcher: Mutex<Watcher>,
    start: Instant,
}

/// What the configuration says about images.
#[derive(Clone, Debug)]
pub struct ImageSettings {
    /// `serializeImagePulls`, `maxParallelImagePulls`.
    pub pulls_max: usize,
    pub collect: CollectSettings,
    /// Folders whose archives are imported when they appear.
    pub import_dirs: Vec<PathBuf>,
    /// `/var/lib/cni`; empty: not looked at.
    pub cni_dir: PathBuf,
}

impl ImageSettings {
    pub fn from_config(config: &Config) -> ImageSettings {
        let kubelet = &config.modules.edged.tailored_kubelet_config;
        let side_by_side = kubelet.max_parallel_image_pulls.map_or(limits::PULLS_MAX, |pulls| pulls as usize);
        ImageSettings {
            pulls_max: if kubelet.serialize_image_pulls { 1 } else { side_by_side },
            collect: CollectSettings {
                high_percent: u64::from(kubelet.image_gc_high_threshold_percent),
                low_percent: u64::from(kubelet.image_gc_low_threshold_percent),
                age_min: kubelet.image_minimum_gc_age.0,
                age_max: kubelet.image_maximum_gc_age.0,
            },
            import_dirs: config.kinglet.import_dirs.clone(),
            cni_dir: "/var/lib/cni".into(),
        }
    }
}

impl Default for ImageSettings {
    fn default() -> ImageSettings {
        ImageSettings {
            pulls_max: 1,
            collect: CollectSettings::default(),
            import_dirs: Vec::new(),
            cni_dir: PathBuf::new(),
        }
    }
}

impl Images {
    pub fn new(cri: Cri, channel: Channel, preload_dir: PathBuf, settings: &ImageSettings) -> Images {
        Images {
            puller: Puller::new(cri.clone(), settings.pulls_max),
            cri,
            channel,
            preload_dir,
            archives: Arc::default(),
            facts: RwLock::default(),
            preloaded: RwLock::default(),
            importing: Mutex::default(),
            healed: std::sync::Mutex::default(),
            settings: settings.clone(),
            tracker: Mutex::default(),
            watcher: Mutex::default(),
            start: Instant::now(),
        }
    }

    pub async fn set_facts(&self, facts: RuntimeFacts) {
        *self.facts.write().await = facts;
    }

    /// Reads the folder of archives and imports what containerd lacks. Returns one error text per archive that is of no use.
    pub async fn preload(&self) -> Vec<String> {
        let mut problems = self.scan().await;
        let images: Vec<Arc<ArchivedImage>> = self.preloaded.read().await.values().cloned().collect();
        for image in images {
            if let Err(error) = self.import(&image).await {
                problems.push(error.to_string());
            }
        }
        problems
    }

    async fn scan(&self) -> Vec<String> {
        let (dir, archives) = (self.preload_dir.clone(), self.archives.clone());
        let (images, problems) =
            rt::blocking(move || archives.lock().unwrap_or_else(PoisonError::into_inner).look(&dir)).await;
        *self.preloaded.write().await = images;
        problems
    }

    async fn import(&self, image: &ArchivedImage) -> Result<(), ImportError> {
        let _one = self.importing.lock().await;
        let whole = import::is_whole(self.channel.clone(), image).await?;
        // An image that containerd names and CRI does not know: what it is made of cannot be read.
        let known = matches!(self.cri.image_status(&image.name).await, Ok(Some(_)) | Err(_));
        if whole && known {
            return Ok(());
        }
        let facts = self.facts.read().await.clone();
        let target = Target { snapshotter: facts.snapshotter };
        if whole {
            let sync = || sync(facts.root_dir);
            repair::repair(self.channel.clone(), image, true, &target, sync).await?;
            tracing::warn!("image {} was damaged; made anew from {}", image.name, image.path.display());
            return Ok(());
        }
        import::import(self.channel.clone(), image, &target, || sync(facts.root_dir)).await?;
        tracing::info!("image {} imported from {}", image.name, image.path.display());
        Ok(())
    }

    /// Makes a container's image present, and tells of it in kubelet's words. Archives in the preload folder stand for the registry:
    /// with policy `Always` as well, a node without a network runs what it was shipped with.
    pub async fn ensure(&self, want: &Want<'_>) -> Result<(), WorkError> {
        let image = &want.container.image;
        let present =
            || Event::normal("Pulled", format!("Container image {image:?} already present on machine"));
        let name = Reference::parse(image).map_err(|error| {
            let message = format!(
                "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {error}"
            );
            want.tell(Event::warning("InspectFailed", message.clone()));
            want.failed("InvalidImageName", message, Retry::Backoff)
        })?;
        if let Some(archived) = self.find(&qualified(image)).await {
            self.import(&archived).await.map_err(|error| {
                let failed = import_failed(&error);
                want.tell(Event::warning(
                    "Failed",
                    format!("Failed to pull image {image:?}: {}", failed.message),
                ));
                want.failed(failed.reason, failed.message, failed.retry)
            })?;
            want.tell(present());
            return Ok(());
        }
        let found = self.cri.image_status(image).await.map_err(|error| {
            let failed = runtime_error("ImageInspectError", &error);
            want.tell(Event::warning("InspectFailed", format!("Failed to inspect image {image:?}: {error}")));
            want.failed(failed.reason, failed.message, failed.retry)
        })?;
        match (found.is_some(), Policy::of(&want.container.image_pull_policy, &name)) {
            (true, Policy::IfNotPresent | Policy::Never) => {
                want.tell(present());
                Ok(())
            }
            (false, Policy::Never) => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                want.tell(Event::warning("ErrImageNeverPull", message.clone()));
                Err(want.failed("ErrImageNeverPull", message, Retry::Backoff))
            }
            // It came from an archive: as for the preload folder, that stands for the registry.
            (true, Policy::Always)
                if import::pinned_names(self.channel.clone()).await.contains(&qualified(image)) =>
            {
                want.tell(present());
                Ok(())
            }
            _ => {
                // containerd does not sync layers; after a power cut they would be there with holes. Until they are synced a
                // record says so.
                let meta = &want.handles.meta;
                let record = pull_record(image);
                let noted = meta.put_local(PULLING, &record, image.clone().into(), true).await;
                if let Err(error) = noted {
                    tracing::warn!("image {image}: {}", rt::error_chain(&error));
                }
                self.puller.pull(want, &name).await?;
                sync(self.facts.read().await.root_dir.clone()).await;
                // A record too many costs one look at the image.
                let _ = meta.delete_local(PULLING, &record).await;
                Ok(())
            }
        }
    }

    pub async fn sandbox_image(&self) -> Option<String> {
        self.facts.read().await.sandbox_image.clone()
    }

    /// The image that containerd starts sandboxes from, which it would otherwise look for in the network.
    pub async fn ensure_sandbox_image(&self) -> Result<(), WorkError> {
        let Some(name) = self.facts.read().await.sandbox_image.clone() else { return Ok(()) };
        match self.find(&qualified(&name)).await {
            Some(archived) => self.import(&archived).await.map_err(|error| import_failed(&error)),
            None => Ok(()),
        }
    }

    /// Imports archives that appeared in the import folders. `Some`: something was judged, and these are of no use now.
    pub async fn import_folders(&self, events: &Recorder) -> Option<Vec<String>> {
        if self.settings.import_dirs.is_empty() {
            return None;
        }
        let mut watcher = self.watcher.lock().await;
        let (folders, before) = (self.settings.import_dirs.clone(), watcher.problems());
        let mut mine = std::mem::take(&mut *watcher);
        let (mine, ready) = rt::blocking(move || {
            let ready = mine.look(&folders);
            (mine, ready)
        })
        .await;
        *watcher = mine;
        for path in ready {
            let problem = self.import_archive(&path, events).await.err();
            if let Some(problem) = &problem {
                events.node(Event::warning("ImageImportFailed", problem.clone()));
            }
            watcher.judged(&path, problem);
        }
        let problems = watcher.problems();
        (problems != before).then_some(problems)
    }

    async fn import_archive(&self, path: &Path, events: &Recorder) -> Result<(), String> {
        let of = path.to_owned();
        let images = rt::blocking(move || archive::read(&of)).await.map_err(|error| error.to_string())?;
        for image in images {
            self.import(&image).await.map_err(|error| error.to_string())?;
            let text = format!("image {} imported from {}", image.name, path.display());
            events.node(Event::normal("ImageImported", text));
        }
        Ok(())
    }

    /// The folder that the runtime keeps content and layers in.
    pub async fn root_dir(&self) -> Option<PathBuf> {
        self.facts.read().await.root_dir.clone()
    }

    /// What no collection may remove, by name.
    async fn pinned(&self) -> BTreeSet<String> {
        let mut pinned: BTreeSet<String> = self.preloaded.read().await.keys().cloned().collect();
        pinned.extend(self.sandbox_image().await.map(|image| qualified(&image)));
        pinned.extend(import::pinned_names(self.channel.clone()).await);
        pinned
    }

    /// Removes images as the thresholds of the disk and their age ask for.
    pub async fn collect(&self, events: &Recorder) {
        let root = self.root_dir().await;
        let disk = rt::blocking(move || root.and_then(|root| file_system(&root))).await;
        let excess =
            disk.and_then(|disk| self.settings.collect.excess(disk.available, disk.capacity)).unwrap_or(0);
        let freed = self.collect_bytes(excess, &self.settings.collect).await;
        if freed < excess {
            let text = format!(
                "Failed to garbage collect required amount of images. Attempted to free {excess} bytes, but only found {freed} bytes eligible to free."
            );
            events.node(Event::warning("FreeDiskSpaceFailed", text));
        }
    }

    /// Removes every image that nobody uses, of any age: the disk is needed for pods.
    pub async fn collect_all(&self, events: &Recorder) {
        let settings = CollectSettings { age_min: Duration::ZERO, ..self.settings.collect.clone() };
        let freed = self.collect_bytes(u64::MAX, &settings).await;
        if freed > 0 {
            events.node(Event::normal(
                "ImageGCSucceeded",
                format!("{freed} bytes of unused images were removed"),
            ));
        }
    }

    /// Returns how much went.
    async fn collect_bytes(&self, bytes: u64, settings: &CollectSettings) -> u64 {
        let listed = async {
            Ok::<_, super::cri::CriError>((
                self.cri.list_images().await?,
                self.cri.list_containers(Default::default()).await?,
            ))
        };
        let (images, containers) = match listed.await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!("images are not collected: {error}");
                return 0;
            }
        };
        let pinned = self.pinned().await;
        let now = self.start.elapsed();
        let unused = self.tracker.lock().await.look(now, &images, &containers, &pinned);
        let mut freed = 0;
        for image in collect::choose(unused, now, bytes, settings) {
            match self.cri.remove_image(&image.id).await {
                Ok(()) => {
                    tracing::info!("image {} removed, {} bytes", image.name, image.bytes);
                    freed += image.bytes;
                }
                Err(error) => tracing::warn!("image {}: {error}", image.name),
            }
        }
        freed
    }

    /// After the node's boot: images whose pull was cut off, and the small one that every pod needs, are made whole.
    pub async fn after_boot(&self, handles: &Handles, boot_id: &str) {
        for (record, image) in handles.meta.list_local(PULLING) {
            let image = String::from_utf8_lossy(&image).into_owned();
            if matches!(self.cri.image_status(&image).await, Ok(Some(_))) {
                self.heal(&image).await;
            }
            let _ = handles.meta.delete_local(PULLING, &record).await;
        }
        if handles.meta.get_local(BOOT, "id").is_some_and(|id| id == boot_id.as_bytes()) {
            return;
        }
        let sandbox = self.facts.read().await.sandbox_image.clone();
        if let Some(image) = sandbox.filter(|_| !boot_id.is_empty()) {
            let name = qualified(&image);
            if self.find(&name).await.is_some() {
                self.heal(&name).await;
            }
        }
        let _ = handles.meta.put_local(BOOT, "id", boot_id.to_string().into(), false).await;
    }

    /// Makes an image whole that may be damaged, so often and not oftener. True when it is worth trying again.
    pub async fn heal(&self, image: &str) -> bool {
        let name = qualified(image);
        {
            let mut healed = self.healed.lock().unwrap_or_else(PoisonError::into_inner);
            let count = healed.entry(name.clone()).or_default();
            if *count >= limits::REPAIRS_MAX {
                return false;
            }
            *count += 1;
        }
        let archived = self.find(&name).await;
        let _one = self.importing.lock().await;
        let facts = self.facts.read().await.clone();
        let target = Target { snapshotter: facts.snapshotter };
        let (source, from_archive) = match archived {
            Some(archived) => (Some((*archived).clone()), true),
            None => (repair::stored(self.channel.clone(), &name).await, false),
        };
        let result = match source {
            Some(source) => {
                let sync = || sync(facts.root_dir);
                repair::repair(self.channel.clone(), &source, from_archive, &target, sync).await
            }
            None => Ok(Repaired::NeedsPull),
        };
        match result {
            Ok(Repaired::Whole) => {
                tracing::warn!("image {name} may have been damaged; it was unpacked again")
            }
            Ok(Repaired::NeedsPull) => {
                tracing::warn!("image {name} is damaged; it is removed, so that it is pulled again");
                if let Ok(Some(found)) = self.cri.image_status(&name).await {
                    let _ = self.cri.remove_image(&found.id).await;
                }
                let _ = self.cri.remove_image(&name).await;
            }
            Err(error) => tracing::error!("image {name}: {error}"),
        }
        true
    }

    async fn find(&self, name: &str) -> Option<Arc<ArchivedImage>> {
        let found = self.preloaded.read().await.get(name).cloned();
        if found.as_ref().is_some_and(|image| image.path.exists()) {
            return found;
        }
        for problem in self.scan().await {
            tracing::warn!("{problem}");
        }
        self.preloaded.read().await.get(name).cloned()
    }
}

/// Name of the local record of a pull that is not synced yet.
fn pull_record(image: &str) -> String {
    hex::encode(Sha256::digest(image.as_bytes()))
}

/// Writes out the file system that containerd's files are on.
async fn sync(root: Option<PathBuf>) {
    rt::blocking(move || {
        let synced =
            root.and_then(|path| std::fs::File::open(path).ok()).map(|dir| nix::unistd::syncfs(&dir));
        if !matches!(synced, Some(Ok(()))) {
            nix::unistd::sync();
        }
    })
    .await;
}

fn import_failed(error: &ImportError) -> WorkError {
    let retry = match error {
        ImportError::Containerd { unavailable: true, .. } => Retry::Soon,
        _ => Retry::Backoff,
    };
    WorkError { reason: "ErrImagePull", message: error.to_string(), retry }
}

pub fn runtime_error(reason: &'static str, error: &super::cri::CriError) -> WorkError {
    let retry = if error.is_unavailable() { Retry::Soon } else { Retry::Backoff };
    WorkError { reason, message: error.message.clone(), retry }
}
