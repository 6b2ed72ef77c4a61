//! The link to the cloud: KubeEdge's messages over a WebSocket with mutual TLS, on the compact lane where the cloud is ours.
//!
//! The hub is a pump that knows no module: everything from the cloud goes to meta, everything to the cloud comes from the
//! outbox. What is decided is in `wire::link`; here are the socket, the timers and the order of disk and acknowledgement.
//!
//! Byte streams that the cloud opens go to the kubelet API; they end with the link.
//!
//! Start at [`Hub::run`]; [`HubHandle`] is what the modules hold.

mod connect;
mod disk;
mod handle;
mod pump;
pub(crate) mod rotate;
#[cfg(test)]
pub(crate) mod tests;

use std::{sync::Arc, time::Duration};

pub use connect::ConnectError;
pub use handle::HubHandle;
pub use rotate::{RotateConfig, rotate};

use crate::{
    contract::{Conditions, Inbox, KubeletApi, Meta, NodeTasks},
    credentials::Credentials,
};

/// Where the cloud is and who we are.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `host:port`.
    pub server: String,
    pub node: String,
    pub project_id: String,
    pub credentials: Credentials,
    /// Identity of the cloud that the node joined; empty when that cloud did not tell one.
    pub cloud_id: String,
    /// Identity of this node's store; empty when it cannot be read.
    pub store_id: String,
    /// Byte streams are offered to the cloud.
    pub streams: bool,
    /// The compact lane is offered to the cloud.
    pub lane: bool,
    pub handshake_timeout: Duration,
    pub write_timeout: Duration,
}

pub struct Hub {
    pub handle: Arc<HubHandle>,
    pub endpoint: Endpoint,
    pub heartbeat: Duration,
    pub meta: Arc<dyn Meta>,
    pub inbox: Arc<dyn Inbox>,
    pub conditions: Arc<dyn Conditions>,
    /// Serves the byte streams that the cloud opens.
    pub kubelet: Arc<dyn KubeletApi>,
    pub tasks: Arc<dyn NodeTasks>,
}

impl Hub {
    pub fn endpoint(cfg: &crate::config::Config, store_id: &str) -> Endpoint {
        let hub = &cfg.modules.edge_hub;
        Endpoint {
            server: hub.websocket.server.clone(),
            node: cfg.node_name(),
            project_id: hub.project_id.clone(),
            credentials: Credentials::new(hub),
            cloud_id: cfg.kinglet.cloud_id.clone(),
            store_id: store_id.into(),
            streams: cfg.kinglet.link_streams,
            lane: cfg.kinglet.compact_lane,
            handshake_timeout: Duration::from_secs(u64::from(hub.websocket.handshake_timeout.max(1))),
            write_timeout: Duration::from_secs(u64::from(hub.websocket.write_deadline.max(1))),
        }
    }
}
