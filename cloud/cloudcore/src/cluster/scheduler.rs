//! Chooses a node for a pod that has none. A value without I/O: pods and nodes in, a decision out.
//!
//! Words of the refusals are those that users know from Kubernetes' scheduler, so that their searches find answers.

use std::collections::{BTreeMap, HashMap};

use super::views::{Condition, NodeDetail, PodDetail, Taint, Toleration};

/// A node as the scheduler sees it.
#[derive(Debug)]
pub struct Candidate<'a> {
    pub name: &'a str,
    pub labels: Option<&'a BTreeMap<String, String>>,
    pub detail: &'a NodeDetail,
    /// Pods bound to it that are not finished.
    pub pods: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Bind(String),
    /// The text of the condition and of the event.
    Refused(String),
}

/// The node with the fewest pods among those that fit; the first by name when equal.
///
/// `more`: further obstacles, for example of the pod's volumes.
pub fn decide(pod: &PodDetail, nodes: &[Candidate], more: impl Fn(&Candidate) -> Option<String>) -> Decision {
    if nodes.is_empty() {
        return Decision::Refused("no nodes available to schedule pods".into());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<&Candidate> = None;
    for node in nodes {
        match obstacle(pod, node).or_else(|| more(node)) {
            Some(reason) => *reasons.entry(reason).or_default() += 1,
            None if best.is_none_or(|best| (node.pods, node.name) < (best.pods, best.name)) => {
                best = Some(node)
            }
            None => {}
        }
    }
    match best {
        Some(node) => Decision::Bind(node.name.into()),
        None => {
            let mut reasons: Vec<String> =
                reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            reasons.sort();
            Decision::Refused(format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", ")))
        }
    }
}

/// Why the pod cannot go to the node.
fn obstacle(pod: &PodDetail, node: &Candidate) -> Option<String> {
    if node.detail.unschedulable {
        return Some("node(s) were unschedulable".into());
    }
    let label = |key: &str| node.labels.and_then(|labels| labels.get(key));
    if !pod.node_selector.iter().all(|(key, value)| label(key) == Some(value)) {
        return Some("node(s) didn't match Pod's node affinity/selector".into());
    }
    if node.detail.ready != "True" {
        return Some("node(s) were not ready".into());
    }
    if let Some(taint) = node.detail.taints.iter().find(|taint| repels(taint, &pod.tolerations)) {
        return Some(format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value));
    }
    if node.detail.pods_max.is_some_and(|max| node.pods >= max) {
        return Some("Too many pods".into());
    }
    None
}

fn repels(taint: &Taint, tolerations: &[Toleration]) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
        && !tolerations.iter().any(|t| tolerates(t, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    let key = toleration.key == taint.key || (toleration.key.is_empty() && toleration.operator == "Exists");
    effect && key && (toleration.operator == "Exists" || toleration.value == taint.value)
}

/// Taints that follow from conditions of the node (Kubernetes' documentation, "Taint Nodes by Condition").
const PRESSURES: [(&str, &str); 3] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

/// Which of the node's taints are to be set or taken away: key and whether it is to be there.
pub fn taints_due(node: &NodeDetail) -> Vec<(&'static str, bool)> {
    let is_set = |key: &str| node.taints.iter().any(|taint| taint.key == key && taint.effect == "NoSchedule");
    let status =
        |name: &str| node.conditions.iter().find(|c| c.condition_type == name).map(|c| c.status.as_str());
    let due = PRESSURES.iter().filter_map(|(condition, key)| match (status(condition), is_set(key)) {
        (Some("True"), false) => Some((*key, true)),
        (Some("False"), true) => Some((*key, false)),
        // What is not known is left as it was.
        _ => None,
    });
    due.collect()
}

/// Since when every node's lease has not changed, by this process's own clock: the clocks of nodes are not trusted, and a
/// restarted cloudcore gives every node the full time again.
#[derive(Debug, Default)]
pub struct Lifecycle {
    leases: HashMap<String, (String, u64)>,
}

/// What the node's conditions should say and do not.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `Ready` is to become `Unknown`: no proof of life since this time (RFC 3339, as the node wrote it; empty: never).
    Silent(String),
    /// The node renews its lease again; the condition that says "autonomous" is to go to `False`.
    Back,
}

/// The condition that tells why pods of a silent node are still there.
pub const AUTONOMOUS: &str = "Autonomous";

impl Lifecycle {
    /// `renew_time`: of the node's lease; empty when it has none.
    pub fn judge(
        &mut self,
        now_ms: u64,
        grace_ms: u64,
        node: &str,
        renew_time: &str,
        conditions: &[Condition],
    ) -> Option<Verdict> {
        let seen = self.leases.entry(node.to_owned()).or_insert_with(|| (renew_time.to_owned(), now_ms));
        if seen.0 != renew_time {
            *seen = (renew_time.to_owned(), now_ms);
        }
        let silent = now_ms.saturating_sub(seen.1) > grace_ms;
        let status =
            |name: &str| conditions.iter().find(|c| c.condition_type == name).map(|c| c.status.as_str());
        match (silent, status("Ready"), status(AUTONOMOUS)) {
            // A node that never said anything is not "unknown", it has not come up yet.
            (true, None, _) => None,
            (true, Some("Unknown"), Some("True")) => None,
            (true, _, _) => Some(Verdict::Silent(renew_time.to_owned())),
            (false, _, Some("True")) => Some(Verdict::Back),
            (false, _, _) => None,
        }
    }

    pub fn forget(&mut self, keep: impl Fn(&str) -> bool) {
        self.leases.retain(|node, _| keep(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(pod: &PodDetail, nodes: &[Candidate]) -> Decision {
        super::decide(pod, nodes, |_| None)
    }

    fn ready() -> NodeDetail {
        NodeDetail { ready: "True".into(), ..NodeDetail::default() }
    }

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn the_emptiest_node_that_fits() {
        let (linux, arm) = (labels("os=linux"), labels("os=linux,arch=arm64"));
        let detail = ready();
        let nodes = [
            Candidate { name: "a", labels: Some(&linux), detail: &detail, pods: 0 },
            Candidate { name: "b", labels: Some(&arm), detail: &detail, pods: 2 },
            Candidate { name: "c", labels: Some(&arm), detail: &detail, pods: 1 },
        ];
        let pod = PodDetail { node_selector: labels("arch=arm64"), ..PodDetail::default() };
        assert_eq!(decide(&pod, &nodes), Decision::Bind("c".into()));
        assert_eq!(decide(&PodDetail::default(), &nodes), Decision::Bind("a".into()));
    }

    #[test]
    fn refusals_count_their_reasons() {
        let mut tainted = ready();
        tainted.taints.push(Taint {
            key: "dedicated".into(),
            value: "gpu".into(),
            effect: "NoSchedule".into(),
        });
        let (cordoned, unknown) = (
            NodeDetail { unschedulable: true, ..ready() },
            NodeDetail { ready: "Unknown".into(), ..NodeDetail::default() },
        );
        let full = NodeDetail { pods_max: Some(3), ..ready() };
        let node = |name, detail| Candidate { name, labels: None, detail, pods: 3 };
        let nodes = [
            node("a", &tainted),
            node("b", &cordoned),
            node("c", &unknown),
            node("d", &full),
            node("e", &unknown),
        ];
        assert_eq!(
            decide(&PodDetail::default(), &nodes),
            Decision::Refused(
                "0/5 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint {dedicated: gpu}, \
                 1 node(s) were unschedulable, 2 node(s) were not ready."
                    .into()
            )
        );
        let toleration = Toleration { key: "dedicated".into(), value: "gpu".into(), ..Toleration::default() };
        let pod = PodDetail { tolerations: vec![toleration], ..PodDetail::default() };
        assert_eq!(decide(&pod, &nodes), Decision::Bind("a".into()));
        assert_eq!(decide(&pod, &[]), Decision::Refused("no nodes available to schedule pods".into()));
    }

    fn condition(name: &str, status: &str) -> Condition {
        Condition { condition_type: name.into(), status: status.into() }
    }

    #[test]
    fn taints_follow_the_conditions() {
        let taint = |key: &str| Taint { key: key.into(), value: String::new(), effect: "NoSchedule".into() };
        let node = NodeDetail {
            conditions: vec![
                condition("MemoryPressure", "True"),
                condition("DiskPressure", "False"),
                condition("PIDPressure", "Unknown"),
            ],
            taints: vec![
                taint("node.kubernetes.io/disk-pressure"),
                taint("node.kubernetes.io/pid-pressure"),
                taint("dedicated"),
            ],
            ..ready()
        };
        assert_eq!(
            taints_due(&node),
            [("node.kubernetes.io/memory-pressure", true), ("node.kubernetes.io/disk-pressure", false)]
        );
        assert!(taints_due(&ready()).is_empty());
    }

    #[test]
    fn silence_is_shown_after_the_grace_and_once() {
        let mut lifecycle = Lifecycle::default();
        let ready = [condition("Ready", "True")];
        assert_eq!(lifecycle.judge(0, 40, "n", "t1", &ready), None);
        assert_eq!(lifecycle.judge(30, 40, "n", "t2", &ready), None);
        assert_eq!(
            lifecycle.judge(70, 40, "n", "t2", &ready),
            None,
            "40 ms after the renewal, not after the first look"
        );
        assert_eq!(lifecycle.judge(71, 40, "n", "t2", &ready), Some(Verdict::Silent("t2".into())));
        let shown = [condition("Ready", "Unknown"), condition(AUTONOMOUS, "True")];
        assert_eq!(lifecycle.judge(72, 40, "n", "t2", &shown), None);
        assert_eq!(lifecycle.judge(73, 40, "n", "t3", &shown), Some(Verdict::Back));
        assert_eq!(
            lifecycle.judge(74, 40, "n", "t3", &[condition("Ready", "True"), condition(AUTONOMOUS, "False")]),
            None
        );
    }

    #[test]
    fn a_node_made_beforehand_is_left_alone_until_it_reports() {
        let mut lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.judge(0, 40, "n", "", &[]), None);
        assert_eq!(lifecycle.judge(500, 40, "n", "", &[]), None);
    }
}
