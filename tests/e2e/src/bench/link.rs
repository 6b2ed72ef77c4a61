//! `cargo xtask bench link`: what a node's link costs in bytes, on both lanes, from one run.
//!
//! Two real edgecores at one real cloudcore, one on each lane; between each and the hub a relay counts the bytes of TCP's payload:
//! TLS, WebSocket and messages. The nodes have no container runtime, so that nothing but the link is at work.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{Line, beside};
use crate::{
    Programs,
    cloud::Cloud,
    host::free_port,
    process::{Process, tail},
    steps::{Steps, wait_for},
};

/// The node's status is said again every 5 minutes: a window of that length has one report.
const IDLE_FOR: Duration = Duration::from_secs(300);
const SETTLE: Duration = Duration::from_secs(20);
const UPDATES: u32 = 20;
/// Between two updates; each is acknowledged before the next.
const UPDATE_EVERY: Duration = Duration::from_secs(1);

pub fn link(programs: &Programs, dir: &Path, steps: &mut Steps) -> Result<Vec<Line>> {
    let mut cloud = Cloud::new(&programs.cloudcore, &dir.join("cloud"), &["127.0.0.1"])?;
    let kubectl = cloud.kubectl(&programs.kubectl);
    cloud.start()?;
    let compact = Edge::start(programs, &cloud, &dir.join("compact"), "on-compact", true)?;
    let json = Edge::start(programs, &cloud, &dir.join("json"), "on-json", false)?;
    let both = [&compact, &json];
    steps.step("both nodes are registered, one on each lane", || {
        for edge in both {
            wait_for(Duration::from_secs(60), "the node's lease", || {
                Ok(kubectl.json(&["get", "lease", edge.name, "-n", "kube-node-lease"]).ok().map(drop))
            })
            .with_context(|| tail(&edge.log, 15))?;
        }
        let log = fs::read_to_string(cloud.log())?;
        for words in ["on-compact connected", "compact lane", "on-json connected", "(JSON)"] {
            ensure!(log.contains(words), "the cloud's log does not say {words:?}");
        }
        Ok(())
    })?;
    thread::sleep(SETTLE);

    let mut lines = Vec::new();
    let (idle, _) = steps.step("idle for five minutes", || {
        let before = both.map(Edge::bytes);
        thread::sleep(IDLE_FOR);
        Ok([0, 1].map(|n| both[n].bytes().since(before[n])))
    })?;
    let per_hour = |bytes: Bytes| 3600.0 / IDLE_FOR.as_secs_f64() * bytes.all();
    lines.push(beside("idle node, both ways", "B/h", per_hour(idle[0]), per_hour(idle[1]), "JSON lane"));
    for (what, part) in [("up", Bytes::up as fn(&Bytes) -> f64), ("down", Bytes::down)] {
        let hours = |bytes: &Bytes| 3600.0 / IDLE_FOR.as_secs_f64() * part(bytes);
        lines.push(beside(&format!("  {what}"), "B/h", hours(&idle[0]), hours(&idle[1]), "JSON lane"));
    }

    let share = |bytes: Bytes, idle: Bytes, of: Duration| {
        bytes.all() - idle.all() * of.as_secs_f64() / IDLE_FOR.as_secs_f64()
    };
    for edge in both {
        kubectl.apply_text(dir, &pod(edge.name).to_string())?;
    }
    thread::sleep(SETTLE);
    let updates_for = UPDATE_EVERY * UPDATES + SETTLE;
    let (updates, _) = steps.step("20 updates of a pod", || {
        let before = both.map(Edge::bytes);
        for n in 0..UPDATES {
            for edge in both {
                let pod = format!("pod/{}", edge.name);
                kubectl.run(&["annotate", &pod, "--overwrite", &format!("n={n}")])?;
            }
            thread::sleep(UPDATE_EVERY);
        }
        thread::sleep(SETTLE);
        Ok([0, 1].map(|n| both[n].bytes().since(before[n])))
    })?;
    let per_update = |n: usize| share(updates[n], idle[n], updates_for) / f64::from(UPDATES);
    lines.push(beside("update of a pod, both ways", "B", per_update(0), per_update(1), "JSON lane"));

    let (returned, _) = steps.step("the link is cut and comes back", || {
        let before = both.map(Edge::bytes);
        for edge in both {
            edge.relay.cut();
        }
        thread::sleep(SETTLE + Duration::from_secs(30));
        Ok([0, 1].map(|n| both[n].bytes().since(before[n])))
    })?;
    let back = |n: usize| share(returned[n], idle[n], SETTLE + Duration::from_secs(30));
    lines.push(beside("a cut link comes back (TLS handshakes included)", "B", back(0), back(1), "JSON lane"));
    Ok(lines)
}

fn pod(node: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"nodeName": node, "automountServiceAccountToken": false, "containers": [{
            "name": "web", "image": "docker.io/library/nginx:1.27", "ports": [{"containerPort": 80}],
            "env": [{"name": "LEVEL", "value": "info"}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 10}}]}})
}

struct Edge {
    name: &'static str,
    relay: CountingRelay,
    log: PathBuf,
    _process: Process,
}

impl Edge {
    fn start(
        programs: &Programs,
        cloud: &Cloud,
        dir: &Path,
        name: &'static str,
        compact: bool,
    ) -> Result<Edge> {
        fs::create_dir_all(dir)?;
        let relay = CountingRelay::start(cloud.hub_port())?;
        let mut join = Command::new(&programs.edgecore);
        join.arg("join").arg("--root").arg(dir).args(["--token", &cloud.token(&[])?]);
        join.args(["--cloudcore-ipport", &format!("127.0.0.1:{}", relay.port)]);
        join.args(["--certport", &cloud.join_port().to_string(), "--edgenode-name", name]);
        let socket = dir.join("no-runtime.sock");
        join.args(["--remote-runtime-endpoint", &format!("unix://{}", socket.display())]);
        let output = join.output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let config = dir.join("etc/kubeedge/config/edgecore.yaml");
        configure(&config, compact)?;
        let log = dir.join("edgecore.log");
        let mut command = Command::new(&programs.edgecore);
        let process = Process::start("edgecore", command.arg("--config").arg(&config), &log)?;
        Ok(Edge { name, relay, log, _process: process })
    }

    fn bytes(&self) -> Bytes {
        self.relay.bytes()
    }
}

/// Ports of its own, the lane, and nothing that listens beside.
fn configure(path: &Path, compact: bool) -> Result<()> {
    let mut text = fs::read_to_string(path)?;
    for (key, value) in [
        ("readOnlyPort", free_port()?.to_string()),
        ("mqttServerInternal", format!("tcp://127.0.0.1:{}", free_port()?)),
    ] {
        let old = text.lines().find(|line| line.trim_start().starts_with(&format!("{key}:")));
        let old = old.with_context(|| format!("edgecore.yaml has no {key}"))?.to_owned();
        let indent = &old[..old.len() - old.trim_start().len()];
        text = text.replace(&old, &format!("{indent}{key}: {value}"));
    }
    ensure!(text.contains("\nkinglet:\n"), "edgecore.yaml has no group kinglet");
    text = text.replace("\nkinglet:\n", &format!("\nkinglet:\n  compactLane: {compact}\n"));
    Ok(fs::write(path, text)?)
}

#[derive(Clone, Copy, Debug)]
struct Bytes {
    up: u64,
    down: u64,
}

impl Bytes {
    fn up(&self) -> f64 {
        self.up as f64
    }

    fn down(&self) -> f64 {
        self.down as f64
    }

    fn all(&self) -> f64 {
        self.up() + self.down()
    }

    fn since(self, before: Bytes) -> Bytes {
        Bytes { up: self.up - before.up, down: self.down - before.down }
    }
}

/// Passes bytes on to a port of this machine, and counts them.
struct CountingRelay {
    port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    up: AtomicU64,
    down: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl CountingRelay {
    fn start(to: u16) -> Result<CountingRelay> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        thread::spawn(move || {
            while let Ok((inner, _)) = listener.accept() {
                if let Ok(outer) = TcpStream::connect(("127.0.0.1", to)) {
                    shared.connect(inner, outer);
                }
            }
        });
        Ok(CountingRelay { port, counts })
    }

    fn bytes(&self) -> Bytes {
        Bytes { up: self.counts.up.load(Ordering::Relaxed), down: self.counts.down.load(Ordering::Relaxed) }
    }

    /// Every connection ends.
    fn cut(&self) {
        for stream in self.counts.open.lock().expect("no thread panics with it").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Counts {
    fn connect(self: &Arc<Self>, inner: TcpStream, outer: TcpStream) {
        let _ = (inner.set_nodelay(true), outer.set_nodelay(true));
        let (Ok(inner_too), Ok(outer_too), Ok(kept), Ok(kept_too)) =
            (inner.try_clone(), outer.try_clone(), inner.try_clone(), outer.try_clone())
        else {
            return;
        };
        self.open.lock().expect("no thread panics with it").extend([kept, kept_too]);
        let (up, down) = (self.clone(), self.clone());
        thread::spawn(move || copy(inner, outer, &up.up));
        thread::spawn(move || copy(outer_too, inner_too, &down.down));
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        count.fetch_add(len as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
