//! The wiring: opens what is on disk, binds the ports, starts the tasks.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rt::{Drain, Policy, RestartPolicy, Supervisor};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::api::{Api, ApiError};
use crate::authority::{self, Authority, AuthorityError, Port};
use crate::backend::{Backend, BackendError};
use crate::cluster::views::Kind;
use crate::cluster::{Cluster, Duties, informer, writer};
use crate::contract::{Placements, Routes};
use crate::hub::{Hub, Sessions};
use crate::identity::{Identity, IdentityError};
use crate::join::{Join, TokenError, Tokens, now_s};
use crate::leader;
use crate::limits::{CLUSTER_QUEUE_LEN, WRITE_QUEUE_LEN};
use crate::records::{RecordError, Records};
use crate::refusals::RefusalLog;
use crate::revoke::Revocations;
use crate::settings::{Settings, Source};
use crate::shared;
use crate::takeover::{crds, missing};
use crate::tunnel::{OpenTunnels, StreamServer, StreamServerError, TunnelServer, stream_tls};
use crate::upstream::{KubeletPlace, Upstream};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot use the data directory {0}; make it writable, or name another one with --data-dir")]
    DataDir(PathBuf, #[source] std::io::Error),
    #[error(
        "another cloudcore (pid {1}) uses the data directory {0}; stop it, or name another directory with --data-dir"
    )]
    InUse(PathBuf, String),
    #[error(
        "cannot listen on {address} for {purpose}; stop what listens there, or choose another port with {flag}"
    )]
    Listen { address: SocketAddr, purpose: &'static str, flag: &'static str, source: std::io::Error },
    #[error("cannot read identity of this cloud")]
    Identity(#[source] IdentityError),
    #[error("cannot set up the nodes' certificate authority")]
    Authority(#[source] AuthorityError),
    #[error("cannot open the records of nodes")]
    Records(#[source] RecordError),
    #[error("cannot open the join tokens")]
    Tokens(#[source] TokenError),
    #[error("cannot use the Kubernetes API")]
    Backend(#[source] BackendError),
    #[error("cannot tell whether KubeEdge objects are in use that are not served here")]
    Look(#[source] missing::MissingError),
    #[error(transparent)]
    NotServed(missing::NotServed),
    #[error("there is no namespace {}, and it cannot be made; make it with kubectl", shared::NAMESPACE)]
    Namespace(#[source] ApiError),
    #[error("the cluster lacks kinds that are needed")]
    Crds(#[source] crds::CrdError),
    #[error("the stream port cannot be opened")]
    Stream(#[source] StreamServerError),
    #[error("cannot write endpoints.json")]
    Endpoints(#[source] rt::FileError),
}

/// Where a running cloudcore is found; `endpoints.json` in the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// `None`: a cluster's API is used.
    pub api: Option<String>,
    pub hub: String,
    pub join: String,
    /// KubeEdge's tunnel and stream port, where they are open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    pub pid: u32,
}

pub struct Running {
    pub endpoints: Endpoints,
    routes: Routes,
    drain: Drain,
    supervisor: Supervisor,
    endpoints_path: PathBuf,
    _lock: File,
}

impl Running {
    /// Starting it stops this cloudcore.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Byte streams to the kubelet API of nodes, as the API server opens them.
    pub fn nodes(&self) -> Arc<dyn kserve::NodeDialer> {
        Arc::new(self.routes.clone())
    }

    /// Waits until it has stopped: asked to by the drain, or because an essential part ended (the error).
    pub async fn wait(self, timeout: Duration) -> anyhow::Result<()> {
        let result = self.supervisor.run(timeout).await;
        // Nobody must take a stopped cloudcore for a running one; if it stays, its pid tells.
        drop(std::fs::remove_file(&self.endpoints_path));
        tracing::info!("stopped");
        Ok(result?)
    }
}

/// Starts everything; all ports answer when it returns.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    crate::descriptors::raise(settings.nodes_max);
    let dir = settings.data_dir.clone();
    std::fs::create_dir_all(&dir).map_err(|error| StartError::DataDir(dir.clone(), error))?;
    let lock = lock(&dir)?;
    let routes = Routes::default();
    let backend =
        Backend::open(&settings, &dir, Arc::new(routes.clone())).await.map_err(StartError::Backend)?;
    let api = Api::new(backend.client());
    let kept = match backend.is_embedded() {
        true => Kept {
            identity: Identity::load_or_make(&dir).map_err(StartError::Identity)?,
            records: Records::open(&dir).map_err(StartError::Records)?,
            tokens: Tokens::open(&dir).map_err(StartError::Tokens)?,
        },
        false => Kept::in_cluster(&api, settings.accept_missing).await?,
    };
    let Kept { identity, records, tokens } = kept;
    let authority = authority(&settings, &api, backend.is_embedded()).await?;
    let revocations = Revocations::new(api.clone());
    revocations.read_first().await;

    let hub_listener = listen(settings.hub, "the nodes' links", "--hub-port").await?;
    let join_listener = listen(settings.join, "joining nodes", "--join-port").await?;
    let api_listener = match backend.is_embedded() {
        true => Some(listen(settings.api, "the Kubernetes API", "--api-port").await?),
        false => None,
    };
    let stream = StreamPorts::open(&settings).await?;
    let endpoints = Endpoints {
        api: api_listener.as_ref().map(|listener| format!("https://{}", reachable(listener))),
        hub: reachable(&hub_listener).to_string(),
        join: reachable(&join_listener).to_string(),
        tunnel: stream.tunnel.as_ref().map(|listener| reachable(listener).to_string()),
        stream: stream.stream.as_ref().map(|(listener, _)| reachable(listener).to_string()),
        pid: std::process::id(),
    };

    let drain = Drain::new();
    let mut supervisor = Supervisor::new(drain.clone());
    let cluster_ca: Arc<str> = backend.cluster_ca().into();
    let embedded = backend.is_embedded();
    if let Some(listener) = api_listener {
        backend.write_kubeconfig(reachable(&listener), &dir).map_err(StartError::Backend)?;
        essential(&mut supervisor, "api", (backend, listener), |(backend, listener), drain| async move {
            backend.serve(listener, drain).await
        });
    }
    keep(&mut supervisor, &api, &records, embedded);
    let placements = cluster(&mut supervisor, &api, embedded.then_some(settings.lease_grace));
    essential(&mut supervisor, "revocations", revocations.clone(), |revocations, drain| async move {
        drain.or(revocations.run()).await;
        Ok(())
    });
    essential(&mut supervisor, "authority", authority.clone(), |authority, drain| async move {
        authority.follow(drain).await;
        Ok(())
    });
    let (hub_tls, tunnel_tls) = (authority.port(Port::Link), authority.port(Port::Link));
    let join = Arc::new(Join {
        tls: authority.port(Port::Join),
        authority,
        tokens,
        records: records.clone(),
        api: api.clone(),
        cloud_id: identity.header(),
        revocations: revocations.clone(),
        refusals: RefusalLog::default(),
        expired_grace: settings.expired_grace,
    });
    essential(&mut supervisor, "join", (join, join_listener), |(join, listener), drain| async move {
        join.serve(listener, drain).await;
        Ok(())
    });
    if let Some(listener) = stream.tunnel {
        let server = Arc::new(TunnelServer {
            tls: tunnel_tls,
            revocations: revocations.clone(),
            refusals: RefusalLog::default(),
            records: records.clone(),
            routes: routes.clone(),
            write_timeout: settings.write_timeout,
            nodes_max: settings.nodes_max,
            open: OpenTunnels::default(),
        });
        essential(&mut supervisor, "tunnel", (server, listener), |(server, listener), drain| async move {
            server.serve(listener, drain).await;
            Ok(())
        });
    }
    let kubelet = kubelet_place(&settings, stream.stream.as_ref().map(|(listener, _)| listener));
    if let Some((listener, tls)) = stream.stream {
        let server = Arc::new(StreamServer { tls, api: api.clone(), routes: routes.clone() });
        essential(&mut supervisor, "stream", (server, listener), |(server, listener), drain| async move {
            server.serve(listener, drain).await;
            Ok(())
        });
    }
    let hub = Arc::new(Hub {
        tls: hub_tls,
        revocations,
        refusals: RefusalLog::default(),
        cloud_id: identity.header(),
        upstream: Upstream {
            api,
            cluster_ca,
            device_write_every_ms: settings.device_write_every_ms,
            kubelet,
        },
        placements,
        records,
        keepalive: settings.keepalive,
        write_timeout: settings.write_timeout,
        nodes_max: settings.nodes_max,
        sessions: Sessions::default(),
        routes: routes.clone(),
        packer: Arc::default(),
        starts: crate::hub::starts(),
    });
    essential(&mut supervisor, "hub", (hub, hub_listener), |(hub, listener), drain| async move {
        hub.serve(listener, drain).await;
        Ok(())
    });

    let endpoints_path = dir.join("endpoints.json");
    let text = serde_json::to_vec(&endpoints).expect("endpoints serialise without error");
    rt::atomic_write(&endpoints_path, &text).map_err(StartError::Endpoints)?;
    announce(&settings, &endpoints, &dir);
    Ok(Running { endpoints, routes, drain, supervisor, endpoints_path, _lock: lock })
}

/// `stream`: the open stream port.
fn kubelet_place(settings: &Settings, stream: Option<&TcpListener>) -> Option<Arc<KubeletPlace>> {
    let address = Some(settings.kubelet_address.clone()).filter(|address| !address.is_empty())?;
    let Some(listener) = stream else {
        tracing::warn!(
            "the stream port is closed, so the kubelet address {address} is not told; see modules.cloudStream in docs/kubernetes.md"
        );
        return None;
    };
    Some(Arc::new(KubeletPlace {
        address,
        kind: settings.kubelet_address_type,
        port: reachable(listener).port(),
    }))
}

/// What is kept of this cloud and its nodes: in the data directory, or in the cluster, for all replicas.
struct Kept {
    identity: Identity,
    records: Records,
    tokens: Tokens,
}

impl Kept {
    async fn in_cluster(api: &Api, accept_missing: bool) -> Result<Kept, StartError> {
        let found = missing::in_use(api).await.map_err(StartError::Look)?;
        if !found.is_empty() {
            let line = missing::line(&found);
            if !accept_missing {
                return Err(StartError::NotServed(missing::NotServed(line)));
            }
            tracing::warn!("these objects of KubeEdge have no effect any more: {line}");
        }
        shared::ensure_namespace(api).await.map_err(StartError::Namespace)?;
        crds::ensure(api).await.map_err(StartError::Crds)?;
        let identity = Identity::of_cluster(api).await.map_err(StartError::Identity)?;
        let (records, tokens) = (Records::in_cluster(api.clone()), Tokens::in_cluster(api.clone()));
        Ok(Kept { identity, records, tokens })
    }
}

/// Starts what keeps the records, and in a cluster the search for what is to be done once for all replicas.
fn keep(supervisor: &mut Supervisor, api: &Api, records: &Records, embedded: bool) {
    essential(supervisor, "records", records.clone(), |records, drain| async move {
        records.run(drain).await;
        Ok(())
    });
    if !embedded {
        let parts = (api.clone(), records.clone());
        essential(supervisor, "leader", parts, |(api, records), drain| async move {
            leader::run(api, records, drain).await;
            Ok(())
        });
    }
}

/// Beside an embedded API the keys are files; in a cluster they are KubeEdge's Secrets, which all replicas share.
async fn authority(settings: &Settings, api: &Api, embedded: bool) -> Result<Arc<Authority>, StartError> {
    let source = match embedded {
        true => authority::Source::dir(&settings.data_dir),
        false => authority::Source::secrets(api.clone(), &settings.data_dir),
    };
    let policy = authority::Policy {
        names: settings.names.clone(),
        names_needed: settings.advertised.clone(),
        node_cert: settings.node_cert,
        token: settings.token_life,
    };
    let authority = Authority::open(source, policy, now_s()).await.map_err(StartError::Authority)?;
    tracing::info!("{}", authority.material().describe());
    Ok(Arc::new(authority))
}

/// What modules.cloudStream asks for.
#[derive(Default)]
struct StreamPorts {
    tunnel: Option<TcpListener>,
    stream: Option<(TcpListener, tokio_rustls::TlsAcceptor)>,
}

impl StreamPorts {
    async fn open(settings: &Settings) -> Result<StreamPorts, StartError> {
        let Some(ports) = &settings.stream else { return Ok(StreamPorts::default()) };
        let tunnel = listen(ports.tunnel, "the nodes' tunnels", "modules.cloudStream.tunnelPort").await?;
        // Whoever may connect reaches every container: there is no certificate that could stand in for its own CA.
        let stream = match ports.ca.exists() {
            true => {
                let tls = stream_tls(&ports.ca, &ports.cert, &ports.key).map_err(StartError::Stream)?;
                let purpose = "kubelet requests of an API server";
                Some((listen(ports.stream, purpose, "modules.cloudStream.streamPort").await?, tls))
            }
            false => {
                tracing::info!(
                    "no {}: the stream port stays closed, the embedded API needs none",
                    ports.ca.display()
                );
                None
            }
        };
        Ok(StreamPorts { tunnel: Some(tunnel), stream })
    }
}

/// Starts the watches and the cluster task; `lease_grace` with the embedded API, which leaves scheduling and the judging of
/// nodes to us.
fn cluster(supervisor: &mut Supervisor, api: &Api, lease_grace: Option<Duration>) -> Placements {
    let (changes_tx, changes) = mpsc::channel(CLUSTER_QUEUE_LEN);
    let watched = |kind: &Kind| lease_grace.is_some() || !kind.is_for_duties();
    for kind in Kind::ALL.into_iter().filter(|kind| !watched(kind)) {
        // Binding claims and judging leases is the cluster's own work.
        changes_tx.try_send(informer::Change::Listed(kind, Vec::new())).expect("the queue is new");
    }
    let (subscribe_tx, subscriptions) = mpsc::channel(CLUSTER_QUEUE_LEN);
    let duties = lease_grace.map(|grace| {
        let (writes, rx) = mpsc::channel(WRITE_QUEUE_LEN);
        essential(supervisor, "cluster writer", (api.clone(), rx), |(api, rx), drain| async move {
            drain.or(writer::run(api, rx)).await;
            Ok(())
        });
        Duties::new(writes, grace)
    });
    for kind in Kind::ALL.into_iter().filter(watched) {
        let (api, tx) = (api.clone(), changes_tx.clone());
        let name = format!("watch {}", kind.name());
        supervisor.spawn(&name, Policy::Restart(RestartPolicy::default()), move |drain| {
            let watch = informer::run(api.clone(), kind, tx.clone());
            async move {
                drain.or(watch).await;
                Ok::<(), StartError>(())
            }
        });
    }
    let cluster = Cluster::new(changes, subscriptions, duties);
    essential(supervisor, "cluster", cluster, |cluster, drain| async move {
        drain.or(cluster.run()).await;
        Ok(())
    });
    Placements::new(subscribe_tx)
}

/// A task that is started once and without which nothing works.
fn essential<T, F>(
    supervisor: &mut Supervisor,
    name: &str,
    parts: T,
    run: impl Fn(T, Drain) -> F + Send + 'static,
) where
    T: Send + 'static,
    F: Future<Output = Result<(), BackendError>> + Send + 'static,
{
    let mut parts = Some(parts);
    supervisor.spawn(name, Policy::Essential, move |drain| {
        run(parts.take().expect("essential tasks start once"), drain)
    });
}

fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join("cloudcore.pid");
    let failed = |error| StartError::DataDir(dir.to_owned(), error);
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    if file.try_lock().is_err() {
        let mut pid = String::new();
        // Only for the message.
        drop(file.read_to_string(&mut pid));
        return Err(StartError::InUse(dir.to_owned(), pid.trim().to_owned()));
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(failed)?;
    Ok(file)
}

/// Whether a cloudcore has the data directory now.
pub fn is_running(dir: &Path) -> bool {
    let file = File::open(dir.join("cloudcore.pid"));
    file.is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

async fn listen(
    address: SocketAddr,
    purpose: &'static str,
    flag: &'static str,
) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, purpose, flag, source })
}

/// An address of this machine that the listener answers on.
fn reachable(listener: &TcpListener) -> SocketAddr {
    let mut address = listener.local_addr().expect("a bound listener has an address");
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    address
}

fn announce(settings: &Settings, endpoints: &Endpoints, dir: &Path) {
    tracing::info!("nodes join on {} and connect to {}", endpoints.join, endpoints.hub);
    match &endpoints.api {
        Some(api) => tracing::info!(
            "Kubernetes API on {api}; kubectl --kubeconfig {}",
            dir.join("kubeconfig").display()
        ),
        None => match &settings.source {
            Source::Kubeconfig(path) => tracing::info!("Kubernetes API of {}", path.display()),
            _ => tracing::info!("Kubernetes API of the cluster that this is a pod of"),
        },
    }
    let names: Vec<String> =
        settings.names.ips.iter().map(ToString::to_string).chain(settings.names.dns_names.clone()).collect();
    tracing::info!("nodes may dial {} (add more with --advertise-address)", names.join(", "));
}
