//! `cargo xtask test`: every suite, its result, and the time it took beside the share it has (tests/time.toml).

mod suites;

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::Options;

/// What a suite did.
#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: u32,
    /// One line for each failed case.
    pub failed: Vec<String>,
    /// Cases that could not run here, each with why and where it runs instead. Never counted as passed.
    pub not_run: Vec<String>,
}

#[derive(Deserialize)]
struct Times {
    share: BTreeMap<String, u64>,
}

struct Row {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
}

pub fn run(root: &Path, options: &Options) -> Result<()> {
    let known: Vec<&str> = suites::ALL.iter().map(|suite| suite.name).collect();
    if options.list {
        suites::ALL.iter().for_each(|suite| println!("{:<8} {}", suite.name, suite.about));
        return Ok(());
    }
    if let Some(unknown) = options.suites.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("no suite {unknown:?}; there are {}", known.join(", "));
    }
    crate::prerequisites::table(root)?;
    let text = std::fs::read_to_string(root.join("tests/time.toml")).context("read tests/time.toml")?;
    let times: Times = toml::from_str(&text).context("tests/time.toml")?;
    let mut rows = Vec::new();
    for suite in suites::ALL {
        if !options.suites.is_empty() && !options.suites.iter().any(|name| name == suite.name) {
            continue;
        }
        println!("\n=== {}: {}", suite.name, suite.about);
        let begun = Instant::now();
        let outcome = (suite.run)(root, options).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            let again = format!("cargo xtask test --suite {}", suite.name);
            Outcome {
                failed: vec![format!("{}: {error:#} (again: {again})", suite.name)],
                ..Outcome::default()
            }
        });
        rows.push(Row { name: suite.name, took: begun.elapsed(), outcome });
    }
    summary(&rows, &times.share)
}

fn summary(rows: &[Row], share: &BTreeMap<String, u64>) -> Result<()> {
    println!(
        "\n{:<8} {:>7} {:>7} {:>8} {:>9} {:>8}",
        "suite", "passed", "failed", "not run", "seconds", "share"
    );
    for row in rows {
        let share = share.get(row.name).map_or("-".into(), u64::to_string);
        let (failed, not_run) = (row.outcome.failed.len(), row.outcome.not_run.len());
        println!(
            "{:<8} {:>7} {failed:>7} {not_run:>8} {:>9.0} {share:>8}",
            row.name,
            row.outcome.passed,
            row.took.as_secs_f64()
        );
    }
    let seconds: f64 = rows.iter().map(|row| row.took.as_secs_f64()).sum();
    println!("{seconds:.0} s in all; the shares add up to {} s", share.values().sum::<u64>());
    for line in rows.iter().flat_map(|row| &row.outcome.not_run) {
        println!("not run here: {line}");
    }
    let failures: Vec<&String> = rows.iter().flat_map(|row| &row.outcome.failed).collect();
    failures.iter().for_each(|line| println!("FAILED {line}"));
    let passed: u32 = rows.iter().map(|row| row.outcome.passed).sum();
    println!("{passed} passed, {} failed", failures.len());
    if !failures.is_empty() {
        bail!("{} test(s) failed", failures.len());
    }
    Ok(())
}
