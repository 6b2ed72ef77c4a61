//! The Kubernetes API that cloudcore works on: its own embedded one, or a cluster's by kubeconfig.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kserve::NodeDialer;
use rt::Drain;
use tokio::net::TcpListener;

use crate::settings::{Settings, Source};

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("the embedded API does not start")]
    Open(#[source] apiserver::OpenError),
    #[error("the embedded API's controllers stopped")]
    Controllers(#[source] apiserver::CallError),
    #[error("the embedded API cannot be served")]
    Serve(#[source] apiserver::ServeError),
    #[error("cannot write the kubeconfig")]
    Kubeconfig(#[source] rt::FileError),
    #[error("{0} cannot be used as kubeconfig; check kubeAPIConfig.kubeConfig")]
    External(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "the service account of this pod cannot be used; mount its token, or set kinglet.embeddedApi to run without a cluster"
    )]
    InCluster(#[source] Box<dyn std::error::Error + Send + Sync>),
}

pub enum Backend {
    Embedded(apiserver::Api),
    Cluster { client: kube::Client, ca_pem: String },
}

impl Backend {
    /// `nodes`: how the embedded API reaches the kubelet API of nodes.
    pub async fn open(
        settings: &Settings,
        data_dir: &Path,
        nodes: Arc<dyn NodeDialer>,
    ) -> Result<Backend, BackendError> {
        if settings.source == Source::Embedded {
            let ips = settings.names.ips.iter().map(ToString::to_string);
            let names = ips.chain(settings.names.dns_names.iter().cloned()).collect();
            let options = apiserver::Options { names, nodes: Some(nodes), ..apiserver::Options::default() };
            return Ok(Backend::Embedded(
                apiserver::Api::open(data_dir, options).await.map_err(BackendError::Open)?,
            ));
        }
        Backend::cluster(&settings.source).await
    }

    /// A cluster's API; an error for the embedded one, which has one owner.
    pub async fn cluster(source: &Source) -> Result<Backend, BackendError> {
        let unusable = |error: Box<dyn std::error::Error + Send + Sync>| match source {
            Source::Kubeconfig(path) => BackendError::External(path.clone(), error),
            _ => BackendError::InCluster(error),
        };
        let config = match source {
            Source::Kubeconfig(path) => {
                let file =
                    kube::config::Kubeconfig::read_from(path).map_err(|error| unusable(error.into()))?;
                let options = kube::config::KubeConfigOptions::default();
                let config = kube::Config::from_custom_kubeconfig(file, &options).await;
                config.map_err(|error| unusable(error.into()))?
            }
            _ => kube::Config::incluster().map_err(|error| unusable(error.into()))?,
        };
        let roots = config.root_cert.clone().unwrap_or_default();
        let ca_pem = roots.iter().map(|der| pki::pem_encode("CERTIFICATE", der)).collect();
        let client = kube::Client::try_from(config).map_err(|error| unusable(error.into()))?;
        Ok(Backend::Cluster { client, ca_pem })
    }

    pub fn is_embedded(&self) -> bool {
        matches!(self, Backend::Embedded(_))
    }

    pub fn client(&self) -> kube::Client {
        match self {
            Backend::Embedded(api) => kube::Client::new(api.client(), "default"),
            Backend::Cluster { client, .. } => client.clone(),
        }
    }

    /// PEM of the authority that signs the API's certificate; empty when the system's ones are used.
    pub fn cluster_ca(&self) -> String {
        match self {
            Backend::Embedded(api) => api.ca_pem(),
            Backend::Cluster { ca_pem, .. } => ca_pem.clone(),
        }
    }

    pub fn write_kubeconfig(&self, address: SocketAddr, data_dir: &Path) -> Result<(), BackendError> {
        match self {
            Backend::Embedded(api) => api
                .write_kubeconfig(&data_dir.join("kubeconfig"), &format!("https://{address}"))
                .map_err(BackendError::Kubeconfig),
            Backend::Cluster { .. } => Ok(()),
        }
    }

    /// The embedded API's server and its own controllers.
    pub async fn serve(self, listener: TcpListener, drain: Drain) -> Result<(), BackendError> {
        let Backend::Embedded(api) = self else { return Ok(()) };
        let serve = async { api.serve(listener, drain.clone()).await.map_err(BackendError::Serve) };
        let controllers = async { api.run(drain.clone()).await.map_err(BackendError::Controllers) };
        tokio::try_join!(serve, controllers).map(|_| ())
    }
}
