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
/// Request of the hub's upgrade: the node speaks this version of the compact lane; the same header in the response accepts it. Without
/// it in both, messages travel as KubeEdge's JSON. (Never `Sec-WebSocket-Protocol`: a stock server ignores it, and the client's library
/// then fails.)
pub const LANE: &str = "Kinglet-Lane";
/// The version of [`LANE`] described in docs/wire.md.
pub const LANE_VERSION: &str = "1";
/// Request, with [`LANE`]: the number of this link (random, hexadecimal), a space, the number of the one that the node dialled
/// before, `0` after a start. A cloud sees by it that two devices use one name.
pub const LINK: &str = "Kinglet-Link";
/// Request, with [`LANE`]: the number of the last link that came up, a colon, and the numbers of the messages on it that the node
/// stored last: `1f:1,2,3`.
pub const RESUME: &str = "Kinglet-Resume";

/// [`LINK`]'s two numbers.
pub fn parse_link(text: &str) -> Option<(u64, u64)> {
    let (link, before) = text.split_once(' ')?;
    Some((u64::from_str_radix(link, 16).ok()?, u64::from_str_radix(before, 16).ok()?))
}

pub fn render_link(link: u64, before: u64) -> String {
    format!("{link:x} {before:x}")
}

/// [`RESUME`]'s link and messages; at most [`RESUME_LEN_MAX`](crate::limits::RESUME_LEN_MAX) of them are read.
pub fn parse_resume(text: &str) -> Option<(u64, Vec<u32>)> {
    let (link, numbers) = text.split_once(':')?;
    let numbers = numbers.split(',').take(crate::limits::RESUME_LEN_MAX).filter_map(|seq| seq.parse().ok());
    Some((u64::from_str_radix(link, 16).ok()?, numbers.collect()))
}

pub fn render_resume(link: u64, seqs: impl IntoIterator<Item = u32>) -> String {
    let seqs: Vec<String> = seqs.into_iter().map(|seq| seq.to_string()).collect();
    format!("{link:x}:{}", seqs.join(","))
}
