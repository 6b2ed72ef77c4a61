//! `/metrics`, `/metrics/resource` and `/metrics/cadvisor`. Names and types are kubelet's; what is ours begins with `kinglet_`.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::{
    Node,
    body::{Answer, Body, answer},
    collect::{Figures, PodFigures, Round},
    prometheus::{
        Family,
        Kind::{self, Counter, Gauge},
    },
};
use crate::{
    contract::{LinkState, RuntimeStatus},
    edged::{
        figures, probe,
        stats::{cgroup::Usage, network::Interface, node, process},
    },
};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const NS_PER_S: f64 = 1e9;

fn page(text: String) -> Answer {
    answer(StatusCode::OK, CONTENT_TYPE, text.into())
}

fn seconds(ns: Option<u64>) -> Option<f64> {
    ns.map(|ns| ns as f64 / NS_PER_S)
}

fn number(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

// --- /metrics/resource ---

type Read = fn(&Usage) -> Option<f64>;

/// As kubelet's resource metrics of 1.32.
const RESOURCE: [(&str, Kind, &str, Read); 3] = [
    (
        "cpu_usage_seconds_total",
        Counter,
        "[STABLE] Cumulative cpu time consumed by the {} in core-seconds",
        |usage| seconds(usage.cpu_ns),
    ),
    ("memory_working_set_bytes", Gauge, "[STABLE] Current working set of the {} in bytes", |usage| {
        number(usage.working_set)
    }),
    (
        "swap_usage_bytes",
        Gauge,
        "[ALPHA] Current amount of the {} swap usage in bytes. Reported only on non-windows systems",
        |usage| number(usage.swap),
    ),
];

pub async fn resource(server: Arc<Node>) -> Answer {
    let collected = server.collect().await;
    let failed = collected.is_err();
    let round = collected.unwrap_or_else(|error| {
        tracing::warn!("metrics without pods: {error}");
        Round::empty()
    });
    let (mut out, at) = (String::new(), Some(round.unix_ms));
    let memory = node::Memory::read().unwrap_or_default();
    let of_node = Usage {
        cpu_ns: node::cpu_ns(),
        working_set: Some(memory.working_set),
        swap: Some(memory.swap_total.saturating_sub(memory.swap_free)),
        ..Usage::default()
    };
    for (name, kind, help, read) in RESOURCE {
        for (what, prefix) in [("container", "container"), ("node", "node"), ("pod", "pod")] {
            let (name, help) = (format!("{prefix}_{name}"), help.replace("{}", what));
            let mut family = Family::new(&mut out, &name, kind, &help, at);
            match what {
                "node" => {
                    if let Some(value) = read(&of_node) {
                        family.sample(&[], value);
                    }
                }
                "pod" => {
                    for pod in &round.pods {
                        if let Some(value) = read(&pod.figures.usage) {
                            family.sample(&[("namespace", &pod.namespace), ("pod", &pod.name)], value);
                        }
                    }
                }
                _ => each_container(&round, |pod, name, figures, _| {
                    if let Some(value) = read(&figures.usage) {
                        family.sample(&labels(pod, name), value);
                    }
                }),
            }
        }
    }
    let help = "[STABLE] Start time of the container since unix epoch in seconds";
    let mut family = Family::new(&mut out, "container_start_time_seconds", Gauge, help, at);
    each_container(&round, |pod, name, _, created_at| {
        family.sample(&labels(pod, name), created_at as f64 / NS_PER_S);
    });
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    Family::new(&mut out, "resource_scrape_error", Gauge, help, None)
        .sample(&[], f64::from(u8::from(failed)));
    page(out)
}

fn labels<'a>(pod: &'a PodFigures, container: &'a str) -> [(&'a str, &'a str); 3] {
    [("container", container), ("namespace", &pod.namespace), ("pod", &pod.name)]
}

fn each_container(round: &Round, mut visit: impl FnMut(&PodFigures, &str, &Figures, i64)) {
    for pod in &round.pods {
        for container in &pod.containers {
            visit(pod, &container.name, &container.figures, container.created_at);
        }
    }
}

// --- /metrics/probes ---

pub fn probes() -> Answer {
    page(probe::figures::render())
}

// --- /metrics/cadvisor ---

/// Name, kind, help, further labels, figure.
type Group = (&'static str, Kind, &'static str, &'static [(&'static str, &'static str)], Read);

/// What dashboards use of cAdvisor's metrics: one row per group.
const GROUPS: [Group; 18] = [
    (
        "container_cpu_usage_seconds_total",
        Counter,
        "Cumulative cpu time consumed in seconds.",
        &[("cpu", "total")],
        |u| seconds(u.cpu_ns),
    ),
    (
        "container_cpu_user_seconds_total",
        Counter,
        "Cumulative user cpu time consumed in seconds.",
        &[],
        |u| seconds(u.cpu_user_ns),
    ),
    (
        "container_cpu_system_seconds_total",
        Counter,
        "Cumulative system cpu time consumed in seconds.",
        &[],
        |u| seconds(u.cpu_system_ns),
    ),
    (
        "container_cpu_cfs_periods_total",
        Counter,
        "Number of elapsed enforcement period intervals.",
        &[],
        |u| number(u.cpu_periods),
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        Counter,
        "Number of throttled period intervals.",
        &[],
        |u| number(u.cpu_throttled_periods),
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        Counter,
        "Total time duration the container has been throttled.",
        &[],
        |u| seconds(u.cpu_throttled_ns),
    ),
    (
        "container_memory_usage_bytes",
        Gauge,
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        &[],
        |u| number(u.memory),
    ),
    ("container_memory_working_set_bytes", Gauge, "Current working set in bytes.", &[], |u| {
        number(u.working_set)
    }),
    ("container_memory_rss", Gauge, "Size of RSS in bytes.", &[], |u| number(u.rss)),
    ("container_memory_cache", Gauge, "Number of bytes of page cache memory.", &[], |u| number(u.cache)),
    ("container_memory_mapped_file", Gauge, "Size of memory mapped files in bytes.", &[], |u| {
        number(u.mapped_file)
    }),
    ("container_memory_swap", Gauge, "Container swap usage in bytes.", &[], |u| number(u.swap)),
    (
        "container_memory_failures_total",
        Counter,
        "Cumulative count of memory allocation failures.",
        &[("failure_type", "pgfault"), ("scope", "container")],
        |u| number(u.page_faults),
    ),
    (
        "container_oom_events_total",
        Counter,
        "Count of out of memory events observed for the container",
        &[],
        |u| number(u.oom_kills),
    ),
    ("container_spec_memory_limit_bytes", Gauge, "Memory limit for the container.", &[], |u| {
        Some(u.memory_limit.unwrap_or(0) as f64)
    }),
    ("container_processes", Gauge, "Number of processes running inside the container.", &[], |u| {
        number(u.processes)
    }),
    ("container_fs_reads_bytes_total", Counter, "Cumulative count of bytes read", &[("device", "")], |u| {
        number(u.read_bytes)
    }),
    (
        "container_fs_writes_bytes_total",
        Counter,
        "Cumulative count of bytes written",
        &[("device", "")],
        |u| number(u.written_bytes),
    ),
];

type ReadInterface = fn(&Interface) -> u64;

/// One row per pod and interface.
const NETWORK: [(&str, &str, ReadInterface); 8] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
    ("container_network_receive_packets_total", "Cumulative count of packets received", |i| i.rx_packets),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |i| i.rx_errors,
    ),
    (
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving",
        |i| i.rx_dropped,
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", |i| i.tx_packets),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |i| i.tx_errors,
    ),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
        |i| i.tx_dropped,
    ),
];

/// A group with cAdvisor's labels.
struct Row {
    id: String,
    container: String,
    image: String,
    name: String,
    pod: usize,
    usage: Usage,
    created_at: i64,
}

pub async fn cadvisor(server: Arc<Node>) -> Answer {
    let round = match server.collect().await {
        Ok(round) => round,
        Err(error) => return super::body::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let rows = rows(&round);
    let families = GROUPS.len() + NETWORK.len() + 2;
    // Family by family: a page of 110 pods is larger than this program.
    let pieces = (0..families).map(move |family| Ok(Bytes::from(cadvisor_family(family, &rows, &round))));
    let mut whole = page(String::new());
    *whole.body_mut() = Body::Stream(Box::pin(futures_util::stream::iter(pieces)));
    whole
}

fn rows(round: &Round) -> Vec<Row> {
    let mut rows = Vec::new();
    for (pod, figures) in round.pods.iter().enumerate() {
        let id = |figures: &Figures| format!("/{}", figures.group.display());
        rows.push(Row {
            id: id(&figures.figures),
            container: String::new(),
            image: String::new(),
            name: String::new(),
            pod,
            usage: figures.figures.usage.clone(),
            created_at: figures.created_at,
        });
        for container in figures.containers.iter().chain([&figures.sandbox]) {
            rows.push(Row {
                id: id(&container.figures),
                container: container.name.clone(),
                image: container.image.clone(),
                name: container.id.clone(),
                pod,
                usage: container.figures.usage.clone(),
                created_at: container.created_at,
            });
        }
    }
    rows
}

fn cadvisor_family(family: usize, rows: &[Row], round: &Round) -> String {
    let mut out = String::new();
    let at = Some(round.unix_ms);
    if let Some((name, kind, help, extra, read)) = GROUPS.get(family) {
        let mut family = Family::new(&mut out, name, *kind, help, at);
        for row in rows {
            if let Some(value) = read(&row.usage) {
                family.sample(&row_labels(row, round, extra), value);
            }
            if let (Some(value), "container_memory_failures_total") = (row.usage.major_page_faults, *name) {
                let extra = [("failure_type", "pgmajfault"), ("scope", "container")];
                family.sample(&row_labels(row, round, &extra), value as f64);
            }
        }
        return out;
    }
    if let Some((name, help, read)) = NETWORK.get(family - GROUPS.len()) {
        let mut family = Family::new(&mut out, name, Counter, help, at);
        for row in rows.iter().filter(|row| !row.name.is_empty() && row.container.is_empty()) {
            for interface in &round.pods[row.pod].interfaces {
                let labels = row_labels(row, round, &[("interface", &interface.name)]);
                family.sample(&labels, read(interface) as f64);
            }
        }
        return out;
    }
    if family == GROUPS.len() + NETWORK.len() {
        let help = "Start time of the container since unix epoch in seconds.";
        let mut family = Family::new(&mut out, "container_start_time_seconds", Gauge, help, at);
        for row in rows {
            family.sample(&row_labels(row, round, &[]), row.created_at as f64 / NS_PER_S);
        }
        return out;
    }
    let memory = node::Memory::read().unwrap_or_default().total;
    let cores = std::thread::available_parallelism().map_or(1, |count| count.get());
    Family::new(&mut out, "machine_cpu_cores", Gauge, "Number of logical CPU cores.", None)
        .sample(&[], cores as f64);
    Family::new(&mut out, "machine_memory_bytes", Gauge, "Amount of memory installed on the machine.", None)
        .sample(&[], memory as f64);
    out
}

fn row_labels<'a>(row: &'a Row, round: &'a Round, extra: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let pod = &round.pods[row.pod];
    let mut labels = vec![
        ("container", row.container.as_str()),
        ("id", row.id.as_str()),
        ("image", row.image.as_str()),
        ("name", row.name.as_str()),
        ("namespace", pod.namespace.as_str()),
        ("pod", pod.name.as_str()),
    ];
    labels.extend(extra);
    labels
}

// --- /metrics ---

/// edgecore's own.
pub async fn own(server: Arc<Node>) -> Answer {
    let mut out = String::new();
    let mut gauge = |name: &str, kind: Kind, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            Family::new(&mut out, name, kind, help, None).sample(&[], value);
        }
    };
    let process = process::read("self");
    let (fds, fds_max) = process::own_fds();
    let of = |read: fn(&process::Process) -> f64| process.as_ref().map(read);
    gauge(
        "process_cpu_seconds_total",
        Counter,
        "Total user and system CPU time spent in seconds.",
        of(|p| p.cpu_ns as f64 / NS_PER_S),
    );
    gauge("process_resident_memory_bytes", Gauge, "Resident memory size in bytes.", of(|p| p.rss as f64));
    gauge(
        "process_virtual_memory_bytes",
        Gauge,
        "Virtual memory size in bytes.",
        of(|p| p.virtual_bytes as f64),
    );
    gauge("process_threads", Gauge, "Number of threads.", of(|p| p.threads as f64));
    gauge(
        "process_start_time_seconds",
        Gauge,
        "Start time of the process since unix epoch in seconds.",
        of(|p| p.started_ms as f64 / 1e3),
    );
    gauge("process_open_fds", Gauge, "Number of open file descriptors.", fds.map(|fds| fds as f64));
    gauge(
        "process_max_fds",
        Gauge,
        "Maximum number of open file descriptors.",
        fds_max.map(|max| max as f64),
    );

    let connected = matches!(&*server.handles.uplink.state().borrow(), LinkState::Connected);
    let runtime_up = matches!(&*server.handles.runtime.borrow(), RuntimeStatus::Ready { .. });
    gauge(
        "kinglet_link_up",
        Gauge,
        "1 while the node has a link to the cloud.",
        Some(f64::from(u8::from(connected))),
    );
    gauge(
        "kinglet_runtime_up",
        Gauge,
        "1 while the container runtime answers.",
        Some(f64::from(u8::from(runtime_up))),
    );
    for (name, help, value) in rt::gauges() {
        let kind = if name.ends_with("_total") { Counter } else { Gauge };
        gauge(name, kind, help, Some(value as f64));
    }
    for (name, value) in server.handles.bus.figures() {
        let kind = if name.ends_with("_total") { Counter } else { Gauge };
        gauge(name, kind, "Of the MQTT broker on this node: docs/mqtt.md.", Some(value));
    }
    let waiting = server.handles.meta.list_local("outbox").len();
    gauge(
        "kinglet_outbox_messages",
        Gauge,
        "Reports kept on disk until the cloud answers them.",
        Some(waiting as f64),
    );

    running(&server, &mut out).await;
    let node: &str = &server.handles.node_name;
    Family::new(
        &mut out,
        "kubelet_node_name",
        Gauge,
        "[ALPHA] The node's name. The count is always 1.",
        None,
    )
    .sample(&[("node", node)], 1.0);
    Family::new(&mut out, "kinglet_build_info", Gauge, "What runs here. Always 1.", None)
        .sample(&[("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)], 1.0);
    figures::render(&mut out);
    page(out)
}

/// Pods and containers by what the runtime lists; left out when it does not answer.
async fn running(server: &Node, out: &mut String) {
    let Ok((pods, containers)) = server.running_counts().await else { return };
    Family::new(
        out,
        "kubelet_running_pods",
        Gauge,
        "[BETA] Number of pods that have a running pod sandbox",
        None,
    )
    .sample(&[], pods as f64);
    let help = "[BETA] Number of containers currently running";
    let mut family = Family::new(out, "kubelet_running_containers", Gauge, help, None);
    for (state, count) in containers {
        family.sample(&[("container_state", state)], count as f64);
    }
}
