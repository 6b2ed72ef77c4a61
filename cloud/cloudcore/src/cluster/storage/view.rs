//! What is kept of claims, volumes and classes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::quantity;

pub const SELECTED_BY_US: &str = "pv.kubernetes.io/bound-by-controller";
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    pub volume: String,
    /// `None`: the default class is meant, if there is one. Empty: no class.
    pub class: Option<String>,
    pub modes: Vec<String>,
    pub bytes: u128,
    pub selector: Option<Selector>,
    pub block: bool,
    pub phase: String,
    pub status: ClaimStatus,
    pub completed: bool,
    pub finalizers: Vec<String>,
}

/// What a bound claim shows of its volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimStatus {
    pub modes: Vec<String>,
    pub capacity: Value,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volume {
    pub class: String,
    pub modes: Vec<String>,
    pub capacity: Value,
    pub bytes: u128,
    pub block: bool,
    pub claim: Option<ClaimRef>,
    /// The claim was chosen here, not by whoever made the volume.
    pub by_controller: bool,
    pub phase: String,
    pub message: String,
    pub reclaim: String,
    pub affinity: Option<Vec<Term>>,
    pub finalizers: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Class {
    pub provisioner: String,
    pub waits: bool,
    pub is_default: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    pub match_labels: Option<BTreeMap<String, String>>,
    pub match_expressions: Option<Vec<Expression>>,
}

/// One term of a node affinity; terms are alternatives.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    pub match_expressions: Option<Vec<Expression>>,
    pub match_fields: Option<Vec<Expression>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Expression {
    pub key: String,
    pub operator: String,
    pub values: Option<Vec<String>>,
}

impl Expression {
    fn matches(&self, found: Option<&str>) -> bool {
        let values = self.values.as_deref().unwrap_or_default();
        let among = found.is_some_and(|found| values.iter().any(|value| value == found));
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = values.first().and_then(|value| number(value));
        match self.operator.as_str() {
            "In" => among,
            "NotIn" => !among,
            "Exists" => found.is_some(),
            "DoesNotExist" => found.is_none(),
            "Gt" => found.and_then(number).zip(bound).is_some_and(|(found, bound)| found > bound),
            "Lt" => found.and_then(number).zip(bound).is_some_and(|(found, bound)| found < bound),
            _ => false,
        }
    }
}

pub type Labels = BTreeMap<String, String>;

impl Selector {
    pub fn matches(&self, labels: Option<&Labels>) -> bool {
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        let mut equal = self.match_labels.iter().flatten();
        let mut expressions = self.match_expressions.iter().flatten();
        equal.all(|(key, value)| label(key) == Some(value)) && expressions.all(|e| e.matches(label(&e.key)))
    }
}

impl Volume {
    /// Whether the volume can be reached from a node.
    pub fn reaches(&self, node: &str, labels: Option<&Labels>) -> bool {
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        // A term without expressions matches nothing (Kubernetes' documentation of node affinity).
        let matches = |term: &Term| {
            let expressions = term.match_expressions.as_deref().unwrap_or_default();
            let fields = term.match_fields.as_deref().unwrap_or_default();
            !(expressions.is_empty() && fields.is_empty())
                && expressions.iter().all(|e| e.matches(label(&e.key)))
                && fields.iter().all(|e| e.key == "metadata.name" && e.matches(Some(node)))
        };
        self.affinity.as_ref().is_none_or(|terms| terms.iter().any(matches))
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Meta {
    annotations: Option<BTreeMap<String, String>>,
    finalizers: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSpec {
    volume_name: Option<String>,
    storage_class_name: Option<String>,
    access_modes: Option<Vec<String>>,
    resources: Resources,
    selector: Option<Selector>,
    volume_mode: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Resources {
    requests: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    message: Option<String>,
    access_modes: Option<Vec<String>>,
    capacity: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    storage_class_name: Option<String>,
    access_modes: Option<Vec<String>>,
    capacity: Option<BTreeMap<String, Value>>,
    volume_mode: Option<String>,
    claim_ref: Option<ClaimRef>,
    persistent_volume_reclaim_policy: Option<String>,
    node_affinity: Option<NodeAffinity>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeAffinity {
    required: Option<Terms>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Terms {
    node_selector_terms: Option<Vec<Term>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WholeClass {
    provisioner: String,
    volume_binding_mode: Option<String>,
    metadata: Meta,
}

type Parsed<T> = Result<T, serde_json::Error>;

fn part<T: Default + serde::de::DeserializeOwned>(text: Option<&RawValue>) -> Parsed<T> {
    let read = |text: &RawValue| serde_json::from_str::<Option<T>>(text.get()).map(Option::unwrap_or_default);
    text.map_or_else(|| Ok(T::default()), read)
}

fn storage(map: Option<BTreeMap<String, Value>>) -> Value {
    map.and_then(|mut map| map.remove("storage")).unwrap_or_default()
}

pub fn claim(metadata: &RawValue, spec: Option<&RawValue>, status: Option<&RawValue>) -> Parsed<Claim> {
    let (meta, spec, status): (Meta, ClaimSpec, Status) =
        (serde_json::from_str(metadata.get())?, part(spec)?, part(status)?);
    let annotations = meta.annotations.unwrap_or_default();
    Ok(Claim {
        volume: spec.volume_name.unwrap_or_default(),
        class: spec.storage_class_name,
        modes: spec.access_modes.unwrap_or_default(),
        bytes: quantity::bytes(&storage(spec.resources.requests)).unwrap_or(0),
        selector: spec.selector,
        block: spec.volume_mode.as_deref() == Some("Block"),
        phase: status.phase.unwrap_or_default(),
        status: ClaimStatus {
            modes: status.access_modes.unwrap_or_default(),
            capacity: storage(status.capacity),
        },
        completed: annotations.contains_key(BIND_COMPLETED),
        finalizers: meta.finalizers.unwrap_or_default(),
    })
}

pub fn volume(metadata: &RawValue, spec: Option<&RawValue>, status: Option<&RawValue>) -> Parsed<Volume> {
    let (meta, spec, status): (Meta, VolumeSpec, Status) =
        (serde_json::from_str(metadata.get())?, part(spec)?, part(status)?);
    let capacity = storage(spec.capacity);
    Ok(Volume {
        class: spec.storage_class_name.unwrap_or_default(),
        modes: spec.access_modes.unwrap_or_default(),
        bytes: quantity::bytes(&capacity).unwrap_or(0),
        capacity,
        block: spec.volume_mode.as_deref() == Some("Block"),
        claim: spec.claim_ref,
        by_controller: meta.annotations.is_some_and(|map| map.contains_key(SELECTED_BY_US)),
        phase: status.phase.unwrap_or_default(),
        message: status.message.unwrap_or_default(),
        reclaim: spec.persistent_volume_reclaim_policy.unwrap_or_default(),
        affinity: spec
            .node_affinity
            .and_then(|affinity| affinity.required)
            .map(|required| required.node_selector_terms.unwrap_or_default()),
        finalizers: meta.finalizers.unwrap_or_default(),
    })
}

pub fn class(object: &RawValue) -> Parsed<Class> {
    let class: WholeClass = serde_json::from_str(object.get())?;
    let annotations = class.metadata.annotations.unwrap_or_default();
    Ok(Class {
        provisioner: class.provisioner,
        waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
        is_default: annotations.get(DEFAULT_CLASS).is_some_and(|value| value == "true"),
    })
}
