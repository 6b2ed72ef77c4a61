//! Claims: which path of this node a bound PersistentVolumeClaim means. Values, and the checks that kubelet makes.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::{VolumeError, failed, fs_group, ownership, support};
use crate::edged::pod::{HostPath, NodeSelector, Pod};

/// The claims of a pod that are resolved, by the name of the volume.
pub type Claims = BTreeMap<String, LocalVolume>;

/// What a PersistentVolume is on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalVolume {
    /// Name of the PersistentVolume.
    pub name: String,
    pub path: PathBuf,
    pub source: Source,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    HostPath(HostPath),
    Local,
}

/// Why a claim is not a path yet. The words of kubelet's volume manager, as `kubectl describe` shows them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    #[error("failed to fetch PVC from API server: persistentvolumeclaims \"{0}\" not found")]
    NoClaim(String),
    #[error("failed to fetch PV {0} from API server: persistentvolumes \"{0}\" not found")]
    NoVolume(String),
    #[error("PVC is being deleted")]
    Deleting,
    #[error("PVC is not bound")]
    NotBound,
    #[error("PVC has empty pvc.Spec.VolumeName")]
    NoVolumeName,
    #[error("found PV object {0} with nil pv.Spec.ClaimRef indicating it is not yet bound to the claim")]
    NoClaimRef(String),
    #[error(
        "found PV object {volume} with a pv.Spec.ClaimRef.UID {found} that does not point to the expected PVC UID {claim}"
    )]
    OtherClaim { volume: String, found: String, claim: String },
    #[error("MountVolume.NodeAffinity check failed for volume \"{0}\" : no matching NodeSelectorTerms")]
    NodeAffinity(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("the {0} cannot be read ({1})")]
    Unreadable(&'static str, String),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    name: String,
    uid: String,
    deletion_timestamp: Option<String>,
}

/// A PersistentVolumeClaim as far as the node reads it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Claim {
    metadata: Meta,
    spec: ClaimSpec,
    status: Phase,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClaimSpec {
    volume_name: String,
    volume_mode: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Phase {
    phase: String,
}

/// A PersistentVolume as far as the node reads it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Volume {
    metadata: Meta,
    spec: VolumeSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct VolumeSpec {
    claim_ref: Option<ClaimRef>,
    host_path: Option<HostPath>,
    local: Option<LocalSource>,
    node_affinity: Option<NodeAffinity>,
    access_modes: Option<Vec<String>>,
    #[serde(flatten)]
    other: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ClaimRef {
    uid: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LocalSource {
    path: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAffinity {
    required: Option<NodeSelector>,
}

/// The sources that are PersistentVolume fields of other meaning than "where it is".
const NOT_SOURCES: [&str; 7] = [
    "capacity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "volumeAttributesClassName",
    "accessModes",
];

impl Claim {
    pub fn parse(body: &[u8]) -> Result<Claim, ClaimError> {
        serde_json::from_slice(body).map_err(|error| ClaimError::Unreadable("PVC", error.to_string()))
    }

    pub fn is_bound(&self) -> bool {
        self.status.phase == "Bound" && !self.spec.volume_name.is_empty()
    }

    /// The name of its volume, if it can be used.
    pub fn volume_name(&self) -> Result<&str, ClaimError> {
        // A pod that runs already keeps it; the finalizer holds the object until then.
        if self.metadata.deletion_timestamp.is_some() {
            return Err(ClaimError::Deleting);
        }
        if self.status.phase != "Bound" {
            return Err(ClaimError::NotBound);
        }
        if self.spec.volume_name.is_empty() {
            return Err(ClaimError::NoVolumeName);
        }
        if self.spec.volume_mode.as_deref() == Some("Block") {
            return Err(ClaimError::Unsupported(
                "volumeMode Block is not supported on this node; use Filesystem".into(),
            ));
        }
        Ok(&self.spec.volume_name)
    }
}

impl Volume {
    pub fn parse(body: &[u8]) -> Result<Volume, ClaimError> {
        serde_json::from_slice(body).map_err(|error| ClaimError::Unreadable("PV", error.to_string()))
    }

    /// The path that it is on this node. `labels`: the node's, if known.
    pub fn resolve(
        &self,
        claim: &Claim,
        labels: Option<&BTreeMap<String, String>>,
        node: &str,
        read_only: bool,
    ) -> Result<LocalVolume, ClaimError> {
        let name = self.metadata.name.clone();
        let bound = self.spec.claim_ref.as_ref().ok_or_else(|| ClaimError::NoClaimRef(name.clone()))?;
        if bound.uid != claim.metadata.uid {
            let (found, claim) = (bound.uid.clone(), claim.metadata.uid.clone());
            return Err(ClaimError::OtherClaim { volume: name, found, claim });
        }
        let required = self.spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
        if let (Some(required), Some(labels)) = (required, labels)
            && !required.matches(labels, node)
        {
            return Err(ClaimError::NodeAffinity(name));
        }
        let read_only = read_only || self.spec.access_modes.as_deref() == Some(&["ReadOnlyMany".to_string()]);
        let (path, source) = match (&self.spec.host_path, &self.spec.local) {
            (Some(host), _) => (PathBuf::from(&host.path), Source::HostPath(host.clone())),
            (None, Some(local)) => (PathBuf::from(&local.path), Source::Local),
            (None, None) => {
                let mut kinds = self.spec.other.keys().filter(|key| !NOT_SOURCES.contains(&key.as_str()));
                let kind = kinds.next().map_or("(none given)", String::as_str);
                return Err(ClaimError::Unsupported(support::unsupported(kind).to_string()));
            }
        };
        Ok(LocalVolume { name, path, source, read_only })
    }
}

impl LocalVolume {
    /// Checks what is there, and gives a local volume to the pod's group. A hostPath volume's files stay as they are.
    pub fn set_up(&self, pod: &Pod) -> Result<(), VolumeError> {
        if let Source::HostPath(host) = &self.source {
            return super::host_path::check(host);
        }
        // Not made: a disk that is not mounted must not be taken for an empty one.
        if !self.path.exists() {
            return Err(VolumeError::LocalPath(self.path.display().to_string()));
        }
        let Some(group) = fs_group(pod).filter(|_| !self.read_only) else { return Ok(()) };
        let policy = pod.spec.security_context.as_ref().and_then(|s| s.fs_group_change_policy.as_deref());
        if policy == Some("OnRootMismatch") && ownership::root_matches(&self.path, group, false) {
            return Ok(());
        }
        if !self.path.is_dir() {
            return Err(failed("give to a group", &self.path)(std::io::ErrorKind::NotADirectory.into()));
        }
        ownership::give(&self.path, group, false)
    }
}

/// Any bytes as claim and volume: a path or an error.
pub fn fuzz(data: &[u8]) {
    let (claim, volume) = (Claim::parse(data), Volume::parse(data));
    if let (Ok(claim), Ok(volume)) = (claim, volume) {
        let labels = BTreeMap::from([("a".to_string(), "b".to_string())]);
        let _ = (claim.volume_name().map(str::len), volume.resolve(&claim, Some(&labels), "n", false));
    }
}
