//! Tests of edged: values, the state machine under seeds, and the whole against a real containerd.

pub(crate) mod containerd;
mod golden;
mod images;
mod life;
mod node_side;
mod pressure;
mod probes;
mod simulation;
mod sources;
