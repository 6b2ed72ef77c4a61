//! The agent without pods: hub, meta, node, twin and tasks as they ship, on a disk in memory and a bus in memory.

use std::{sync::Arc, time::Duration};

use rt::Drain;
use store::{Options, Store, sim::SimDisk};
use tokio::{sync::watch, task::JoinHandle};
use wire::Resource;

use crate::{
    config::Config,
    contract::{
        BoxFuture, DeviceCounts, Handles, ImagePuller, KubeletApi, LinkState, NodeImage, PodStatuses,
        RuntimeStatus, Uplink, testing::FakeBus,
    },
    credentials::Credentials,
    hub::{Endpoint, Hub, HubHandle, tests::cloud::Cloud},
    meta::{Front, MetaStore},
    node::{self, ConditionBoard, Facts, Machine, NodeConfig},
    tasks, twin,
};

const PATIENCE: Duration = Duration::from_secs(10);

pub struct Edge {
    pub meta: Arc<MetaStore>,
    pub handles: Handles,
    pub bus: Arc<FakeBus>,
    pub board: Arc<ConditionBoard>,
    drain: Drain,
    tasks: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

struct NoKubelet;

impl KubeletApi for NoKubelet {
    fn serve(&self, _: rt::BoxIo) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// Has every image but those that are called missing.
struct Registry;

impl ImagePuller for Registry {
    fn pull<'a>(&'a self, image: &'a str, _: Option<&'a Resource>) -> BoxFuture<'a, Result<(), String>> {
        let found = !image.contains("missing");
        Box::pin(async move { if found { Ok(()) } else { Err("not found".into()) } })
    }
}

struct Board;

impl Machine for Board {
    async fn facts(&self, _: &NodeConfig) -> Facts {
        Facts {
            cpus: 4,
            memory_total_kib: 436_216,
            disk_total_bytes: 16 << 30,
            pids_max: 4_194_304,
            address: Some("192.0.2.7".into()),
            boot_id: "b".into(),
            kernel: "6.12.0-arm64".into(),
            os_image: "Kinglet".into(),
            architecture: "arm64",
            ..Facts::default()
        }
    }
}

impl Edge {
    pub fn start(cloud: &Cloud) -> Edge {
        Edge::start_with(cloud, Duration::from_secs(15))
    }

    pub fn start_with(cloud: &Cloud, heartbeat: Duration) -> Edge {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.pem");
        cloud.admit("edge-1", &path);
        let store = Store::open_with(Box::new(SimDisk::new()), Options::default()).unwrap();
        let meta = Arc::new(MetaStore::new(store, ""));
        let (handle, bus, board) = (HubHandle::new(), FakeBus::new(), Arc::new(ConditionBoard::default()));
        let uplink: Arc<dyn Uplink> = handle.clone();
        let handles = Handles {
            statuses: PodStatuses::default(),
            registered: watch::Sender::default(),
            history: watch::Sender::default(),
            node_name: "edge-1".into(),
            runtime: watch::Sender::new(RuntimeStatus::Ready { version: "containerd://1.7.24".into() }),
            devices: watch::Sender::new(DeviceCounts::new()),
            images: watch::Sender::new(Vec::<NodeImage>::new()),
            meta: Arc::new(Front::new(meta.clone(), uplink.clone())),
            uplink,
            bus: bus.clone(),
            conditions: board.clone(),
        };
        let drain = Drain::new();
        let hub = Hub {
            handle,
            endpoint: Endpoint {
                server: cloud.address(),
                node: "edge-1".into(),
                project_id: "e632aba927ea4ac2b575ec1603d56f10".into(),
                credentials: Credentials { ca: path.clone(), cert: path.clone(), key: path },
                cloud_id: String::new(),
                store_id: meta.store_id().into(),
                streams: true,
                lane: true,
                handshake_timeout: PATIENCE,
                write_timeout: PATIENCE,
            },
            heartbeat,
            meta: meta.clone(),
            inbox: meta.clone(),
            conditions: board.clone(),
            kubelet: Arc::new(NoKubelet),
            tasks: Arc::new(tasks::Runner::new(handles.clone(), Arc::new(Registry), drain.child())),
        };
        let cfg = Config::default();
        let node_cfg = NodeConfig::new(&cfg);
        let node = node::run(handles.clone(), node_cfg, Board, board.subscribe());
        let (node_drain, twin_drain) = (drain.clone(), drain.clone());
        let twin = twin::run(handles.clone(), Arc::new(cfg), drain.clone());
        let tasks = vec![
            tokio::spawn(hub.run(drain.clone())),
            tokio::spawn(async move {
                let _ = node_drain.or(node).await;
            }),
            tokio::spawn(async move {
                let _ = twin.await;
                drop(twin_drain);
            }),
        ];
        Edge { meta, handles, bus, board, drain, tasks, _dir: dir }
    }

    pub async fn until(&self, wanted: impl Fn(&LinkState) -> bool) {
        let mut state = self.handles.uplink.state();
        let state = state.wait_for(|state| wanted(state));
        tokio::time::timeout(PATIENCE, state).await.expect("the state in time").unwrap();
    }

    pub async fn stop(self) {
        self.drain.start();
        for task in self.tasks {
            tokio::time::timeout(PATIENCE, task).await.expect("it ends").unwrap();
        }
    }
}
