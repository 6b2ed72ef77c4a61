//! The phase of a pod from the states of its containers: kubelet's rule.

use super::line::{Kind, Line};
use crate::edged::pod::{Pod, RestartPolicy};

/// Counts as a kubelet does; a container that waits for a restart counts as stopped, one that never ran as waiting.
#[derive(Default)]
struct Count {
    init_pending: u32,
    init_failed: u32,
    sidecars_pending: u32,
    running: u32,
    waiting: u32,
    stopped: u32,
    succeeded: u32,
}

/// Of a pod that has not ended for good; a terminal answer is what it is about to come to.
pub fn phase(pod: &Pod, init: &[Line], main: &[Line]) -> &'static str {
    let mut n = Count::default();
    for line in init {
        match line.kind {
            Kind::Sidecar => count_sidecar(&mut n, line),
            _ => count_init(&mut n, line),
        }
    }
    for line in main {
        count_main(&mut n, line);
    }
    let policy = pod.spec.restart_policy;
    let began = main.iter().any(|line| !line.is_waiting());
    if n.init_failed > 0 && policy == RestartPolicy::Never {
        return "Failed";
    }
    if n.init_pending > 0 || n.sidecars_pending > 0 && !began || n.waiting > 0 {
        return "Pending";
    }
    if n.running > 0 {
        return "Running";
    }
    match (n.stopped == n.succeeded, policy) {
        (_, RestartPolicy::Always) => "Running",
        (true, _) => "Succeeded",
        (false, RestartPolicy::Never) => "Failed",
        (false, _) => "Running",
    }
}

fn count_init(n: &mut Count, line: &Line) {
    let ended = line.ended().or(line.last.as_ref().filter(|_| line.is_waiting()));
    match ended {
        Some(ended) => n.init_failed += u32::from(ended.exit_code != 0),
        None => n.init_pending += 1,
    }
}

fn count_sidecar(n: &mut Count, line: &Line) {
    if line.is_running() {
        n.running += 1;
        n.sidecars_pending += u32::from(!line.started);
    } else if line.is_waiting() && line.last.is_none() {
        n.waiting += 1;
        n.sidecars_pending += 1;
    }
}

fn count_main(n: &mut Count, line: &Line) {
    if line.is_running() {
        n.running += 1;
    } else if let Some(ended) = line.ended() {
        n.stopped += 1;
        n.succeeded += u32::from(ended.exit_code == 0);
    } else if line.last.is_some() {
        n.stopped += 1;
    } else {
        n.waiting += 1;
    }
}
