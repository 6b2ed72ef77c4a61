//! DMI: mappers made with KubeEdge's mapper framework register here, get their devices and models, and report.
//!
//! ```text
//! mapper --MapperRegister, ReportDeviceStatus, ReportDeviceStates--> dmi.sock [server] --> bus: $hw/events/device/...
//! mapper <--RegisterDevice, UpdateDevice, RemoveDevice, models-- [courier] <-- [book] <-- bus: $kinglet/mapper/<protocol>/...
//! ```
//!
//! It is a translator between two sockets and the bus: what mappers are given is what twin describes on the bus to every mapper,
//! what they report goes the way that every mapper's reports go. So devices of the cloud and of the node's own folder, wishes
//! made offline and faults in Device objects are decided in one place, and not here.
//!
//! Invariants: one mapper per protocol, the one that registered last; a device is removed from a mapper only when a whole list
//! of that protocol's devices does not name it; what a mapper was told is kept, so that a restart of edgecore disturbs nobody.
//!
//! Start at [`book::Book`] (decides), [`run`] (the shell). Source: kubeedge-wire.md section 6; KubeEdge's `edge/pkg/devicetwin/dmiserver`.

pub mod book;
mod courier;
pub mod report;
mod server;
mod shell;
pub mod wish;

pub use shell::{run, socket};

#[cfg(test)]
mod tests;
