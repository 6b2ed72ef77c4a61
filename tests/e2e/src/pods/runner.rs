//! Runs one row.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::Stdio,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    pattern::text_matches,
    row::{Row, Step, complete},
    seen::Seen,
};
use crate::{host::Node, kubectl::Kubectl, steps::wait_for};

pub struct Runner<'a> {
    row: &'a Row,
    kubectl: &'a Kubectl,
    seen: &'a Seen,
    node: &'a Mutex<Node>,
    dir: &'a Path,
    /// Snapshots before this one were matched by an earlier step.
    at: usize,
    asked_to_go: Option<Instant>,
    remembered: BTreeMap<String, Value>,
}

impl<'a> Runner<'a> {
    pub fn new(
        row: &'a Row,
        kubectl: &'a Kubectl,
        seen: &'a Seen,
        node: &'a Mutex<Node>,
        dir: &'a Path,
    ) -> Self {
        Runner { row, kubectl, seen, node, dir, at: 0, asked_to_go: None, remembered: BTreeMap::new() }
    }

    pub fn run(mut self) -> Result<()> {
        std::fs::create_dir_all(self.dir.join("rows").join(&self.row.row))?;
        let outcome = self.story();
        // The node is left as it was found; a pod that will not go is another row's failure.
        if self.row.spec.is_some() {
            let _ = self.kubectl.run(&[
                "delete",
                "pod",
                &self.row.row,
                "--wait=false",
                "--grace-period=1",
                "--ignore-not-found",
            ]);
        }
        outcome
    }

    fn story(&mut self) -> Result<()> {
        let objects: Vec<Value> = self.row.objects.iter().cloned().chain(self.row.pod()).collect();
        self.apply(objects)?;
        for (number, step) in self.row.steps.iter().enumerate() {
            self.step(step).with_context(|| format!("step {} ({})", number + 1, name(step)))?;
        }
        Ok(())
    }

    fn within(&self) -> Duration {
        Duration::from_secs(self.row.within)
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let pod = self.row.row.as_str();
        match step {
            Step::Sees(patterns) => {
                for pattern in patterns {
                    self.at = self.seen.status(pod, self.at, pattern, self.within())?;
                }
                Ok(())
            }
            Step::Never { status, seconds } => {
                match self.seen.ever(pod, status, Duration::from_secs(*seconds))? {
                    Some(line) => bail!("{status} was seen: {line}"),
                    None => Ok(()),
                }
            }
            Step::Event(pattern) => self.seen.event(pod, pattern, self.within()),
            Step::Apply(objects) => self.apply(objects.clone()),
            Step::Kubectl { args, stdin, has, fails, until } => {
                let look = || self.command(args, stdin, has.as_deref(), fails.as_deref()).map(Some);
                match until {
                    true => wait_for(self.within(), "kubectl's answer", look),
                    false => look().map(|_| ()),
                }
            }
            Step::Delete { object, grace } => {
                let object = object.clone().unwrap_or_else(|| format!("pod/{pod}"));
                let grace = grace.map(|seconds| format!("--grace-period={seconds}"));
                let mut args = vec!["delete", &object, "--wait=false"];
                args.extend(grace.as_deref());
                if *grace.as_deref().unwrap_or_default() == *"--grace-period=0" {
                    args.push("--force");
                }
                self.asked_to_go = Some(Instant::now());
                self.kubectl.run(&args).map(drop)
            }
            Step::Gone { within, after } => {
                let gone = self.seen.gone(pod, Duration::from_secs(*within))?;
                let asked = self.asked_to_go.context("the row deletes nothing")?;
                let took = gone.saturating_duration_since(asked);
                ensure!(
                    took >= Duration::from_secs(*after),
                    "it was gone after {:.1} s already",
                    took.as_secs_f64()
                );
                Ok(())
            }
            Step::Write { path, text } => {
                if let Some(parent) = Path::new(path).parent() {
                    std::fs::create_dir_all(parent)?;
                }
                std::fs::write(path, text).with_context(|| format!("write {path}"))
            }
            Step::File { path, has } => wait_for(self.within(), path, || {
                let text = std::fs::read_to_string(path)?;
                ensure!(text.contains(has.as_str()), "it holds {text:?}");
                Ok(Some(()))
            }),
            Step::Remove { path } => {
                let is_dir = Path::new(path).is_dir();
                let gone = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
                gone.with_context(|| format!("remove {path}"))
            }
            Step::Http { at, has } => self.http(at, has),
            Step::Restart(what) => self.restart(what),
            Step::Remember(key) => {
                let now = self.identity()?;
                self.remembered.insert(key.clone(), now);
                Ok(())
            }
            Step::Unchanged(key) => {
                let before = self.remembered.get(key).with_context(|| format!("{key} was not remembered"))?;
                let now = self.identity()?;
                ensure!(*before == now, "it was {before} and is {now}");
                Ok(())
            }
        }
    }

    /// Container ids, start times and restart counts, as the API has them now.
    fn identity(&self) -> Result<Value> {
        let pod = self.kubectl.json(&["get", "pod", &self.row.row])?;
        let one = |c: &Value| {
            json!([c["name"], c["containerID"], c["restartCount"], c["state"]["running"]["startedAt"]])
        };
        let lists = ["initContainerStatuses", "containerStatuses"];
        Ok(lists
            .iter()
            .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
            .map(one)
            .collect())
    }

    fn apply(&self, mut objects: Vec<Value>) -> Result<()> {
        for object in &mut objects {
            for list in ["/spec/containers", "/spec/initContainers", "/spec/template/spec/containers"] {
                object
                    .pointer_mut(list)
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                    .for_each(complete);
            }
        }
        if objects.is_empty() {
            return Ok(());
        }
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let args = ["apply".to_owned(), "-f".to_owned(), "-".to_owned()];
        self.command(&args, &list.to_string(), None, None)
    }

    fn command(&self, args: &[String], stdin: &str, has: Option<&str>, fails: Option<&str>) -> Result<()> {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = self
            .kubectl
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        // Small inputs: they fit into the pipe.
        child.stdin.take().context("stdin is piped")?.write_all(stdin.as_bytes())?;
        let output = child.wait_with_output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let what = || format!("kubectl {}: {}{}", args.join(" "), out.trim(), err.trim());
        match fails {
            None => ensure!(output.status.success(), "{}", what()),
            Some(text) => ensure!(
                !output.status.success() && err.contains(text),
                "did not fail with {text:?}: {}",
                what()
            ),
        }
        if let Some(text) = has {
            let found = text.split('\n').all(|line| out.contains(line));
            ensure!(text_matches(text, out.trim()) || found, "no {text:?} in what it printed: {}", what());
        }
        Ok(())
    }

    fn http(&self, at: &str, has: &str) -> Result<()> {
        let last = self.seen.last(&self.row.row).context("the pod was not seen")?;
        let at = at.replace("$IP", last.pod["status"]["podIP"].as_str().unwrap_or("-"));
        let (address, path) = at.split_at(at.find('/').unwrap_or(at.len()));
        let address = address.parse().with_context(|| format!("{address} is no address"))?;
        wait_for(self.within(), &format!("http://{at}"), || {
            let answer =
                self.node.lock().expect("no row panics with the node").containerd.http_get(address, path)?;
            ensure!(answer.contains(has), "the answer is {answer:?}");
            Ok(Some(()))
        })
    }

    fn restart(&self, what: &str) -> Result<()> {
        let mut node = self.node.lock().expect("no row panics with the node");
        match what {
            "edgecore" => {
                node.edgecore.take().context("edgecore runs")?.kill();
                node.start()
            }
            "containerd" => node.containerd.restart_daemon(),
            other => bail!("{other:?} cannot be restarted"),
        }
    }
}

fn name(step: &Step) -> String {
    let text = format!("{step:?}");
    text.chars().take(100).collect()
}
