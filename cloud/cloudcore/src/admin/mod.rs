//! Commands that work on what a cloudcore keeps, also while it runs: its data directory, or its cluster.

mod certificates;
mod place;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cli::{DataDir, Preflight, Token};
use crate::config::{Config, keys};
use crate::join::now_s;
use crate::revoke::Entry;
use crate::settings::Source;
use crate::takeover::preflight;

pub use certificates::{ca, revoke, unrevoke};
use place::{Place, api_of, block_on};

pub fn token(options: &Token) -> anyhow::Result<()> {
    block_on(async {
        let place = Place::find(&options.data_dir).await?;
        let material = place.authority().load_or_make(now_s()).await?;
        let tokens = place.tokens()?;
        let text = tokens.make(&material.active, options.ttl, options.node.as_deref(), options.uses, now_s());
        println!("{}", text.await?);
        Ok(())
    })
}

pub fn reset_node(options: &DataDir, name: &str) -> anyhow::Result<()> {
    let reset = async {
        let place = Place::find(options).await?;
        let records = place.records()?;
        let keys = records.node(name).await?.keys;
        // First what every replica sees: should the rest fail, the old certificate is refused already.
        let entry = Entry { open: true, ..Entry::new(name, "reset", keys) };
        place.revocations().await?.set(&entry).await?;
        let had = records.update(name, |record| {
            let had = record.generation > 0;
            record.reset();
            had
        });
        Ok(had.await?)
    };
    let had = block_on(reset)?;
    let before = if had { "its certificate is revoked" } else { "it had not joined here" };
    println!(
        "node {name} is reset: {before}, and the next device that joins under this name gets everything anew"
    );
    println!("next: cloudcore token --node {name}");
    Ok(())
}

pub fn preflight(options: &Preflight) -> anyhow::Result<()> {
    let config = options.config.as_deref().map(Config::load).transpose()?.unwrap_or_default().config;
    let own = config.kube_api_config.kube_config;
    let usual = std::env::var_os("KUBECONFIG").map(PathBuf::from).filter(|path| path.exists());
    let named = options.kubeconfig.clone().or_else(|| Some(own).filter(|path| !path.as_os_str().is_empty()));
    let source = Source::choose(named.or(usual).unwrap_or_default(), false);
    block_on(async {
        let Some(api) = api_of(&source).await? else {
            bail!("which cluster? name its kubeconfig with --kubeconfig FILE");
        };
        let report = preflight::look(&api).await?;
        print!("{}", report.render());
        Ok(())
    })
}

/// The CustomResourceDefinitions that a cluster gets, as YAML.
pub fn crds() -> String {
    kapi::crd::kinds()
        .map(|kind| format!("---\n{}", crate::yaml::render(&kapi::crd::definition(kind))))
        .collect()
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
