//! What a run measured: `target/demo/report.json`.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// Names and values; the names are stable (the and budgets.toml's).
#[derive(Debug, Default, Serialize)]
pub struct Report {
    #[serde(flatten)]
    values: BTreeMap<String, Value>,
}

impl Report {
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.values.insert(name.into(), value.into());
    }

    /// A duration in seconds, to the millisecond.
    pub fn seconds(&mut self, name: &str, seconds: f64) {
        self.set(name, (seconds * 1000.0).round() / 1000.0);
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path.parent().context("report path has no folder")?)?;
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}
