//! The table of pods: every row is a pod as an operator writes it, the behaviour that Kubernetes documents for it, and the
//! statuses, events and outputs that must be seen, on a real cloudcore, edgecore and containerd.
//!
//! Rows are data: `tests/pods/*.yaml`; [`row`] says what they may hold. Statuses come from one watch over all pods, so none that
//! the API showed is missed; rows run side by side, those marked `alone` after them one by one.
//!
//! Start at [`run`].

pub mod pattern;
pub mod row;
mod runner;
pub mod seen;

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Programs,
    cloud::Cloud,
    host::{NODE, Node},
    process::tail,
    shared::small_disk,
    steps::wait_for,
};
use row::Row;
use runner::Runner;
use seen::Seen;

/// Rows side by side: the node starts three containers at once, the rest of a row's time is waiting.
const SIDE_BY_SIDE: usize = 10;
const READY: Duration = Duration::from_secs(60);
/// Of the node's state, logs and volumes: small enough to be filled.
const DISK_MB: u32 = 192;

/// Of all pods together.
const PODS_MEMORY_MB: u64 = 640;

/// What became of the table.
#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: Vec<String>,
    /// Row and what was wrong.
    pub failed: Vec<(String, String)>,
}

/// Runs the rows of a folder whose names contain `filter`.
pub fn run(programs: &Programs, dir: &Path, table: &Path, filter: &str) -> Result<Outcome> {
    let rows = row::load(table, dir)?;
    let chosen: Vec<&Row> = rows.iter().filter(|row| row.row.contains(filter)).collect();
    ensure!(!chosen.is_empty(), "no row of {} has {filter:?} in its name", table.display());
    let mut cloud = Cloud::new(&programs.cloudcore, &dir.join("cloud"), &["127.0.0.1"])?;
    cloud.start()?;
    let kubectl = cloud.kubectl(&programs.kubectl);
    // Another agent on this machine has its own idea of what all its pods may have. Declared before the node: it goes after it.
    let groups = Groups(format!("kinglet-rows-{}", std::process::id()));
    let mut node = Node::new(programs, dir)?;
    small_disk(node.root(), DISK_MB)?;
    node.join(&cloud, &cloud.token(&[])?, NODE)?;
    // A disk that has room again is believed sooner than after a kubelet's five minutes.
    node.add_key("tailoredKubeletConfig", "evictionPressureTransitionPeriod: 10s")?;
    // Little memory for pods, so that a row can fill it and this machine is not short of any.
    let reserved = memory_mb()?.saturating_sub(PODS_MEMORY_MB);
    node.add_key("tailoredKubeletConfig", &format!("systemReserved: {{memory: {reserved}Mi}}"))?;
    node.add_key("tailoredKubeletConfig", &format!("cgroupRoot: /{}", groups.0))?;
    node.start()?;
    let ready = wait_for(READY, "node Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())));
    ready.with_context(|| format!("edgecore's log:\n{}", tail(&node.log(), 15)))?;

    let seen = Seen::start(&kubectl, dir)?;
    let (together, alone): (Vec<&Row>, Vec<&Row>) = chosen.into_iter().partition(|row| !row.alone);
    let outcome = Mutex::new(Outcome::default());
    let judge = |row: &Row, begun: Instant, result: Result<()>| {
        let mut outcome = outcome.lock().expect("no row panics while it judges");
        let took = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                println!("  {:<44} {took:>5.1} s", row.row);
                outcome.passed.push(row.row.clone());
            }
            Err(error) => {
                println!("  {:<44} {took:>5.1} s  FAILED\n    {error:#}", row.row);
                outcome.failed.push((row.row.clone(), format!("{error:#}")));
            }
        }
    };
    let next = AtomicUsize::new(0);
    let node = Mutex::new(node);
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(together.len()) {
            scope.spawn(|| {
                while let Some(row) = together.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    judge(row, begun, Runner::new(row, &kubectl, &seen, &node, dir).run());
                }
            });
        }
    });
    for row in alone {
        let begun = Instant::now();
        judge(row, begun, Runner::new(row, &kubectl, &seen, &node, dir).run());
    }
    let outcome = outcome.into_inner().expect("no row panicked while it judged");
    if !outcome.failed.is_empty() {
        let node = node.into_inner().expect("no row panicked with the node");
        println!("edgecore's log:\n{}", tail(&node.log(), 25));
    }
    Ok(outcome)
}

/// Of this machine.
fn memory_mb() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(total.context("/proc/meminfo has no MemTotal")? / 1024)
}

/// Control groups of the table's pods, below a group of their own.
struct Groups(String);

impl Drop for Groups {
    fn drop(&mut self) {
        fn remove(folder: &Path) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            // Not empty: a process of the node still ends.
            let _ = std::fs::remove_dir(folder);
        }
        remove(&Path::new("/sys/fs/cgroup").join(&self.0));
        for tree in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove(&tree.path().join(&self.0));
        }
    }
}
