//! What the API showed: every status of every pod and every event, from two watches, kept in order.

use std::{
    collections::BTreeMap,
    io::BufReader,
    path::Path,
    process::{Child, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::pattern::{by_name, line, matches};
use crate::kubectl::Kubectl;

/// One state of a pod.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub at: Instant,
    pub pod: Value,
    /// Lists as maps; see [`by_name`].
    status: Value,
    pub deleted: bool,
}

#[derive(Default)]
struct All {
    /// By name.
    pods: BTreeMap<String, Vec<Snapshot>>,
    /// By name of what they are about.
    events: BTreeMap<String, Vec<Value>>,
    ended: Option<String>,
}

pub struct Seen {
    all: Arc<(Mutex<All>, Condvar)>,
    watches: Vec<Child>,
}

impl Seen {
    pub fn start(kubectl: &Kubectl, dir: &Path) -> Result<Seen> {
        let mut seen = Seen { all: Arc::default(), watches: Vec::new() };
        for kind in ["pods", "events"] {
            let errors = std::fs::File::create(dir.join(format!("watch-{kind}.log")))?;
            let args = ["get", kind, "-n", "default", "-w", "--output-watch-events", "-o", "json"];
            let mut child = kubectl.command(&args).stdout(Stdio::piped()).stderr(errors).spawn()?;
            let output = child.stdout.take().context("stdout is piped")?;
            seen.watches.push(child);
            let all = seen.all.clone();
            std::thread::spawn(move || {
                let values =
                    serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter::<Value>();
                for value in values.map_while(Result::ok) {
                    let (lock, news) = &*all;
                    lock.lock().expect("no watcher panics").add(value);
                    news.notify_all();
                }
                let (lock, news) = &*all;
                lock.lock().expect("no watcher panics").ended = Some(format!("kubectl get {kind} -w ended"));
                news.notify_all();
            });
        }
        Ok(seen)
    }

    /// Waits until `look` finds something in what was seen.
    fn wait<T>(&self, within: Duration, mut look: impl FnMut(&All) -> Option<T>) -> Result<Option<T>> {
        let deadline = Instant::now() + within;
        let (lock, news) = &*self.all;
        let mut all = lock.lock().expect("no watcher panics");
        loop {
            if let Some(found) = look(&all) {
                return Ok(Some(found));
            }
            if let Some(ended) = &all.ended {
                bail!("{ended}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            all = news.wait_timeout(all, left).expect("no watcher panics").0;
        }
    }

    /// The first snapshot from `from` on that looks so: its position.
    pub fn status(&self, pod: &str, from: usize, pattern: &Value, within: Duration) -> Result<usize> {
        let found = self.wait(within, |all| {
            let snapshots = all.pods.get(pod)?;
            (from..snapshots.len()).find(|at| matches(pattern, &snapshots[*at].status))
        })?;
        found.with_context(|| {
            format!(
                "{pattern} was not seen within {} s; seen from there on:{}",
                within.as_secs(),
                self.story(pod, from)
            )
        })
    }

    /// A snapshot that looks so, now or within the time.
    pub fn ever(&self, pod: &str, pattern: &Value, within: Duration) -> Result<Option<String>> {
        self.wait(within, |all| {
            let snapshots = all.pods.get(pod)?;
            snapshots.iter().find(|s| matches(pattern, &s.status)).map(|s| line(&s.pod["status"]))
        })
    }

    pub fn event(&self, pod: &str, pattern: &Value, within: Duration) -> Result<()> {
        let found = self.wait(within, |all| {
            all.events.get(pod)?.iter().any(|event| matches(pattern, event)).then_some(())
        })?;
        found.with_context(|| {
            let (lock, _) = &*self.all;
            let all = lock.lock().expect("no watcher panics");
            let told: Vec<String> = all
                .events
                .get(pod)
                .into_iter()
                .flatten()
                .map(|event| format!("\n      {} {}: {}", event["type"], event["reason"], event["message"]))
                .collect();
            format!("no event {pattern} within {} s; there were:{}", within.as_secs(), told.concat())
        })
    }

    /// When the pod was gone.
    pub fn gone(&self, pod: &str, within: Duration) -> Result<Instant> {
        let found = self.wait(within, |all| {
            let last = all.pods.get(pod)?.last()?;
            last.deleted.then_some(last.at)
        })?;
        found.with_context(|| {
            format!("pod {pod} was not gone within {} s; seen:{}", within.as_secs(), self.story(pod, 0))
        })
    }

    pub fn last(&self, pod: &str) -> Option<Snapshot> {
        let (lock, _) = &*self.all;
        lock.lock().expect("no watcher panics").pods.get(pod)?.last().cloned()
    }

    fn story(&self, pod: &str, from: usize) -> String {
        let (lock, _) = &*self.all;
        let all = lock.lock().expect("no watcher panics");
        let snapshots = all.pods.get(pod).map_or(&[][..], |list| &list[from.min(list.len())..]);
        let lines = snapshots.iter().map(|snapshot| {
            let gone = if snapshot.deleted { "DELETED " } else { "" };
            format!("\n      {gone}{}", line(&snapshot.pod["status"]))
        });
        lines.collect()
    }
}

impl All {
    fn add(&mut self, value: Value) {
        let (kind, object) = (value["type"].as_str().unwrap_or_default(), &value["object"]);
        if object["kind"] == "Event" {
            let about = object["involvedObject"]["name"].as_str().unwrap_or_default().to_owned();
            return self.events.entry(about).or_default().push(object.clone());
        }
        let Some(name) = object["metadata"]["name"].as_str() else { return };
        let status = by_name(&object["status"]);
        let snapshot =
            Snapshot { at: Instant::now(), pod: object.clone(), status, deleted: kind == "DELETED" };
        self.pods.entry(name.to_owned()).or_default().push(snapshot);
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        for watch in &mut self.watches {
            let _ = watch.kill();
            let _ = watch.wait();
        }
    }
}
