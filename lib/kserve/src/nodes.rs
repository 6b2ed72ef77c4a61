//! The way to a node's kubelet API: what logs, exec, attach, port-forward and metrics go through.

use rt::{BoxFuture, BoxIo};

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
