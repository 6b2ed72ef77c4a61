//! Kubernetes' classes of service.

use std::collections::BTreeMap;

use crate::edged::{pod::Pod, quantity};

/// Kubernetes' class of service, from requests and limits of cpu and memory.
pub fn qos_class(pod: &Pod) -> &'static str {
    let named = ["cpu", "memory"];
    let amount = |map: &BTreeMap<String, String>, name: &str| {
        map.get(name).and_then(|text| quantity::parse_milli(text)).filter(|milli| *milli > 0)
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
