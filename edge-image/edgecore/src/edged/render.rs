//! From a pod to the runtime's configuration of its sandbox and containers. Pure.

use std::collections::{BTreeMap, HashMap};

use super::{
    cri::messages as cri,
    dns::Resolver,
    env,
    observed::label,
    pod::{Container, Pod, SeccompProfile},
    quantity,
    record::Record,
    status::qos_class,
};

/// What of the node shapes a sandbox.
#[derive(Clone, Debug, Default)]
pub struct NodeSetup {
    pub node_name: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    pub log_dir: std::path::PathBuf,
    pub memory_bytes: i64,
}

/// What a container's root sees masked, when it is not privileged (the OCI default set).
const MASKED_PATHS: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// `<namespace>_<name>_<uid>`, as kubelet names a pod's log folder.
pub fn log_dir_name(record: &Record) -> String {
    format!("{}_{}_{}", record.namespace, record.name, record.incarnation)
}

pub fn labels(record: &Record, node: &NodeSetup) -> HashMap<String, String> {
    HashMap::from([
        (label::POD_NAME.into(), record.name.clone()),
        (label::POD_NAMESPACE.into(), record.namespace.clone()),
        (label::POD_UID.into(), record.uid.clone()),
        (label::NODE.into(), node.node_name.clone()),
        (label::INCARNATION.into(), record.incarnation.clone()),
    ])
}

pub fn sandbox(
    pod: &Pod,
    record: &Record,
    attempt: u32,
    node: &NodeSetup,
    dns: &Resolver,
) -> cri::PodSandboxConfig {
    let security = pod.spec.security_context.clone().unwrap_or_default();
    let privileged =
        pod.all_containers().any(|c| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
    let mut labels = labels(record, node);
    for (name, value) in &pod.metadata.labels {
        labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: record.name.clone(),
            uid: record.incarnation.clone(),
            namespace: record.namespace.clone(),
            attempt,
        }),
        // Empty means the host's name.
        hostname: if pod.spec.host_network { String::new() } else { pod.hostname().to_string() },
        log_directory: node.log_dir.join(log_dir_name(record)).display().to_string(),
        dns_config: Some(dns.of_pod(pod)),
        port_mappings: port_mappings(pod),
        labels,
        annotations: pod.metadata.annotations.clone().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent(pod, record, node),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                run_as_user: security.run_as_user.map(|value| cri::Int64Value { value }),
                // The runtime refuses a group without a user.
                run_as_group: security
                    .run_as_user
                    .and(security.run_as_group)
                    .map(|value| cri::Int64Value { value }),
                supplemental_groups: groups(pod),
                privileged,
                // The pause program runs nothing that a filter could keep from harm.
                seccomp: None,
            }),
            sysctls: security.sysctls.iter().map(|s| (s.name.clone(), s.value.clone())).collect(),
        }),
    }
}

pub fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    if pod.spec.host_network {
        return Vec::new();
    }
    let mapping = |port: &super::pod::Port| cri::PortMapping {
        protocol: match port.protocol.as_str() {
            "UDP" => cri::Protocol::Udp,
            "SCTP" => cri::Protocol::Sctp,
            _ => cri::Protocol::Tcp,
        }
        .into(),
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.host_ip.clone(),
    };
    pod.spec.containers.iter().flat_map(|c| &c.ports).filter(|port| port.host_port > 0).map(mapping).collect()
}

fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let mode = |host: bool, or: cri::NamespaceMode| -> i32 {
        if host { cri::NamespaceMode::Node } else { or }.into()
    };
    let shared = pod.spec.share_process_namespace == Some(true);
    let pid = if shared { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Container };
    cri::NamespaceOption {
        network: mode(pod.spec.host_network, cri::NamespaceMode::Pod),
        pid: mode(pod.spec.host_pid, pid),
        ipc: mode(pod.spec.host_ipc, cri::NamespaceMode::Pod),
    }
}

/// Kubelet's places, so that tools find pods where they look for them.
pub fn cgroup_parent(pod: &Pod, record: &Record, node: &NodeSetup) -> String {
    let class = qos_class(pod).to_ascii_lowercase();
    let uid = &record.incarnation;
    match (node.cgroup_driver.as_str(), class.as_str()) {
        ("systemd", "guaranteed") => format!("kubepods-pod{}.slice", uid.replace('-', "_")),
        ("systemd", class) => format!("kubepods-{class}-pod{}.slice", uid.replace('-', "_")),
        (_, "guaranteed") => format!("/kubepods/pod{uid}"),
        (_, class) => format!("/kubepods/{class}/pod{uid}"),
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    let security = pod.spec.security_context.clone().unwrap_or_default();
    security.supplemental_groups.into_iter().chain(security.fs_group).collect()
}

/// The parts of a container that others worked out.
pub struct Parts {
    pub env: Vec<(String, String)>,
    pub mounts: Vec<cri::Mount>,
    pub attempt: u32,
}

pub fn container(
    pod: &Pod,
    container: &Container,
    record: &Record,
    node: &NodeSetup,
    parts: Parts,
) -> cri::ContainerConfig {
    let known: BTreeMap<String, String> = parts.env.iter().cloned().collect();
    let expanded = |list: &[String]| list.iter().map(|text| env::expand(text, &known)).collect();
    let mut labels = labels(record, node);
    labels.insert(label::CONTAINER_NAME.into(), container.name.clone());
    labels.insert(label::CONTAINER_HASH.into(), container.hash());
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: parts.attempt }),
        image: Some(cri::ImageSpec { image: container.image.clone() }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        envs: parts.env.into_iter().map(|(key, value)| cri::KeyValue { key, value }).collect(),
        mounts: parts.mounts,
        labels,
        annotations: HashMap::new(),
        log_path: format!("{}/{}.log", container.name, parts.attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(pod, container, node)),
            security_context: Some(security(pod, container)),
        }),
    }
}

/// Source of the numbers: the Kubernetes documentation of CPU shares and quota, and of OOM scores by class of service.
fn resources(pod: &Pod, container: &Container, node: &NodeSetup) -> cri::LinuxContainerResources {
    const PERIOD_US: i64 = 100_000;
    let amount =
        |list: &BTreeMap<String, String>, name: &str| list.get(name).map(String::as_str).map(str::to_string);
    let limit = |name: &str| amount(&container.resources.limits, name);
    let request = |name: &str| amount(&container.resources.requests, name).or_else(|| limit(name));
    let milli = |text: Option<String>| text.and_then(|text| quantity::parse_milli(&text)).unwrap_or(0);
    let bytes = |text: Option<String>| text.and_then(|text| quantity::parse_units(&text)).unwrap_or(0);
    let cpu_limit = i64::try_from(milli(limit("cpu"))).unwrap_or(0);
    let cpu_request = i64::try_from(milli(request("cpu"))).unwrap_or(0);
    let quota = if cpu_limit > 0 { (cpu_limit.saturating_mul(PERIOD_US) / 1000).max(1000) } else { 0 };
    let memory_request = bytes(request("memory"));
    let oom_score_adj = match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => (1000 - memory_request.saturating_mul(1000) / node.memory_bytes.max(1)).clamp(2, 999),
    };
    cri::LinuxContainerResources {
        cpu_period: if quota > 0 { PERIOD_US } else { 0 },
        cpu_quota: quota,
        cpu_shares: (cpu_request.saturating_mul(1024) / 1000).clamp(2, 262_144),
        memory_limit_in_bytes: bytes(limit("memory")),
        oom_score_adj,
    }
}

fn security(pod: &Pod, container: &Container) -> cri::LinuxContainerSecurityContext {
    let of_pod = pod.spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    let profile = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    let capabilities = own.capabilities.unwrap_or_default();
    let paths =
        |list: &[&str]| if privileged { Vec::new() } else { list.iter().map(|p| p.to_string()).collect() };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add,
            drop_capabilities: capabilities.drop,
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: user.map(|value| cri::Int64Value { value }),
        run_as_group: user.and(group).map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(profile)),
    }
}

fn seccomp(profile: Option<&SeccompProfile>) -> cri::SecurityProfile {
    let (kind, path) = match profile.map(|p| (p.profile_type.as_str(), p.localhost_profile.clone())) {
        Some(("RuntimeDefault", _)) => (cri::ProfileType::RuntimeDefault, String::new()),
        Some(("Localhost", path)) => (cri::ProfileType::Localhost, path),
        _ => (cri::ProfileType::Unconfined, String::new()),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path }
}
