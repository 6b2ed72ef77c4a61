//! `cargo xtask bench hub`: what a cloudcore with many nodes costs. The nodes are simulated (`tests/nodes`), the TLS, the WebSockets
//! and cloudcore are real.
//!
//! The nodes' own process takes its share of the machine: what is bound by both is told in CPU-seconds of cloudcore alone.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Line, cpu_s, line};
use crate::{
    Programs,
    cloud::Cloud,
    process::{proc_status_kb, tail},
    steps::{Steps, wait_until},
};

/// After so long at rest, what a join cost is over.
const SETTLE: Duration = Duration::from_secs(20);
const IDLE_FOR: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(1200);
const SOON: Duration = Duration::from_secs(120);
/// Nodes that get a pod and, through it, the config map whose change is pushed.
const WITH_POD: usize = 1000;
/// Status patches of each node.
const BURST: usize = 10;
const BACK_PERCENT: f64 = 99.0;

/// Measures with `count` nodes.
pub fn hub(
    programs: &Programs,
    nodes: &Path,
    count: usize,
    dir: &Path,
    steps: &mut Steps,
) -> Result<Vec<Line>> {
    let config = dir.join("cloudcore.yaml");
    std::fs::write(&config, format!("modules:\n  cloudHub: {{nodeLimit: {}}}\n", count + 100))?;
    let mut cloud = Cloud::new(&programs.cloudcore, &dir.join("cloud"), &["127.0.0.1"])?
        .with_flags(&["--config", &config.display().to_string()]);
    cloud.start()?;
    let mut bench = Bench { cloud, count, lines: Vec::new(), programs, dir };
    let outcome = bench.measure(nodes, steps);
    outcome.with_context(|| {
        format!(
            "the nodes' log:\n{}\ncloudcore's log:\n{}",
            tail(&dir.join("nodes.log"), 10),
            tail(&bench.cloud.log(), 15)
        )
    })?;
    Ok(bench.lines)
}

struct Bench<'a> {
    cloud: Cloud,
    count: usize,
    lines: Vec<Line>,
    programs: &'a Programs,
    dir: &'a Path,
}

impl Bench<'_> {
    fn tell(&mut self, metric: &str, unit: &'static str, value: f64) {
        self.lines.push(line(metric, unit, value));
    }

    fn measure(&mut self, program: &Path, steps: &mut Steps) -> Result<()> {
        let pid = self.cloud.pid()?;
        let count = self.count as f64;
        std::thread::sleep(Duration::from_secs(2));
        let empty_kb = self.cloud.rss_kb()?;
        let cpu = cpu_s(pid)?;
        let (mut nodes, seconds) = steps.step(&format!("{} nodes join", self.count), || {
            let log = std::fs::File::create(self.dir.join("nodes.log"))?;
            // A socket each, of which a process may usually have 1,024.
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -n $(ulimit -Hn); exec \"$@\"", "sh"]).arg(program);
            command.args(["--hub", &format!("127.0.0.1:{}", self.cloud.hub_port())]);
            command.args(["--join", &format!("127.0.0.1:{}", self.cloud.join_port())]);
            command.args(["--token", &self.cloud.token(&[])?, "--count", &self.count.to_string()]);
            Nodes::start(command.stderr(log))
        })?;
        steps.step("all are connected and have a lease", || {
            nodes.wait(LONG, |seen| seen("connected") == self.count && seen("leases") >= self.count)
        })?;
        self.tell("joined (certificate and Node)", "nodes", nodes.stat()?["joined"].as_f64().unwrap_or(0.0));
        self.tell("failed joins", "nodes", nodes.seen("joinFailures")? as f64);
        self.tell("all nodes joined within", "s", seconds);
        self.tell(
            "cloudcore's CPU for a node's join and first link",
            "ms",
            (cpu_s(pid)? - cpu) / count * 1e3,
        );
        std::thread::sleep(SETTLE);
        let full_kb = self.cloud.rss_kb()?;
        self.tell("cloudcore without nodes", "kB", empty_kb as f64);
        self.tell("cloudcore with all nodes idle", "kB", full_kb as f64);
        self.tell(
            "resident per idle node, its Node and Lease objects included",
            "kB",
            (full_kb - empty_kb) as f64 / count,
        );

        let (idle, _) = steps.step("idle for a minute", || {
            let (cpu, before) = (cpu_s(pid)?, nodes.stat()?);
            std::thread::sleep(IDLE_FOR);
            Ok((cpu_s(pid)? - cpu, before, nodes.stat()?))
        })?;
        let (cpu, before, after) = idle;
        let grown = |key: &str| after[key].as_f64().unwrap_or(0.0) - before[key].as_f64().unwrap_or(0.0);
        let hours = IDLE_FOR.as_secs_f64() / 3600.0;
        self.tell("idle: cloudcore's share of one core", "%", cpu / IDLE_FOR.as_secs_f64() * 100.0);
        self.tell("idle: messages in per CPU-second of cloudcore", "", grown("sent") / cpu);
        self.tell(
            "idle: bytes of messages per node and hour, both ways",
            "kB",
            (grown("sentBytes") + grown("receivedBytes")) / count / hours / 1e3,
        );

        let (burst, _) = steps.step(&format!("every node patches its status {BURST} times"), || {
            let (cpu, begun, wanted) =
                (cpu_s(pid)?, Instant::now(), nodes.seen("patches")? + self.count * BURST);
            nodes.order(&format!("burst {BURST}"))?;
            nodes.wait(LONG, |seen| seen("patches") + seen("refused") >= wanted)?;
            Ok((cpu_s(pid)? - cpu, begun.elapsed().as_secs_f64()))
        })?;
        let patches = (self.count * BURST) as f64;
        self.tell("status patches answered per CPU-second of cloudcore", "", patches / burst.0);
        self.tell("status patches answered per second", "", patches / burst.1);
        self.tell("refused", "", nodes.seen("refused")? as f64);

        let with_pod = self.count.min(WITH_POD);
        steps.step(&format!("{with_pod} nodes get a pod with a config map"), || {
            self.pods(with_pod, &mut nodes)
        })?;
        let (push, _) = steps.step("the config map changes: pushed to each and acknowledged", || {
            let (cpu, begun, wanted) = (cpu_s(pid)?, Instant::now(), nodes.seen("acknowledged")? + with_pod);
            self.apply(&config_map("2"))?;
            nodes.wait(SOON, |seen| seen("acknowledged") >= wanted)?;
            Ok((cpu_s(pid)? - cpu, begun.elapsed().as_secs_f64()))
        })?;
        self.tell("pushes acknowledged per CPU-second of cloudcore", "", with_pod as f64 / push.0);
        self.tell("pushes acknowledged per second", "", with_pod as f64 / push.1);

        let (storm, _) = steps.step("all links are cut at once", || {
            let failures = nodes.seen("dialFailures")?;
            let (cpu, begun) = (cpu_s(pid)?, Instant::now());
            nodes.order("cut")?;
            let enough = (self.count as f64 * BACK_PERCENT / 100.0).ceil() as usize;
            let (mut peak_kb, mut gone) = (0, false);
            wait_until(LONG, "99 % of the nodes back", || {
                peak_kb = peak_kb.max(self.cloud.rss_kb()?);
                let connected = nodes.seen("connected")?;
                gone |= connected < enough;
                Ok((gone && connected >= enough).then_some(()))
            })?;
            let back = begun.elapsed().as_secs_f64();
            nodes.wait(LONG, |seen| seen("connected") == self.count)?;
            let failed = nodes.seen("dialFailures")? - failures;
            Ok((back, peak_kb.max(proc_status_kb(pid, "VmRSS")?), cpu_s(pid)? - cpu, failed))
        })?;
        self.tell("storm: 99 % of the nodes back within", "s", storm.0);
        self.tell("storm: most that cloudcore held", "kB", storm.1 as f64);
        self.tell("storm: cloudcore's CPU per node", "ms", storm.2 / count * 1e3);
        self.tell("storm: dials that failed", "", storm.3 as f64);
        nodes.stop()
    }

    fn pods(&self, with_pod: usize, nodes: &mut Nodes) -> Result<()> {
        self.apply(&config_map("1"))?;
        let before = nodes.seen("acknowledged")?;
        let pods: Vec<String> = (0..with_pod).map(pod).collect();
        for some in pods.chunks(250) {
            self.apply(&some.join("---\n"))?;
        }
        // Pod and config map.
        nodes.wait(SOON, |seen| seen("acknowledged") >= before + 2 * with_pod)
    }

    fn apply(&self, yaml: &str) -> Result<()> {
        self.cloud.kubectl(&self.programs.kubectl).apply_text(self.dir, yaml).map(drop)
    }
}

fn config_map(value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: shared}}\ndata: {{value: \"{value}\"}}\n")
}

fn pod(index: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{index:05}}}\nspec:\n  nodeName: node-{index:05}\n  containers:\n  - name: main\n    \
         image: example.invalid/none:1\n    envFrom: [{{configMapRef: {{name: shared}}}}]\n"
    )
}

/// The process that simulates the nodes.
struct Nodes {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Nodes {
    /// Returns when all have tried to join.
    fn start(command: &mut Command) -> Result<Nodes> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start nodes")?;
        let stdin = child.stdin.take().context("piped")?;
        let stdout = BufReader::new(child.stdout.take().context("piped")?);
        let mut nodes = Nodes { child, stdin, stdout };
        let joined = nodes.answer()?;
        ensure!(joined["joined"].as_u64().is_some_and(|joined| joined > 0), "no node joined: {joined}");
        Ok(nodes)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut text = String::new();
        self.stdout.read_line(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("the nodes' process said {text:?}"))
    }

    fn order(&mut self, order: &str) -> Result<Value> {
        writeln!(self.stdin, "{order}")?;
        self.answer()
    }

    fn stat(&mut self) -> Result<Value> {
        self.order("stat")
    }

    fn seen(&mut self, key: &str) -> Result<usize> {
        self.stat()?[key].as_u64().map(|n| n as usize).with_context(|| format!("no {key}"))
    }

    fn wait(&mut self, within: Duration, enough: impl Fn(&dyn Fn(&str) -> usize) -> bool) -> Result<()> {
        let mut last = Value::Null;
        let waited = wait_until(within, "the nodes", || {
            last = self.stat()?;
            let seen = |key: &str| last[key].as_u64().unwrap_or(0) as usize;
            Ok(enough(&seen).then_some(()))
        });
        waited.with_context(|| format!("they are at {last}"))
    }

    fn stop(mut self) -> Result<()> {
        writeln!(self.stdin, "quit")?;
        ensure!(self.child.wait()?.success(), "the nodes' process failed");
        Ok(())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // It has ended already where all went well.
        let _ = (self.child.kill(), self.child.wait());
    }
}
