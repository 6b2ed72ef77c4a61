//! Against rmodbus, a server that is not ours: in memory under seeds, over TCP, and over a pseudo terminal.

mod codec;
mod real;
mod seeds;

use std::sync::{Arc, Mutex};

use rmodbus::{
    ModbusProto,
    server::{ModbusFrame, storage::ModbusStorageFull},
};
use serde_json::{Value, json};

use crate::plan::{self, Plan};

pub type Storage = Arc<Mutex<Box<ModbusStorageFull>>>;

/// What an rmodbus slave answers to a frame; `None` when it has nothing to say.
fn serve(unit: u8, proto: ModbusProto, storage: &Storage, request: &[u8]) -> Option<Vec<u8>> {
    let mut response = Vec::new();
    let mut frame = ModbusFrame::new(unit, request, proto, &mut response);
    frame.parse().ok()?;
    if frame.processing_required {
        let mut storage = storage.lock().unwrap();
        let result =
            if frame.readonly { frame.process_read(&**storage) } else { frame.process_write(&mut **storage) };
        result.ok()?;
    }
    frame.response_required.then_some(())?;
    frame.finalize_response().ok()?;
    Some(response)
}

/// A slave with address 1 on a port of this machine.
pub fn slave() -> (u16, Storage) {
    let storage: Storage = Arc::default();
    (real::served(ModbusProto::TcpUdp, vec![(1, storage.clone())]), storage)
}

fn plan_of(config: Value, properties: &[(&str, &str, Value, Option<&str>)]) -> Plan {
    let models: Vec<Value> =
        properties.iter().map(|(name, kind, ..)| json!({"name": name, "type": kind})).collect();
    let properties: Vec<Value> = properties
        .iter()
        .map(|(name, _, config, desired)| {
            json!({"name": name, "collectCycle": 100, "desired": {"value": desired.unwrap_or("")},
                "visitors": {"protocolName": "modbus", "configData": config}})
        })
        .collect();
    let description = json!({"device": {"metadata": {"name": "meter", "namespace": "default"},
        "spec": {"protocol": {"protocolName": "modbus", "configData": config}, "properties": properties}},
        "model": {"spec": {"properties": models}}});
    plan::read(description.to_string().as_bytes()).unwrap().1.unwrap()
}
