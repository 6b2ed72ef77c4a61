//! The pod's conditions with kubelet's reasons and messages.

use serde_json::{Value, json};

use super::{
    line::{Kind, Line},
    rfc3339,
};
use crate::edged::{pod::Pod, worker::Now};

/// Since when a condition has its state: Unix seconds. A handful, so it is searched.
#[derive(Debug, Default)]
pub struct Transitions(Vec<(&'static str, bool, i64)>);

impl Transitions {
    fn get(&self, name: &str) -> Option<(bool, i64)> {
        self.0.iter().find(|(known, ..)| *known == name).map(|(_, status, since)| (*status, *since))
    }

    fn set(&mut self, name: &'static str, status: bool, since: i64) {
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some(entry) => *entry = (name, status, since),
            None => {
                // A pod's five, and no room for more that will not come.
                self.0.reserve_exact(1);
                self.0.push((name, status, since));
            }
        }
    }
}

/// A condition before its time is known.
pub struct Finding {
    pub name: &'static str,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

/// What conditions are decided on.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub init: &'a [Line],
    pub main: &'a [Line],
    /// The phase that the pod has or is on its way to.
    pub phase: &'static str,
    pub has_network: bool,
    /// Why the node takes the pod down before its time.
    pub disruption: Option<&'a str>,
}

pub fn find(facts: &Facts) -> Vec<Finding> {
    let containers_ready = containers_ready(facts);
    let ready = ready(facts, &containers_ready);
    let disruption = facts.disruption.map(|message| Finding {
        name: "DisruptionTarget",
        status: true,
        reason: "TerminationByKubelet",
        message: message.into(),
    });
    let own = [
        yes("PodReadyToStartContainers", facts.has_network),
        initialized(facts),
        ready,
        containers_ready,
        yes("PodScheduled", true),
    ];
    disruption.into_iter().chain(own).collect()
}

fn yes(name: &'static str, status: bool) -> Finding {
    Finding { name, status, reason: "", message: String::new() }
}

fn no(name: &'static str, reason: &'static str, message: String) -> Finding {
    Finding { name, status: false, reason, message }
}

fn initialized(facts: &Facts) -> Finding {
    const NAME: &str = "Initialized";
    if facts.phase == "Succeeded" {
        return Finding { reason: "PodCompleted", ..yes(NAME, true) };
    }
    let done = |line: &&Line| if line.kind == Kind::Sidecar { line.started } else { line.ready };
    let incomplete = names(facts.init.iter().filter(|line| !done(line)));
    // Init containers that run again after that do not take it back.
    if incomplete.is_empty() || facts.main.iter().any(|line| !line.is_waiting()) {
        return yes(NAME, true);
    }
    no(NAME, "ContainersNotInitialized", format!("containers with incomplete status: [{incomplete}]"))
}

fn containers_ready(facts: &Facts) -> Finding {
    const NAME: &str = "ContainersReady";
    let sidecars = facts.init.iter().filter(|line| line.kind == Kind::Sidecar);
    let unready = names(sidecars.chain(facts.main).filter(|line| !line.ready));
    match facts.phase {
        "Succeeded" => no(NAME, "PodCompleted", String::new()),
        "Failed" => no(NAME, "PodFailed", String::new()),
        _ if unready.is_empty() => yes(NAME, true),
        _ => no(NAME, "ContainersNotReady", format!("containers with unready status: [{unready}]")),
    }
}

fn ready(facts: &Facts, containers: &Finding) -> Finding {
    const NAME: &str = "Ready";
    if !containers.status {
        return no(NAME, containers.reason, containers.message.clone());
    }
    let complaint = |gate: &str| {
        let condition = facts.pod.status.conditions.iter().find(|c| c.condition_type == gate);
        match condition {
            None => Some(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
            Some(c) if c.status == "True" => None,
            Some(c) => {
                Some(format!("the status of pod readiness gate {gate:?} is not \"True\", but {}", c.status))
            }
        }
    };
    let complaints: Vec<String> =
        facts.pod.spec.readiness_gates.iter().filter_map(|gate| complaint(&gate.condition_type)).collect();
    match complaints.is_empty() {
        true => yes(NAME, true),
        false => no(NAME, "ReadinessGatesNotReady", complaints.join(", ")),
    }
}

fn names<'a>(lines: impl Iterator<Item = &'a Line>) -> String {
    lines.map(|line| line.name.as_str()).collect::<Vec<_>>().join(" ")
}

pub fn render(finding: Finding, pod: &Pod, now: Now, transitions: &mut Transitions) -> Value {
    let Finding { name, status, reason, message } = finding;
    let text = if status { "True" } else { "False" };
    let echoed = || {
        let condition =
            pod.status.conditions.iter().find(|c| c.condition_type == name && c.status == text)?;
        condition.last_transition_time
    };
    let since = match transitions.get(name) {
        Some((same, since)) if same == status => since,
        Some(_) => now.unix,
        None => echoed().unwrap_or(now.unix),
    };
    transitions.set(name, status, since);
    let or_null = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    let mut condition = json!({
        "type": name, "status": text, "lastProbeTime": null, "lastTransitionTime": rfc3339(since),
        "reason": or_null(reason), "message": or_null(&message),
    });
    if pod.metadata.generation > 0 {
        condition["observedGeneration"] = json!(pod.metadata.generation);
    }
    condition
}
