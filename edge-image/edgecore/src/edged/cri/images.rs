//! CRI v1's ImageService: status, list, pull, remove, and what images take on the disk.

use std::collections::HashMap;

use super::{
    Cri, CriError,
    messages::{Empty, ImageSpec, Int64Value, PodSandboxConfig},
};
use crate::edged::limits;

#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, repeated, tag = "2")]
    pub repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub repo_digests: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub size: u64,
    #[prost(message, optional, tag = "5")]
    pub uid: Option<Int64Value>,
    #[prost(string, tag = "6")]
    pub username: String,
    /// Not to be collected (containerd 1.7 and newer).
    #[prost(bool, tag = "8")]
    pub pinned: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageStatusResponse {
    /// Absent when the image is not there.
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListImagesRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    pub images: Vec<Image>,
}

/// What a registry asks for; the other fields of CRI's message are never set.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AuthConfig {
    #[prost(string, tag = "1")]
    pub username: String,
    #[prost(string, tag = "2")]
    pub password: String,
    #[prost(string, tag = "5")]
    pub identity_token: String,
    #[prost(string, tag = "6")]
    pub registry_token: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub auth: Option<AuthConfig>,
    #[prost(message, optional, tag = "3")]
    pub sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PullImageResponse {
    #[prost(string, tag = "1")]
    pub image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageFsInfoRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageFsInfoResponse {
    #[prost(message, repeated, tag = "1")]
    pub image_filesystems: Vec<FilesystemUsage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FilesystemUsage {
    #[prost(message, optional, tag = "2")]
    pub fs_id: Option<FilesystemIdentifier>,
    #[prost(message, optional, tag = "3")]
    pub used_bytes: Option<UInt64Value>,
    #[prost(message, optional, tag = "4")]
    pub inodes_used: Option<UInt64Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FilesystemIdentifier {
    #[prost(string, tag = "1")]
    pub mountpoint: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UInt64Value {
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image.into() })
}

impl Cri {
    /// `None` when the image is not there.
    pub async fn image_status(&self, image: &str) -> Result<Option<Image>, CriError> {
        let request = ImageRequest { image: spec(image) };
        let answer: ImageStatusResponse =
            self.call("/runtime.v1.ImageService/ImageStatus", request, limits::CRI_QUICK).await?;
        Ok(answer.image)
    }

    pub async fn list_images(&self) -> Result<Vec<Image>, CriError> {
        let answer: ListImagesResponse =
            self.call("/runtime.v1.ImageService/ListImages", ListImagesRequest {}, limits::CRI_QUICK).await?;
        Ok(answer.images)
    }

    /// Dropping the future ends the pull in the runtime too.
    pub async fn pull_image(&self, image: &str, auth: Option<AuthConfig>) -> Result<String, CriError> {
        let request = PullImageRequest { image: spec(image), auth, sandbox_config: None };
        let answer: PullImageResponse =
            self.call("/runtime.v1.ImageService/PullImage", request, limits::IMAGE_PULL).await?;
        Ok(answer.image_ref)
    }

    /// Removes the image with all its names. Idempotent.
    pub async fn remove_image(&self, image: &str) -> Result<(), CriError> {
        let request = ImageRequest { image: spec(image) };
        let answer: Result<Empty, _> =
            self.call("/runtime.v1.ImageService/RemoveImage", request, limits::CRI_SLOW).await;
        super::gone_is_fine(answer)
    }

    /// Where the runtime keeps images: a path on that file system, and what images take there.
    pub async fn image_fs_info(&self) -> Result<HashMap<String, u64>, CriError> {
        let answer: ImageFsInfoResponse = self
            .call("/runtime.v1.ImageService/ImageFsInfo", ImageFsInfoRequest {}, limits::CRI_QUICK)
            .await?;
        let used = |usage: FilesystemUsage| {
            Some((usage.fs_id?.mountpoint, usage.used_bytes.map_or(0, |bytes| bytes.value)))
        };
        Ok(answer.image_filesystems.into_iter().filter_map(used).collect())
    }
}
