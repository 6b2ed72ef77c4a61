//! The kubelet's HTTP API: logs, exec, attach, port-forward, pods, statistics and metrics, for whoever brings a byte stream.
//!
//! Not here: who may ask (the link and the tunnel bring only what the cloud authorised), SPDY and WebSocket (containerd speaks
//! both; upgraded connections are passed to it as they are), what pods should do (`manager`).
//!
//! Invariants
//! - Nothing is spawned and nothing waits for the worker's loop: containers are found through the runtime's labels, so logs can
//!   be read while the loop is busy, and an answer ends with its connection.
//! - Memory per connection is bounded: what the peer does not take is not read.
//! - The loopback listener serves only what [`route::Route::is_public`] says.
//!
//! Start at [`new`], then `http`.

mod body;
mod containers;
mod http;
pub mod limits;
pub mod listener;
pub mod logs;
pub mod route;
mod streaming;

use std::sync::Arc;

use rt::BoxIo;

use super::{
    Settings,
    cri::{self, Cri},
};
use crate::contract::{BoxFuture, Handles, KubeletApi};

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Everything,
    /// Health, pods, statistics and metrics.
    ReadOnly,
}

/// What answers are made from.
pub struct Node {
    pub(crate) handles: Handles,
    pub(crate) settings: Settings,
    pub(crate) cri: Cri,
}

#[derive(Clone)]
pub struct Server {
    node: Arc<Node>,
}

/// The node's kubelet API. Opens nothing: the runtime is connected to when it is first needed.
pub fn new(handles: Handles, settings: Settings) -> Server {
    let cri = Cri::new(cri::channel(&settings.endpoint));
    Server { node: Arc::new(Node { handles, settings, cri }) }
}

impl Server {
    pub fn serve_as(&self, io: BoxIo, access: Access) -> BoxFuture<'static, ()> {
        Box::pin(http::serve(self.node.clone(), io, access))
    }
}

impl KubeletApi for Server {
    fn serve(&self, io: BoxIo) -> BoxFuture<'static, ()> {
        self.serve_as(io, Access::Everything)
    }
}

/// Entry for a fuzzer: what peers, logs and the runtime's streaming server say. Total.
pub fn fuzz_kubelet(data: &[u8]) {
    route::fuzz_route(data);
    logs::fuzz_log(data);
    streaming::fuzz_answer(data);
}

#[cfg(test)]
mod tests;
