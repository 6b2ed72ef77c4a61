//! What nodes use, from their `/stats/summary` (kubelet stats/v1alpha1), asked for at most once in a while however many ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, Limited};
use kserve::{ContainerUsage, NodeAsk, NodeUsage, PodUsage, Purpose, Used};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::{Streams, http::Reply, request};
use crate::limits::{
    SUMMARY_BYTES_MAX, USAGE_AGE_MAX, USAGE_ANSWER_MAX, USAGE_ASKED_AT_ONCE_MAX, USAGE_NODES_MAX,
};

/// The last answer of each node. One that did not answer is not asked again before its time either.
#[derive(Default)]
pub(crate) struct Cache(Mutex<HashMap<String, Asked>>);

struct Asked {
    at: Instant,
    usage: Option<Arc<NodeUsage>>,
}

impl Cache {
    fn fresh(&self, node: &str) -> Option<Option<Arc<NodeUsage>>> {
        let cache = self.0.lock().expect("no one panics with it");
        let asked = cache.get(node)?;
        (asked.at.elapsed() < USAGE_AGE_MAX).then(|| asked.usage.clone())
    }

    fn keep(&self, node: &str, usage: Option<Arc<NodeUsage>>) {
        let mut cache = self.0.lock().expect("no one panics with it");
        cache.retain(|_, asked| asked.at.elapsed() < USAGE_AGE_MAX);
        if cache.len() < USAGE_NODES_MAX {
            cache.insert(node.to_string(), Asked { at: Instant::now(), usage });
        }
    }
}

impl Streams {
    /// Of those nodes that answered, now or a little while ago.
    pub(super) async fn usage_of(&self, nodes: Vec<String>) -> Vec<(String, Arc<NodeUsage>)> {
        let each = nodes.into_iter().map(async |node| {
            let usage = match self.usage.fresh(&node) {
                Some(known) => known,
                None => {
                    let asked = timeout(USAGE_ANSWER_MAX, self.ask_usage(&node)).await.ok().flatten();
                    let asked = asked.map(Arc::new);
                    self.usage.keep(&node, asked.clone());
                    asked
                }
            };
            usage.map(|usage| (node, usage))
        });
        let answers = stream::iter(each).buffer_unordered(USAGE_ASKED_AT_ONCE_MAX);
        answers.filter_map(std::future::ready).collect().await
    }

    async fn ask_usage(&self, node: &str) -> Option<NodeUsage> {
        let ask = NodeAsk { node: node.into(), path: "/stats/summary".into(), purpose: Purpose::Proxy };
        let request = request(Method::GET, &ask, HeaderMap::new(), Bytes::new()).ok()?;
        let Reply::Answer(answer) = self.send(node, request).await.ok()? else { return None };
        if !answer.status().is_success() {
            tracing::debug!("{node} does not say what it uses: {}", answer.status());
            return None;
        }
        let body = Limited::new(answer.into_body(), SUMMARY_BYTES_MAX).collect().await.ok()?.to_bytes();
        let usage = read(&body);
        if usage.is_none() {
            tracing::debug!("what {node} says it uses cannot be read");
        }
        usage
    }
}

#[derive(Deserialize)]
struct Summary {
    node: NodeStats,
    #[serde(default)]
    pods: Vec<PodStats>,
}

#[derive(Deserialize)]
struct NodeStats {
    cpu: Option<Cpu>,
    memory: Option<Memory>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodRef,
    containers: Option<Vec<ContainerStats>>,
}

#[derive(Deserialize)]
struct PodRef {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
struct ContainerStats {
    name: String,
    cpu: Option<Cpu>,
    memory: Option<Memory>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: String,
    usage_nano_cores: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    working_set_bytes: Option<u64>,
}

/// Both, or it is not measured yet: half a line would be taken for a pod that uses nothing.
fn used(cpu: Option<&Cpu>, memory: Option<&Memory>) -> Option<Used> {
    Some(Used { cpu_nanocores: cpu?.usage_nano_cores?, memory_bytes: memory?.working_set_bytes? })
}

fn read(body: &[u8]) -> Option<NodeUsage> {
    let summary: Summary = serde_json::from_slice(body).ok()?;
    let cpu = summary.node.cpu.as_ref();
    let own = used(cpu, summary.node.memory.as_ref())?;
    let time_s = kapi::time::parse(&cpu?.time)?;
    let pods = summary.pods.into_iter().filter_map(|pod| {
        // A pod of which one container is not measured is left out whole, as metrics-server does.
        let containers: Option<Vec<ContainerUsage>> = pod
            .containers
            .unwrap_or_default()
            .into_iter()
            .map(|one| {
                Some(ContainerUsage { used: used(one.cpu.as_ref(), one.memory.as_ref())?, name: one.name })
            })
            .collect();
        Some(PodUsage { namespace: pod.pod_ref.namespace, name: pod.pod_ref.name, containers: containers? })
    });
    Some(NodeUsage { time_s, window_s: USAGE_AGE_MAX.as_secs(), used: own, pods: pods.collect() })
}

/// Total over every input.
pub fn fuzz_summary(data: &[u8]) {
    if let Some(usage) = read(data) {
        assert!(usage.pods.len() <= data.len(), "no more pods than bytes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = r#"{"node":{"nodeName":"pi","startTime":"2026-01-01T00:00:00Z",
        "cpu":{"time":"2026-01-02T03:04:05Z","usageNanoCores":150000000,"usageCoreNanoSeconds":5},
        "memory":{"time":"2026-01-02T03:04:05Z","workingSetBytes":104857600,"usageBytes":1},"rlimit":{}},
        "pods":[{"podRef":{"name":"web","namespace":"default","uid":"u"},"startTime":"2026-01-01T00:00:00Z","containers":[
            {"name":"c","startTime":"x","cpu":{"time":"2026-01-02T03:04:05Z","usageNanoCores":2000000},"memory":{"time":"x","workingSetBytes":2048}}]},
          {"podRef":{"name":"new","namespace":"default","uid":"v"},"containers":[
            {"name":"c","cpu":{"time":"2026-01-02T03:04:05Z","usageCoreNanoSeconds":1},"memory":{"workingSetBytes":2048}}]}]}"#;

    #[test]
    fn a_summary_as_a_kubelet_writes_it() {
        let usage = read(SUMMARY.as_bytes()).unwrap();
        assert_eq!(usage.time_s, 1_767_323_045);
        assert_eq!(usage.used, Used { cpu_nanocores: 150_000_000, memory_bytes: 104_857_600 });
        let c =
            ContainerUsage { name: "c".into(), used: Used { cpu_nanocores: 2_000_000, memory_bytes: 2048 } };
        let web = PodUsage { namespace: "default".into(), name: "web".into(), containers: vec![c] };
        assert_eq!(usage.pods, [web], "one without a rate is not measured yet");
        assert_eq!(read(b"{}"), None);
    }

    #[test]
    fn every_summary_is_read_or_left() {
        let mut state = 7_u64;
        for _ in 0..5_000 {
            let mut bytes = SUMMARY.as_bytes().to_vec();
            for _ in 0..3 {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 25) as u8;
            }
            fuzz_summary(&bytes);
        }
    }
}
