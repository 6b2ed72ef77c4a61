//! The way to a node's kubelet API: what logs, exec, attach, port-forward and metrics go through.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use kapi::ApiError;
use rt::{BoxFuture, BoxIo};

use crate::body::Body;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("node {0} is not connected; it is reached again when its link is up (kubectl get node {0})")]
    NotConnected(String),
    #[error("node {node} takes no further stream: {why}; close one or try again")]
    Refused { node: String, why: String },
}

/// Opens byte streams to nodes.
pub trait NodeDialer: Send + Sync {
    /// A new stream on which the node's kubelet API speaks HTTP/1.1, upgrades included. Ends when either side drops it, or with
    /// the link.
    fn dial<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<BoxIo, DialError>>;
}

/// What the connection to the node is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Text that may go on for as long as the container does.
    Log { pod: String },
    /// exec and attach: a request to change the protocol to SPDY or WebSocket. Which of its streams are wanted.
    Command { pod: String, stdin: bool, stdout: bool, stderr: bool, tty: bool },
    /// The ports are named by WebSocket clients only; SPDY clients name them stream by stream.
    PortForward { pod: String, ports: Vec<u16> },
    /// Whatever the client wants of the kubelet.
    Proxy,
    /// Whatever the client wants of a server in a pod.
    PodPort(PodPort),
}

/// A port of a pod, on which HTTP is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    pub pod: String,
    pub port: u16,
    /// Its server speaks TLS.
    pub tls: bool,
    /// The pod's address and the port, as its server is called.
    pub host: String,
    /// Where the client sees the root of this server.
    pub base: String,
    /// The kubelet's path to forward ports of the pod.
    pub forward: String,
}

/// A request that a node is to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAsk {
    pub node: String,
    /// Path and query at the kubelet API, or at the server in the pod.
    pub path: String,
    pub purpose: Purpose,
}

/// Carries requests to nodes: HTTP and changed protocols over the streams of a [`NodeDialer`].
pub trait NodeCalls: Send + Sync {
    /// `request` is the client's; where it asks for another protocol, its extensions hold the upgrade.
    fn call<'a>(
        &'a self,
        ask: NodeAsk,
        request: &'a Parts,
        body: &'a Bytes,
    ) -> BoxFuture<'a, Result<Response<Body>, ApiError>>;

    /// What these nodes use; those that do not answer are left out. May be some seconds old.
    fn usage<'a>(&'a self, nodes: Vec<String>) -> BoxFuture<'a, Vec<(String, Arc<NodeUsage>)>>;
}

/// What something uses at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Billionths of a core.
    pub cpu_nanocores: u64,
    /// The working set.
    pub memory_bytes: u64,
}

/// What a node and its pods use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// When it was measured, in seconds since the epoch.
    pub time_s: i64,
    /// Over how many seconds the processor's use is the mean.
    pub window_s: u64,
    pub used: Used,
    pub pods: Vec<PodUsage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub containers: Vec<ContainerUsage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    pub name: String,
    pub used: Used,
}
