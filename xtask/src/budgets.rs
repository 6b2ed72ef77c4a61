//! `cargo xtask sizes`: budgets.toml against what was built and measured.
//!
//! A value comes from the newest report (target/demo/report.json), which every demo run and every end-to-end test writes.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One row of budgets.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// What it may be at the most; only ever lowered.
    limit: u64,
    /// What we are heading for.
    goal: u64,
    unit: String,
    /// What was measured, and when, at the last change of the limit.
    #[allow(dead_code)]
    note: Option<String>,
}

pub fn load(root: &Path) -> Result<BTreeMap<String, Budget>> {
    let path = root.join("budgets.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a table of budgets", path.display()))
}

pub fn run(root: &Path) -> Result<()> {
    let path = root.join("target/demo/report.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} is not there; run `cargo xtask demo --check` first", path.display()))?;
    let report: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text)?;
    let lines = table(&load(root)?, &report);
    println!("{:<22} {:>12} {:>12} {:>12}  ", "budget", "measured", "limit", "goal");
    for line in &lines {
        println!("{}", line.text);
    }
    let over = lines.iter().filter(|line| line.over).count();
    if over > 0 {
        bail!(
            "{over} value(s) over the limit in budgets.toml; make it smaller, or change the limit with a reason in the same commit"
        );
    }
    Ok(())
}

struct Line {
    text: String,
    over: bool,
}

fn table(budgets: &BTreeMap<String, Budget>, report: &BTreeMap<String, serde_json::Value>) -> Vec<Line> {
    let line = |(name, budget): (&String, &Budget)| {
        let measured = report.get(name).and_then(|value| value.as_f64());
        let over = measured.is_some_and(|value| value > budget.limit as f64);
        let shown = measured.map_or("not measured".into(), |value| format!("{value:.0}"));
        let mark = if over { "OVER" } else { "" };
        let text = format!(
            "{name:<22} {shown:>12} {:>12} {:>12}  {} {mark}",
            budget.limit, budget.goal, budget.unit
        );
        Line { text, over }
    };
    budgets.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_over_its_limit_is_seen() {
        let budgets: BTreeMap<String, Budget> =
            toml::from_str("[a]\nlimit = 10\ngoal = 5\nunit = \"kB\"\n").unwrap();
        let report = |value: u64| BTreeMap::from([("a".to_owned(), serde_json::json!(value))]);
        assert!(!table(&budgets, &report(10))[0].over);
        assert!(table(&budgets, &report(11))[0].over);
        assert!(table(&budgets, &BTreeMap::new())[0].text.contains("not measured"));
    }

    #[test]
    fn the_committed_budgets_load() {
        assert!(load(&crate::root()).unwrap().contains_key("edgecore_bytes"));
    }
}
