//! What a cluster must have, and must not have, before cloudcore works on it: its kinds, and nothing of KubeEdge's that would
//! silently stop working.
//!
//! [`crds`] teaches the cluster our kinds; [`missing`] finds objects of KubeEdge that are not served here; [`preflight`] tells a
//! person both, and which DaemonSets and webhooks would reach edge nodes.

pub mod crds;
pub mod missing;
pub mod preflight;
pub mod workloads;
