//! Why a volume cannot be used, in the words of a kubelet where it has some.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("cannot {action} {path} ({source})")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// kubelet: pkg/volume/hostpath.
    #[error("hostPath type check failed: {path} is not a {expected}")]
    HostPathType { path: String, expected: &'static str },
    #[error("{0} is an invalid volume type")]
    HostPathUnknownType(String),
    #[error("hostPath {0:?} must be absolute and must not contain \"..\"; correct the path")]
    HostPathForm(String),
    #[error("volume type {kind} is not supported on this node; {remedy}")]
    Unsupported { kind: String, remedy: &'static str },
    #[error("invalid path {0:?} in the volume: it must stay inside the volume and not start with \"..\"")]
    FileName(String),
    #[error("error SubPath `{0}` must not be an absolute path")]
    SubPathAbsolute(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    SubPathSteps(String),
    #[error(
        "failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\": {path} leads out of the volume"
    )]
    SubPathEscape { volume: String, container: String, path: String },
    #[error(
        "failed to create subPath directory for volumeMount \"{volume}\" of container \"{container}\" ({source})"
    )]
    SubPathMake { volume: String, container: String, source: io::Error },
    #[error("missing value for {0}")]
    SubPathVariables(String),
    #[error("cannot find volume \"{volume}\" to mount into container \"{container}\"")]
    NoVolume { volume: String, container: String },
    #[error(
        "volumeDevices of container \"{container}\" are not supported on this node; mount a volume with a file system instead"
    )]
    Devices { container: String },
    #[error(
        "recursiveReadOnly of volumeMount \"{0}\" is Enabled, which this node's runtime does not offer; use IfPossible"
    )]
    RecursiveReadOnly(String),
    /// kubelet: pkg/volume/local.
    #[error("path \"{0}\" does not exist")]
    LocalPath(String),
    #[error("the claim of volume \"{0}\" is not resolved")]
    Unresolved(String),
}

/// Gives an I/O error its action and path.
pub fn failed(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { action, path, source }
}

/// The text of a `FailedMount` event and of the pod's waiting containers.
pub fn set_up_failed(volume: &str, why: impl std::fmt::Display) -> String {
    format!("MountVolume.SetUp failed for volume \"{volume}\" : {why}")
}
