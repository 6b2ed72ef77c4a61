//! Entries for a fuzzer: every reader of bytes that others wrote. Total: whatever the bytes, they return.

use super::{
    dns::parse_resolv_conf,
    env::{self, Facts},
    pod::Pod,
    quantity,
    record::Record,
    shell, sources, status,
};

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

pub fn fuzz_record(data: &[u8]) {
    let _ = serde_json::from_slice::<Record>(data);
}
