//! What a reviewer would otherwise have to remember: who may import whom, where dependencies and `unsafe` may stand.
//! Source: docs/architecture.md and CONTRIBUTING.md.

mod fuzz;
mod imports;
mod sources;
mod supply;

use std::path::Path;

use anyhow::{Result, bail};

/// Runs every check; the error lists all findings.
pub fn run(root: &Path) -> Result<()> {
    let mut findings = imports::check(root)?;
    findings.extend(sources::check(root)?);
    findings.extend(supply::check(root)?);
    findings.extend(fuzz::check(root)?);
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} finding(s):\n  {}", findings.len(), findings.join("\n  "));
}
