//! A Pod as edged needs it: the part of the Kubernetes type that decides what runs, parsed once.
//!
//! Not here: defaults that the API server fills in (a stock or our own cloud has done so; where a field is missing, the value
//! that Kubernetes documents is used). Unknown fields are ignored: a newer cloud may send them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize};

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
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<EchoedCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EchoedCondition {
    #[serde(rename = "type")]
    pub condition_type: String,
    pub status: String,
    #[serde(deserialize_with = "null_default")]
    pub last_transition_time: String,
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
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    #[serde(deserialize_with = "null_default")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "null_default")]
    pub init_containers: Vec<Container>,
    #[serde(deserialize_with = "null_default")]
    pub volumes: Vec<Volume>,
    pub restart_policy: RestartPolicy,
    pub termination_grace_period_seconds: Option<i64>,
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
    #[serde(deserialize_with = "null_default")]
    pub host_aliases: Vec<HostAlias>,
    pub security_context: Option<PodSecurityContext>,
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
#[serde(default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
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
    pub supplemental_groups: Vec<i64>,
    pub sysctls: Vec<NameValue>,
    pub seccomp_profile: Option<SeccompProfile>,
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

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecurityContext {
    pub privileged: Option<bool>,
    pub capabilities: Option<Capabilities>,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: Option<bool>,
    pub read_only_root_filesystem: Option<bool>,
    pub allow_privilege_escalation: Option<bool>,
    pub seccomp_profile: Option<SeccompProfile>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub image: String,
    pub image_pull_policy: String,
    #[serde(deserialize_with = "null_default")]
    pub command: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub args: Vec<String>,
    pub working_dir: String,
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<Port>,
    #[serde(deserialize_with = "null_default")]
    pub env: Vec<EnvVar>,
    #[serde(deserialize_with = "null_default")]
    pub env_from: Vec<EnvFrom>,
    #[serde(deserialize_with = "null_default")]
    pub resources: Resources,
    #[serde(deserialize_with = "null_default")]
    pub volume_mounts: Vec<VolumeMount>,
    pub security_context: Option<SecurityContext>,
    pub termination_message_path: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Port {
    pub container_port: u16,
    pub host_port: u16,
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    pub protocol: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvVar {
    pub name: String,
    pub value: String,
    pub value_from: Option<EnvSource>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvSource {
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
    pub config_map_key_ref: Option<KeyRef>,
    pub secret_key_ref: Option<KeyRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FieldRef {
    pub field_path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResourceFieldRef {
    pub container_name: String,
    pub resource: String,
    #[serde(deserialize_with = "quantity")]
    pub divisor: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyRef {
    pub name: String,
    pub key: String,
    pub optional: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EnvFrom {
    pub prefix: String,
    pub config_map_ref: Option<ObjectRef>,
    pub secret_ref: Option<ObjectRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectRef {
    pub name: String,
    pub optional: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    #[serde(deserialize_with = "quantities")]
    pub limits: BTreeMap<String, String>,
    #[serde(deserialize_with = "quantities")]
    pub requests: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    pub sub_path: String,
    pub read_only: bool,
    pub mount_propagation: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    pub empty_dir: Option<EmptyDir>,
    pub host_path: Option<HostPath>,
    pub config_map: Option<ConfigMapVolume>,
    pub secret: Option<SecretVolume>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<DownwardVolume>,
    pub projected: Option<ProjectedVolume>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EmptyDir {
    pub medium: String,
    #[serde(deserialize_with = "quantity")]
    pub size_limit: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostPath {
    pub path: String,
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub path_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeyToPath {
    pub key: String,
    pub path: String,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConfigMapVolume {
    pub name: String,
    pub items: Vec<KeyToPath>,
    pub default_mode: Option<u32>,
    pub optional: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecretVolume {
    pub secret_name: String,
    /// Projected secrets call it so.
    pub name: String,
    pub items: Vec<KeyToPath>,
    pub default_mode: Option<u32>,
    pub optional: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DownwardVolume {
    pub items: Vec<DownwardFile>,
    pub default_mode: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DownwardFile {
    pub path: String,
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProjectedVolume {
    pub sources: Vec<ProjectedSource>,
    pub default_mode: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProjectedSource {
    pub config_map: Option<ConfigMapVolume>,
    pub secret: Option<SecretVolume>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<DownwardVolume>,
    pub service_account_token: Option<TokenProjection>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TokenProjection {
    pub path: String,
    pub audience: String,
    pub expiration_seconds: Option<i64>,
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

    /// Init containers first.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
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

/// Go writes an empty list as `null`.
fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(input: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(serde_json::Number),
}

fn quantity<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(match Option::<TextOrNumber>::deserialize(input)? {
        Some(TextOrNumber::Text(text)) => text,
        Some(TextOrNumber::Number(number)) => number.to_string(),
        None => String::new(),
    })
}

fn quantities<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map = Option::<BTreeMap<String, TextOrNumber>>::deserialize(input)?.unwrap_or_default();
    Ok(map
        .into_iter()
        .map(|(name, value)| match value {
            TextOrNumber::Text(text) => (name, text),
            TextOrNumber::Number(number) => (name, number.to_string()),
        })
        .collect())
}
