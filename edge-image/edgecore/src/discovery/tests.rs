use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Value, json};

use super::machine::{Action, Input, Machine, Stored};

/// Keys that Home Assistant documents for the entities that MQTT discovery can make (pages "MQTT Sensor", "Binary sensor", "Switch",
/// "Number" and "Text"): those of all, then by component the required and the other ones.
const COMMON: &[&str] = &[
    "availability",
    "availability_mode",
    "availability_template",
    "availability_topic",
    "default_entity_id",
    "device",
    "enabled_by_default",
    "encoding",
    "entity_category",
    "entity_picture",
    "icon",
    "json_attributes_template",
    "json_attributes_topic",
    "name",
    "object_id",
    "origin",
    "payload_available",
    "payload_not_available",
    "platform",
    "qos",
    "unique_id",
];
const COMPONENTS: &[(&str, &[&str], &[&str])] = &[
    (
        "sensor",
        &["state_topic"],
        &[
            "device_class",
            "expire_after",
            "force_update",
            "last_reset_value_template",
            "options",
            "state_class",
            "suggested_display_precision",
            "unit_of_measurement",
            "value_template",
        ],
    ),
    (
        "binary_sensor",
        &["state_topic"],
        &[
            "device_class",
            "expire_after",
            "force_update",
            "off_delay",
            "payload_off",
            "payload_on",
            "value_template",
        ],
    ),
    (
        "switch",
        &["command_topic"],
        &[
            "command_template",
            "device_class",
            "optimistic",
            "payload_off",
            "payload_on",
            "retain",
            "state_off",
            "state_on",
            "state_topic",
            "value_template",
        ],
    ),
    (
        "number",
        &["command_topic"],
        &[
            "command_template",
            "device_class",
            "max",
            "min",
            "mode",
            "optimistic",
            "payload_reset",
            "retain",
            "state_topic",
            "step",
            "unit_of_measurement",
            "value_template",
        ],
    ),
    (
        "text",
        &["command_topic"],
        &["command_template", "max", "min", "mode", "pattern", "retain", "state_topic", "value_template"],
    ),
];
const DEVICE: &[&str] = &[
    "configuration_url",
    "connections",
    "hw_version",
    "identifiers",
    "manufacturer",
    "model",
    "model_id",
    "name",
    "serial_number",
    "suggested_area",
    "sw_version",
    "via_device",
];
/// Units of the classes that we give (page "Sensor", section device class).
const UNITS: &[(&str, &[&str])] = &[
    ("temperature", &["°C", "°F", "K"]),
    ("pressure", &["Pa", "hPa", "kPa", "mbar", "bar", "psi"]),
    ("voltage", &["V", "mV", "kV"]),
    ("current", &["A", "mA"]),
    ("power", &["W", "kW", "mW"]),
    ("apparent_power", &["VA"]),
    ("reactive_power", &["var"]),
    ("energy", &["Wh", "kWh", "MWh"]),
    ("frequency", &["Hz", "kHz", "MHz"]),
    ("illuminance", &["lx"]),
    ("signal_strength", &["dB", "dBm"]),
    ("speed", &["m/s", "km/h", "kn"]),
    ("volume_flow_rate", &["L/min", "m³/h"]),
    ("humidity", &["%"]),
    ("battery", &["%"]),
    ("moisture", &["%"]),
    ("carbon_dioxide", &["ppm"]),
];
const BINARY_CLASSES: &[&str] = &["motion", "window", "door", "opening", "moisture", "smoke"];

/// What Home Assistant checks of a discovery message before it makes an entity.
fn assert_is_valid(topic: &str, payload: &str) {
    let parts: Vec<&str> = topic.split('/').collect();
    let ["homeassistant", component, node, object, "config"] = parts[..] else { panic!("{topic}") };
    let word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    assert!(!node.is_empty() && word(node) && !object.is_empty() && word(object), "{topic}");
    let (_, required, others) = COMPONENTS.iter().find(|(name, ..)| *name == component).expect(component);
    let config: Value = serde_json::from_str(payload).unwrap();
    let config = config.as_object().unwrap();
    for key in config.keys().map(String::as_str) {
        assert!(
            COMMON.contains(&key) || required.contains(&key) || others.contains(&key),
            "{component}: {key}"
        );
    }
    for key in required.iter().chain(&["unique_id", "device", "origin"]) {
        assert!(config.contains_key(*key), "{component} without {key}");
    }
    for (key, value) in config.iter().filter(|(key, _)| key.ends_with("_topic")) {
        let topic = value.as_str().unwrap();
        assert!(mqtt::topic::topic_is_valid(topic), "{key}: {topic}");
    }
    let device = config["device"].as_object().unwrap();
    assert!(device.keys().all(|key| DEVICE.contains(&key.as_str())), "{device:?}");
    assert!(device["identifiers"].as_array().is_some_and(|all| all.iter().all(Value::is_string)));
    assert!(config["origin"]["name"].is_string());
    if let Some(class) = config.get("device_class").map(|class| class.as_str().unwrap()) {
        if component == "binary_sensor" {
            assert!(BINARY_CLASSES.contains(&class), "{class}");
        } else {
            let (_, units) = UNITS.iter().find(|(name, _)| *name == class).expect(class);
            assert!(units.contains(&config["unit_of_measurement"].as_str().unwrap()), "{class}");
        }
    }
    if component == "number" {
        let number = |key: &str| config[key].as_f64().unwrap();
        assert!(number("min") < number("max") && number("step") >= 0.001);
        assert!(["auto", "box", "slider"].contains(&config["mode"].as_str().unwrap()));
    }
    if component == "text" {
        assert!(config["max"].as_u64().unwrap() <= 255);
    }
    if let Some(class) = config.get("state_class") {
        assert!(["measurement", "total", "total_increasing"].contains(&class.as_str().unwrap()));
    }
}

fn models() -> Vec<Stored> {
    let property = |name: &str, value_type: &str, mode: &str, unit: &str| json!({"name": name, "type": value_type, "accessMode": mode, "unit": unit});
    let mut speed = property("speed", "INT", "ReadWrite", "Hz");
    speed["minimum"] = "10".into();
    speed["maximum"] = "50".into();
    let mut properties = vec![
        property("lamp", "BOOLEAN", "ReadWrite", ""),
        property("door", "BOOLEAN", "ReadOnly", ""),
        property("setpoint", "FLOAT", "ReadWrite", "°C"),
        property("label", "STRING", "ReadWrite", ""),
        property("code", "STRING", "ReadOnly", ""),
        property("odd:name", "DOUBLE", "ReadOnly", "furlong"),
        property("no#topic", "DOUBLE", "ReadOnly", ""),
        speed,
    ];
    for (class, units) in UNITS {
        for unit in *units {
            properties.push(property(&format!("{class}-co2-{unit}"), "FLOAT", "ReadOnly", unit));
        }
    }
    vec![("default/m".into(), json!({"spec": {"properties": properties}}).to_string().into())]
}

fn device(name: &str, properties: &[&str]) -> Stored {
    let properties: Vec<Value> = properties.iter().map(|name| json!({"name": name})).collect();
    let body = json!({
        "metadata": {"name": name, "annotations": {"homeassistant/lamp": "{\"icon\": \"mdi:lamp\"}", "homeassistant/door": "no"}},
        "spec": {"deviceModelRef": {"name": "m"}, "properties": properties},
    });
    (format!("default/{name}"), body.to_string().into())
}

fn machine(remembered: &[(&str, &[&str])]) -> Machine {
    let topics = |topics: &[&str]| topics.iter().map(|topic| (*topic).to_owned()).collect::<BTreeSet<_>>();
    let remembered: BTreeMap<_, _> =
        remembered.iter().map(|(id, all)| ((*id).to_owned(), topics(all))).collect();
    Machine::new("edge.1", "homeassistant", remembered)
}

fn objects(machine: &mut Machine, devices: Vec<Stored>) -> Vec<Action> {
    machine.handle(Input::Objects { devices, models: models() })
}

fn published(actions: &[Action]) -> Vec<(String, String)> {
    let all = actions.iter().filter_map(|action| match action {
        Action::Publish { topic, payload, .. } => Some((topic.clone(), payload.clone())),
        _ => None,
    });
    all.collect()
}

fn news(machine: &mut Machine, topic: &str, payload: Value) -> Vec<(String, String)> {
    let payload = Bytes::from(payload.to_string());
    published(&machine.handle(Input::Mqtt { topic, payload: &payload }))
}

#[test]
fn every_kind_of_property_becomes_an_entity_as_home_assistant_documents_it() {
    let model: Value = serde_json::from_slice(&models()[0].1).unwrap();
    let names: Vec<String> = model["spec"]["properties"]
        .as_array()
        .unwrap()
        .iter()
        .map(|property| property["name"].as_str().unwrap().to_owned())
        .filter(|name| !name.contains(['/', '#']))
        .collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut machine = machine(&[]);
    // What cannot be a topic is left out.
    let all: Vec<&str> = all.into_iter().chain(["no#topic", "volume_flow_rate-co2-m³/h"]).collect();
    let actions = objects(&mut machine, vec![device("d.1", &all)]);
    let configs: Vec<(String, String)> =
        published(&actions).into_iter().filter(|(topic, _)| topic.starts_with("homeassistant/")).collect();
    assert_eq!(configs.len(), names.len());
    configs.iter().for_each(|(topic, payload)| assert_is_valid(topic, payload));
    let unique: BTreeSet<&str> = configs.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(unique.len(), configs.len());

    let config = |topic: &str| -> Value {
        let (_, payload) = configs.iter().find(|(have, _)| have == topic).expect(topic);
        serde_json::from_str(payload).unwrap()
    };
    let lamp = config("homeassistant/switch/edge_2e1_default_d_2e1/lamp/config");
    assert_eq!(lamp["command_topic"], "kinglet/edge.1/default/d.1/lamp/set");
    assert_eq!(lamp["state_topic"], "kinglet/edge.1/default/d.1/lamp");
    assert_eq!((&lamp["icon"], &lamp["payload_on"]), (&json!("mdi:lamp"), &json!("true")));
    let door = config("homeassistant/binary_sensor/edge_2e1_default_d_2e1/door/config");
    assert_eq!((&door["device_class"], door.get("command_topic")), (&json!("door"), None));
    let speed = config("homeassistant/number/edge_2e1_default_d_2e1/speed/config");
    assert_eq!((&speed["min"], &speed["max"], &speed["step"]), (&json!(10.0), &json!(50.0), &json!(1)));
    let energy = config("homeassistant/sensor/edge_2e1_default_d_2e1/energy-co2-kWh/config");
    assert_eq!(
        (&energy["device_class"], &energy["state_class"]),
        (&json!("energy"), &json!("total_increasing"))
    );
    for (topic, payload) in configs.iter().filter(|(topic, _)| topic.contains("-co2-")) {
        let config: Value = serde_json::from_str(payload).unwrap();
        assert!(topic.contains(&format!("/{}-co2-", config["device_class"].as_str().unwrap())), "{topic}");
    }
    let odd = config("homeassistant/sensor/edge_2e1_default_d_2e1/odd_3aname/config");
    assert_eq!((&odd["unit_of_measurement"], odd.get("device_class")), (&json!("furlong"), None));
}

#[test]
fn values_and_states_are_retained_once_and_wishes_become_twin_updates() {
    let mut machine = machine(&[]);
    let actions = objects(&mut machine, vec![device("d", &["lamp", "speed", "door"])]);
    assert!(matches!(&actions[0], Action::Remember { id, topics } if id == "default/d" && topics.len() == 7));
    assert!(machine.is_asking(), "what is known already is asked for");
    let get = "$hw/events/device/default/d/twin/get";
    assert_eq!(published(&actions).last().unwrap().0, get);
    assert_eq!(news(&mut machine, &format!("{get}/result"), json!({"code": 404})), []);
    assert_eq!(published(&machine.handle(Input::Tick))[0].0, get, "the twins did not know it yet");
    let lamp = "kinglet/edge.1/default/d/lamp".to_owned();
    let known = json!({"twin": {"lamp": {"actual": {"value": "true"}}, "other": {"actual": {"value": "1"}}}});
    assert_eq!(news(&mut machine, &format!("{get}/result"), known), [(lamp.clone(), "true".into())]);
    assert!(!machine.is_asking());
    let document =
        |value: &str| json!({"twin": {"lamp": {"last": null, "current": {"actual": {"value": value}}}}});
    let update = "$hw/events/device/default/d/twin/update";
    assert_eq!(news(&mut machine, &format!("{update}/document"), document("true")), []);
    assert_eq!(
        news(&mut machine, &format!("{update}/document"), document("false")),
        [(lamp, "false".into())]
    );

    let state = |state: &str| json!({"device": {"name": "d", "state": state}});
    let result = "$hw/events/device/default/d/state/update/result";
    let available = "kinglet/edge.1/default/d/available".to_owned();
    assert_eq!(news(&mut machine, result, state("online")), [(available.clone(), "online".into())]);
    assert_eq!(news(&mut machine, result, state("ok")), []);
    assert_eq!(news(&mut machine, result, state("unhealthy")), [(available, "offline".into())]);

    let mut wish = |property: &str, text: &str| {
        let topic = format!("kinglet/edge.1/default/d/{property}/set");
        let said = published(&machine.handle(Input::Mqtt { topic: &topic, payload: text.as_bytes() }));
        said.first().map(|(topic, payload)| {
            assert_eq!(topic, update);
            serde_json::from_str::<Value>(payload).unwrap()["twin"].clone()
        })
    };
    assert_eq!(wish("lamp", "ON"), Some(json!({"lamp": {"expected": {"value": "true"}}})));
    assert_eq!(wish("speed", "21.0"), Some(json!({"speed": {"expected": {"value": "21"}}})));
    for (property, text) in [
        ("speed", "21.5"),
        ("lamp", "maybe"),
        ("door", "true"),
        ("none", "1"),
        ("speed", "1e400"),
        ("speed", ""),
    ] {
        assert_eq!(wish(property, text), None, "{property} {text}");
    }
    assert_eq!(published(&machine.handle(Input::Mqtt { topic: "kinglet/edge.1/x/set", payload: b"1" })), []);
}

#[test]
fn what_was_published_is_cleared_with_its_device_its_property_and_the_switch() {
    let stale: &[&str] =
        &["homeassistant/switch/edge_2e1_default_gone/x/config", "kinglet/edge.1/default/gone/x"];
    let mut first = machine(&[("default/gone", stale)]);
    let actions = objects(&mut first, vec![device("d", &["lamp", "door"])]);
    for topic in stale {
        assert!(published(&actions).contains(&((*topic).to_owned(), String::new())), "{topic}");
    }
    assert!(actions.contains(&Action::Forget { id: "default/gone".into() }));

    let without_door = objects(&mut first, vec![device("d", &["lamp"])]);
    let cleared: Vec<String> = published(&without_door)
        .into_iter()
        .filter(|(_, payload)| payload.is_empty())
        .map(|(topic, _)| topic)
        .collect();
    assert_eq!(
        cleared,
        ["homeassistant/binary_sensor/edge_2e1_default_d/door/config", "kinglet/edge.1/default/d/door"]
    );
    assert_eq!(objects(&mut first, vec![device("d", &["lamp"])]), [], "nothing new, nothing said");

    let Some(Action::Remember { topics, .. }) = without_door.first() else { panic!("{without_door:?}") };
    let mut off = Machine::new("edge.1", "", BTreeMap::from([("default/d".to_owned(), topics.clone())]));
    let actions = objects(&mut off, vec![device("d", &["lamp"])]);
    assert_eq!(published(&actions).len(), 3);
    assert!(published(&actions).iter().all(|(_, payload)| payload.is_empty()), "switched off");
    assert!(objects(&mut off, vec![device("d", &["lamp"])]).is_empty());
}

#[tokio::test]
async fn the_shell_moves_it_over_the_bus() {
    let bench = crate::contract::testing::Bench::new();
    let (id, body) = device("d", &["lamp"]);
    let put =
        |resource: &str, body: &Bytes| bench.meta.put_object(resource, serde_json::from_slice(body).unwrap());
    put(&format!("{}/device/d", id.split('/').next().unwrap()), &body);
    put("default/devicemodel/m", &models()[0].1);
    let drain = rt::Drain::new();
    let task = tokio::spawn(super::run(bench.handles.clone(), "homeassistant".into(), drain.clone()));
    let topic = "homeassistant/switch/edge-1_default_d/lamp/config";
    for _ in 0..500 {
        if bench.bus.retained(topic).is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_is_valid(topic, std::str::from_utf8(&bench.bus.retained(topic).unwrap()).unwrap());
    drain.start();
    task.await.unwrap();
}
