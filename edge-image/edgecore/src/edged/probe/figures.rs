//! How probes went, for `/metrics/probes`: a kubelet's `prober_probe_total` and `prober_probe_duration_seconds`.
//!
//! One set per process, as metrics are; kept per container of a pod over its restarts, and gone with the pod. Bounded by the
//! containers of the node's pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Kind, Outcome};
use crate::edged::kubelet_api::prometheus::{Family, Kind::Counter, escape};

/// Upper bounds of the buckets in milliseconds: Prometheus' usual ones.
const BOUNDS_MS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// A container that is probed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub incarnation: String,
    pub container: String,
    pub namespace: String,
    pub pod: String,
    pub uid: String,
}

/// Of one probe. A kubelet measures what was answered: successes, and what could not be made.
#[derive(Clone, Debug, Default)]
struct Counts {
    successful: u64,
    failed: u64,
    unknown: u64,
    buckets: [u32; BOUNDS_MS.len()],
    sum: Duration,
}

type Key = (Arc<Who>, Kind);

static COUNTS: Mutex<BTreeMap<Key, Counts>> = Mutex::new(BTreeMap::new());

fn counts() -> MutexGuard<'static, BTreeMap<Key, Counts>> {
    COUNTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A probe was made.
pub fn add(who: Who, kind: Kind, outcome: &Outcome, took: Duration) {
    let mut all = counts();
    let counts = all.entry((Arc::new(who), kind)).or_default();
    match outcome {
        Outcome::Success | Outcome::Warning(_) => counts.successful += 1,
        Outcome::Failure(_) => {
            counts.failed += 1;
            return;
        }
        Outcome::Errored(_) => counts.unknown += 1,
    }
    counts.sum += took;
    if let Some(bucket) = BOUNDS_MS.iter().position(|bound| took.as_millis() <= u128::from(*bound)) {
        counts.buckets[bucket] = counts.buckets[bucket].saturating_add(1);
    }
}

/// Forgets pods that are gone.
pub fn retain(incarnations: &BTreeSet<String>) {
    counts().retain(|(who, _), _| incarnations.contains(&who.incarnation));
}

/// The page.
pub fn render() -> String {
    let mut out = String::new();
    let all = counts().clone();
    let help = "[ALPHA] Duration in seconds for a probe response.";
    let name = "prober_probe_duration_seconds";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    for ((who, kind), counts) in all.iter().filter(|(_, counts)| counts.successful + counts.unknown > 0) {
        let mut labels = String::new();
        for (label, value) in
            [("container", who.container.as_str()), ("namespace", &who.namespace), ("pod", &who.pod)]
        {
            let _ = write!(labels, "{label}=\"");
            escape(&mut labels, value);
            labels.push_str("\",");
        }
        let _ = write!(labels, "probe_type=\"{}\"", kind.name());
        let (mut below, count) = (0, counts.successful + counts.unknown);
        for (bound, bucket) in BOUNDS_MS.iter().zip(counts.buckets) {
            below += u64::from(bucket);
            let bound = *bound as f64 / 1e3;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let sum = counts.sum.as_secs_f64();
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
    let help =
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    let mut family = Family::new(&mut out, "prober_probe_total", Counter, help, None);
    for ((who, kind), counts) in &all {
        for (result, count) in
            [("failed", counts.failed), ("successful", counts.successful), ("unknown", counts.unknown)]
        {
            if count > 0 {
                let labels = [
                    ("container", who.container.as_str()),
                    ("namespace", &who.namespace),
                    ("pod", &who.pod),
                    ("pod_uid", &who.uid),
                    ("probe_type", kind.name()),
                    ("result", result),
                ];
                family.sample(&labels, count as f64);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_counted_by_container_and_gone_with_the_pod() {
        let who = || Who {
            incarnation: "figures-1".into(),
            container: "web".into(),
            namespace: "ns".into(),
            pod: "figures".into(),
            uid: "u-1".into(),
        };
        add(who(), Kind::Liveness, &Outcome::Success, Duration::from_millis(7));
        add(who(), Kind::Liveness, &Outcome::Failure("no".into()), Duration::from_millis(7));
        add(who(), Kind::Liveness, &Outcome::Errored("late".into()), Duration::from_secs(20));
        let page = render();
        let labels = "container=\"web\",namespace=\"ns\",pod=\"figures\"";
        for line in [
            format!(
                "prober_probe_total{{{labels},pod_uid=\"u-1\",probe_type=\"Liveness\",result=\"failed\"}} 1"
            ),
            format!(
                "prober_probe_total{{{labels},pod_uid=\"u-1\",probe_type=\"Liveness\",result=\"successful\"}} 1"
            ),
            format!(
                "prober_probe_total{{{labels},pod_uid=\"u-1\",probe_type=\"Liveness\",result=\"unknown\"}} 1"
            ),
            format!(
                "prober_probe_duration_seconds_bucket{{{labels},probe_type=\"Liveness\",le=\"0.005\"}} 0"
            ),
            format!("prober_probe_duration_seconds_bucket{{{labels},probe_type=\"Liveness\",le=\"0.01\"}} 1"),
            format!("prober_probe_duration_seconds_bucket{{{labels},probe_type=\"Liveness\",le=\"+Inf\"}} 2"),
            format!("prober_probe_duration_seconds_sum{{{labels},probe_type=\"Liveness\"}} 20.007"),
            format!("prober_probe_duration_seconds_count{{{labels},probe_type=\"Liveness\"}} 2"),
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        // Other tests of this process count as well: only this pod goes.
        let all: Vec<String> = counts().keys().map(|(who, _)| who.incarnation.clone()).collect();
        retain(&all.into_iter().filter(|one| one != "figures-1").collect());
        assert!(!render().contains("pod=\"figures\""));
    }
}
