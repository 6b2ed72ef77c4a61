//! How long things took: histograms for `/metrics`, in the names that a kubelet gives them where it has the same.
//!
//! One set per process, as metrics are. Adding to it is a few atomic additions; nothing is allocated but by [`render`].

use std::{
    fmt::Write,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the buckets, in microseconds: 0.5 ms to 2 min, by the millisecond where a pod's start is to be.
const BOUNDS_US: [u64; 18] = [
    500,
    1_000,
    2_000,
    3_000,
    4_000,
    5_000,
    6_000,
    8_000,
    10_000,
    25_000,
    100_000,
    250_000,
    1_000_000,
    2_500_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
];

/// The runtime's calls, as CRI and as a kubelet's `operation_type` name them. What is not in the list is not counted.
const OPERATIONS: [(&str, &str); 25] = [
    ("Version", "version"),
    ("Status", "status"),
    ("RunPodSandbox", "run_podsandbox"),
    ("StopPodSandbox", "stop_podsandbox"),
    ("RemovePodSandbox", "remove_podsandbox"),
    ("PodSandboxStatus", "podsandbox_status"),
    ("ListPodSandbox", "list_podsandbox"),
    ("CreateContainer", "create_container"),
    ("StartContainer", "start_container"),
    ("StopContainer", "stop_container"),
    ("RemoveContainer", "remove_container"),
    ("ListContainers", "list_containers"),
    ("ContainerStatus", "container_status"),
    ("ListContainerStats", "list_container_stats"),
    ("ReopenContainerLog", "reopen_container_log"),
    ("UpdateContainerResources", "update_container"),
    ("ExecSync", "exec_sync"),
    ("Exec", "exec"),
    ("Attach", "attach"),
    ("PortForward", "port_forward"),
    ("ImageStatus", "image_status"),
    ("ListImages", "list_images"),
    ("PullImage", "pull_image"),
    ("RemoveImage", "remove_image"),
    ("ImageFsInfo", "image_fs_info"),
];

struct Histogram {
    buckets: [AtomicU32; BOUNDS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    const fn new() -> Histogram {
        Histogram {
            buckets: [const { AtomicU32::new(0) }; BOUNDS_US.len()],
            count: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }

    fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BOUNDS_US.iter().position(|bound| us <= *bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, label: &str) {
        let count = self.count.load(Ordering::Relaxed);
        let (separator, braces) =
            if label.is_empty() { ("", String::new()) } else { (",", format!("{{{label}}}")) };
        let mut below = 0;
        for (bound, bucket) in BOUNDS_US.iter().zip(&self.buckets) {
            below += u64::from(bucket.load(Ordering::Relaxed));
            let bound = *bound as f64 / 1e6;
            let _ = writeln!(out, "{name}_bucket{{{label}{separator}le=\"{bound}\"}} {below}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{{label}{separator}le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{braces} {sum}\n{name}_count{braces} {count}");
    }
}

struct Figures {
    operations: [Histogram; OPERATIONS.len()],
    errors: [AtomicU32; OPERATIONS.len()],
    pod_start: Histogram,
    pod_start_own: Histogram,
    record: Histogram,
    token: Histogram,
    event_to_status: Histogram,
}

static FIGURES: Figures = Figures {
    operations: [const { Histogram::new() }; OPERATIONS.len()],
    errors: [const { AtomicU32::new(0) }; OPERATIONS.len()],
    pod_start: Histogram::new(),
    pod_start_own: Histogram::new(),
    record: Histogram::new(),
    token: Histogram::new(),
    event_to_status: Histogram::new(),
};

/// A call of the runtime has ended.
pub fn runtime_call(call: &str, took: Duration, failed: bool) {
    let Some(at) = OPERATIONS.iter().position(|(name, _)| *name == call) else { return };
    FIGURES.operations[at].add(took);
    if failed {
        FIGURES.errors[at].fetch_add(1, Ordering::Relaxed);
    }
}

/// From a pod object's arrival in edged to the first call of the runtime that is for it; `own`: without the wait for its volumes to
/// be filled.
pub fn pod_start(took: Duration, own: Duration) {
    FIGURES.pod_start.add(took);
    FIGURES.pod_start_own.add(own);
}

/// A pod's record was made durable: little else than the disk's time.
pub fn record_written(took: Duration) {
    FIGURES.record.add(took);
}

/// A service account's token came from the cloud.
pub fn token_obtained(took: Duration) {
    FIGURES.token.add(took);
}

/// From an event of the runtime to the pod's status handed to the link.
pub fn event_to_status(took: Duration) {
    FIGURES.event_to_status.add(took);
}

/// Appends everything in Prometheus' text format.
pub fn render(out: &mut String) {
    let name = "kubelet_runtime_operations_duration_seconds";
    let _ = writeln!(
        out,
        "# HELP {name} Duration of the container runtime's operations.\n# TYPE {name} histogram"
    );
    let used = || {
        FIGURES
            .operations
            .iter()
            .zip(&FIGURES.errors)
            .zip(OPERATIONS)
            .filter(|((operation, _), _)| operation.count.load(Ordering::Relaxed) > 0)
    };
    for ((operation, _), (_, kind)) in used() {
        operation.write(out, name, &format!("operation_type=\"{kind}\""));
    }
    for (name, help) in [
        ("kubelet_runtime_operations_total", "Operations of the container runtime."),
        ("kubelet_runtime_operations_errors_total", "Operations of the container runtime that failed."),
    ] {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        for ((operation, errors), (_, kind)) in used() {
            let value = match name.contains("errors") {
                true => u64::from(errors.load(Ordering::Relaxed)),
                false => operation.count.load(Ordering::Relaxed),
            };
            let _ = writeln!(out, "{name}{{operation_type=\"{kind}\"}} {value}");
        }
    }
    for (name, help, histogram) in [
        (
            "kubelet_pod_worker_start_duration_seconds",
            "From seeing a pod to the first call of the container runtime for it.",
            &FIGURES.pod_start,
        ),
        (
            "kinglet_pod_start_own_seconds",
            "Of that, what remains without the wait for the pod's volumes.",
            &FIGURES.pod_start_own,
        ),
        (
            "kinglet_pod_record_seconds",
            "Until a pod's record was durable, beside the making of its sandbox.",
            &FIGURES.record,
        ),
        ("kinglet_pod_token_seconds", "Until a token came from the cloud.", &FIGURES.token),
        (
            "kinglet_runtime_event_to_status_seconds",
            "From an event of the container runtime to the status handed to the link.",
            &FIGURES.event_to_status,
        ),
    ] {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        histogram.write(out, name, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_told_in_the_bucket_it_belongs_to() {
        let before = FIGURES.operations[2].count.load(Ordering::Relaxed);
        runtime_call("RunPodSandbox", Duration::from_millis(700), true);
        runtime_call("NoSuchCall", Duration::from_millis(1), false);
        let mut text = String::new();
        render(&mut text);
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).map(str::to_owned);
        let count =
            line("kubelet_runtime_operations_duration_seconds_count{operation_type=\"run_podsandbox\"}");
        assert_eq!(count.and_then(|line| line.split(' ').next_back()?.parse().ok()), Some(before + 1));
        assert!(text.contains("operation_type=\"run_podsandbox\",le=\"1\"}"), "{text}");
        assert!(text.contains("kubelet_runtime_operations_errors_total{operation_type=\"run_podsandbox\"}"));
        assert!(!text.contains("NoSuchCall"));
    }
}
