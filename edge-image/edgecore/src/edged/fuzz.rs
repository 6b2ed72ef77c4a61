//! Entries for a fuzzer: every reader of bytes that others wrote. Total: whatever the bytes, they return.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{
    dns::parse_resolv_conf,
    env::{self, Facts},
    images::{credentials::Keyring, name::Reference},
    kubelet_api, last_words,
    pod::Pod,
    quantity,
    record::Record,
    shell, sources, stats, status, tokens, volumes,
};

pub use super::probe::fuzz_probe_answer;

pub fn fuzz_pod(data: &[u8]) {
    if let Ok(pod) = Pod::parse(data) {
        let _ = (pod.hostname().len(), pod.grace(), pod.spec_hash(), status::qos_class(&pod));
        for container in pod.all_containers() {
            let _ = env::resolve(&pod, container, &Default::default(), &Facts::default());
        }
    }
}

/// Config maps, secrets, and what containerd tells of itself.
pub fn fuzz_data(data: &[u8]) {
    let _ = (sources::parse_data("configmap", data), sources::parse_data("secret", data));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (parse_resolv_conf(text), quantity::parse_units(text), shell::runtime_facts(text));
    }
}

/// Claims, volumes and tokens of the cloud, the records of tokens, and the kernel's table of mounts.
pub fn fuzz_volumes(data: &[u8]) {
    volumes::claim::fuzz(data);
    tokens::fuzz(data);
    let _ = volumes::mounts::mount_points(data);
}

/// What is kept of a pod, and what its containers leave behind.
pub use super::{device_plugin::fuzz_device_plugin, static_pods::fuzz_static_pod};

pub fn fuzz_record(data: &[u8]) {
    let _ = serde_json::from_slice::<Record>(data);
    last_words::fuzz_last_words(data);
}

/// What asks the kubelet API, and the logs and figures that it reads.
pub fn fuzz_kubelet(data: &[u8]) {
    kubelet_api::fuzz_kubelet(data);
    stats::fuzz_stats(data);
}

/// Pull secrets, and names of images.
pub fn fuzz_pull_secret(data: &[u8]) {
    let mut ring = Keyring::default();
    let _ = ring.add(data);
    for (kind, key) in
        [("kubernetes.io/dockerconfigjson", ".dockerconfigjson"), ("kubernetes.io/dockercfg", ".dockercfg")]
    {
        let secret = json!({ "type": kind, "data": { key: STANDARD.encode(data) } });
        let _ = ring.add(secret.to_string().as_bytes());
    }
    let text = String::from_utf8_lossy(data);
    for name in [text.as_ref(), "busybox", "a.b.example:5000/team/app:1"] {
        if let Ok(name) = Reference::parse(name) {
            let _ = ring.lookup(&name);
        }
    }
}

/// Databases of containerd, and what repair reads out of its content.
pub fn fuzz_runtime_files(data: &[u8]) {
    crate::runtime_guard::bolt::fuzz_bolt(data);
    super::images::archive::fuzz_image_json(data);
}

/// Archives of images that somebody brought on a stick.
pub use super::images::archive::fuzz_image_archive;
