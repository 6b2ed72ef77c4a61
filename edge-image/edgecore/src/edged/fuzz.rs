//! Entries for a fuzzer: every reader of bytes that others wrote. Total: whatever the bytes, they return.

use super::{
    dns::parse_resolv_conf,
    env::{self, Facts},
    kubelet_api,
    pod::Pod,
    quantity,
    record::Record,
    shell, sources, stats, status,
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

/// What asks the kubelet API, and the logs and figures that it reads.
pub fn fuzz_kubelet(data: &[u8]) {
    kubelet_api::route::fuzz_route(data);
    kubelet_api::logs::fuzz_log(data);
    stats::fuzz_stats(data);
}
