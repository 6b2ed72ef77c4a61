//! edgecore: the agent of a Kinglet node, as a library so that tests build what ships.
//!
//! `config` says what to do; `hub` brings the cloud's objects to `meta`, where everything starts from; `edged` runs pods,
//! `twin` mirrors devices over `bus`, `node` shows the node. Modules meet in [`contract`] only; this file is the wiring.
//!
//! Invariants
//! - What the cloud delivered is durable before it is acknowledged, and goes only by an explicit delete.
//! - Being offline is not a special case: every module works from `meta`, whether the hub has a link or not.
//! - A store that cannot be read is not an empty one: no module that acts on objects is started on it.
//!
//! Start at [`run`].

pub mod cli;
pub mod config;
pub mod contract;
pub mod limits;

pub mod capacity;
pub mod quantity;
pub mod watched_folder;

pub mod adopt;
pub mod credentials;
pub mod device_call;
pub mod doctor;
pub mod enrol;
pub mod https;
pub mod join;
pub mod notify;
pub mod status;
mod tls_fault;

pub mod bus;
pub mod device_folder;
pub mod discovery;
pub mod dmi;
pub mod edged;
pub mod hub;
pub mod meta;
pub mod node;
pub mod runtime_guard;
pub mod tasks;
pub mod tunnel;
pub mod twin;

#[cfg(test)]
mod stock_cloud;

use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rt::{Drain, Policy, RestartPolicy, Supervisor};
use tokio::sync::watch;

use crate::{
    config::{Config, ConfigError},
    contract::{
        Condition, Conditions, Handles, Inbox, KubeletApi, Meta, NodeTasks, PodStatuses, RuntimeStatus,
        Uplink,
    },
    edged::kubelet_api::Server as KubeletServer,
    hub::{Hub, HubHandle, RotateConfig},
    limits::DRAIN_TIMEOUT,
    meta::{BrokenMeta, Front, MetaStore},
    node::{ConditionBoard, NodeConfig, ProcMachine},
    status::{State, Status},
};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{}", rt::error_chain(.0))]
    Config(ConfigError),
    #[error("{0:?} cannot be a node's name; set modules.edged.hostnameOverride in {1}")]
    NodeName(String, String),
    #[error("the MQTT bus cannot start: {0:#}")]
    Bus(anyhow::Error),
    #[error("{}", rt::error_chain(.0))]
    Locked(store::OpenError),
    #[error("{0}")]
    Task(rt::TaskError),
}

/// The node's memory, or what stands in for one that cannot be read.
struct Memory {
    meta: Arc<dyn Meta>,
    inbox: Arc<dyn Inbox>,
    store: Option<Arc<MetaStore>>,
    store_id: String,
}

/// Runs the agent until the drain, or until something without which nothing works has ended.
pub async fn run(config: &Path, drain: Drain) -> Result<(), RunError> {
    let loaded = Config::load(config).map_err(RunError::Config)?;
    let cfg = Arc::new(loaded.config);
    let ended = run_configured(config, &cfg, &loaded.unknown, drain).await;
    // The status file belongs to the agent that holds the store.
    if let Err(error) = &ended
        && !matches!(error, RunError::Locked(_))
    {
        let cloud = &cfg.modules.edge_hub.websocket.server;
        Status::new(State::Failed, &error.to_string(), &cfg.node_name(), cloud).write(&cfg.kinglet.run_dir);
    }
    ended
}

async fn run_configured(
    config: &Path,
    cfg: &Arc<Config>,
    unknown: &[config::Unknown],
    drain: Drain,
) -> Result<(), RunError> {
    let node_name = cfg.node_name();
    if !join::is_node_name(&node_name) {
        return Err(RunError::NodeName(node_name, config.display().to_string()));
    }
    let board = Arc::new(ConditionBoard::default());
    report_unknown_keys(config, unknown, &*board);
    let memory = open_memory(cfg, &*board)?;

    let hub_handle = HubHandle::new();
    let uplink: Arc<dyn Uplink> = hub_handle.clone();
    let runtime = watch::Sender::new(match memory.store {
        Some(_) => RuntimeStatus::Unknown,
        None => RuntimeStatus::Down {
            message: "pods are not touched while the node's store cannot be read".into(),
        },
    });
    let handles = Handles {
        statuses: PodStatuses::default(),
        node_name: node_name.as_str().into(),
        runtime,
        registered: watch::Sender::default(),
        history: watch::Sender::default(),
        devices: watch::Sender::default(),
        images: watch::Sender::default(),
        meta: Arc::new(Front::new(memory.meta.clone(), uplink.clone())),
        uplink,
        bus: bus::start(cfg, drain.child()).map_err(RunError::Bus)?,
        conditions: board.clone(),
    };

    let kubelet_api = edged::kubelet_api::new(handles.clone(), edged::Settings::from_config(cfg));
    let mut supervisor = Supervisor::new(drain);
    spawn_read_only_port(&mut supervisor, cfg, &kubelet_api);
    let status = status::Sources::new(cfg, &handles, board.subscribe());
    supervisor.spawn("status", restart(), move |drain| done(status::run(status.clone(), drain)));
    supervisor.spawn("notify", Policy::Once, move |drain| done(notify::beat(drain)));
    if cfg.modules.edge_hub.enable {
        let kubelet: Arc<dyn KubeletApi> = Arc::new(kubelet_api.clone());
        if let Some(settings) = tunnel::Settings::new(cfg) {
            let (handle, kubelet, registered) =
                (hub_handle.clone(), kubelet.clone(), handles.registered.clone());
            supervisor.spawn("tunnel", restart(), move |drain| {
                let (carries_streams, certificates) = (handle.carries_streams(), handle.certificates());
                let (settings, kubelet) = (settings.clone(), kubelet.clone());
                let registered = registered.subscribe();
                done(tunnel::run_with_certificates(
                    settings,
                    kubelet,
                    carries_streams,
                    registered,
                    certificates,
                    drain,
                ))
            });
        }
        let puller =
            edged::images::prepull::Prepuller::new(handles.clone(), &edged::Settings::from_config(cfg));
        let tasks: Arc<dyn NodeTasks> =
            Arc::new(tasks::Runner::new(handles.clone(), Arc::new(puller), supervisor.drain().child()));
        spawn_hub(&mut supervisor, cfg, hub_handle, &memory, board.clone(), kubelet, tasks);
        let (bus, uplink) = (handles.bus.clone(), handles.uplink.clone());
        supervisor.spawn("link-news", restart(), move |drain| {
            done(bus::link::tell(bus.clone(), uplink.state(), drain))
        });
    }
    spawn_node(&mut supervisor, cfg, &handles, &board);
    if memory.store.is_some() {
        spawn_workers(&mut supervisor, cfg, &handles);
    }
    let result = supervisor.run(DRAIN_TIMEOUT).await.map_err(RunError::Task);
    if let Some(store) = &memory.store {
        store.close();
    }
    result
}

fn spawn_hub(
    supervisor: &mut Supervisor,
    cfg: &Arc<Config>,
    handle: Arc<HubHandle>,
    memory: &Memory,
    conditions: Arc<dyn Conditions>,
    kubelet: Arc<dyn KubeletApi>,
    tasks: Arc<dyn NodeTasks>,
) {
    let endpoint = Hub::endpoint(cfg, &memory.store_id);
    let hub_cfg = &cfg.modules.edge_hub;
    if let Some(server) = hub_cfg.http_server.strip_prefix("https://") {
        let rotate = RotateConfig {
            credentials: endpoint.credentials.clone(),
            server: server.trim_end_matches('/').into(),
            node: endpoint.node.clone(),
            renews: hub_cfg.rotate_certificates,
            look_every: Duration::from_secs(u64::from(cfg.kinglet.certificate_check_seconds.max(1))),
        };
        let handle = handle.clone();
        supervisor.spawn("rotate", restart(), move |drain| {
            done(hub::rotate(rotate.clone(), handle.clone(), drain))
        });
    }
    let heartbeat = Duration::from_secs(u64::from(hub_cfg.heartbeat));
    let (meta, inbox) = (memory.meta.clone(), memory.inbox.clone());
    supervisor.spawn("hub", restart(), move |drain| {
        let hub = Hub {
            handle: handle.clone(),
            endpoint: endpoint.clone(),
            heartbeat,
            meta: meta.clone(),
            inbox: inbox.clone(),
            conditions: conditions.clone(),
            kubelet: kubelet.clone(),
            tasks: tasks.clone(),
        };
        done(hub.run(drain))
    });
}

fn spawn_read_only_port(supervisor: &mut Supervisor, cfg: &Config, kubelet_api: &KubeletServer) {
    let kubelet = &cfg.modules.edged.tailored_kubelet_config;
    if !cfg.modules.edged.enable || kubelet.read_only_port == 0 {
        return;
    }
    let (server, address) = (kubelet_api.clone(), SocketAddr::new(kubelet.address, kubelet.read_only_port));
    supervisor.spawn("kubelet-api", restart(), move |drain| {
        done(edged::kubelet_api::listener::run(server.clone(), address, drain))
    });
}

fn spawn_node(supervisor: &mut Supervisor, cfg: &Config, handles: &Handles, board: &Arc<ConditionBoard>) {
    let (handles, node_cfg, board) = (handles.clone(), NodeConfig::new(cfg), board.clone());
    supervisor.spawn("node", restart(), move |drain| {
        let node = node::run(handles.clone(), node_cfg.clone(), ProcMachine, board.subscribe());
        done(async move { drain.or(node).await })
    });
}

/// The modules that act on objects.
fn spawn_workers(supervisor: &mut Supervisor, cfg: &Arc<Config>, handles: &Handles) {
    if cfg.modules.edged.enable {
        let (handles, cfg) = (handles.clone(), cfg.clone());
        supervisor.spawn("edged", restart(), move |drain| {
            let (handles, cfg) = (handles.clone(), cfg.clone());
            done(async move { edged::run(handles, &cfg, drain).await })
        });
    }
    if cfg.modules.device_twin.enable {
        let (mappers, dmi_cfg) = (handles.clone(), cfg.clone());
        supervisor.spawn("dmi", restart(), move |drain| dmi::run(mappers.clone(), dmi_cfg.clone(), drain));
        let (handles, cfg) = (with_device_folder(supervisor, cfg, handles), cfg.clone());
        spawn_discovery(supervisor, &cfg, &handles);
        supervisor.spawn("twin", restart(), move |drain| twin::run(handles.clone(), cfg.clone(), drain));
    }
}

/// The handles of whoever acts on devices: what the node's folder says comes with what the cloud says.
fn with_device_folder(supervisor: &mut Supervisor, cfg: &Config, handles: &Handles) -> Handles {
    let path = &cfg.modules.device_twin.device_folder;
    if path.as_os_str().is_empty() {
        return handles.clone();
    }
    let folder = device_folder::open(handles, path);
    let all = folder.overlay.handles(handles);
    let handles = handles.clone();
    supervisor.spawn("devicefolder", restart(), move |drain| {
        done(device_folder::run(handles.clone(), folder.clone(), drain))
    });
    all
}

fn spawn_discovery(supervisor: &mut Supervisor, cfg: &Config, handles: &Handles) {
    let (handles, prefix) = (handles.clone(), cfg.modules.device_twin.discovery_prefix.clone());
    supervisor.spawn("discovery", restart(), move |drain| {
        done(discovery::run(handles.clone(), prefix.clone(), drain))
    });
}

fn restart() -> Policy {
    Policy::Restart(RestartPolicy::default())
}

/// A task that has nothing to fail with.
async fn done<T>(task: impl Future<Output = T>) -> Result<(), Infallible> {
    task.await;
    Ok(())
}

fn report_unknown_keys(config: &Path, unknown: &[config::Unknown], conditions: &dyn Conditions) {
    for key in unknown {
        tracing::warn!("{}: {key}", config.display());
    }
    let lines: Vec<String> = unknown.iter().map(|key| key.to_string()).collect();
    conditions.set(Condition {
        condition_type: "ConfigurationUnknownKeys".into(),
        status: !unknown.is_empty(),
        reason: "UnknownKeys".into(),
        message: format!("{}: {}", config.display(), lines.join(", ")),
    });
}

/// A store that another agent holds is an error; one that cannot be read is a condition of the node.
fn open_memory(cfg: &Config, conditions: &dyn Conditions) -> Result<Memory, RunError> {
    match MetaStore::open(&cfg.store_dir(), &cfg.kinglet.cloud_id) {
        Ok(store) => {
            let store = Arc::new(store);
            let store_id = store.store_id().to_owned();
            Ok(Memory { meta: store.clone(), inbox: store.clone(), store: Some(store), store_id })
        }
        Err(error @ store::OpenError::Locked { .. }) => Err(RunError::Locked(error)),
        Err(error) => {
            let why = rt::error_chain(&error);
            tracing::error!("{why}");
            conditions.set(Condition {
                condition_type: "StoreUnreadable".into(),
                status: true,
                reason: "OpenFailed".into(),
                message: why.clone(),
            });
            let broken = Arc::new(BrokenMeta::new(why));
            Ok(Memory { meta: broken.clone(), inbox: broken, store: None, store_id: String::new() })
        }
    }
}

/// Our broker on loopback, for tests of modules that are its clients.
#[cfg(test)]
fn test_broker(drain: &rt::Drain) -> bus::broker::Handle {
    let listen = "127.0.0.1:0".parse().expect("an address");
    bus::broker::start(listen, Default::default(), Default::default(), drain.clone())
}
