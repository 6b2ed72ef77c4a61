//! Runs the rows against the three brokers and writes their table, docs/mqtt-conformance.md.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Result, anyhow};

use crate::{
    brokers::{Broker, KINDS, Kind, Programs, Setup},
    notes,
    rows::{self, Case, Row, version_name},
    wire::{V4, V5},
};

/// Rows run side by side: most of their time is waiting.
const THREADS: usize = 20;

/// By row, version and broker: what failed, if it did.
pub type Results = BTreeMap<Key, Option<String>>;

/// Runs the rows whose text or number contains `filter`, against the brokers side by side.
pub fn run(programs: &Programs, dir: &Path, filter: &str) -> Result<Results> {
    let jobs: Vec<Job> = rows::all()
        .into_iter()
        .enumerate()
        .flat_map(|(at, row)| [(at, V4, row.v4, row), (at, V5, row.v5, row)])
        .filter(|(_, _, id, row)| !id.is_empty() && (id.contains(filter) || row.says.contains(filter)))
        .map(|(at, version, _, row)| Job { at, version, row })
        .collect();
    std::thread::scope(|scope| {
        let jobs = &jobs;
        let kinds: Vec<_> = programs
            .kinds()
            .map(|kind| scope.spawn(move || Suite { kind, programs, dir }.run(jobs)))
            .collect();
        let mut results = Results::new();
        for kind in kinds {
            results.extend(kind.join().expect("a suite does not panic")?);
        }
        Ok(results)
    })
}

#[derive(Clone, Copy)]
struct Job {
    at: usize,
    version: u8,
    row: &'static Row,
}

struct Suite<'a> {
    kind: Kind,
    programs: &'a Programs,
    dir: &'a Path,
}

impl Suite<'_> {
    /// All rows on one broker. What fails on another one than ours is run again on a broker of its own: rumqttd's listener ends with
    /// some bad packets, and the rows after that would be told to fail too.
    fn run(&self, jobs: &[Job]) -> Result<Results> {
        let (broker, locked) = self.start("all")?;
        let run = |job: &Job| Ok((job.key(self.kind), job.run(&broker, &locked)));
        let mut results: Results = side_by_side(jobs, run)?;
        if self.kind == Kind::Ours {
            return Ok(results);
        }
        let failed: Vec<Job> =
            jobs.iter().filter(|job| results[&job.key(self.kind)].is_some()).copied().collect();
        let alone = side_by_side(&failed, |job| {
            let (broker, locked) = self.start(&format!("{}-{}", job.at, job.version))?;
            Ok((job.key(self.kind), job.run(&broker, &locked)))
        })?;
        results.extend(alone);
        Ok(results)
    }

    /// A broker for everybody and one for known users.
    fn start(&self, name: &str) -> Result<(Broker, Broker)> {
        let dir = self.dir.join(format!("{}-{name}", self.kind.name()));
        let locked = Setup { users: true, ..Setup::default() };
        let locked = Broker::start(self.kind, self.programs, &dir.join("locked"), &locked)?;
        Ok((Broker::start(self.kind, self.programs, &dir, &Setup::default())?, locked))
    }
}

type Key = (usize, u8, Kind);

impl Job {
    fn key(&self, kind: Kind) -> Key {
        (self.at, self.version, kind)
    }

    /// What failed, if it did.
    fn run(&self, broker: &Broker, locked: &Broker) -> Option<String> {
        let case =
            Case { broker, locked, version: self.version, tag: format!("v{}r{}", self.version, self.at) };
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| (self.row.run)(&case)));
        let ran = ran.unwrap_or_else(|_| Err(anyhow!("the row itself panicked")));
        ran.err().map(|error| format!("{error:#}"))
    }
}

fn side_by_side(jobs: &[Job], run: impl Fn(&Job) -> Result<(Key, Option<String>)> + Sync) -> Result<Results> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = run(job);
                    results.lock().expect("rows do not panic").push(result);
                }
            });
        }
    });
    results.into_inner().expect("rows do not panic").into_iter().collect()
}

fn id(row: &Row, version: u8) -> &'static str {
    if version == V5 { row.v5 } else { row.v4 }
}

/// One line for each failure.
pub fn failures(results: &Results) -> String {
    let rows = rows::all();
    let lines = results.iter().filter_map(|((at, version, kind), failed)| {
        let (row, failed) = (rows[*at], failed.as_ref()?);
        let (id, version) = (id(row, *version), version_name(*version));
        Some(format!("{:<9} {version:<5} {id:<12} {}: {failed}\n", kind.name(), row.says))
    });
    lines.collect()
}

/// Rows that ours fails: the suite's verdict.
pub fn ours_failed(results: &Results) -> Vec<String> {
    let ours = results.iter().filter(|((_, _, kind), _)| *kind == Kind::Ours);
    let ours: Results = ours.map(|(key, failed)| (*key, failed.clone())).collect();
    failures(&ours).lines().map(str::to_owned).collect()
}

/// Rows that ran against ours.
pub fn ours_ran(results: &Results) -> usize {
    results.keys().filter(|(_, _, kind)| *kind == Kind::Ours).count()
}

/// docs/mqtt-conformance.md.
pub fn table(results: &Results) -> String {
    let mut text = notes::HEAD.to_owned();
    for kind in KINDS {
        let of = |version| {
            let mine = results.iter().filter(move |((_, v, k), _)| *k == kind && *v == version);
            let passed = mine.clone().filter(|(_, failed)| failed.is_none()).count();
            format!("{passed} of {}", mine.count())
        };
        text += &format!("| {} | {} | {} |\n", kind.name(), of(V4), of(V5));
    }
    text += "\n## Rows\n\n| 3.1.1 | 5 | what a server must do | Kinglet | mosquitto | rumqttd |\n";
    text += "| --- | --- | --- | --- | --- | --- |\n";
    for (at, row) in rows::all().into_iter().enumerate() {
        let cells: Vec<String> = KINDS.iter().map(|kind| cell(results, at, *kind)).collect();
        text += &format!("| {} | {} | {} | {} |\n", row.v4, row.v5, row.says, cells.join(" | "));
    }
    text += "\n## Why others differ\n\n";
    for (kind, ids, why) in notes::WHY {
        text += &format!("- {} ({}): {why}\n", kind.name(), ids.join(", "));
    }
    text
}

/// Failures of others that no note explains, and notes that explain nothing.
pub fn unexplained(results: &Results) -> Vec<String> {
    let rows = rows::all();
    let failed: Vec<(Kind, &Row)> = results
        .iter()
        .filter(|((_, _, kind), failed)| *kind != Kind::Ours && failed.is_some())
        .map(|((at, _, kind), _)| (*kind, rows[*at]))
        .collect();
    let explains = |note: &(Kind, &[&str], &str), (kind, row): &(Kind, &Row)| {
        note.0 == *kind && note.1.iter().any(|id| [row.v4, row.v5].contains(id))
    };
    let open = failed.iter().filter(|failed| !notes::WHY.iter().any(|note| explains(note, failed)));
    let mut lines: Vec<String> = open
        .map(|(kind, row)| {
            format!(
                "{} fails {} {} ({}): say why in tests/mqtt/src/notes.rs",
                kind.name(),
                row.v4,
                row.v5,
                row.says
            )
        })
        .collect();
    for note in notes::WHY {
        for id in
            note.1.iter().filter(|id| !failed.iter().any(|failed| explains(&(note.0, &[id], ""), failed)))
        {
            lines.push(format!("{} passes {id} now: take it out of tests/mqtt/src/notes.rs", note.0.name()));
        }
    }
    lines
}

fn cell(results: &Results, at: usize, kind: Kind) -> String {
    let of = |version| results.get(&(at, version, kind));
    let failed: Vec<u8> =
        [V4, V5].into_iter().filter(|version| matches!(of(*version), Some(Some(_)))).collect();
    match &failed[..] {
        [] => "yes".into(),
        [V4, V5] => "**no**".into(),
        [version] if of(V4).is_some() && of(V5).is_some() => format!("**not in {}**", version_name(*version)),
        _ => "**no**".into(),
    }
}
