//! Paths and queries, as a kubelet's.

use std::borrow::Cow;

/// A pod, and a container of it where the path names one. The uid that some paths carry is not compared: at most one pod of a
/// name is on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub pod: String,
    pub container: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Health,
    Pods,
    RunningPods,
    Configz,
    Metrics,
    MetricsCadvisor,
    MetricsResource,
    MetricsProbes,
    Summary,
    /// Ours: what a device (`<namespace>/<name>`) said lately.
    DeviceHistory(String),
    Logs(Target),
    Exec(Target),
    Attach(Target),
    PortForward(Target),
}

impl Route {
    pub fn parse(path: &str) -> Option<Route> {
        let parts: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect();
        // Names become parts of file names; none of Kubernetes' has these.
        if parts.iter().any(|part| part.contains(['/', '\0']) || matches!(part.as_str(), "." | "..")) {
            return None;
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let target = |namespace: &str, pod: &str, container: &str| Target {
            namespace: namespace.into(),
            pod: pod.into(),
            container: container.into(),
        };
        Some(match parts[..] {
            ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Route::Health,
            ["pods"] => Route::Pods,
            ["runningpods"] => Route::RunningPods,
            ["configz"] => Route::Configz,
            ["metrics"] => Route::Metrics,
            ["metrics", "cadvisor"] => Route::MetricsCadvisor,
            ["metrics", "resource"] => Route::MetricsResource,
            ["metrics", "probes"] => Route::MetricsProbes,
            ["stats", "summary"] => Route::Summary,
            ["kinglet", "devices", ns, name, "history"] => Route::DeviceHistory(format!("{ns}/{name}")),
            ["containerLogs", ns, pod, container] => Route::Logs(target(ns, pod, container)),
            ["exec", ns, pod, container] | ["exec", ns, pod, _, container] => {
                Route::Exec(target(ns, pod, container))
            }
            ["attach", ns, pod, container] | ["attach", ns, pod, _, container] => {
                Route::Attach(target(ns, pod, container))
            }
            ["portForward", ns, pod] | ["portForward", ns, pod, _] => Route::PortForward(target(ns, pod, "")),
            _ => return None,
        })
    }

    /// What whoever may connect to the node's loopback may see: nothing of what a container says or does.
    pub fn is_public(&self) -> bool {
        !matches!(self, Route::Logs(_) | Route::Exec(_) | Route::Attach(_) | Route::PortForward(_))
    }
}

/// The pairs of a query. A key may come more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Query {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        };
        Query(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    pub fn all<'a, 'k>(&'a self, key: &'k str) -> impl Iterator<Item = &'a str> + use<'a, 'k> {
        self.0.iter().filter(move |(have, _)| have == key).map(|(_, value)| value.as_str())
    }

    /// Kubernetes' reading of a truth in a query: what is there is true unless it says otherwise.
    pub fn is_set(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }
}

/// Undoes percent encoding; what is not an encoding stands for itself.
fn decode(text: &str, plus_is_space: bool) -> String {
    if !text.contains(['%', '+']) {
        return text.to_string();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, digits.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) if plus_is_space => bytes.push(b' '),
            (byte, _) => bytes.push(byte),
        }
        rest = tail;
    }
    match String::from_utf8_lossy(&bytes) {
        Cow::Borrowed(text) => text.to_string(),
        Cow::Owned(text) => text,
    }
}

/// Entry for a fuzzer: paths and queries that somebody sent. Total.
pub fn fuzz_route(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (path, query) = text.split_once('?').unwrap_or((&text, ""));
    let query = Query::parse(query);
    if let Some(Route::Logs(_)) = Route::parse(path) {
        let _ = super::logs::Options::parse(&query, jiff::Timestamp::UNIX_EPOCH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_kubelet() {
        let target = |container: &str| Target {
            namespace: "ns".into(),
            pod: "web".into(),
            container: container.into(),
        };
        assert_eq!(Route::parse("/containerLogs/ns/web/c"), Some(Route::Logs(target("c"))));
        assert_eq!(Route::parse("/exec/ns/web/c"), Some(Route::Exec(target("c"))));
        assert_eq!(Route::parse("/exec/ns/web/1-2-3/c"), Some(Route::Exec(target("c"))));
        assert_eq!(Route::parse("/portForward/ns/web"), Some(Route::PortForward(target(""))));
        assert_eq!(Route::parse("/stats/summary"), Some(Route::Summary));
        assert_eq!(Route::parse("/runningpods/"), Some(Route::RunningPods));
        assert_eq!(Route::parse("/"), None);
        assert_eq!(Route::parse("/containerLogs/ns/web"), None);
        for path in
            ["/containerLogs/ns/web/..%2f..", "/containerLogs/ns/%2e%2e/c", "/containerLogs/ns/web/a%00b"]
        {
            assert_eq!(Route::parse(path), None, "{path}");
        }
        assert!(Route::Summary.is_public() && !Route::Logs(target("c")).is_public());
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%20b%26%2&input=1&tty=false&x");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a b&%2"]);
        assert!(query.is_set("input") && !query.is_set("tty") && query.is_set("x") && !query.is_set("y"));
    }

    #[test]
    fn damaged_requests_do_not_panic() {
        let whole = "/containerLogs/ns/web/c?follow=1&tailLines=10&sinceTime=2026-11-21T10:00:00Z&limitBytes=5&stream=All&%41%";
        let mut random = wire::link::Backoff::new(u64::MAX / 2, u64::MAX / 2, 5);
        for _ in 0..5_000 {
            let mut bytes = whole.as_bytes().to_vec();
            for _ in 0..=random.next_ms() % 4 {
                let at = random.next_ms() as usize % bytes.len();
                bytes[at] = random.next_ms() as u8;
            }
            fuzz_route(&bytes);
        }
    }
}
