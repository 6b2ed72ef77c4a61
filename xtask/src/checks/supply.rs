//! deny.toml held against the dependency graph: banned crates, licences, sources. cargo-deny reads the same file and does
//! more (advisories); this part needs nothing installed.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;
use serde::Deserialize;

#[derive(Deserialize)]
struct Deny {
    bans: Bans,
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    name: String,
    reason: String,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

pub fn check(root: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join("deny.toml")).context("read deny.toml")?;
    let deny: Deny = toml::from_str(&text).context("deny.toml")?;
    let metadata = MetadataCommand::new().manifest_path(root.join("Cargo.toml")).exec()?;
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let named = format!("{} {}", package.name, package.version);
        if let Some(ban) = deny.bans.deny.iter().find(|ban| package.name.as_str() == ban.name) {
            findings.push(format!("{named} is banned by deny.toml: {}", ban.reason));
        }
        if let Some(source) = package.source.as_ref().filter(|source| !source.is_crates_io()) {
            findings.push(format!("{named} comes from {source}; only the crates registry is allowed"));
        }
        let license = package.license.as_deref().unwrap_or_default();
        if !is_allowed(license, &deny.licenses.allow) {
            findings.push(format!("{named} has licence {license:?}, which deny.toml does not allow"));
        }
    }
    Ok(findings)
}

/// An SPDX expression is allowed when, of each part joined by AND, one alternative is on the list.
fn is_allowed(expression: &str, allow: &[String]) -> bool {
    let plain = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let listed = |term: &str| allow.iter().any(|name| name == term.trim());
    plain.split(" AND ").all(|part| part.split(" OR ").any(listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alternative_of_every_part() {
        let allow = ["MIT".to_owned(), "Apache-2.0".to_owned()];
        for good in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-2.0) AND Apache-2.0"] {
            assert!(is_allowed(good, &allow), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0"] {
            assert!(!is_allowed(bad, &allow), "{bad}");
        }
    }
}
