//! What applications on the node send for the cloud's router: `$hw/events/upload/#`, `SYS/dis/upload_records` and
//! `<namespace>/user/...` go up as messages of source `bus`, group `user` (kubeedge-wire.md sections 4.2 and 5).

use serde_json::value::{RawValue, to_raw_value};
use wire::{Message, Operation, source};

use crate::contract::{Publish, Uplink};

pub const FILTERS: [&str; 3] = ["$hw/events/upload/#", "SYS/dis/upload_records", "+/user/#"];

/// Sent when there is a link, else lost, as in KubeEdge: the router keeps nothing either.
pub fn upload(uplink: &dyn Uplink, now_ms: i64, publish: &Publish) {
    let message = Message::new(now_ms, source::BUS, "user", Operation::UPLOAD, &publish.topic);
    uplink.send(message.with_raw_content(content(&publish.payload)));
}

/// The payload as a JSON string, as KubeEdge sends it; bytes that are no text are replaced.
fn content(payload: &[u8]) -> Box<RawValue> {
    to_raw_value(&String::from_utf8_lossy(payload)).expect("a string serialises without error")
}
