//! A Pod as edged needs it: the part of the Kubernetes type that decides what runs, parsed once.
//!
//! Not here: defaults that the API server fills in (a stock or our own cloud has done so; where a field is missing, the value
//! that Kubernetes documents is used). Unknown fields are ignored: a newer cloud may send them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

mod container;
mod decode;
mod placement;
mod volume;

use serde::{Deserialize, Serialize};

pub use container::*;
use decode::{Word, condition_word, list, null_default, quantities, unix_seconds};
pub use placement::*;
pub use volume::*;

use super::limits;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    pub metadata: Metadata,
    pub spec: Spec,
    /// What was last reported, as the cloud echoes it: the times of conditions outlive an agent restart through it.
    #[serde(default, skip_serializing)]
    pub status: EchoedStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EchoedStatus {
    /// A pod that is Succeeded or Failed for the cloud is not run again.
    #[serde(deserialize_with = "null_default")]
    pub phase: String,
    #[serde(deserialize_with = "list")]
    pub conditions: Vec<EchoedCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EchoedCondition {
    #[serde(rename = "type", deserialize_with = "condition_word")]
    pub condition_type: Word,
    #[serde(deserialize_with = "condition_word")]
    pub status: Word,
    /// Unix seconds.
    #[serde(deserialize_with = "unix_seconds")]
    pub last_transition_time: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<i64>,
    /// Counts changes of the spec; 0 from a cloud that does not count them for pods.
    pub generation: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    #[serde(deserialize_with = "list")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "list")]
    pub init_containers: Vec<Container>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub ephemeral_containers: Vec<Container>,
    #[serde(deserialize_with = "list")]
    pub volumes: Vec<Volume>,
    pub restart_policy: RestartPolicy,
    pub termination_grace_period_seconds: Option<i64>,
    pub active_deadline_seconds: Option<i64>,
    #[serde(deserialize_with = "list")]
    pub image_pull_secrets: Vec<ObjectRef>,
    #[serde(deserialize_with = "list")]
    pub readiness_gates: Vec<ReadinessGate>,
    #[serde(deserialize_with = "null_default")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(deserialize_with = "list")]
    pub tolerations: Vec<Toleration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<PodOs>,
    pub priority: Option<i32>,
    pub priority_class_name: String,
    pub runtime_class_name: Option<String>,
    /// Resources of the whole pod (Kubernetes 1.32).
    pub resources: Option<Resources>,
    #[serde(deserialize_with = "quantities")]
    pub overhead: BTreeMap<String, String>,
    #[serde(rename = "setHostnameAsFQDN")]
    pub set_hostname_as_fqdn: Option<bool>,
    pub host_users: Option<bool>,
    pub enable_service_links: Option<bool>,
    pub automount_service_account_token: Option<bool>,
    pub node_name: String,
    pub hostname: String,
    pub subdomain: String,
    pub host_network: bool,
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    #[serde(rename = "hostIPC")]
    pub host_ipc: bool,
    pub share_process_namespace: Option<bool>,
    pub dns_policy: String,
    pub dns_config: Option<DnsConfig>,
    #[serde(deserialize_with = "list")]
    pub host_aliases: Vec<HostAlias>,
    pub security_context: Option<Box<PodSecurityContext>>,
    pub service_account_name: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReadinessGate {
    pub condition_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Toleration {
    pub key: String,
    /// `Exists` or `Equal` (also when empty).
    pub operator: String,
    pub value: String,
    pub effect: String,
    pub toleration_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    #[serde(deserialize_with = "list")]
    pub nameservers: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub searches: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub options: Vec<DnsOption>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsOption {
    pub name: String,
    pub value: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSecurityContext {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: Option<bool>,
    pub fs_group: Option<i64>,
    /// `OnRootMismatch` or `Always`.
    pub fs_group_change_policy: Option<String>,
    #[serde(deserialize_with = "list")]
    pub supplemental_groups: Vec<i64>,
    /// `Merge` or `Strict`.
    pub supplemental_groups_policy: Option<String>,
    #[serde(deserialize_with = "list")]
    pub sysctls: Vec<NameValue>,
    pub seccomp_profile: Option<SeccompProfile>,
    pub app_armor_profile: Option<SeccompProfile>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NameValue {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SeccompProfile {
    #[serde(rename = "type")]
    pub profile_type: String,
    pub localhost_profile: String,
}

/// Why a pod object cannot be run. Reported as the pod's status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    #[error("the pod cannot be read: {0}; correct it and apply it again")]
    Json(String),
    #[error("the pod has no {0}; correct it and apply it again")]
    Missing(&'static str),
    #[error("container name {0:?} is used twice; rename one")]
    DuplicateContainer(String),
    #[error(
        "container {container} mounts volume {volume:?}, which the pod does not have; add it to spec.volumes"
    )]
    UnknownVolume { container: String, volume: String },
    #[error("{what} {value:?} may hold letters, digits, '-' and '.' only")]
    BadName { what: &'static str, value: String },
    #[error("{count} containers are over this node's limit of {max} for one pod", max = limits::CONTAINERS_PER_POD_MAX)]
    TooManyContainers { count: usize },
    #[error(
        "container {container} has {field}={value:?}, which is not a quantity; write for example 100m or 64Mi"
    )]
    Quantity { container: String, field: String, value: String },
}

/// Where a pod came from: `file`, or `api` (also when it is missing).
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

impl Pod {
    /// Reads and checks a pod. Total: whatever the bytes, the answer is a pod that the rest of edged can work with, or an error.
    pub fn parse(body: &[u8]) -> Result<Pod, PodError> {
        let pod: Pod = serde_json::from_slice(body).map_err(|error| PodError::Json(error.to_string()))?;
        pod.check()?;
        Ok(pod)
    }

    fn check(&self) -> Result<(), PodError> {
        // These become parts of paths: a `/` or a `..` in them would leave edged's folders.
        for (what, field, value) in [
            ("metadata.name", "metadata.name", &self.metadata.name),
            ("metadata.namespace", "metadata.namespace", &self.metadata.namespace),
            ("metadata.uid", "metadata.uid", &self.metadata.uid),
        ] {
            path_safe(what, field, value)?;
        }
        if !self.spec.hostname.is_empty() {
            path_safe("spec.hostname", "spec.hostname", &self.spec.hostname)?;
        }
        if self.spec.containers.is_empty() {
            return Err(PodError::Missing("spec.containers"));
        }
        let count = self.spec.containers.len() + self.spec.init_containers.len();
        if count > limits::CONTAINERS_PER_POD_MAX {
            return Err(PodError::TooManyContainers { count });
        }
        for volume in &self.spec.volumes {
            path_safe("volume name", "volume name", &volume.name)?;
        }
        let volumes: BTreeSet<&str> = self.spec.volumes.iter().map(|volume| volume.name.as_str()).collect();
        let mut names = BTreeSet::new();
        for container in self.all_containers() {
            path_safe("container name", "container name", &container.name)?;
            if !names.insert(container.name.as_str()) {
                return Err(PodError::DuplicateContainer(container.name.clone()));
            }
            if container.image.is_empty() {
                return Err(PodError::Missing("image in one of its containers"));
            }
            if let Some(mount) = container.volume_mounts.iter().find(|m| !volumes.contains(m.name.as_str())) {
                return Err(PodError::UnknownVolume {
                    container: container.name.clone(),
                    volume: mount.name.clone(),
                });
            }
            let resources = &container.resources;
            for (list, quantities) in [("limits", &resources.limits), ("requests", &resources.requests)] {
                for (name, value) in quantities {
                    if super::quantity::parse_milli(value).is_none() {
                        let field = format!("resources.{list}.{name}");
                        let (container, value) = (container.name.clone(), value.clone());
                        return Err(PodError::Quantity { container, field, value });
                    }
                }
            }
        }
        Ok(())
    }

    /// Init containers first, ephemeral ones last.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers).chain(&self.spec.ephemeral_containers)
    }

    /// `default` when the pod names none.
    pub fn service_account(&self) -> &str {
        if self.spec.service_account_name.is_empty() { "default" } else { &self.spec.service_account_name }
    }

    /// The user that all init and main containers run as, if they name one and the same (kubelet: `FsUserFrom`).
    pub fn common_user(&self) -> Option<u32> {
        let of_pod = self.spec.security_context.as_ref().and_then(|security| security.run_as_user);
        let user = |c: &Container| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod);
        let mut users = self.spec.init_containers.iter().chain(&self.spec.containers).map(user);
        let first = users.next()??;
        users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
    }

    /// Where a container stands in the pod, as events name it: `spec.containers{web}`.
    pub fn field_path(&self, container: &str) -> String {
        let holds = |list: &[Container]| list.iter().any(|c| c.name == container);
        let list = match () {
            () if holds(&self.spec.init_containers) => "initContainers",
            () if holds(&self.spec.ephemeral_containers) => "ephemeralContainers",
            () => "containers",
        };
        format!("spec.{list}{{{container}}}")
    }

    /// A pod that is admitted whatever the node is short of: of a system priority class, or a static one (kubelet's rule).
    pub fn is_critical(&self) -> bool {
        const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;
        self.is_static() || self.spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY)
    }

    /// From a folder of this node, not from the cloud.
    pub fn is_static(&self) -> bool {
        self.metadata.annotations.get(CONFIG_SOURCE).is_some_and(|source| source != "api")
    }

    pub fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    pub fn hostname(&self) -> &str {
        // 63 is the kernel's and DNS's bound for one label.
        let name = if self.spec.hostname.is_empty() { &self.metadata.name } else { &self.spec.hostname };
        let cut = &name[..name.len().min(63)];
        cut.trim_end_matches(['-', '.'])
    }

    /// The time between SIGTERM and SIGKILL: of the deletion if there is one, else of the spec.
    pub fn grace(&self) -> Duration {
        let deletion =
            self.metadata.deletion_timestamp.as_ref().and(self.metadata.deletion_grace_period_seconds);
        match deletion.or(self.spec.termination_grace_period_seconds) {
            Some(seconds) => Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(limits::GRACE_MAX),
            None => limits::GRACE_DEFAULT,
        }
    }

    /// Tells whether two pods would run the same: of the spec, without what Kubernetes lets change in place.
    pub fn spec_hash(&self) -> String {
        let mut spec = self.spec.clone();
        spec.termination_grace_period_seconds = None;
        // The service account's volume has a random name in each new pod.
        let random: BTreeSet<String> = spec
            .volumes
            .iter()
            .filter(|v| v.name.starts_with("kube-api-access-"))
            .map(|v| v.name.clone())
            .collect();
        spec.volumes.retain(|volume| !random.contains(&volume.name));
        for container in spec.containers.iter_mut().chain(&mut spec.init_containers) {
            container.volume_mounts.retain(|mount| !random.contains(&mount.name));
        }
        digest(&serde_json::to_vec(&spec).expect("a spec serialises without error"))
    }
}

impl Container {
    /// An init container that goes on running beside the main ones.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == Some(RestartPolicy::Always)
    }

    /// A running container with another hash is replaced. Name and image only, as kubelet does: nothing else of a running pod's
    /// container can change, and a wider hash would restart every pod when edged learns a field.
    pub fn hash(&self) -> String {
        digest(format!("{}\n{}", self.name, self.image).as_bytes())
    }
}

fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(&Sha256::digest(bytes)[..8])
}

fn path_safe(what: &'static str, field: &'static str, value: &str) -> Result<(), PodError> {
    if value.is_empty() {
        return Err(PodError::Missing(field));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if value.len() > 253 || value.starts_with('.') || !value.chars().all(allowed) {
        return Err(PodError::BadName { what, value: value.into() });
    }
    Ok(())
}
