//! Commands that work on the data directory, also while cloudcore runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::authority::Authority;
use crate::cli::{DataDir, Token};
use crate::config::{Config, keys};
use crate::join::{Tokens, now_s};
use crate::records::Records;

fn data_dir(options: &DataDir) -> anyhow::Result<PathBuf> {
    let config = options.config.as_deref().map(Config::load).transpose()?.unwrap_or_default().config;
    let dir = options.data_dir.clone().unwrap_or(config.kinglet.data_dir);
    // A token from a directory that cloudcore does not use would only fail at the edge.
    if !dir.is_dir() {
        bail!(
            "{} does not exist; start cloudcore once, or name its directory with --data-dir",
            dir.display()
        );
    }
    Ok(dir)
}

pub fn token(options: &Token) -> anyhow::Result<()> {
    let dir = data_dir(&options.data_dir)?;
    let authority = Authority::open(&dir, now_s())?;
    let tokens = Tokens::open(&dir)?;
    println!("{}", tokens.make(&authority, options.ttl, options.node.as_deref(), options.uses, now_s())?);
    Ok(())
}

pub fn reset_node(options: &DataDir, name: &str) -> anyhow::Result<()> {
    let records = Records::open(&data_dir(options)?)?;
    let had = records.update(name, |record| {
        let had = record.generation > 0;
        record.reset();
        had
    })?;
    let before = if had { "its certificate is revoked" } else { "it had not joined here" };
    println!(
        "node {name} is reset: {before}, and the next device that joins under this name gets everything anew"
    );
    println!("next: cloudcore token --node {name}");
    Ok(())
}

pub fn check_config(file: &Path) -> anyhow::Result<()> {
    let loaded = Config::load(file)?;
    if loaded.unknown.is_empty() {
        println!("{}: good", file.display());
        return Ok(());
    }
    let lines: Vec<String> = loaded.unknown.iter().map(ToString::to_string).collect();
    Err(anyhow::anyhow!("{}", lines.join("; "))).with_context(|| file.display().to_string())
}

pub fn print_keys() {
    println!("Keys with an effect:");
    keys::HONOURED.iter().for_each(|key| println!("  {key}"));
    println!("Keys that are accepted without effect (** is everything below):");
    keys::ACCEPTED.iter().for_each(|(key, why)| println!("  {key}: {why}"));
}
