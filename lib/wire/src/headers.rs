//! Names of the HTTP headers that the two ends exchange beside KubeEdge's own.

/// Request, KubeEdge: the node's name. Must be the one in the client certificate.
pub const NODE_ID: &str = "node_id";
/// Request, KubeEdge: any text.
pub const PROJECT_ID: &str = "project_id";
/// Response of the hub's upgrade and of every answer of the join port: which cloud this is, as `<cluster uid>.<store epoch>`.
/// The edge pins it when it joins and takes no desired state from another one.
pub const CLOUD_ID: &str = "Kinglet-Cloud-Id";
/// Request of the hub's upgrade: a random id of the edge's store, made with the store. When it is not the one that the cloud
/// saw before, the node has lost its data and gets every object again.
pub const STORE_ID: &str = "Kinglet-Store-Id";
/// Request of the hub's upgrade: which version of byte streams the node takes beside the messages. The same header in the response
/// accepts; without it in both no stream is opened. Streams travel as binary frames, messages as text.
pub const STREAMS: &str = "Kinglet-Streams";
/// The version of [`STREAMS`] described in docs/wire.md.
pub const STREAMS_VERSION: &str = "1";
