//! `cargo xtask bench pods`: what pods cost, in memory, CPU and time, on this machine's containerd.
//!
//! Figures of ours stand beside those of containerd in the same run: a time of ours is what is left when the runtime's own calls
//! are taken away (`kubelet_runtime_operations_duration_seconds` of the agent's own /metrics). Machines are noisy: look at ratios.

pub mod hub;
pub mod link;
pub mod load;

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Programs,
    cloud::Cloud,
    containerd::Containerd,
    host::{NODE, Node},
    kubectl::Kubectl,
    pods::row::IMAGE,
    process::{proc_status_kb, tail},
    steps::{Steps, wait_for, wait_until},
};

/// At once.
const BURST: usize = 30;
/// That idle.
const IDLE: usize = 20;
/// So many that their 99th percentile says something.
const SERIAL: usize = 100;
const IDLE_FOR: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(5);
/// The agent's threads that wait for disks end after 10 s without work.
const IDLE_THREADS: Duration = Duration::from_secs(15);

/// One line of the table; `peer` is absent where nothing comparable runs here.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub metric: String,
    pub unit: &'static str,
    pub ours: f64,
    pub peer: Option<f64>,
    pub peer_name: Option<&'static str>,
    pub ratio: Option<f64>,
}

fn line(metric: &str, unit: &'static str, ours: f64) -> Line {
    Line { metric: metric.into(), unit, ours, peer: None, peer_name: None, ratio: None }
}

/// A figure of ours beside a peer's from the same run.
pub fn beside(metric: &str, unit: &'static str, ours: f64, peer: f64, peer_name: &'static str) -> Line {
    let ratio = (peer > 0.0).then_some(ours / peer);
    Line { peer: Some(peer), peer_name: Some(peer_name), ratio, ..line(metric, unit, ours) }
}

/// Runs everything. `shim`: a second containerd shim (`containerd-shim-runc-v2-rs`), whose memory per pod is told beside the
/// packaged one's.
pub fn pods(programs: &Programs, dir: &Path, shim: Option<&Path>, steps: &mut Steps) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    {
        let bench = Bench::start(programs, &dir.join("go"), Containerd::start_in, steps)?;
        bench.measure(&mut lines, steps)?;
    }
    if let Some(shim) = shim {
        let start = |dir: &Path| Containerd::start_with_shim(dir, shim);
        let bench = Bench::start(programs, &dir.join("rs"), start, steps)?;
        let per_pod = bench.node_memory_per_pod("rs", steps)?;
        if let Some(go) = lines.iter_mut().find(|line| line.metric.starts_with("node memory per pod")) {
            *go = beside(&go.metric, go.unit, per_pod, go.ours, "Debian's Go shim");
        }
    }
    Ok(lines)
}

struct Bench {
    _cloud: Cloud,
    node: Node,
    kubectl: Kubectl,
    metrics: SocketAddr,
}

impl Bench {
    fn start(
        programs: &Programs,
        dir: &Path,
        containerd: impl Fn(&Path) -> Result<Containerd>,
        steps: &mut Steps,
    ) -> Result<Bench> {
        fs::create_dir_all(dir)?;
        let mut cloud = Cloud::new(&programs.cloudcore, &dir.join("cloud"), &["127.0.0.1"])?;
        let kubectl = cloud.kubectl(&programs.kubectl);
        let mut node = Node::on(programs, dir, containerd)?;
        steps.step("cloudcore and edgecore start, node Ready", || {
            cloud.start()?;
            node.join(&cloud, &cloud.token(&[])?, NODE)?;
            node.start()?;
            wait_for(Duration::from_secs(60), "node Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))
                .with_context(|| tail(&node.log(), 15))
        })?;
        let metrics = SocketAddr::from(([127, 0, 0, 1], node.read_only_port()));
        Ok(Bench { _cloud: cloud, node, kubectl, metrics })
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.node.edgecore.as_ref().context("edgecore runs")?.pid())
    }

    fn rss_kb(&self) -> Result<f64> {
        Ok(proc_status_kb(self.pid()?, "VmRSS")? as f64)
    }

    fn measure(&self, lines: &mut Vec<Line>, steps: &mut Steps) -> Result<()> {
        std::thread::sleep(SETTLE);
        let empty = self.rss_kb()?;
        let before = self.metrics()?;
        let (_, together) = steps.step("30 pods at once", || self.make("burst", BURST, BURST))?;
        let after = self.metrics()?;
        let calls = ["run_podsandbox", "create_container", "start_container"];
        let runtime: f64 = calls.iter().map(|call| after.operation(call).0 - before.operation(call).0).sum();
        lines.push(line("30 pods at once, applied to all Running", "s", together));
        lines.push(line("  containerd's own calls in it, added up (3 at once)", "s", runtime));
        for call in calls {
            let ((sum, n), (sum0, n0)) = (after.operation(call), before.operation(call));
            lines.push(line(
                &format!("  containerd: {call}, mean"),
                "ms",
                1e3 * (sum - sum0) / (n - n0).max(1.0),
            ));
        }
        std::thread::sleep(IDLE_THREADS);
        let full = self.rss_kb()?;
        let containerd = self.containerd_rss_kb()?;
        lines.push(beside("resident, no pod", "kB", empty, containerd, "containerd, 30 pods"));
        lines.push(beside("resident, 30 pods", "kB", full, containerd, "containerd, 30 pods"));
        lines.push(line(
            "resident per pod, first use of code and buffers included",
            "kB",
            (full - empty) / BURST as f64,
        ));
        lines.push(line(
            "node memory per pod (PSS of shim, sandbox and container)",
            "kB",
            self.pod_memory_kb(BURST)?,
        ));

        // What one more pod costs shows only where everything was used before.
        steps.step("30 more pods", || self.make("more", BURST, 2 * BURST))?;
        std::thread::sleep(IDLE_THREADS);
        let more = self.rss_kb()?;
        lines.push(line("resident per additional pod (31 to 60)", "kB", (more - full) / BURST as f64));

        steps.step("20 pods stay, one with a probe every 10 s", || {
            self.delete("more", 0..BURST)?;
            self.delete("burst", IDLE - 1..BURST)?;
            self.make_probed()
        })?;
        std::thread::sleep(SETTLE);
        let (idle, _) = steps.step("idle for a minute", || {
            let (ours, theirs) = (cpu_s(self.pid()?)?, self.containerd_cpu_s()?);
            std::thread::sleep(IDLE_FOR);
            Ok((cpu_s(self.pid()?)? - ours, self.containerd_cpu_s()? - theirs))
        })?;
        let percent = |seconds: f64| 100.0 * seconds / IDLE_FOR.as_secs_f64();
        lines.push(beside(
            "CPU of one core, 20 idle pods, one probed",
            "%",
            percent(idle.0),
            percent(idle.1),
            "containerd",
        ));
        lines.push(line(
            "CPU per idle pod-hour",
            "s",
            idle.0 * 3600.0 / IDLE_FOR.as_secs_f64() / IDLE as f64,
        ));

        let before = self.metrics()?;
        steps.step("100 short pods one after another", || {
            for number in 0..SERIAL {
                self.run_to_end(number)?;
            }
            Ok(())
        })?;
        let after = self.metrics()?;
        let diff = |name: &str| after.value(name) - before.value(name);
        let (us, taken) =
            (diff("kinglet_store_pods_taken_microseconds_total "), diff("kinglet_store_pods_taken_total "));
        lines.push(line(
            "before a pod is seen: the object's way to the disk, mean",
            "ms",
            us / taken.max(1.0) / 1e3,
        ));
        for (what, name) in [
            ("pod seen to first CRI call", "kubelet_pod_worker_start_duration_seconds"),
            ("  of it our own time", "kinglet_pod_start_own_seconds"),
            ("  of the rest: the token from the cloud", "kinglet_pod_token_seconds"),
            ("beside the sandbox: the record's way to the disk", "kinglet_pod_record_seconds"),
            ("containerd's event to status sent", "kinglet_runtime_event_to_status_seconds"),
        ] {
            let [mean, p50, p99] = after.since(&before, name);
            lines.push(line(&format!("{what}, mean"), "ms", mean * 1e3));
            lines.push(line(&format!("{what}, p50 at most"), "ms", p50 * 1e3));
            lines.push(line(&format!("{what}, p99 at most"), "ms", p99 * 1e3));
        }
        Ok(())
    }

    fn node_memory_per_pod(&self, name: &str, steps: &mut Steps) -> Result<f64> {
        steps.step("30 pods with the other shim", || self.make(name, BURST, BURST))?;
        std::thread::sleep(SETTLE);
        self.pod_memory_kb(BURST)
    }

    /// Makes pods and waits until there are so many that run.
    fn make(&self, name: &str, count: usize, running_in_all: usize) -> Result<()> {
        let pod = |number: usize| pod(&format!("{name}-{number}"), json!(["sleep", "100000"]), "Always");
        let list =
            json!({ "apiVersion": "v1", "kind": "List", "items": (0..count).map(pod).collect::<Vec<_>>() });
        self.kubectl.apply_text(self.node.root(), &list.to_string())?;
        wait_until(Duration::from_secs(300), "all pods Running", || {
            let pods = self.kubectl.json(&["get", "pods"])?;
            let running = pods["items"].as_array().into_iter().flatten();
            let running = running.filter(|pod| pod["status"]["phase"] == "Running").count();
            Ok((running >= running_in_all).then_some(()))
        })
    }

    fn make_probed(&self) -> Result<()> {
        let mut probed = pod("probed", json!(["sleep", "100000"]), "Always");
        probed["spec"]["containers"][0]["livenessProbe"] =
            json!({ "exec": { "command": ["true"] }, "periodSeconds": 10 });
        self.kubectl.apply_text(self.node.root(), &probed.to_string())?;
        wait_until(Duration::from_secs(60), "20 pods Running", || {
            let pods = self.kubectl.json(&["get", "pods"])?;
            let list = pods["items"].as_array().cloned().unwrap_or_default();
            let running = list.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
            Ok((list.len() == IDLE && running == IDLE).then_some(()))
        })
    }

    fn delete(&self, name: &str, numbers: std::ops::Range<usize>) -> Result<()> {
        let names: Vec<String> = numbers.map(|number| format!("{name}-{number}")).collect();
        let mut args = vec!["delete", "pod", "--grace-period=1"];
        args.extend(names.iter().map(String::as_str));
        self.kubectl.run(&args).map(drop)
    }

    fn run_to_end(&self, number: usize) -> Result<()> {
        let name = format!("short-{number}");
        let text = pod(&name, json!(["true"]), "Never").to_string();
        self.kubectl.apply_text(self.node.root(), &text)?;
        wait_until(Duration::from_secs(60), "a short pod's end", || {
            let pod = self.kubectl.json(&["get", "pod", &name])?;
            Ok((pod["status"]["phase"] == "Succeeded").then_some(()))
        })?;
        self.kubectl.run(&["delete", "pod", &name, "--wait=false"]).map(drop)
    }

    fn containerd(&self) -> Result<u32> {
        let daemon = self.node.containerd.processes("containerd")?;
        daemon.into_iter().next().context("containerd runs")
    }

    fn containerd_rss_kb(&self) -> Result<f64> {
        Ok(proc_status_kb(self.containerd()?, "VmRSS")? as f64)
    }

    fn containerd_cpu_s(&self) -> Result<f64> {
        cpu_s(self.containerd()?)
    }

    /// Proportional memory of shims, sandboxes and containers, per pod.
    fn pod_memory_kb(&self, pods: usize) -> Result<f64> {
        let mut kb = 0;
        // A command's name is cut to 15 characters: both shims are called so.
        for name in ["containerd-shim", "pause", "sleep"] {
            for pid in self.node.containerd.processes(name)? {
                let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
                let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
                kb += pss
                    .and_then(|text| text.trim().trim_end_matches(" kB").trim().parse().ok())
                    .unwrap_or(0u64);
            }
        }
        Ok(kb as f64 / pods as f64)
    }

    fn metrics(&self) -> Result<Metrics> {
        let answer = self.node.containerd.http_get(self.metrics, "/metrics");
        Ok(Metrics(answer.context("ask edgecore's read-only port")?))
    }
}

fn pod(name: &str, command: Value, restart: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "terminationGracePeriodSeconds": 1, "restartPolicy": restart,
            "containers": [{ "name": "main", "image": IMAGE, "command": command }] },
    })
}

struct Metrics(String);

impl Metrics {
    fn value(&self, line: &str) -> f64 {
        let found = self.0.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0.0)
    }

    /// Seconds and number of a kind of call.
    fn operation(&self, kind: &str) -> (f64, f64) {
        let name = "kubelet_runtime_operations_duration_seconds";
        let at = |part: &str| self.value(&format!("{name}_{part}{{operation_type=\"{kind}\"}} "));
        (at("sum"), at("count"))
    }

    /// Mean, and the bounds of the buckets of the median and the 99th percentile, of what came after `before`: seconds.
    fn since(&self, before: &Metrics, name: &str) -> [f64; 3] {
        let diff = |line: &str| self.value(line) - before.value(line);
        let count = diff(&format!("{name}_count "));
        let mean = diff(&format!("{name}_sum ")) / count.max(1.0);
        let prefix = format!("{name}_bucket{{le=\"");
        let bounds = self.0.lines().filter_map(|line| {
            let bound = line.strip_prefix(&prefix)?.split('"').next()?;
            Some((bound.to_owned(), bound.parse::<f64>().unwrap_or(f64::INFINITY)))
        });
        let bounds: Vec<(String, f64)> = bounds.collect();
        let percentile = |share: f64| {
            let reached = |(text, _): &&(String, f64)| diff(&format!("{prefix}{text}\"}} ")) >= share * count;
            bounds.iter().find(reached).map_or(f64::NAN, |(_, bound)| *bound)
        };
        [mean, percentile(0.5), percentile(0.99)]
    }
}

/// The table for a person.
/// CPU seconds of a process with its threads, to the nanosecond.
fn cpu_s(pid: u32) -> Result<f64> {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanos += text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
    }
    Ok(nanos / 1e9)
}

pub fn print(lines: &[Line]) {
    println!("\n{:<62} {:>10} {:>6}   {:>10}  {:<22} {:>6}", "metric", "ours", "", "peer", "", "ratio");
    for line in lines {
        let peer = line.peer.map_or(String::new(), |peer| format!("{peer:.2}"));
        let ratio = line.ratio.map_or(String::new(), |ratio| format!("{ratio:.3}"));
        println!(
            "{:<62} {:>10.2} {:<6}   {peer:>10}  {:<22} {ratio:>6}",
            line.metric,
            line.ours,
            line.unit,
            line.peer_name.unwrap_or_default()
        );
    }
}
