//! CRI's messages of statistics, of which only the writable layers are read: everything else is in control groups.

use super::{
    Cri, CriError,
    images::{FilesystemUsage, UInt64Value},
    limits,
};

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContainerStatsRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContainerStatsResponse {
    #[prost(message, repeated, tag = "1")]
    pub stats: Vec<ContainerStats>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerStats {
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<ContainerAttributes>,
    #[prost(message, optional, tag = "4")]
    pub writable_layer: Option<FilesystemUsage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerAttributes {
    #[prost(string, tag = "1")]
    pub id: String,
}

impl Cri {
    /// What containers wrote into their own layers: id, bytes, inodes. The runtime measures every few seconds by itself.
    pub async fn writable_layers(&self) -> Result<Vec<(String, u64, u64)>, CriError> {
        let answer: ListContainerStatsResponse = self
            .call(
                "/runtime.v1.RuntimeService/ListContainerStats",
                ListContainerStatsRequest {},
                limits::CRI_QUICK,
            )
            .await?;
        let number = |value: Option<UInt64Value>| value.map_or(0, |value| value.value);
        let layer = |stats: ContainerStats| {
            let layer = stats.writable_layer?;
            Some((stats.attributes?.id, number(layer.used_bytes), number(layer.inodes_used)))
        };
        Ok(answer.stats.into_iter().filter_map(layer).collect())
    }
}
