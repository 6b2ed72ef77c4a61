//! `edgecore device ...`: a person or a script on the node asks the running agent about a device, or wishes something of it, over the
//! node's MQTT broker. With or without a cloud.

use std::time::Instant;

use mqtt::{
    Qos,
    client::{Client, Event, Options},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{config::Config, limits::DEVICE_CALL_TIMEOUT, twin::machine::DEVICE_TOPIC};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// All twins of the device.
    Get,
    /// The values that the node keeps of it, of one property if it is named.
    History { property: String },
    /// A wish of this node; it stays until it is withdrawn or the cloud wishes anew.
    Set { property: String, value: String },
    /// The cloud's wish counts again.
    Unset { property: String },
}

impl Call {
    /// Topic and payload; the answer comes on the topic with `/result` behind it.
    fn request(&self, device: &str, event_id: &str) -> (String, Value) {
        let update = |property: &str, expected: Value| json!({"event_id": event_id, "twin": {property: {"expected": expected}}});
        match self {
            Call::Get => (format!("{DEVICE_TOPIC}{device}/twin/get"), json!({ "event_id": event_id })),
            Call::History { property } => (
                format!("$kinglet/device/{device}/history/get"),
                json!({"event_id": event_id, "property": property}),
            ),
            Call::Set { property, value } => {
                (format!("{DEVICE_TOPIC}{device}/twin/update"), update(property, json!({ "value": value })))
            }
            Call::Unset { property } => {
                (format!("{DEVICE_TOPIC}{device}/twin/update"), update(property, json!({})))
            }
        }
    }
}

/// The agent's answer as JSON text; an error names the remedy.
pub async fn call(cfg: &Config, device: &str, call: &Call) -> Result<String, String> {
    let bus = &cfg.modules.event_bus;
    let url = if bus.mqtt_mode <= 1 { &bus.mqtt_server_internal } else { &bus.mqtt_server_external };
    let address = ["tcp://", "mqtt://"].iter().find_map(|scheme| url.strip_prefix(scheme)).unwrap_or(url);
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let options = Options {
        client_id: format!("edgecore-device-{:016x}", rt::random_u64()),
        clean_session: true,
        will: None,
        username: text(&bus.mqtt_username),
        password: text(&bus.mqtt_password),
        keep_alive_s: 60,
        packet_bytes_max: mqtt::limits::PACKET_BYTES_MAX,
    };
    let exchange = exchange(address, Client::new(options), device, call);
    let answer = tokio::time::timeout(DEVICE_CALL_TIMEOUT, exchange).await.unwrap_or_else(|_| {
        Err(format!(
            "no answer by way of {address} within {} s: does edgecore run, with deviceTwin?",
            DEVICE_CALL_TIMEOUT.as_secs()
        ))
    })?;
    let read: Value =
        serde_json::from_str(&answer).map_err(|error| format!("the answer is not JSON: {error}"))?;
    match read["reason"].as_str().filter(|_| read["code"].is_u64()) {
        Some(reason) => Err(format!("{device}: {reason}")),
        None => Ok(answer),
    }
}

async fn exchange(address: &str, mut client: Client, device: &str, call: &Call) -> Result<String, String> {
    let event_id = format!("{:016x}", rt::random_u64());
    let (topic, payload) = call.request(device, &event_id);
    let payload = payload.to_string();
    let at_broker = |error: &dyn std::fmt::Display| format!("the MQTT broker at {address}: {error}");
    let mut stream = TcpStream::connect(address).await.map_err(|error| at_broker(&error))?;
    if !client.subscribe(&format!("{topic}/result")) {
        return Err(format!("{device:?} is no name of a device: write NAMESPACE/NAME"));
    }
    let started = Instant::now();
    client.opened(0);
    loop {
        let output = std::mem::take(client.output());
        stream.write_all(&output).await.map_err(|error| at_broker(&error))?;
        client.wrote(started.elapsed().as_millis() as u64);
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await.map_err(|error| at_broker(&error))? {
            0 => return Err(at_broker(&"it closed the connection")),
            len => client.receive(&buffer[..len]),
        }
        let mut is_up = false;
        while let Some(event) = client.next_event().map_err(|error| at_broker(&error))? {
            match event {
                Event::Up => is_up = true,
                Event::Message { payload, .. } => {
                    let text = String::from_utf8_lossy(payload).into_owned();
                    // Others ask too; their answers have other ids. What could not be read has none.
                    let answers =
                        serde_json::from_str::<Value>(&text).is_ok_and(|read| read["event_id"] == event_id);
                    if answers {
                        return Ok(text);
                    }
                }
                _ => {}
            }
        }
        if is_up {
            // The subscription went first: the answer cannot be missed.
            let sent = client.publish(&topic, payload.as_bytes(), Qos::AtLeastOnce, false);
            sent.map_err(|error| at_broker(&error))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        bus,
        contract::{Handles, testing},
        twin,
    };

    fn device() -> Value {
        json!({"metadata": {"name": "d", "namespace": "default", "uid": "u1"}, "spec": {"deviceModelRef": {"name": "m"},
            "protocol": {"protocolName": "gpio"}, "properties": [{"name": "level", "visitors": {"configData": {}}}]}})
    }

    /// Through a real broker and the running twin: read, wish, be refused, withdraw, look back.
    #[tokio::test]
    async fn a_person_on_the_node_reads_and_wishes() {
        let drain = rt::Drain::new();
        let listen = "127.0.0.1:0".parse().unwrap();
        let broker = bus::broker::start(listen, Default::default(), Default::default(), drain.child());
        let mut cfg = Config::default();
        cfg.modules.event_bus.mqtt_mode = 2;
        cfg.modules.event_bus.mqtt_server_external = format!("tcp://{}", broker.address());
        let bench = testing::Bench::new();
        let model = json!({"metadata": {"name": "m", "namespace": "default"}, "spec": {"properties": [{"name": "level", "type": "INT"}]}});
        bench.meta.put_object("default/devicemodel/m", model);
        bench.meta.put_object("default/device/d", device());
        let bus = bus::start(&cfg, drain.child()).unwrap();
        let handles = Handles { bus: bus.clone(), ..bench.handles.clone() };
        let run = tokio::spawn(twin::run(handles, Arc::new(cfg.clone()), drain.clone()));
        let ask = async |what: Call| call(&cfg, "default/d", &what).await;
        // The agent subscribes while we ask: a question may come too early.
        let mut read = Err(String::new());
        for _ in 0..50 {
            let first = tokio::time::timeout(std::time::Duration::from_millis(300), ask(Call::Get)).await;
            read = first.unwrap_or_else(|_| Err("not yet".into()));
            if read.is_ok() {
                break;
            }
        }
        assert!(read.unwrap().contains("\"level\""));
        let set = |value: &str| Call::Set { property: "level".into(), value: value.into() };
        assert!(ask(set("7")).await.unwrap().contains("\"value\":\"7\""));
        assert!(ask(Call::Get).await.unwrap().contains("\"expected\":{\"value\":\"7\""));
        let refused = ask(set("warm")).await.unwrap_err();
        assert_eq!(refused, "default/d: level: \"warm\" is not of type int");
        ask(Call::Unset { property: "level".into() }).await.unwrap();
        assert!(!ask(Call::Get).await.unwrap().contains("expected"));
        let stranger = call(&cfg, "default/x", &Call::Get).await.unwrap_err();
        assert_eq!(stranger, "default/x: the device does not exist on this node");
        for value in [41, 42] {
            let update = format!(
                r#"{{"twin":{{"level":{{"actual":{{"value":"{value}","metadata":{{"timestamp":{value}}}}}}}}}}}"#
            );
            bus.publish("$hw/events/device/default/d/twin/update", update.into(), false).await.unwrap();
        }
        let mut history = String::new();
        for _ in 0..200 {
            history = ask(Call::History { property: "level".into() }).await.unwrap();
            if history.contains("[42,\"42\"]") {
                break;
            }
        }
        assert!(history.contains(r#""properties":{"level":[[41,"41"],[42,"42"]]}"#), "{history}");
        let reader = bench.handles.history.borrow().clone().expect("twin tells who knows");
        let newest = crate::contract::HistoryQuery { limit: Some(1), ..Default::default() };
        assert!(reader("default/d", &newest).contains(r#"{"level":[[42,"42"]]}"#));
        drain.start();
        run.await.unwrap().unwrap();
    }
}
