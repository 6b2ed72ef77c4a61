//! The status that the cloud sees: phase, conditions and container states, as kubelet reports them.
//!
//! A pure function of the worker. Reports are whole statuses, not differences: the newest one alone is right, so an outbox may
//! drop the older ones. Source of the rules: Kubernetes' documentation of the pod lifecycle, and captured kubelet patches.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    observed::{Container as Seen, Observed, Sandbox, State},
    pod::{Container, Pod, RestartPolicy},
    record::{Ended, Record, Terminated},
    worker::{Now, Slot, Worker},
};

/// What of the node stands in a pod's status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub host_ip: String,
}

/// Since when a condition has its state: Unix seconds.
pub type Transitions = BTreeMap<&'static str, (bool, i64)>;

const CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// One container's part, before it becomes JSON.
struct Line {
    state: Value,
    last: Value,
    ready: bool,
    started: bool,
    restarts: u32,
    /// `None` while nothing ran yet.
    exit_code: Option<i32>,
    running: bool,
    /// Waiting and never ran.
    unborn: bool,
    image: String,
    image_ref: String,
    id: String,
}

/// Renders the status of a worker whose pod is still an object; `None` when the object is gone.
pub fn render(worker: &Worker, now: Now, node: &NodeFacts, transitions: &mut Transitions) -> Option<Value> {
    let pod = worker.desired.as_ref()?;
    let nothing = Observed::default();
    let seen = worker.seen.as_ref().unwrap_or(&nothing);
    let sandbox = worker.sandbox(seen);
    // An ended pod's sandbox is stopped, but it still holds the containers.
    let home = sandbox.or_else(|| seen.sandboxes.iter().max_by_key(|sandbox| sandbox.attempt));

    let init: Vec<Line> = pod
        .spec
        .init_containers
        .iter()
        .map(|c| line(worker, pod, c, seen, home, "PodInitializing"))
        .collect();
    let initialized = init.iter().all(|line| line.exit_code == Some(0));
    let reason = if initialized { "ContainerCreating" } else { "PodInitializing" };
    let main: Vec<Line> =
        pod.spec.containers.iter().map(|c| line(worker, pod, c, seen, home, reason)).collect();
    let phase = phase(worker, pod, initialized, &init, &main);

    let ended = matches!(phase, "Succeeded" | "Failed");
    let unready = names(&pod.spec.containers, &main, |line| !line.ready);
    let ready = unready.is_empty() && !ended;
    let not_ready = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ => Some(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))),
    };
    let incomplete = names(&pod.spec.init_containers, &init, |line| line.exit_code != Some(0));
    let initialized = initialized || ended && phase == "Succeeded";
    let not_initialized = Some((
        "ContainersNotInitialized",
        format!("containers with incomplete status: [{}]", incomplete.join(" ")),
    ));

    let states = [
        (sandbox.is_some(), None),
        (initialized, not_initialized),
        (ready, not_ready.clone()),
        (ready, not_ready),
        (true, None),
    ];
    let conditions: Vec<Value> = CONDITIONS
        .iter()
        .zip(states)
        .map(|(name, (status, why))| condition(name, status, why, pod, now, transitions))
        .collect();

    let mut status = Map::new();
    status.insert("phase".into(), phase.into());
    let (why, message) = match &worker.refused {
        Some(refused) => (json!("InvalidPodSpec"), json!(refused)),
        None => (Value::Null, Value::Null),
    };
    status.insert("reason".into(), why);
    status.insert("message".into(), message);
    let order: Vec<Value> = CONDITIONS.iter().map(|name| json!({ "type": name })).collect();
    status.insert("$setElementOrder/conditions".into(), order.into());
    status.insert("conditions".into(), conditions.into());
    if !node.host_ip.is_empty() {
        status.insert("hostIP".into(), json!(node.host_ip));
        status.insert("hostIPs".into(), json!([{ "ip": node.host_ip }]));
    }
    let ips = match (sandbox, pod.spec.host_network) {
        (Some(_), true) if !node.host_ip.is_empty() => vec![node.host_ip.clone()],
        (Some(sandbox), false) => sandbox.ips.clone(),
        _ => Vec::new(),
    };
    if let Some(first) = ips.first() {
        status.insert("podIP".into(), json!(first));
        let list: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        // Address lists merge by address: the one of the sandbox before must not stay in it.
        status.insert("podIPs".into(), json!([list, vec![json!({ "$patch": "replace" })]].concat()));
    }
    if worker.record.start_time > 0 {
        status.insert("startTime".into(), json!(rfc3339(worker.record.start_time)));
    }
    if !init.is_empty() {
        status.insert("initContainerStatuses".into(), lines(&pod.spec.init_containers, init));
    }
    status.insert("containerStatuses".into(), lines(&pod.spec.containers, main));
    status.insert("qosClass".into(), json!(qos_class(pod)));
    Some(Value::Object(status))
}

/// The status of an object that is not a pod we can run.
pub fn render_refused(message: &str, reason: &str, now: Now) -> Value {
    json!({ "phase": "Failed", "reason": reason, "message": message, "startTime": rfc3339(now.unix) })
}

fn names(containers: &[Container], lines: &[Line], pick: impl Fn(&Line) -> bool) -> Vec<String> {
    containers.iter().zip(lines).filter(|(_, line)| pick(line)).map(|(c, _)| c.name.clone()).collect()
}

fn condition(
    name: &'static str,
    status: bool,
    why: Option<(&str, String)>,
    pod: &Pod,
    now: Now,
    transitions: &mut Transitions,
) -> Value {
    let text = if status { "True" } else { "False" };
    let echoed = || {
        let condition =
            pod.status.conditions.iter().find(|c| c.condition_type == name && c.status == text)?;
        condition.last_transition_time.parse::<jiff::Timestamp>().ok().map(|time| time.as_second())
    };
    let since = match transitions.get(name) {
        Some((same, since)) if *same == status => *since,
        Some(_) => now.unix,
        None => echoed().unwrap_or(now.unix),
    };
    transitions.insert(name, (status, since));
    let (reason, message) = match why.filter(|_| !status) {
        Some((reason, message)) if message.is_empty() => (json!(reason), Value::Null),
        Some((reason, message)) => (json!(reason), json!(message)),
        None => (Value::Null, Value::Null),
    };
    json!({
        "type": name, "status": text, "lastProbeTime": null, "lastTransitionTime": rfc3339(since),
        "reason": reason, "message": message,
    })
}

fn phase(worker: &Worker, pod: &Pod, initialized: bool, init: &[Line], main: &[Line]) -> &'static str {
    match worker.record.ended {
        Some(Ended::Succeeded) => return "Succeeded",
        Some(Ended::Failed) => return "Failed",
        None => {}
    }
    let policy = pod.spec.restart_policy;
    if !initialized && !main.iter().any(|line| line.running) {
        let failed = init.iter().any(|line| line.exit_code.is_some_and(|code| code != 0));
        return if failed && policy == RestartPolicy::Never { "Failed" } else { "Pending" };
    }
    if main.iter().any(|line| line.unborn) {
        return "Pending";
    }
    if main.iter().any(|line| line.running) || policy == RestartPolicy::Always {
        return "Running";
    }
    let all_zero = main.iter().all(|line| line.exit_code == Some(0));
    match (all_zero, policy) {
        (true, _) => "Succeeded",
        (false, RestartPolicy::Never) => "Failed",
        (false, _) => "Running",
    }
}

fn line(
    worker: &Worker,
    pod: &Pod,
    container: &Container,
    seen: &Observed,
    home: Option<&Sandbox>,
    default_reason: &str,
) -> Line {
    let mut all: Vec<&Seen> = home
        .map(|sandbox| seen.in_sandbox(&sandbox.id).filter(|c| c.name == container.name).collect())
        .unwrap_or_default();
    all.sort_by_key(|c| c.attempt);
    let latest = all.pop();
    let remembered = worker.record.containers.get(&container.name);
    let before: Option<Terminated> =
        all.pop().map(Terminated::of).or_else(|| remembered.and_then(|r| r.last.clone()));
    let failure = worker.failures.get(&Slot::Container(container.name.clone()));
    let fresh = Line {
        state: Value::Null,
        last: terminated_or_empty(before.as_ref()),
        ready: false,
        started: false,
        restarts: latest.map(|c| c.attempt).or(remembered.map(|r| r.next_attempt)).unwrap_or(0),
        exit_code: None,
        running: false,
        unborn: false,
        image: latest.map_or(container.image.clone(), |c| c.image.clone()),
        image_ref: latest.map_or(String::new(), |c| c.image_ref.clone()),
        id: latest.map_or(String::new(), |c| c.id.clone()),
    };
    match latest {
        Some(c) if matches!(c.state, State::Running | State::Unknown) => Line {
            state: json!({ "running": { "startedAt": nanos(c.started_at) } }),
            ready: worker.is_ready(container, c),
            started: worker.is_started(container, c),
            running: true,
            ..fresh
        },
        Some(c) if c.state == State::Exited => {
            let ended = Terminated::of(c);
            let again = !worker.is_deleting()
                && worker.record.ended.is_none()
                && match pod.spec.restart_policy {
                    RestartPolicy::Always => true,
                    RestartPolicy::OnFailure => c.exit_code != 0,
                    RestartPolicy::Never => false,
                };
            let waiting = match failure {
                _ if !again => None,
                Some(failure) => Some(waiting(failure.reason, &failure.message)),
                None => worker.crash_loop(c).map(|text| waiting("CrashLoopBackOff", &text)),
            };
            match waiting {
                Some(state) => Line {
                    state,
                    last: terminated_or_empty(Some(&ended)),
                    exit_code: Some(c.exit_code),
                    ..fresh
                },
                None => Line { state: terminated(&ended), exit_code: Some(c.exit_code), ..fresh },
            }
        }
        _ => {
            // Removed with its sandbox, and not to come back: told from memory.
            let over = worker.is_deleting() || worker.record.ended.is_some();
            if let Some(last) = before.as_ref().filter(|_| over) {
                let exit_code = Some(last.exit_code);
                let (image, image_ref, id) =
                    (last.image.clone(), last.image_ref.clone(), last.container_id.clone());
                let restarts = fresh.restarts.saturating_sub(1);
                return Line {
                    state: terminated(last),
                    last: json!({}),
                    exit_code,
                    restarts,
                    image,
                    image_ref,
                    id,
                    ..fresh
                };
            }
            let pod_failure = worker.failures.get(&Slot::Pod);
            let state = match (failure, pod_failure) {
                (Some(failure), _) => waiting(failure.reason, &failure.message),
                (None, Some(failure)) => waiting(default_reason, &failure.message),
                (None, None) => waiting(default_reason, ""),
            };
            let exit_code = before.as_ref().map(|last| last.exit_code);
            Line { state, unborn: exit_code.is_none(), exit_code, ..fresh }
        }
    }
}

fn lines(containers: &[Container], lines: Vec<Line>) -> Value {
    let render = |(container, line): (&Container, Line)| {
        let mut status = json!({
            "name": container.name, "ready": line.ready, "started": line.started, "restartCount": line.restarts,
            "image": line.image, "imageID": line.image_ref, "state": line.state, "lastState": line.last,
        });
        if !line.id.is_empty() {
            status["containerID"] = json!(format!("containerd://{}", line.id));
        }
        status
    };
    containers.iter().zip(lines).map(render).collect::<Vec<_>>().into()
}

fn waiting(reason: &str, message: &str) -> Value {
    if message.is_empty() {
        return json!({ "waiting": { "reason": reason } });
    }
    json!({ "waiting": { "reason": reason, "message": message } })
}

fn terminated_or_empty(last: Option<&Terminated>) -> Value {
    last.map_or(json!({}), terminated)
}

fn terminated(last: &Terminated) -> Value {
    let mut state = json!({
        "exitCode": last.exit_code, "reason": last.reason, "startedAt": nanos(last.started_at), "finishedAt": nanos(last.finished_at),
    });
    if !last.message.is_empty() {
        state["message"] = json!(last.message);
    }
    if !last.container_id.is_empty() {
        state["containerID"] = json!(format!("containerd://{}", last.container_id));
    }
    json!({ "terminated": state })
}

fn nanos(value: i64) -> Value {
    if value <= 0 { Value::Null } else { json!(rfc3339(value / 1_000_000_000)) }
}

pub fn rfc3339(unix_s: i64) -> String {
    jiff::Timestamp::from_second(unix_s).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// Kubernetes' class of service, from requests and limits of cpu and memory.
pub fn qos_class(pod: &Pod) -> &'static str {
    let named = ["cpu", "memory"];
    let amount = |map: &BTreeMap<String, String>, name: &str| {
        map.get(name).and_then(|text| super::quantity::parse_milli(text)).filter(|milli| *milli > 0)
    };
    // Ephemeral containers have no resources and do not count.
    let counted = || pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let any = counted().any(|c| {
        named
            .iter()
            .any(|name| amount(&c.resources.limits, name).or(amount(&c.resources.requests, name)).is_some())
    });
    let all = counted().all(|c| {
        named.iter().all(|name| {
            let limit = amount(&c.resources.limits, name);
            limit.is_some()
                && amount(&c.resources.requests, name).is_none_or(|request| Some(request) == limit)
        })
    });
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The message content: a JSON string that holds the patch.
pub fn patch(record: &Record, status: &Value) -> String {
    json!({ "metadata": { "uid": record.uid }, "status": status }).to_string()
}
