//! `edgecore adopt`: takes a node over from a stock KubeEdge edgecore on the same machine, and gives it back (`--undo`). What runs
//! goes on running: containers, their volumes and their logs stay where they are.
//!
//! Not here: joining a cloud. The node keeps its cloud, its name and its certificate.
//!
//! Invariants
//! - A takeover changes nothing of KubeEdge's but its configuration file, of which a copy is made first; database and certificates
//!   are read. The way back writes into them what changed meanwhile.
//! - Every step can be repeated, and what was reached is written down before the next one begins ([`journal`]): after a power cut
//!   `adopt` goes on, and `adopt --undo` goes back, from any step.
//! - Our store is complete before the agent may see it.
//!
//! Start at [`run`] and [`undo`].

mod back;
mod config;
mod journal;
mod plan;
mod runtime;
mod service;
mod stock;
mod store;
#[cfg(test)]
mod tests;
use std::{
    io,
    path::{Path, PathBuf},
};

pub use journal::Step;
pub use service::{Services, System};
pub use stock::fuzz_rows;

use crate::{
    config::{Config, ConfigError},
    credentials::{Credentials, CredentialsError},
    edged::cri::CriError,
};
use journal::Journal;
use plan::Plan;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// KubeEdge's edgecore.yaml.
    pub config: PathBuf,
    pub dry_run: bool,
    pub undo: bool,
    /// Take over in spite of pods that run and that the database does not know; they are left alone.
    pub force: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("{0}")]
    Config(ConfigError),
    #[error("{path} is no database of KubeEdge that can be taken over")]
    Database { path: PathBuf, source: sqlite::SqliteError },
    #[error("the node's certificate cannot be taken over; if it never joined, use `edgecore join`")]
    Credentials(#[source] CredentialsError),
    #[error(
        "the certificate is for {found}, edgecore.yaml names the node {node}; correct modules.edged.hostnameOverride"
    )]
    OtherNode { found: String, node: String },
    #[error("{0} does not answer; containers cannot be taken over without it: systemctl start containerd")]
    Runtime(String, #[source] CriError),
    #[error(
        "{0} runs here and is not in the database; end it (crictl stopp), or leave it alone with --force"
    )]
    UnknownPod(String),
    #[error(
        "this node is Kinglet's already ({0} is there); `edgecore adopt --undo` gives a node back that was taken over"
    )]
    AlreadyOurs(PathBuf),
    #[error("nothing was taken over here: {0} is not there")]
    NothingToUndo(PathBuf),
    #[error("cannot {action} {path}; the rights of root are needed, and room on the disk")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the node's store cannot be filled: {0}")]
    Store(String),
    #[error("{0}")]
    Service(String),
    #[error("this node is on its way back to KubeEdge; finish that first with `edgecore adopt --undo`")]
    Undoing,
    #[error("stopped here, as the test asked for")]
    Cut,
}

/// Context for a file that could not be handled.
fn file<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> AdoptError + 'a {
    move |source| AdoptError::File { action, path: path.into(), source }
}

/// The places of one adoption.
#[derive(Clone, Debug)]
struct Places {
    config: PathBuf,
    database: PathBuf,
    store: PathBuf,
    store_in_work: PathBuf,
    bundle: PathBuf,
    backup: PathBuf,
}

impl Places {
    fn new(config: &Path, cfg: &Config) -> Places {
        let store = cfg.store_dir();
        let data = store.parent().unwrap_or(Path::new("/")).to_owned();
        let certs = cfg
            .modules
            .edge_hub
            .tls_cert_file
            .parent()
            .unwrap_or(Path::new("/etc/kubeedge/certs"))
            .to_owned();
        Places {
            config: config.into(),
            database: cfg.database.data_source.clone(),
            store,
            store_in_work: data.join("store.adopting"),
            bundle: certs.join("node.pem"),
            backup: data.join("adopted"),
        }
    }
}

/// Takes over, or goes on with it. Returns what there is to tell, a line each.
pub async fn run(
    options: &Options,
    services: &dyn Services,
    cut: Option<Step>,
) -> Result<Vec<String>, AdoptError> {
    let cfg = stock_config(&options.config)?;
    let places = Places::new(&options.config, &cfg);
    let mut journal = match Journal::load(&places.backup)? {
        Some(journal) if journal.step == Step::Undoing => return Err(AdoptError::Undoing),
        Some(journal) if journal.step == Step::Done => return Err(AdoptError::AlreadyOurs(places.backup)),
        Some(journal) => journal,
        None if places.store.exists() => return Err(AdoptError::AlreadyOurs(places.store)),
        None => {
            let plan = Plan::make(&cfg, &places, services).await?;
            plan.check(options.force)?;
            if options.dry_run {
                return Ok(plan.lines(&places));
            }
            Journal::begin(&places, &cfg, plan.stock)?
        }
    };
    if options.dry_run {
        return Ok(vec![format!(
            "a takeover is under way (after {:?}); `edgecore adopt` goes on with it",
            journal.step
        )]);
    }
    // From the copy: the file itself may be ours already.
    let cfg = stock_config(&places.backup.join("edgecore.yaml"))?;
    let stop_at = |step| if cut == Some(step) { Err(AdoptError::Cut) } else { Ok(()) };
    stop_at(Step::BackedUp)?;
    if journal.step < Step::Stopped {
        services.stop(&journal.stock).await.map_err(AdoptError::Service)?;
        journal.reach(Step::Stopped)?;
    }
    stop_at(Step::Stopped)?;
    if journal.step < Step::Stored {
        journal.keep_database(&places)?;
        // Only now nothing changes any more.
        let plan = Plan::make(&cfg, &places, services).await?;
        plan.check(options.force)?;
        store::fill(&plan, &cfg, &places).await?;
        journal.reach(Step::Stored)?;
    }
    stop_at(Step::Stored)?;
    if journal.step < Step::Switched {
        let bundle = Credentials::new(&cfg.modules.edge_hub).load().map_err(AdoptError::Credentials)?;
        bundle.store(&places.bundle).map_err(|error| AdoptError::Store(rt::error_chain(&error)))?;
        config::switch(&places, &cfg)?;
        journal.reach(Step::Switched)?;
    }
    stop_at(Step::Switched)?;
    let started = services.start_ours(&places.config).await.map_err(AdoptError::Service)?;
    journal.reach(Step::Done)?;
    let mut lines =
        vec![format!("node {} was taken over; its containers go on running", cfg.node_name()), started];
    lines.push(format!(
        "KubeEdge's files are kept in {}; back again: edgecore adopt --undo",
        places.backup.display()
    ));
    Ok(lines)
}

/// Gives the node back to KubeEdge's edgecore, from whatever step was reached.
pub async fn undo(options: &Options, services: &dyn Services) -> Result<Vec<String>, AdoptError> {
    // Ours or KubeEdge's: both name the same places, but for the certificate's.
    let now = stock_config(&options.config)?;
    let backup = Places::new(&options.config, &now).backup;
    let Some(mut journal) = Journal::load(&backup)? else { return Err(AdoptError::NothingToUndo(backup)) };
    let cfg = stock_config(&backup.join("edgecore.yaml"))?;
    let places = Places::new(&options.config, &cfg);
    if options.dry_run {
        return Ok(vec![format!(
            "would stop our edgecore, put {} back from {}, remove {}, and start KubeEdge's edgecore again",
            places.config.display(),
            backup.display(),
            places.store.display()
        )]);
    }
    services.stop_ours(&places.config).await.map_err(AdoptError::Service)?;
    journal.reach(Step::Undoing)?;
    journal.give_back(&places, &cfg)?;
    let started = services.start(&journal.stock).await.map_err(AdoptError::Service)?;
    journal.close()?;
    Ok(vec![format!("node {} is KubeEdge's again; its containers go on running", cfg.node_name()), started])
}

fn stock_config(path: &Path) -> Result<Config, AdoptError> {
    Config::load(path).map(|loaded| loaded.config).map_err(AdoptError::Config)
}
