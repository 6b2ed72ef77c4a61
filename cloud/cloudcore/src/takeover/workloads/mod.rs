//! Which DaemonSets and admission webhooks would reach edge nodes. Values only: objects in, findings and patches out.
//!
//! A DaemonSet made for the machines of a data centre (a network plugin, kube-proxy, a log collector) puts a pod on every edge node
//! too, where it does not fit or does harm. A webhook that changes pods puts its sidecars into theirs.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// KubeEdge's label of edge nodes, and ours.
pub const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";
/// A namespace with this label is left out by the webhooks that were patched.
pub const NAMESPACE_LABEL: &str = "kinglet.dev/edge";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `daemonset kube-system/kube-proxy`
    pub object: String,
    pub why: String,
    /// The command that keeps it away from edge nodes.
    pub patch: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    name: String,
    namespace: String,
}

/// One way into a node's labels.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Expression {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Term {
    match_expressions: Option<Vec<Expression>>,
    match_fields: Option<Vec<Expression>>,
}

/// The labels that edge nodes are sure to have, for each architecture. A cluster without edge nodes yet is judged by these.
fn usual_edges() -> Vec<BTreeMap<String, String>> {
    ["amd64", "arm64"]
        .into_iter()
        .map(|arch| {
            [
                (EDGE_LABEL, ""),
                ("node-role.kubernetes.io/agent", ""),
                ("kubernetes.io/os", "linux"),
                ("kubernetes.io/arch", arch),
            ]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
        })
        .collect()
}

/// `labels`: of the edge nodes that are there.
pub fn daemon_set(object: &Value, labels: &[BTreeMap<String, String>]) -> Option<Finding> {
    let meta: Meta = serde_json::from_value(object["metadata"].clone()).unwrap_or_default();
    let spec = &object["spec"]["template"]["spec"];
    let selector: BTreeMap<String, String> =
        serde_json::from_value(spec["nodeSelector"].clone()).unwrap_or_default();
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let texts = required["nodeSelectorTerms"].as_array().cloned().unwrap_or_default();
    let terms: Vec<Term> =
        texts.iter().map(|term| serde_json::from_value(term.clone()).unwrap_or_default()).collect();
    let usual = usual_edges();
    let reaches = |labels: &BTreeMap<String, String>| {
        selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && (terms.is_empty() || terms.iter().any(|term| term.holds(labels)))
    };
    if !labels.iter().chain(&usual).any(reaches) {
        return None;
    }
    let away = json!({"key": EDGE_LABEL, "operator": "DoesNotExist"});
    let patched: Vec<Value> = match texts.is_empty() {
        true => vec![json!({"matchExpressions": [away]})],
        // One term is enough for a node, so each of them must refuse.
        false => texts
            .into_iter()
            .map(|mut term| {
                match term["matchExpressions"].as_array_mut() {
                    Some(expressions) => expressions.push(away.clone()),
                    None => term["matchExpressions"] = json!([away]),
                }
                term
            })
            .collect(),
    };
    let patch = json!({"spec": {"template": {"spec": {"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": patched}}}}}}});
    Some(Finding {
        object: format!("daemonset {}/{}", meta.namespace, meta.name),
        why: "puts a pod on every edge node".into(),
        patch: format!(
            "kubectl patch daemonset -n {} {} --type=merge -p '{patch}'",
            meta.namespace, meta.name
        ),
    })
}

impl Term {
    /// As the scheduler judges it, but for `matchFields`, which names single nodes: such a term is taken as one that reaches none.
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        if self.match_fields.as_ref().is_some_and(|fields| !fields.is_empty()) {
            return false;
        }
        let expressions = self.match_expressions.iter().flatten();
        let mut any = false;
        let all = expressions.inspect(|_| any = true).all(|expression| expression.holds(labels));
        all && any
    }
}

impl Expression {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let listed = || self.values.iter().flatten().any(|one| Some(one) == value);
        match self.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            // Gt and Lt compare numbers that edge nodes are not known to have.
            _ => false,
        }
    }
}

/// Findings for a MutatingWebhookConfiguration or ValidatingWebhookConfiguration.
pub fn webhooks(object: &Value, kind: &str) -> Vec<Finding> {
    let meta: Meta = serde_json::from_value(object["metadata"].clone()).unwrap_or_default();
    let all = object["webhooks"].as_array();
    all.into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, one)| webhook(&meta, kind, index, one))
        .collect()
}

fn webhook(meta: &Meta, kind: &str, index: usize, webhook: &Value) -> Option<Finding> {
    let touches = |group: &str, resource: &str| {
        let names = |rule: &Value, key: &str, name: &str| {
            rule[key].as_array().is_some_and(|all| {
                all.iter().filter_map(Value::as_str).any(|one| one == "*" || one == "*/*" || one == name)
            })
        };
        let rules = webhook["rules"].as_array();
        rules
            .into_iter()
            .flatten()
            .any(|rule| names(rule, "apiGroups", group) && names(rule, "resources", resource))
    };
    let mutates = kind.starts_with("mutating");
    let fails = webhook["failurePolicy"].as_str().unwrap_or("Fail") == "Fail";
    let why = if mutates && touches("", "pods") {
        "changes pods, those of edge nodes too"
    } else if fails && touches("coordination.k8s.io", "leases") {
        "is asked about every lease; when it does not answer, edge nodes are not ready"
    } else if fails && (touches("", "nodes") || touches("", "nodes/status")) {
        "is asked about every node; when it does not answer, edge nodes cannot register or report"
    } else {
        return None;
    };
    let expressions = webhook["namespaceSelector"]["matchExpressions"].as_array();
    let is_left_out = |one: &Value| one["key"] == NAMESPACE_LABEL && one["operator"] == "DoesNotExist";
    if expressions.is_some_and(|all| all.iter().any(is_left_out)) {
        return None;
    }
    let away = json!({"key": NAMESPACE_LABEL, "operator": "DoesNotExist"});
    let at = format!("/webhooks/{index}/namespaceSelector");
    let patch = match (webhook.get("namespaceSelector").filter(|one| !one.is_null()), expressions) {
        (None, _) => json!([{"op": "add", "path": at, "value": {"matchExpressions": [away]}}]),
        (Some(_), None) => json!([{"op": "add", "path": format!("{at}/matchExpressions"), "value": [away]}]),
        (Some(_), Some(_)) => {
            json!([{"op": "add", "path": format!("{at}/matchExpressions/-"), "value": away}])
        }
    };
    let name = webhook["name"].as_str().unwrap_or_default();
    Some(Finding {
        object: format!("{kind} {} ({name})", meta.name),
        why: why.into(),
        patch: format!(
            "kubectl patch {kind} {} --type=json -p '{patch}' && kubectl label namespace NAMESPACE {NAMESPACE_LABEL}=true",
            meta.name
        ),
    })
}

#[cfg(test)]
mod tests;
