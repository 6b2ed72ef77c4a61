//! Rights of pods and containers: users, groups, capabilities, profiles, namespaces. A container's field wins over the pod's.
//!
//! Source: the Kubernetes documentation "Configure a Security Context", "Pod Security Standards" and "Using sysctls".

use std::path::Path;

use super::NodeSetup;
use crate::edged::{
    cri::messages as cri,
    pod::{Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext},
};

/// What a container's root sees masked, when it is not privileged (Kubernetes' default set).
const MASKED_PATHS: [&str; 11] = [
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
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// How AppArmor profiles were named before they had a field.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The user that an image's configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    /// When it is not a number.
    pub name: String,
}

impl ImageUser {
    /// As CRI tells it. An image without a user runs as root.
    pub fn new(uid: Option<i64>, name: String) -> ImageUser {
        match (uid, name.is_empty()) {
            (None, true) => ImageUser { uid: Some(0), name },
            (uid, _) => ImageUser { uid, name },
        }
    }
}

fn contexts(pod: &Pod, container: &Container) -> (PodSecurityContext, SecurityContext) {
    (
        pod.spec.security_context.as_deref().cloned().unwrap_or_default(),
        container.security_context.as_deref().cloned().unwrap_or_default(),
    )
}

fn int(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}

pub fn of_sandbox(pod: &Pod) -> cri::LinuxSandboxSecurityContext {
    let security = pod.spec.security_context.clone().unwrap_or_default();
    let privileged =
        pod.all_containers().any(|c| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        run_as_user: security.run_as_user.map(int),
        // The runtime refuses a group without a user.
        run_as_group: security.run_as_user.and(security.run_as_group).map(int),
        supplemental_groups: groups(&security),
        privileged,
        // The pause program runs nothing that a filter could keep from harm.
        seccomp: None,
    }
}

pub fn of_container(
    pod: &Pod,
    container: &Container,
    node: &NodeSetup,
    image: &ImageUser,
    target: Option<&str>,
) -> cri::LinuxContainerSecurityContext {
    let (of_pod, own) = contexts(pod, container);
    let privileged = own.privileged == Some(true);
    let group = own.run_as_group.or(of_pod.run_as_group);
    // A group alone needs the image's user beside it.
    let user = own.run_as_user.or(of_pod.run_as_user).or(image.uid.filter(|_| group.is_some()));
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| match unmasked {
        true => Vec::new(),
        false => list.iter().map(|path| path.to_string()).collect(),
    };
    let (apparmor, apparmor_profile) = match apparmor(pod, container) {
        Some(profile) => (Some(apparmor_message(&profile)), apparmor_text(&profile)),
        None => (None, String::new()),
    };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add,
            drop_capabilities: capabilities.drop,
        }),
        privileged,
        namespace_options: Some(namespaces(pod, target)),
        run_as_user: user.map(int),
        run_as_group: user.and(group).map(int),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()), node)),
        apparmor,
        apparmor_profile,
    }
}

fn groups(of_pod: &PodSecurityContext) -> Vec<i64> {
    of_pod.supplemental_groups.iter().copied().chain(of_pod.fs_group).collect()
}

fn namespaces(pod: &Pod, target: Option<&str>) -> cri::NamespaceOption {
    let mode = |host: bool, or: cri::NamespaceMode| -> i32 {
        if host { cri::NamespaceMode::Node } else { or }.into()
    };
    let shared = pod.spec.share_process_namespace == Some(true);
    let pid = match target {
        Some(_) => cri::NamespaceMode::Target,
        None if shared => cri::NamespaceMode::Pod,
        None => cri::NamespaceMode::Container,
    };
    cri::NamespaceOption {
        network: mode(pod.spec.host_network, cri::NamespaceMode::Pod),
        pid: mode(pod.spec.host_pid && target.is_none(), pid),
        ipc: mode(pod.spec.host_ipc, cri::NamespaceMode::Pod),
        target_id: target.unwrap_or_default().to_string(),
    }
}

fn seccomp(profile: Option<&SeccompProfile>, node: &NodeSetup) -> cri::SecurityProfile {
    let (kind, path) = match profile.map(|profile| profile.profile_type.as_str()) {
        Some("RuntimeDefault") => (cri::ProfileType::RuntimeDefault, String::new()),
        Some("Localhost") => {
            let name = profile.map_or("", |profile| profile.localhost_profile.as_str());
            (cri::ProfileType::Localhost, node.seccomp_dir.join(name).display().to_string())
        }
        None if node.seccomp_default => (cri::ProfileType::RuntimeDefault, String::new()),
        _ => (cri::ProfileType::Unconfined, String::new()),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path }
}

/// The profile that a container asks for: its own, its pod's, or that of the annotation.
pub fn apparmor(pod: &Pod, container: &Container) -> Option<SeccompProfile> {
    let (of_pod, own) = contexts(pod, container);
    let annotated = || {
        let value = pod.metadata.annotations.get(&format!("{APPARMOR_ANNOTATION}{}", container.name))?;
        let (profile_type, localhost_profile) = match value.as_str() {
            "runtime/default" => ("RuntimeDefault", ""),
            "unconfined" => ("Unconfined", ""),
            other => ("Localhost", other.strip_prefix("localhost/")?),
        };
        let (profile_type, localhost_profile) = (profile_type.to_string(), localhost_profile.to_string());
        Some(SeccompProfile { profile_type, localhost_profile })
    };
    own.app_armor_profile.or(of_pod.app_armor_profile).or_else(annotated)
}

fn apparmor_message(profile: &SeccompProfile) -> cri::SecurityProfile {
    let (kind, name) = match profile.profile_type.as_str() {
        "Unconfined" => (cri::ProfileType::Unconfined, ""),
        "Localhost" => (cri::ProfileType::Localhost, profile.localhost_profile.as_str()),
        _ => (cri::ProfileType::RuntimeDefault, ""),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() }
}

fn apparmor_text(profile: &SeccompProfile) -> String {
    match profile.profile_type.as_str() {
        "Unconfined" => "unconfined".into(),
        "Localhost" => format!("localhost/{}", profile.localhost_profile),
        _ => "runtime/default".into(),
    }
}

/// Whether the image's user decides what a container runs as, or whether it may run.
pub fn needs_image_user(pod: &Pod, container: &Container) -> bool {
    let (of_pod, own) = contexts(pod, container);
    let non_root = own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true);
    let group = own.run_as_group.or(of_pod.run_as_group).is_some();
    own.run_as_user.or(of_pod.run_as_user).is_none() && (non_root || group)
}

/// `runAsNonRoot`, in kubelet's words.
pub fn check_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), String> {
    let (of_pod, own) = contexts(pod, container);
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let metadata = &pod.metadata;
    let place = format!(
        "(pod: \"{}_{}({})\", container: {})",
        metadata.name, metadata.namespace, metadata.uid, container.name
    );
    match (own.run_as_user.or(of_pod.run_as_user), image.uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, None) if !image.name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {place}",
            image.name
        )),
        (None, _) => Ok(()),
    }
}

/// Profiles that name no file, or one outside their folder.
pub fn check(pod: &Pod, container: &Container) -> Result<(), String> {
    let (of_pod, own) = contexts(pod, container);
    let profile = own.seccomp_profile.or(of_pod.seccomp_profile).unwrap_or_default();
    if profile.profile_type == "Localhost" {
        let path = Path::new(&profile.localhost_profile);
        let inside = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if profile.localhost_profile.is_empty() {
            return Err("localhostProfile must be set if seccompProfile type is Localhost".into());
        }
        if !inside {
            return Err(format!(
                "localhostProfile {} must be a relative path below the node's seccomp folder",
                path.display()
            ));
        }
    }
    Ok(())
}

/// `net/ipv4/x.y` and `net.ipv4.x/y` are the same name; the second is the one that counts.
pub fn sysctl_name(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => {
            let swap = |c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_string(),
    }
}

pub fn sysctls(pod: &Pod) -> impl Iterator<Item = (String, &str)> {
    let list = pod.spec.security_context.iter().flat_map(|security| &security.sysctls);
    list.map(|sysctl| (sysctl_name(&sysctl.name), sysctl.value.as_str()))
}
