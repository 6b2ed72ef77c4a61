//! The status that the cloud sees: phase, conditions and container states, as kubelet reports them.
//!
//! A pure function of the worker. Reports are whole statuses, not differences: the newest one alone is right, so an outbox may
//! drop the older ones. Source of the rules: Kubernetes' documentation of the pod lifecycle, and captured kubelet patches.
//!
//! Invariant: a terminal phase is told when nothing runs any more and the record says so, and is never taken back.

mod conditions;
mod line;
mod phase;
mod qos;

use std::sync::Arc;

use serde_json::{Map, Value, json};

pub use conditions::Transitions;
pub use qos::qos_class;

use super::{
    limits,
    observed::{Observed, Sandbox},
    pod::{Container, Pod},
    record::{Ended, Record},
    worker::{Now, Worker},
};
use line::{Kind, Line, Scene};

/// What of the node stands in a pod's status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub host_ip: String,
}

/// Reasons with which the node takes a pod down for its own sake.
const DISRUPTIONS: [&str; 2] = ["Evicted", "Preempting"];

/// Renders the status of a worker whose pod is still an object; `None` when the object is gone.
pub fn render(worker: &Worker, now: Now, node: &NodeFacts, transitions: &mut Transitions) -> Option<Value> {
    let pod = worker.desired.as_ref().filter(|_| !worker.ended_elsewhere)?;
    let nothing = Observed::default();
    let seen = worker.seen.as_ref().unwrap_or(&nothing);
    let sandbox = worker.sandbox(seen).map(Arc::as_ref);
    let lines = Lines::of(worker, pod, seen, sandbox);
    let (phase, heading) = phases(worker, pod, &lines);
    let over = worker.is_deleting() && worker.record.ended.is_some();
    let lines = if over { lines.accounted_for() } else { lines };

    let failing = worker.record.failing.as_ref();
    let facts = conditions::Facts {
        pod,
        init: &lines.init,
        main: &lines.main,
        phase: heading,
        has_network: sandbox.is_some_and(|s| pod.spec.host_network || !s.ips.is_empty()),
        disruption: failing.filter(|f| DISRUPTIONS.contains(&f.reason.as_str())).map(|f| f.message.as_str()),
    };
    let found = conditions::find(&facts);

    let mut status = Map::new();
    status.insert("phase".into(), phase.into());
    let (reason, message) = match (&worker.refused, failing) {
        (_, Some(failing)) if phase == "Failed" => (json!(failing.reason), json!(failing.message)),
        (Some(refused), _) => (json!("InvalidPodSpec"), json!(refused)),
        _ => (Value::Null, Value::Null),
    };
    status.insert("reason".into(), reason);
    status.insert("message".into(), message);
    if pod.metadata.generation > 0 {
        status.insert("observedGeneration".into(), pod.metadata.generation.into());
    }
    let order: Vec<Value> = found.iter().map(|finding| json!({ "type": finding.name })).collect();
    status.insert("$setElementOrder/conditions".into(), order.into());
    let found: Vec<Value> =
        found.into_iter().map(|finding| conditions::render(finding, pod, now, transitions)).collect();
    status.insert("conditions".into(), found.into());
    addresses(&mut status, pod, sandbox, node);
    if worker.record.start_time > 0 {
        status.insert("startTime".into(), json!(rfc3339(worker.record.start_time)));
    }
    // Of a pod that was not admitted a kubelet tells no containers: kubectl shows the reason only then.
    if failing.is_none_or(|failing| !failing.at_the_door) {
        lines.render(&mut status);
    }
    status.insert("qosClass".into(), json!(qos_class(pod)));
    Some(Value::Object(status))
}

/// The phase to tell, and the one that the pod is on its way to: while containers are being stopped the first lags behind.
fn phases(worker: &Worker, pod: &Pod, lines: &Lines) -> (&'static str, &'static str) {
    let heading = match (worker.record.ended, &worker.record.failing) {
        (Some(Ended::Succeeded), _) => "Succeeded",
        (Some(Ended::Failed), _) | (None, Some(_)) => "Failed",
        (None, None) => phase::phase(pod, &lines.init, &lines.main),
    };
    match heading {
        "Succeeded" | "Failed" if !worker.has_ended() => (lines.before_the_end(), heading),
        _ => (heading, heading),
    }
}

struct Lines {
    init: Vec<Line>,
    main: Vec<Line>,
    ephemeral: Vec<Line>,
}

impl Lines {
    fn of(worker: &Worker, pod: &Pod, seen: &Observed, sandbox: Option<&Sandbox>) -> Lines {
        // An ended pod's sandbox is stopped, but it still holds the containers.
        let home =
            sandbox.or_else(|| seen.sandboxes.iter().map(Arc::as_ref).max_by_key(|sandbox| sandbox.attempt));
        let reason =
            if pod.spec.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" };
        let scene = Scene { worker, pod, seen, home, reason };
        let all = |containers: &[Container], kind: fn(&Container) -> Kind| {
            containers.iter().map(|container| scene.line(container, kind(container))).collect()
        };
        Lines {
            init: all(&pod.spec.init_containers, |c| if c.is_sidecar() { Kind::Sidecar } else { Kind::Init }),
            main: all(&pod.spec.containers, |_| Kind::Main),
            ephemeral: all(&pod.spec.ephemeral_containers, |_| Kind::Ephemeral),
        }
    }

    /// The phase of a pod whose end is not told yet.
    fn before_the_end(&self) -> &'static str {
        let began = self.main.iter().any(|line| !line.is_waiting() || line.last.is_some());
        if began { "Running" } else { "Pending" }
    }

    /// The last status of a deleted pod: what cannot be accounted for counts as failed. Containers that had no chance to start, as
    /// init containers did not get so far, keep their waiting state.
    fn accounted_for(mut self) -> Lines {
        let done = |line: &Line| if line.kind == Kind::Sidecar { !line.is_waiting() } else { line.ready };
        let initialized = self.init.iter().all(done);
        if initialized {
            self.main.iter_mut().for_each(Line::give_up);
        }
        if let Some(last) = self.init.iter().rposition(|line| !line.is_waiting()) {
            self.init[..=last].iter_mut().for_each(Line::give_up);
        }
        self
    }

    fn render(self, status: &mut Map<String, Value>) {
        let count = self.init.len() + self.main.len() + self.ephemeral.len();
        let bytes = limits::TERMINATION_MESSAGES_BYTES_MAX / count.max(1);
        let render = |lines: Vec<Line>| lines.into_iter().map(|line| line.render(bytes)).collect::<Value>();
        if !self.init.is_empty() {
            status.insert("initContainerStatuses".into(), render(self.init));
        }
        status.insert("containerStatuses".into(), render(self.main));
        if !self.ephemeral.is_empty() {
            status.insert("ephemeralContainerStatuses".into(), render(self.ephemeral));
        }
    }
}

fn addresses(status: &mut Map<String, Value>, pod: &Pod, sandbox: Option<&Sandbox>, node: &NodeFacts) {
    if !node.host_ip.is_empty() {
        status.insert("hostIP".into(), json!(node.host_ip));
        status.insert("hostIPs".into(), json!([{ "ip": node.host_ip }]));
    }
    let ips = match (sandbox, pod.spec.host_network) {
        (_, true) if !node.host_ip.is_empty() => vec![node.host_ip.clone()],
        (Some(sandbox), false) => sandbox.ips.clone(),
        _ => Vec::new(),
    };
    if let Some(first) = ips.first() {
        status.insert("podIP".into(), json!(first));
        let list: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        // Address lists merge by address: the one of the sandbox before must not stay in it.
        status.insert("podIPs".into(), json!([list, vec![json!({ "$patch": "replace" })]].concat()));
    }
}

/// The status of an object that is not a pod we can run.
pub fn render_refused(message: &str, reason: &str, now: Now) -> Value {
    json!({ "phase": "Failed", "reason": reason, "message": message, "startTime": rfc3339(now.unix) })
}

pub fn rfc3339(unix_s: i64) -> String {
    jiff::Timestamp::from_second(unix_s).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// The message content: a JSON string that holds the patch.
pub fn patch(record: &Record, status: &Value) -> String {
    json!({ "metadata": { "uid": record.uid }, "status": status }).to_string()
}
