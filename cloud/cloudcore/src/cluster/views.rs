//! The few fields of each kind that cloudcore keeps. Everything else is read from the API when it is sent.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use super::kind::Kind;
use super::storage::{self, view as storage_view};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub deletion_timestamp: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
}

/// Fields of all kinds together; a kind fills what it has.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub meta: Meta,
    /// What an acknowledgement confirms. For pods it leaves the status out: the node itself reports that.
    pub version: String,
    pub detail: Detail,
}

#[derive(Clone, Debug, Default)]
pub enum Detail {
    #[default]
    None,
    Node(NodeDetail),
    Pod(Box<PodDetail>),
    Device {
        node: String,
        model: String,
        protocol: String,
    },
    Lease {
        renew_time: String,
    },
    Claim(Box<storage::Claim>),
    Volume(Box<storage::Volume>),
    Class(storage::Class),
}

#[derive(Clone, Debug, Default)]
pub struct NodeDetail {
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    /// Status of the condition `Ready`: `True`, `False`, `Unknown`, or empty when there is none.
    pub ready: String,
    /// Allocatable pods; `None` when not reported.
    pub pods_max: Option<u64>,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default)]
pub struct PodDetail {
    pub node: String,
    pub scheduler: String,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    /// Succeeded or Failed.
    pub finished: bool,
    pub config_maps: Vec<String>,
    pub secrets: Vec<String>,
    /// Those of them that the pod can do without.
    pub optional: Vec<(Kind, String)>,
    /// PersistentVolumeClaims.
    pub claims: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub condition_type: String,
    pub status: String,
}

/// Reads the fields out of an object's JSON text.
pub fn parse(kind: Kind, object: &RawValue) -> Result<View, serde_json::Error> {
    let envelope: Envelope = serde_json::from_str(object.get())?;
    let meta: Meta = serde_json::from_str(envelope.metadata.get())?;
    let mut version = meta.resource_version.clone();
    let detail = match kind {
        Kind::Node => Detail::Node(node(&envelope)?),
        Kind::Pod => {
            version = pod_version(&envelope)?;
            Detail::Pod(Box::new(pod(&envelope)?))
        }
        Kind::Device => {
            let spec: DeviceSpec = part(envelope.spec)?;
            let protocol = spec.protocol.protocol_name;
            Detail::Device { node: spec.node_name, model: spec.device_model_ref.name, protocol }
        }
        Kind::Lease => {
            let spec: LeaseSpec = part(envelope.spec)?;
            Detail::Lease { renew_time: spec.renew_time.unwrap_or_default() }
        }
        Kind::PersistentVolumeClaim => {
            let claim = storage_view::claim(envelope.metadata, envelope.spec, envelope.status)?;
            Detail::Claim(Box::new(claim))
        }
        Kind::PersistentVolume => {
            let volume = storage_view::volume(envelope.metadata, envelope.spec, envelope.status)?;
            Detail::Volume(Box::new(volume))
        }
        Kind::StorageClass => Detail::Class(storage_view::class(object)?),
        Kind::Secret | Kind::ConfigMap | Kind::DeviceModel => Detail::None,
    };
    Ok(View { meta, version, detail })
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
}

fn part<T: Default + serde::de::DeserializeOwned>(text: Option<&RawValue>) -> Result<T, serde_json::Error> {
    text.map_or_else(
        || Ok(T::default()),
        |text| serde_json::from_str::<Option<T>>(text.get()).map(Option::unwrap_or_default),
    )
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DeviceSpec {
    node_name: String,
    device_model_ref: NamedRef,
    protocol: DeviceProtocol,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DeviceProtocol {
    protocol_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeaseSpec {
    renew_time: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NamedRef {
    name: String,
    optional: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeSpec {
    unschedulable: bool,
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatus {
    conditions: Option<Vec<Condition>>,
    allocatable: Option<BTreeMap<String, serde_json::Value>>,
}

fn node(envelope: &Envelope) -> Result<NodeDetail, serde_json::Error> {
    let spec: NodeSpec = part(envelope.spec)?;
    let status: NodeStatus = part(envelope.status)?;
    let conditions = status.conditions.unwrap_or_default();
    let ready =
        conditions.iter().find(|c| c.condition_type == "Ready").map(|c| c.status.clone()).unwrap_or_default();
    let pods = status.allocatable.as_ref().and_then(|allocatable| allocatable.get("pods"));
    let pods_max = pods.and_then(|pods| pods.as_u64().or_else(|| pods.as_str()?.parse().ok()));
    Ok(NodeDetail {
        unschedulable: spec.unschedulable,
        taints: spec.taints.unwrap_or_default(),
        ready,
        pods_max,
        conditions,
    })
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    scheduler_name: Option<String>,
    node_selector: Option<BTreeMap<String, String>>,
    tolerations: Option<Vec<Toleration>>,
    volumes: Option<Vec<Volume>>,
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    image_pull_secrets: Option<Vec<NamedRef>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodStatus {
    phase: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    config_map: Option<NamedRef>,
    secret: Option<SecretRef>,
    projected: Option<Projected>,
    persistent_volume_claim: Option<ClaimVolume>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClaimVolume {
    claim_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SecretRef {
    secret_name: String,
    optional: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Projected {
    sources: Option<Vec<ProjectedSource>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ProjectedSource {
    config_map: Option<NamedRef>,
    secret: Option<NamedRef>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Option<Vec<Env>>,
    env_from: Option<Vec<EnvFrom>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Env {
    value_from: Option<ValueFrom>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ValueFrom {
    config_map_key_ref: Option<NamedRef>,
    secret_key_ref: Option<NamedRef>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct EnvFrom {
    config_map_ref: Option<NamedRef>,
    secret_ref: Option<NamedRef>,
}

fn pod(envelope: &Envelope) -> Result<PodDetail, serde_json::Error> {
    let spec: PodSpec = part(envelope.spec)?;
    let status: PodStatus = part(envelope.status)?;
    let mut detail = PodDetail {
        node: spec.node_name.unwrap_or_default(),
        scheduler: spec.scheduler_name.unwrap_or_default(),
        node_selector: spec.node_selector.unwrap_or_default(),
        tolerations: spec.tolerations.unwrap_or_default(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        ..PodDetail::default()
    };
    // Each with whether the pod needs it.
    let mut named: Vec<(Kind, String, bool)> = Vec::new();
    let mut name = |kind: Kind, reference: Option<NamedRef>| {
        named.extend(reference.map(|r| (kind, r.name, r.optional != Some(true))));
    };
    for volume in spec.volumes.into_iter().flatten() {
        detail.claims.extend(volume.persistent_volume_claim.map(|claim| claim.claim_name));
        name(Kind::ConfigMap, volume.config_map);
        let secret = volume.secret.map(|r| NamedRef { name: r.secret_name, optional: r.optional });
        name(Kind::Secret, secret);
        for source in volume.projected.and_then(|projected| projected.sources).into_iter().flatten() {
            name(Kind::ConfigMap, source.config_map);
            name(Kind::Secret, source.secret);
        }
    }
    let containers = spec.init_containers.into_iter().flatten().chain(spec.containers.into_iter().flatten());
    for container in containers {
        for value in container.env.into_iter().flatten().filter_map(|env| env.value_from) {
            name(Kind::ConfigMap, value.config_map_key_ref);
            name(Kind::Secret, value.secret_key_ref);
        }
        for from in container.env_from.into_iter().flatten() {
            name(Kind::ConfigMap, from.config_map_ref);
            name(Kind::Secret, from.secret_ref);
        }
    }
    for reference in spec.image_pull_secrets.into_iter().flatten() {
        name(Kind::Secret, Some(reference));
    }
    // Of one name, those that need it first.
    named.retain(|(_, name, _)| !name.is_empty());
    named.sort_by(|a, b| (a.0, &a.1, !a.2).cmp(&(b.0, &b.1, !b.2)));
    named.dedup_by(|later, first| (later.0, &later.1) == (first.0, &first.1));
    for (kind, name, needed) in named {
        if !needed {
            detail.optional.push((kind, name.clone()));
        }
        match kind {
            Kind::Secret => detail.secrets.push(name),
            _ => detail.config_maps.push(name),
        }
    }
    detail.claims.retain(|name| !name.is_empty());
    detail.claims.sort();
    detail.claims.dedup();
    Ok(detail)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Gates {
    readiness_gates: Option<Vec<Gate>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Gate {
    condition_type: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct GateStatus {
    conditions: Option<Vec<Condition>>,
}

/// A number over metadata and spec without what changes with every status report.
fn pod_version(envelope: &Envelope) -> Result<String, serde_json::Error> {
    let metadata: BTreeMap<String, &RawValue> = serde_json::from_str(envelope.metadata.get())?;
    let mut hash = Fnv::default();
    for (key, value) in &metadata {
        if !matches!(key.as_str(), "resourceVersion" | "managedFields" | "generation") {
            hash.write(key.as_bytes());
            hash.write(value.get().as_bytes());
        }
    }
    hash.write(envelope.spec.map_or("", RawValue::get).as_bytes());
    // What others than the node report, and the node's own report depends on.
    let gates: Gates = part(envelope.spec)?;
    for gate in gates.readiness_gates.into_iter().flatten() {
        let status: GateStatus = part(envelope.status)?;
        let mut conditions = status.conditions.into_iter().flatten();
        let held = conditions.find(|condition| condition.condition_type == gate.condition_type);
        hash.write(held.map_or_else(String::new, |condition| condition.status).as_bytes());
    }
    Ok(format!("{:016x}", hash.0))
}

/// FNV-1a: the standard library's hasher may change between releases, and these numbers are kept on disk.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&[0]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(kind: Kind, text: &str) -> View {
        parse(kind, &RawValue::from_string(text.into()).unwrap()).unwrap()
    }

    #[test]
    fn a_pod_names_what_it_refers_to() {
        let pod = view(
            Kind::Pod,
            r#"{"metadata":{"name":"p","namespace":"d","uid":"u","resourceVersion":"3"},"spec":{"nodeName":"n","volumes":[
            {"name":"a","configMap":{"name":"cm1"}},{"name":"b","secret":{"secretName":"s1"}},
            {"name":"c","projected":{"sources":[{"serviceAccountToken":{"path":"token"}},{"configMap":{"name":"kube-root-ca.crt"}}]}}],
            "containers":[{"name":"c","env":[{"name":"E","valueFrom":{"secretKeyRef":{"name":"s2","key":"k"}}}],
            "envFrom":[{"configMapRef":{"name":"cm1"}}]}],"imagePullSecrets":[{"name":"s3"}]}}"#,
        );
        let Detail::Pod(detail) = pod.detail else { panic!("not a pod") };
        assert_eq!(detail.config_maps, ["cm1", "kube-root-ca.crt"]);
        assert_eq!(detail.secrets, ["s1", "s2", "s3"]);
        assert_eq!(detail.node, "n");
    }

    #[test]
    fn a_status_report_does_not_change_a_pods_version_and_a_deletion_does() {
        let text = |rv: u32, phase: &str, extra: &str| {
            format!(
                r#"{{"metadata":{{"name":"p","uid":"u","resourceVersion":"{rv}"{extra}}},"spec":{{}},"status":{{"phase":"{phase}"}}}}"#
            )
        };
        let first = view(Kind::Pod, &text(3, "Pending", "")).version;
        assert_eq!(first, view(Kind::Pod, &text(4, "Running", "")).version);
        assert_ne!(
            first,
            view(Kind::Pod, &text(4, "Running", r#","deletionTimestamp":"2026-01-01T00:00:00Z""#)).version
        );
    }

    #[test]
    fn a_readiness_gate_that_opens_changes_the_version() {
        let text = |gate: &str, ready: &str| {
            let spec = r#"{"readinessGates":[{"conditionType":"example.com/gate"}]}"#;
            let status = format!(
                r#"{{"conditions":[{{"type":"example.com/gate","status":"{gate}"}},{{"type":"Ready","status":"{ready}"}}]}}"#
            );
            format!(
                r#"{{"metadata":{{"name":"p","uid":"u","resourceVersion":"1"}},"spec":{spec},"status":{status}}}"#
            )
        };
        let version = |gate: &str, ready: &str| view(Kind::Pod, &text(gate, ready)).version;
        assert_ne!(version("False", "False"), version("True", "False"));
        assert_eq!(version("True", "False"), version("True", "True"));
    }

    #[test]
    fn null_parts_are_absent_parts() {
        let node = view(
            Kind::Node,
            r#"{"metadata":{"name":"n","labels":null},"spec":{"taints":null},"status":null}"#,
        );
        assert!(matches!(node.detail, Detail::Node(NodeDetail { unschedulable: false, .. })));
    }
}
