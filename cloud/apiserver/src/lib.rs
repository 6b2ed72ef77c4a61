//! The embedded Kubernetes API of cloudcore: `kserve` over a [`store::Store`], with TLS, client certificates, a kubeconfig and the
//! controllers that every cluster has (namespaces, garbage, events' age).
//!
//! Not here: HTTP semantics (`kserve`), kinds (`kapi`), node, pod and device controllers (`cloudcore`).
//!
//! Invariants
//! - The API's CA signs clients of the API and nothing else; the hub's CA is another one.
//! - Without a client certificate of that CA or a service account's token only health and version are answered.
//!
//! Start at [`Api::open`]. Then [`Api::client`] for controllers in this program, [`Api::run`] and [`Api::serve`] as tasks.

pub mod limits;

mod bootstrap;
mod controllers;
mod credentials;
mod garbage;
mod internal;
mod listener;
mod spdy;
mod streams;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kserve::{Identity, InProcess, NodeCalls, NodeDialer, Server};
use rt::Drain;
use store::Store;

pub use internal::CallError;
pub use spdy::fuzz_spdy;
pub use streams::fuzz_summary;

/// What the API is told at its start.
#[derive(Clone, Default)]
pub struct Options {
    /// Names and addresses that clients reach it by, beside localhost.
    pub names: Vec<String>,
    pub store: store::Options,
    /// The way to the nodes. Without it pods have no log, exec, attach and port-forward, and there are no metrics.
    pub nodes: Option<Arc<dyn NodeDialer>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open the API's store in {dir}")]
    Store {
        dir: PathBuf,
        #[source]
        source: store::OpenError,
    },
    #[error("cannot make the folder {dir}; check that it can be written")]
    Folder {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "cannot make or read the API's certificates in {path}; restore the file, or remove it to make new ones (kubeconfigs then change)"
    )]
    Certificates {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot make the objects every cluster has")]
    Bootstrap(#[source] CallError),
}

/// The embedded API; clones are the same one.
#[derive(Clone)]
pub struct Api {
    server: Server<Store>,
    credentials: Arc<credentials::Credentials>,
    streams: Option<Arc<streams::Streams>>,
}

impl Api {
    /// Opens the store and the certificates under `data_dir` (made if missing) and makes the objects every cluster has.
    pub async fn open(data_dir: &Path, options: Options) -> Result<Api, OpenError> {
        std::fs::create_dir_all(data_dir)
            .map_err(|source| OpenError::Folder { dir: data_dir.to_owned(), source })?;
        let credentials = credentials::open(data_dir, &options.names)?;
        let dir = data_dir.join("store");
        let store = Store::open(&dir, options.store).map_err(|source| OpenError::Store { dir, source })?;
        let tokens = credentials::open_token_key(&data_dir.join("api-sa-key.pem"))?;
        let streams = options.nodes.map(|dialer| Arc::new(streams::Streams::new(dialer)));
        let server_options = kserve::Options {
            tokens: Some(Box::new(tokens)),
            service_accounts: true,
            nodes: streams.clone().map(|streams| -> Arc<dyn NodeCalls> { streams }),
            ..kserve::Options::default()
        };
        let server = Server::new(store, server_options);
        let api = Api { server, credentials: Arc::new(credentials), streams };
        api.bootstrap().await.map_err(OpenError::Bootstrap)?;
        Ok(api)
    }

    /// A client for controllers in this program, with all rights; it is what `kube::Client::new` takes.
    pub fn client(&self) -> InProcess<Store> {
        self.client_as(Identity::internal("system:kinglet:cloudcore"))
    }

    pub fn client_as(&self, identity: Identity) -> InProcess<Store> {
        self.server.in_process(identity)
    }

    pub fn store(&self) -> &Store {
        self.server.backend()
    }

    /// The API's own controllers, until drained.
    pub async fn run(&self, drain: Drain) -> Result<(), CallError> {
        controllers::run(self, drain).await
    }

    /// Answers HTTPS on `listener` until drained. Errors of single connections end only those.
    pub async fn serve(
        &self,
        listener: tokio::net::TcpListener,
        drain: Drain,
    ) -> Result<(), listener::ServeError> {
        let served = listener::serve(self.server.clone(), self.credentials.clone(), listener, drain).await;
        if let Some(streams) = &self.streams {
            streams.close();
        }
        served
    }

    /// Writes a kubeconfig with a client certificate of an administrator, readable by its owner only.
    pub fn write_kubeconfig(&self, path: &Path, server_url: &str) -> Result<(), rt::FileError> {
        rt::atomic_write_private(path, self.credentials.kubeconfig(server_url).as_bytes())
    }

    /// The certificate (PEM) that clients check the API by.
    pub fn ca_pem(&self) -> String {
        self.credentials.ca_pem()
    }
}

pub use listener::ServeError;
