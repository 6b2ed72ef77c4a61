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
mod collect;
mod containers;
mod http;
pub mod limits;
pub mod listener;
pub mod logs;
mod metrics;
mod pods;
pub(super) mod prometheus;
pub mod route;
mod streaming;
mod summary;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use collect::PodDisk;
use rt::BoxIo;

use super::{
    Settings,
    cri::{self, Cri},
    stats::{cgroup::Cgroups, rates::Rates},
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
    cgroups: Cgroups,
    rates: Mutex<Rates>,
    /// By incarnation, with the time of the walk.
    disks: Mutex<HashMap<String, (Instant, PodDisk)>>,
}

impl Node {
    /// Nanoseconds of processor time per second of something that is no pod.
    fn rate(&self, now: Instant, name: &Path, ns: u64) -> Option<u64> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).read(now, name, ns)
    }
}

#[derive(Clone)]
pub struct Server {
    node: Arc<Node>,
}

/// The node's kubelet API. Opens nothing: the runtime is connected to when it is first needed.
pub fn new(handles: Handles, settings: Settings) -> Server {
    let book = cri::adopted::Book::load(&*handles.meta);
    let cri = Cri::new(cri::channel(&settings.endpoint)).with_adopted(book);
    let cgroups = Cgroups::new(&settings.policy.cgroups);
    let node = Node { handles, settings, cri, cgroups, rates: Mutex::default(), disks: Mutex::default() };
    Server { node: Arc::new(node) }
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
