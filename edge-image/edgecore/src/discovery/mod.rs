//! Home Assistant's MQTT discovery: each property of a device becomes an entity there, with nothing to be configured.
//!
//! Is: retained entity descriptions on `<prefix>/<component>/<node>_<ns>_<name>/<property>/config`, and plain topics beside them that
//! Home Assistant and people can use:
//!
//! ```text
//! kinglet/<node>/<ns>/<name>/<property>       the value, retained
//! kinglet/<node>/<ns>/<name>/<property>/set   a wish
//! kinglet/<node>/<ns>/<name>/available        online or offline, retained
//! ```
//!
//! Is not: twins. It is a client of KubeEdge's topics as any application; a wish becomes the expected value of a twin update.
//! Switched on by `modules.deviceTwin.discoveryPrefix` (Home Assistant's own default is `homeassistant`).
//!
//! Invariant: what was published for a device is remembered before it is published, and cleared when the device goes, when its
//! properties go, and when discovery is switched off.
//!
//! Start at [`machine::Machine`]; what an entity looks like: [`entity`].
//! Source: Home Assistant's documentation, "MQTT", section discovery, and the pages of the components.

pub mod entity;
pub mod machine;
mod shell;

pub use shell::run;

#[cfg(test)]
mod tests;
