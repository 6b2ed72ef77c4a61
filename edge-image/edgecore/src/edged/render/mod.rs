//! From a pod to the runtime's configuration of its sandbox and containers. Pure.
//!
//! Rights are in `security`, numbers in `resources`. What cannot be rendered is refused before, by `check_sandbox` and
//! [`security::check`].

mod resources;
pub mod security;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use super::{
    cgroup::Cgroups,
    cri::messages as cri,
    dns::Resolver,
    env,
    observed::label,
    pod::{Container, Pod},
    record::Record,
};

/// What of the node shapes a sandbox.
#[derive(Clone, Debug, Default)]
pub struct NodeSetup {
    pub node_name: String,
    pub cgroups: Cgroups,
    pub log_dir: std::path::PathBuf,
    pub memory_bytes: i64,
    /// Domain of the cluster's names, for hosts that are named in full.
    pub cluster_domain: String,
    /// Where seccomp profiles of pods are looked for.
    pub seccomp_dir: std::path::PathBuf,
    /// `RuntimeDefault` where a pod names no profile.
    pub seccomp_default: bool,
}

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
        hostname: if pod.spec.host_network { String::new() } else { hostname(pod, &node.cluster_domain) },
        log_directory: node.log_dir.join(log_dir_name(record)).display().to_string(),
        dns_config: Some(dns.of_pod(pod)),
        port_mappings: port_mappings(pod),
        labels,
        annotations: pod.metadata.annotations.clone().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: node.cgroups.parent(pod, &record.incarnation),
            security_context: Some(security::of_sandbox(pod)),
            sysctls: security::sysctls(pod).map(|(name, value)| (name, value.to_string())).collect(),
        }),
    }
}

/// The name that processes in the pod see: its own, or in full with the cluster's domain if the pod asks for that.
fn hostname(pod: &Pod, domain: &str) -> String {
    let name = pod.hostname();
    match (pod.spec.set_hostname_as_fqdn, pod.spec.subdomain.as_str()) {
        (Some(true), subdomain) if !subdomain.is_empty() => {
            format!("{name}.{subdomain}.{}.svc.{domain}", pod.metadata.namespace)
        }
        _ => name.to_string(),
    }
}

/// Why no sandbox can be made of a pod, in kubelet's words (`FailedCreatePodSandBox`).
pub fn check_sandbox(pod: &Pod, node: &NodeSetup) -> Result<(), String> {
    if let Some(class) = pod.spec.runtime_class_name.as_deref().filter(|class| !class.is_empty()) {
        return Err(format!(
            "failed to get sandbox runtime: RuntimeClass.node.k8s.io \"{class}\" not found (this node has the default runtime only; remove runtimeClassName)"
        ));
    }
    let name = hostname(pod, &node.cluster_domain);
    // The kernel's bound for a host name.
    if name.len() > 64 && !pod.spec.host_network {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long (64 characters is the max, {} characters requested)",
            name.len()
        ));
    }
    Ok(())
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
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy.is_some());
    pod.spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| &c.ports)
        .filter(|port| port.host_port > 0)
        .map(mapping)
        .collect()
}

/// The parts of a container that others worked out.
pub struct Parts {
    pub env: Vec<(String, String)>,
    pub mounts: Vec<cri::Mount>,
    pub attempt: u32,
    /// The user that the image names, where it matters.
    pub user: security::ImageUser,
    /// Id of the container whose processes an ephemeral one sees.
    pub target: Option<String>,
    pub devices: Devices,
}

/// What device plugins give to a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Devices {
    pub env: Vec<(String, String)>,
    pub mounts: Vec<cri::Mount>,
    pub devices: Vec<cri::Device>,
    pub annotations: HashMap<String, String>,
    pub cdi: Vec<cri::CdiDevice>,
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
    if container.termination_message_policy == "FallbackToLogsOnError" {
        labels.insert(label::LAST_WORDS.into(), "log".into());
    }
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: parts.attempt }),
        image: Some(cri::ImageSpec { image: container.image.clone() }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        // A pod's own variables win over those of a device.
        envs: parts
            .devices
            .env
            .into_iter()
            .filter(|(key, _)| !known.contains_key(key))
            .chain(parts.env)
            .map(|(key, value)| cri::KeyValue { key, value })
            .collect(),
        mounts: parts.mounts.into_iter().chain(parts.devices.mounts).collect(),
        devices: parts.devices.devices,
        cdi_devices: parts.devices.cdi,
        labels,
        annotations: parts.devices.annotations,
        log_path: format!("{}/{}.log", container.name, parts.attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::of_container(pod, container, node)),
            security_context: Some(security::of_container(
                pod,
                container,
                node,
                &parts.user,
                parts.target.as_deref(),
            )),
        }),
    }
}
