//! Commands that work on what a cloudcore keeps, also while it runs: its data directory, or its cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::api::Api;
use crate::authority::Authority;
use crate::backend::Backend;
use crate::cli::{DataDir, Preflight, Token};
use crate::config::{Config, keys};
use crate::join::{Tokens, now_s};
use crate::records::Records;
use crate::settings::Source;
use crate::takeover::preflight;

/// What a command works on.
struct Place {
    dir: PathBuf,
    /// `None`: the data directory has all.
    cluster: Option<Api>,
}

impl Place {
    async fn find(options: &DataDir) -> anyhow::Result<Place> {
        let config = options.config.as_deref().map(Config::load).transpose()?.unwrap_or_default().config;
        let dir = options.data_dir.clone().unwrap_or(config.kinglet.data_dir);
        // A token from a directory that cloudcore does not use would only fail at the edge.
        if !dir.is_dir() {
            bail!(
                "{} does not exist; start cloudcore once, or name its directory with --data-dir",
                dir.display()
            );
        }
        let kubeconfig = options.kubeconfig.clone().unwrap_or(config.kube_api_config.kube_config);
        let source = Source::choose(kubeconfig, config.kinglet.embedded_api);
        Ok(Place { dir, cluster: api_of(&source).await? })
    }

    fn records(&self) -> anyhow::Result<Records> {
        Ok(match &self.cluster {
            Some(api) => Records::in_cluster(api.clone()),
            None => Records::open(&self.dir)?,
        })
    }

    fn tokens(&self) -> anyhow::Result<Tokens> {
        Ok(match &self.cluster {
            Some(api) => Tokens::in_cluster(api.clone()),
            None => Tokens::open(&self.dir)?,
        })
    }
}

async fn api_of(source: &Source) -> anyhow::Result<Option<Api>> {
    Ok(match source {
        Source::Embedded => None,
        source => Some(Api::new(Backend::cluster(source).await?.client())),
    })
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(command)
}

pub fn token(options: &Token) -> anyhow::Result<()> {
    block_on(async {
        let place = Place::find(&options.data_dir).await?;
        let authority = Authority::open(&place.dir, now_s())?;
        let tokens = place.tokens()?;
        let text = tokens.make(&authority, options.ttl, options.node.as_deref(), options.uses, now_s());
        println!("{}", text.await?);
        Ok(())
    })
}

pub fn reset_node(options: &DataDir, name: &str) -> anyhow::Result<()> {
    let reset = async {
        let records = Place::find(options).await?.records()?;
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
