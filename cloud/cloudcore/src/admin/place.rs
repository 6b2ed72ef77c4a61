//! What a command works on: what a cloudcore keeps, also while it runs, and the API.

use std::sync::Arc;

use anyhow::{Context, bail};

use crate::api::Api;
use crate::authority;
use crate::backend::Backend;
use crate::cli::{DataDir, Run};
use crate::config::Config;
use crate::contract::Routes;
use crate::join::Tokens;
use crate::records::Records;
use crate::revoke::Revocations;
use crate::settings::{Settings, Source, settings};
use crate::start::is_running;

pub struct Place {
    settings: Settings,
    /// `None`: the data directory has all, and the API is the embedded one.
    cluster: Option<Api>,
}

impl Place {
    pub async fn find(options: &DataDir) -> anyhow::Result<Place> {
        let config = options.config.as_deref().map(Config::load).transpose()?.unwrap_or_default().config;
        let (data_dir, kubeconfig) = (options.data_dir.clone(), options.kubeconfig.clone());
        let settings = settings(config, &Run { data_dir, kubeconfig, ..Run::default() });
        // A token from a directory that cloudcore does not use would only fail at the edge.
        if !settings.data_dir.is_dir() {
            bail!(
                "{} does not exist; start cloudcore once, or name its directory with --data-dir",
                settings.data_dir.display()
            );
        }
        Ok(Place { cluster: api_of(&settings.source).await?, settings })
    }

    pub fn records(&self) -> anyhow::Result<Records> {
        Ok(match &self.cluster {
            Some(api) => Records::in_cluster(api.clone()),
            None => Records::open(&self.settings.data_dir)?,
        })
    }

    pub fn tokens(&self) -> anyhow::Result<Tokens> {
        Ok(match &self.cluster {
            Some(api) => Tokens::in_cluster(api.clone()),
            None => Tokens::open(&self.settings.data_dir)?,
        })
    }

    /// Where the keys of the nodes' CA are.
    pub fn authority(&self) -> authority::Source {
        match &self.cluster {
            Some(api) => authority::Source::secrets(api.clone(), &self.settings.data_dir),
            None => authority::Source::dir(&self.settings.data_dir),
        }
    }

    /// By the API of the cluster, or of the running cloudcore, or by the embedded API, opened here while no cloudcore runs.
    pub async fn revocations(&self) -> anyhow::Result<Revocations> {
        let dir = &self.settings.data_dir;
        let api = match &self.cluster {
            Some(api) => api.clone(),
            None if is_running(dir) => {
                let running = Source::Kubeconfig(dir.join("kubeconfig"));
                Api::new(
                    Backend::cluster(&running).await.context("cannot ask the running cloudcore")?.client(),
                )
            }
            None => {
                let backend = Backend::open(&self.settings, dir, Arc::new(Routes::default())).await?;
                Api::new(backend.client())
            }
        };
        Ok(Revocations::new(api))
    }
}

pub async fn api_of(source: &Source) -> anyhow::Result<Option<Api>> {
    Ok(match source {
        Source::Embedded => None,
        source => Some(Api::new(Backend::cluster(source).await?.client())),
    })
}

pub fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(command)
}
