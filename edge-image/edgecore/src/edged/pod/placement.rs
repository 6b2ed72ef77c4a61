//! Where a pod may run: the part of affinity that a node checks, and what a node says of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Toleration,
    decode::{list, null_default},
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Affinity {
    pub node_affinity: Option<NodeAffinity>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
}

/// One of the terms must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSelector {
    #[serde(deserialize_with = "list")]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// All requirements must match; a term without any matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSelectorTerm {
    #[serde(deserialize_with = "list")]
    pub match_expressions: Vec<Requirement>,
    #[serde(deserialize_with = "list")]
    pub match_fields: Vec<Requirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    #[serde(deserialize_with = "list")]
    pub values: Vec<String>,
}

impl NodeSelector {
    /// Whether it selects a node of this name with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>, node: &str) -> bool {
        self.node_selector_terms.iter().any(|term| term.matches(labels, node))
    }
}

impl NodeSelectorTerm {
    fn matches(&self, labels: &BTreeMap<String, String>, node: &str) -> bool {
        // The one field that there is.
        let field = |key: &str| (key == "metadata.name").then_some(node);
        !(self.match_expressions.is_empty() && self.match_fields.is_empty())
            && self.match_expressions.iter().all(|r| r.matches(labels.get(&r.key).map(String::as_str)))
            && self.match_fields.iter().all(|r| r.matches(field(&r.key)))
    }
}

impl Requirement {
    /// `value`: what the node has at the key. An operator that is not known matches nothing.
    fn matches(&self, value: Option<&str>) -> bool {
        let among = value.is_some_and(|value| self.values.iter().any(|wanted| wanted == value));
        let number = |text: &str| text.parse::<i64>().ok();
        let compared = |by: fn(&i64, &i64) -> bool| match (
            value.and_then(number),
            self.values.first().and_then(|wanted| number(wanted)),
        ) {
            (Some(has), Some(wanted)) => by(&has, &wanted),
            _ => false,
        };
        match self.operator.as_str() {
            "In" => among,
            "NotIn" => !among,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => compared(i64::gt),
            "Lt" => compared(i64::lt),
            _ => false,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Taint {
    pub key: String,
    #[serde(deserialize_with = "null_default")]
    pub value: String,
    pub effect: String,
}

impl Toleration {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = self.key.is_empty() || self.key == taint.key;
        let value = match self.operator.as_str() {
            "Exists" => true,
            "" | "Equal" => self.value == taint.value && !self.key.is_empty(),
            _ => false,
        };
        effect && key && value
    }
}

/// An operating system that a pod names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodOs {
    pub name: String,
}
