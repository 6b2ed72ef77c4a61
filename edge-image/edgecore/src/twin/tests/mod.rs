mod golden;
mod load;
mod wishes;

use std::collections::BTreeMap;

use bytes::Bytes;
use mqtt::broker::testing::Random;
use serde_json::{Value, json};

use super::{
    fuzz_twin,
    machine::{Action, Input, Machine, Stored},
};
use crate::{
    contract::{Meta, testing},
    limits::{
        DEVICES_MAX, MAPPER_GONE_MS, REFUSAL_TOLD_MS, REPORT_BURST, REPORT_BURST_FIRST, REPORT_EVERY_MS,
        TWIN_PERSIST_MS, TWIN_REPEAT_MS, TWINS_PER_DEVICE_MAX,
    },
};

fn model() -> Value {
    json!({"metadata": {"name": "panel", "namespace": "default"}, "spec": {"protocol": "gpio", "properties": [
        {"name": "button", "type": "BOOLEAN"}, {"name": "lamp", "type": "BOOLEAN"}, {"name": "level", "type": "INT"},
        {"name": "heat", "type": "DOUBLE"}]}})
}

fn device(desired: &[(&str, &str)]) -> Value {
    let properties: Vec<Value> = ["button", "lamp", "level"]
        .iter()
        .map(|name| {
            let mut property =
                json!({"name": name, "visitors": {"protocolName": "gpio", "configData": {"line": 1}}});
            if let Some((_, value)) = desired.iter().find(|(wanted, _)| wanted == name) {
                property["desired"] = json!({"value": value});
            }
            property
        })
        .collect();
    json!({
        "metadata": {"name": "d", "namespace": "default", "uid": "u1", "resourceVersion": "5", "labels": {"description": "front"},
            "managedFields": [{"manager": "kubectl"}], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"deviceModelRef": {"name": "panel"}, "nodeName": "edge-1", "properties": properties,
            "protocol": {"protocolName": "gpio", "configData": {"chip": "x"}}},
        "status": {"reportCycle": 1}})
}

fn machine_with(records: Vec<Stored>) -> Machine {
    let mut next = 0;
    let ids = move || {
        next += 1;
        format!("e{next}")
    };
    Machine::new("edge-1", records, REPORT_EVERY_MS, Box::new(ids), Box::new(|now_ms| format!("T{now_ms}")))
}

fn body(value: &Value) -> Bytes {
    value.to_string().into()
}

fn objects(devices: &[Value]) -> Input<'static> {
    let id = |value: &Value| {
        format!(
            "{}/{}",
            value["metadata"]["namespace"].as_str().unwrap(),
            value["metadata"]["name"].as_str().unwrap()
        )
    };
    Input::Objects {
        devices: devices.iter().map(|device| (id(device), body(device))).collect(),
        models: vec![("default/panel".into(), body(&model()))],
    }
}

/// Actions as text, one per line.
fn texts(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .filter(|action| !matches!(action, Action::Sample(_)))
        .map(|action| match action {
            Action::Publish { topic, payload, retain } => {
                format!(
                    "{}publish {topic} {}",
                    if *retain { "retained " } else { "" },
                    String::from_utf8_lossy(payload)
                )
            }
            Action::Report { key, resource, content } => {
                format!("report {key} {resource} {}", content.0.get())
            }
            Action::Persist { id, durable: true, .. } => format!("persist {id}"),
            Action::Persist { id, .. } => format!("persist lazily {id}"),
            Action::Sample(sample) => format!("sample {} {}={}", sample.id, sample.property, sample.value),
            Action::Forget { id } => format!("forget {id}"),
            Action::Faults(faults) => format!("faults {faults:?}"),
        })
        .collect()
}

fn mqtt(machine: &mut Machine, now_ms: i64, what: &str, payload: &str) -> Vec<String> {
    let topic = format!("$hw/events/device/default/d/{what}");
    texts(&machine.handle(now_ms, Input::Mqtt { topic: &topic, payload: payload.as_bytes() }))
}

fn started() -> Machine {
    let mut machine = machine_with(Vec::new());
    machine.handle(1, objects(&[device(&[])]));
    machine
}

#[test]
fn a_device_is_described_to_its_mapper_without_what_mappers_do_not_need() {
    let mut machine = machine_with(Vec::new());
    let actions = texts(&machine.handle(7, objects(&[device(&[("lamp", "true")])])));
    assert_eq!(actions[0], "persist default/d", "before anybody sees the version");
    let description =
        actions[1].strip_prefix("retained publish $kinglet/mapper/gpio/device/default/d ").unwrap();
    let description: Value = serde_json::from_str(description).unwrap();
    assert_eq!(description["version"], 1);
    assert_eq!(description["device"]["spec"]["properties"][1]["desired"]["value"], "true");
    assert_eq!(description["model"]["spec"]["properties"][0]["type"], "BOOLEAN");
    assert!(
        description["device"]["metadata"]["managedFields"].is_null()
            && description["device"]["status"].is_null()
    );
    assert_eq!(
        actions[2..],
        [
            "publish $hw/events/device/default/d/twin/update/delta {\"event_id\":\"e1\",\"timestamp\":7,\"twin\":{\"lamp\":{\"expected\":{\"value\":\"true\",\"metadata\":{\"timestamp\":7}},\"optional\":false,\"metadata\":{\"type\":\"boolean\"}}},\"delta\":{\"lamp\":\"true\"}}",
            "publish $hw/events/node/edge-1/membership/updated {\"event_id\":\"e2\",\"timestamp\":7,\"added_devices\":[{\"id\":\"default/d\",\"name\":\"d\",\"description\":\"front\"}],\"removed_devices\":null}",
            "retained publish $kinglet/mapper/gpio/devices {\"devices\":[\"default/d\"]}",
            "report twin/default/d device/default/d/twin/edge_updated {\"event_id\":\"e3\",\"timestamp\":7,\"twin\":{\"lamp\":{\"expected\":{\"value\":\"true\",\"metadata\":{\"timestamp\":7}},\"optional\":false,\"metadata\":{\"type\":\"boolean\"},\"expected_version\":{\"cloud\":1,\"edge\":0}}}}",
        ]
    );
    // The same objects again, or a new resourceVersion alone: nothing to do.
    assert!(machine.handle(8, objects(&[device(&[("lamp", "true")])])).is_empty());
    let actions = texts(&machine.handle(9, objects(&[device(&[("lamp", "false")])])));
    assert!(actions[1].contains("{\"version\":2,"), "{actions:?}");
    assert!(actions.last().unwrap().contains("\"expected_version\":{\"cloud\":2,\"edge\":0}"), "{actions:?}");
    let actions = texts(&machine.handle(10, objects(&[device(&[])])));
    assert!(
        !actions.last().unwrap().contains("\"value\":\"false\""),
        "a withdrawn wish is no wish: {actions:?}"
    );
    let actions = texts(&machine.handle(11, objects(&[])));
    assert_eq!(actions[..2], ["retained publish $kinglet/mapper/gpio/device/default/d ", "forget default/d"]);
    assert_eq!(actions[3], "retained publish $kinglet/mapper/gpio/devices {\"devices\":[]}");
    assert!(
        actions[2].contains("\"added_devices\":null,\"removed_devices\":[{\"id\":\"default/d\""),
        "{actions:?}"
    );
}

/// The message that a stock v1.23 edge sent for the same thing (kubeedge-samples.jsonl), but for ids and times.
#[test]
fn a_report_is_kubeedge_s() {
    let mut machine = started();
    let actions = mqtt(
        &mut machine,
        5,
        "twin/update",
        r#"{"event_id":"q","timestamp":1,"twin":{"level":{"actual":{"value":"41"}}}}"#,
    );
    assert_eq!(
        actions,
        [
            "publish $hw/events/device/default/d/twin/update/result {\"event_id\":\"q\",\"timestamp\":5,\"twin\":{\"level\":{\"actual\":{\"value\":\"41\",\"metadata\":{\"timestamp\":5}},\"optional\":false,\"metadata\":{\"type\":\"int\"}}}}",
            "publish $hw/events/device/default/d/twin/update/document {\"event_id\":\"q\",\"timestamp\":5,\"twin\":{\"level\":{\"last\":{\"optional\":false,\"metadata\":{\"type\":\"int\"}},\"current\":{\"actual\":{\"value\":\"41\",\"metadata\":{\"timestamp\":5}},\"optional\":false,\"metadata\":{\"type\":\"int\"}}}}}",
            "report twin/default/d device/default/d/twin/edge_updated {\"event_id\":\"e2\",\"timestamp\":5,\"twin\":{\"level\":{\"actual\":{\"value\":\"41\",\"metadata\":{\"timestamp\":5}},\"optional\":false,\"metadata\":{\"type\":\"int\"},\"actual_version\":{\"cloud\":0,\"edge\":1}}}}",
        ]
    );
    // Said once more, because a stock cloud may lose the first value; then kept.
    assert_eq!(machine.deadline_ms(), Some(5 + TWIN_REPEAT_MS));
    assert_eq!(texts(&machine.handle(5 + TWIN_REPEAT_MS, Input::Tick)).len(), 1);
    assert_eq!(machine.deadline_ms(), Some(5 + TWIN_PERSIST_MS));
    assert_eq!(texts(&machine.handle(5 + TWIN_PERSIST_MS, Input::Tick)), ["persist lazily default/d"]);
    assert_eq!(machine.deadline_ms(), None);
}

#[test]
fn a_report_says_all_that_an_unanswered_one_said() {
    let mut machine = started();
    mqtt(&mut machine, 5, "twin/update", r#"{"twin":{"level":{"actual":{"value":"1"}}}}"#);
    let actions = mqtt(&mut machine, 6, "twin/update", r#"{"twin":{"button":{"actual":{"value":"true"}}}}"#);
    let report = actions.iter().find(|action| action.starts_with("report")).unwrap();
    assert!(report.contains("\"level\"") && report.contains("\"button\""), "{report}");
    let actions = texts(&machine.handle(7, Input::Connected));
    assert!(actions[0].contains("\"level\"") && actions[0].contains("\"button\""), "{actions:?}");
}

#[test]
fn what_is_wrong_is_refused_whole() {
    let mut machine = started();
    for (payload, code, reason) in [
        ("nonsense", 400, "not a twin update"),
        ("{}", 400, "no key twin"),
        (r#"{"twin":{"level":{"actual":{"value":7}}}}"#, 400, "not a twin update"),
        (
            r#"{"twin":{"level":{"actual":{"value":"7"}},"button":{"actual":{"value":"maybe"}}}}"#,
            400,
            "button: \\\"maybe\\\" is not of type boolean",
        ),
        (r#"{"twin":{"level":{"actual":{"value":"two words"}}}}"#, 400, "is not a twin value"),
        (r#"{"twin":{"a b":{"actual":{"value":"1"}}}}"#, 400, "is not a property name"),
        (
            r#"{"twin":{"new":{"actual":{"value":"1"},"metadata":{"type":"double"}}}}"#,
            400,
            "is not a value type",
        ),
        (r#"{"twin":{"nothing":null}}"#, 400, "no such property"),
    ] {
        let mut actions = mqtt(&mut machine, 5, "twin/update", payload);
        actions.retain(|action| !action.starts_with("report devicestate"));
        assert_eq!(actions.len(), 1, "{actions:?}");
        assert!(
            actions[0].contains(&format!("\"code\":{code}")) && actions[0].contains(reason),
            "{payload}: {actions:?}"
        );
    }
    let topic = "$hw/events/device/default/stranger/twin/update";
    let actions = texts(&machine.handle(5, Input::Mqtt { topic, payload: br#"{"event_id":"x","twin":{}}"# }));
    assert!(actions[0].contains("\"event_id\":\"x\"") && actions[0].contains("\"code\":404"), "{actions:?}");
    let many: BTreeMap<String, Value> =
        (0..TWINS_PER_DEVICE_MAX).map(|at| (format!("p{at}"), json!({"actual": {"value": "1"}}))).collect();
    let actions = mqtt(&mut machine, 5, "twin/update", &json!({ "twin": many }).to_string());
    assert!(actions[0].contains("more than"), "{actions:?}");
    let get = mqtt(&mut machine, 6, "twin/get", r#"{"event_id":"g"}"#);
    assert!(!get[0].contains("actual"), "nothing of all that was merged: {get:?}");
}

#[test]
fn optional_properties_come_and_go() {
    let mut machine = started();
    mqtt(
        &mut machine,
        5,
        "twin/update",
        r#"{"twin":{"extra":{"actual":{"value":"1"},"metadata":{"type":"int"}}}}"#,
    );
    let actions = mqtt(&mut machine, 6, "twin/update", r#"{"twin":{"extra":null,"level":null}}"#);
    assert!(actions[0].contains("\"twin\":{\"extra\":null}"), "a declared property stays: {actions:?}");
    assert!(actions[2].contains("\"extra\":{\"actual\":{},\"optional\":true,\"metadata\":{\"type\":\"deleted\"},\"actual_version\":{\"cloud\":0,\"edge\":2}}"), "{actions:?}");
    let get = mqtt(&mut machine, 7, "twin/get", r#"{"event_id":"g"}"#);
    assert!(!get[0].contains("extra"), "{get:?}");
    let actions = mqtt(&mut machine, 8, "twin/update", r#"{"twin":{"extra":{"actual":{"value":"x"}}}}"#);
    assert!(
        actions[1].contains("\"last\":null")
            && actions[2].contains("\"actual_version\":{\"cloud\":0,\"edge\":3}"),
        "{actions:?}"
    );
}

#[test]
fn wishes_of_the_cloud_by_message_need_a_version_that_is_not_older() {
    let mut machine = started();
    let push = |cloud: i64, value: &str| {
        format!(
            r#"{{"twin":{{"level":{{"expected":{{"value":"{value}"}},"metadata":{{"type":"int"}},"expected_version":{{"cloud":{cloud},"edge":0}}}}}}}}"#
        )
    };
    let actions = mqtt(&mut machine, 5, "twin/cloud_updated", &push(3, "9"));
    assert!(
        actions[2].contains("twin/update/document") && actions[3].contains("\"delta\":{\"level\":\"9\"}"),
        "{actions:?}"
    );
    let actions = mqtt(&mut machine, 6, "twin/cloud_updated", &push(2, "8"));
    assert!(
        actions.last().unwrap().starts_with("report") && actions.last().unwrap().contains("\"value\":\"9\""),
        "{actions:?}"
    );
}

#[test]
fn states_are_answered_and_reported_when_they_change() {
    let mut machine = started();
    let actions = mqtt(&mut machine, 5, "state/update", r#"{"event_id":"s","state":"online"}"#);
    assert_eq!(
        actions,
        [
            "publish $hw/events/device/default/d/state/update/result {\"event_id\":\"s\",\"timestamp\":5,\"device\":{\"name\":\"d\",\"state\":\"online\",\"lastOnlineTime\":\"T5\"}}",
            "report devicestate/default/d device/default/d/state/update \"{\\\"event_id\\\":\\\"e2\\\",\\\"timestamp\\\":5,\\\"device\\\":{\\\"name\\\":\\\"d\\\",\\\"state\\\":\\\"online\\\",\\\"lastOnlineTime\\\":\\\"T5\\\"}}\"",
        ]
    );
    assert_eq!(mqtt(&mut machine, 6, "state/update", r#"{"state":"online"}"#).len(), 1);
    assert!(mqtt(&mut machine, 7, "state/update", r#"{"state":"dancing"}"#).is_empty());
    let actions = mqtt(&mut machine, 8, "state/update", r#"{"state":"offline","reason":"no chip"}"#);
    assert!(actions[1].contains("\\\"reason\\\":\\\"no chip\\\""), "{actions:?}");
}

#[test]
fn a_device_that_makes_no_sense_is_unhealthy_with_the_field_and_the_remedy() {
    type Spoil = Box<dyn Fn(&mut Value)>;
    let cases: Vec<(Spoil, &str)> = vec![
        (
            Box::new(|d| d["spec"]["protocol"] = json!({})),
            "spec.protocol.protocolName is missing: write gpio",
        ),
        (Box::new(|d| d["spec"]["protocol"]["protocolName"] = json!("a/b")), "is not one word"),
        (Box::new(|d| d["spec"]["deviceModelRef"] = json!({})), "spec.deviceModelRef.name is missing"),
        (
            Box::new(|d| d["spec"]["deviceModelRef"]["name"] = json!("absent")),
            "DeviceModel absent is not on this node: create it in namespace default",
        ),
        (
            Box::new(|d| d["spec"]["properties"][1]["name"] = json!("lamb")),
            "spec.properties[1].name: DeviceModel panel has no property lamb: use one of button, lamp, level, heat",
        ),
        (
            Box::new(|d| d["spec"]["properties"][1]["name"] = json!("button")),
            "spec.properties[1].name: button is there twice",
        ),
        (
            Box::new(|d| d["spec"]["properties"][2]["desired"] = json!({"value": "warm"})),
            "spec.properties[2].desired.value: \"warm\" is not of type int",
        ),
        (
            Box::new(|d| d["spec"]["properties"][0]["visitors"] = Value::Null),
            "spec.properties[0].visitors is missing",
        ),
        (Box::new(|d| d["spec"]["properties"] = json!("none")), "the Device cannot be read"),
    ];
    for (spoil, expected) in cases {
        let mut machine = started();
        let mut spoilt = device(&[]);
        spoil(&mut spoilt);
        let actions = texts(&machine.handle(5, objects(&[spoilt.clone()])));
        let quoted = expected.replace('"', "\\\\\\\"");
        assert!(
            actions[1].starts_with("report devicestate/default/d")
                && actions[1].contains("unhealthy")
                && actions[1].contains(&quoted),
            "{expected}: {actions:?}"
        );
        assert!(actions[0].starts_with("faults") && actions.len() == 2, "{actions:?}");
        assert!(machine.handle(6, objects(&[spoilt])).is_empty(), "said once");
        let actions = texts(&machine.handle(7, objects(&[device(&[])])));
        assert!(
            actions[1].contains("\\\"state\\\":\\\"unknown\\\"") && actions[0] == "faults {}",
            "{actions:?}"
        );
    }
    let mut machine = machine_with(Vec::new());
    let many: Vec<Value> = (0..=DEVICES_MAX)
        .map(|at| {
            let mut device = device(&[]);
            device["metadata"]["name"] = json!(format!("d{at:04}"));
            device
        })
        .collect();
    assert!(texts(&machine.handle(1, objects(&many))).last().unwrap().contains("move some to another node"));
}

#[test]
fn twins_and_versions_survive_a_restart_and_a_new_uid_starts_anew() {
    let mut machine = started();
    mqtt(&mut machine, 5, "twin/update", r#"{"twin":{"level":{"actual":{"value":"3"}}}}"#);
    let records: Vec<Stored> = machine
        .handle(6, Input::Drain)
        .into_iter()
        .filter_map(|action| match action {
            Action::Persist { id, record, .. } => Some((id, record)),
            _ => None,
        })
        .collect();
    assert_eq!(records.len(), 1);
    let mut again = machine_with(records.clone());
    let actions = texts(&again.handle(7, objects(&[device(&[])])));
    assert!(
        actions[0].contains("{\"version\":1,"),
        "the description is published again, unchanged: {actions:?}"
    );
    assert!(
        actions[2].starts_with("report twin/default/d") && actions[2].contains("\"value\":\"3\""),
        "nobody is told that it is new: {actions:?}"
    );
    assert!(mqtt(&mut again, 8, "twin/get", "{}")[0].contains("\"value\":\"3\""));
    let mut remade = device(&[]);
    remade["metadata"]["uid"] = json!("u2");
    let mut again = machine_with(records.clone());
    let actions = texts(&again.handle(7, objects(&[remade])));
    assert!(actions[1].contains("{\"version\":2,"), "{actions:?}");
    assert!(!mqtt(&mut again, 8, "twin/get", "{}")[0].contains("\"value\":\"3\""));
    let mut gone = machine_with(records);
    assert_eq!(
        texts(&gone.handle(7, objects(&[]))),
        [
            "retained publish $kinglet/mapper/gpio/device/default/d ",
            "forget default/d",
            "retained publish $kinglet/mapper/gpio/devices {\"devices\":[]}"
        ]
    );
}

#[test]
fn random_messages_are_answered_with_json_or_not_at_all() {
    let good: [&[u8]; 5] = [
        br#" {"event_id":"a","twin":{"a":{"actual":{"value":"1","metadata":{"timestamp":5}},"expected":{"value":"2"},"metadata":{"type":"int","quality":"good"}},"x":null}}"#,
        br#"!{"twin":{"a":{"expected":{"value":"3"},"metadata":{"type":"int"},"expected_version":{"cloud":2,"edge":1}}}}"#,
        br#"#{"state":"online","reason":"x"}"#,
        br#"&{"alive":false,"protocols":["p"]}"#,
        br#"%{"event_id":null}"#,
    ];
    let good = good.join(&0);
    fuzz_twin(&good);
    for seed in 0..3_000 {
        let mut random = Random(seed);
        let mut data = good.clone();
        for _ in 0..random.below(12) {
            let at = random.below(data.len());
            match random.below(4) {
                0 => _ = data.remove(at),
                1 => data[at] = random.below(256) as u8,
                2 => data.insert(at, random.below(256) as u8),
                _ => data.extend_from_within(at..),
            }
            data.truncate(4_000);
        }
        fuzz_twin(&data);
    }
    // Many properties, long names, long values.
    for len in [127, 128, 129, 512, 513, 100_000] {
        let name = "n".repeat(len);
        fuzz_twin(format!(" {{\"twin\":{{\"{name}\":{{\"actual\":{{\"value\":\"{name}\"}}}}}}}}").as_bytes());
    }
    let many: Vec<String> =
        (0..2_000).map(|n| format!("\"p{n}\":{{\"actual\":{{\"value\":\"1\"}}}}")).collect();
    fuzz_twin(format!(" {{\"twin\":{{{}}}}}", many.join(",")).as_bytes());
    fuzz_twin(format!(" {}", "[".repeat(50_000)).as_bytes());
}

/// A device that answers nonsense: its state says so, once, until it makes sense for a while.
#[test]
fn a_value_that_is_refused_is_named_in_the_state() {
    let mut machine = started();
    machine.handle(2, Input::Connected);
    mqtt(&mut machine, 3, "state/update", r#"{"state":"online"}"#);
    let level = |machine: &mut Machine, now_ms: i64, value: &str| {
        let said = mqtt(
            machine,
            now_ms,
            "twin/update",
            &format!(r#"{{"twin":{{"level":{{"actual":{{"value":"{value}"}}}}}}}}"#),
        );
        said.into_iter().find(|action| action.starts_with("report devicestate"))
    };
    assert_eq!(level(&mut machine, 10_000, "3"), None);
    let told = level(&mut machine, 20_000, "warm").expect("it is told");
    assert!(
        told.contains("online") && told.contains("an update was refused: level: ") && told.contains("warm"),
        "{told}"
    );
    for (now_ms, value) in
        [(30_000, "hot"), (40_000, "4"), (50_000, "cold"), (50_000 + REFUSAL_TOLD_MS - 1, "5")]
    {
        assert_eq!(level(&mut machine, now_ms, value), None, "{value}");
    }
    let told = level(&mut machine, 50_000 + REFUSAL_TOLD_MS, "6").expect("it is over");
    assert!(told.contains("online") && !told.contains("refused"), "{told}");
}

#[test]
fn a_mapper_that_is_gone_leaves_its_devices_unknown() {
    let mut machine = started();
    machine.handle(2, Input::Connected);
    mqtt(&mut machine, 3, "state/update", r#"{"state":"online"}"#);
    mqtt(&mut machine, 4, "twin/update", r#"{"twin":{"level":{"actual":{"value":"3"}}}}"#);
    let says = |machine: &mut Machine, now_ms: i64, payload: &str| {
        let topic = "$kinglet/mapper/m";
        assert!(machine.handle(now_ms, Input::Mqtt { topic, payload: payload.as_bytes() }).is_empty());
    };
    let quiet = |machine: &mut Machine, now_ms: i64| {
        let said = texts(&machine.handle(now_ms, Input::Tick));
        assert!(!said.iter().any(|action| action.contains("unknown")), "{said:?}");
    };
    for nonsense in ["", "[]", r#"{"alive":1}"#, r#"{"alive":false,"protocols":7}"#, r#"{"alive":false}"#] {
        says(&mut machine, 5, nonsense);
    }
    quiet(&mut machine, 5 + MAPPER_GONE_MS);
    // Init starts it again within a second.
    says(&mut machine, 10_000, r#"{"alive":false,"protocols":["gpio"]}"#);
    says(&mut machine, 10_900, r#"{"alive":true,"protocols":["gpio"]}"#);
    quiet(&mut machine, 10_000 + MAPPER_GONE_MS);
    // One of other devices.
    says(&mut machine, 20_000, r#"{"alive":false,"protocols":["serial"]}"#);
    quiet(&mut machine, 20_000 + MAPPER_GONE_MS);
    says(&mut machine, 30_000, r#"{"alive":false,"protocols":["modbus","gpio"]}"#);
    quiet(&mut machine, 29_999 + MAPPER_GONE_MS);
    assert_eq!(machine.deadline_ms().map(|at| at <= 30_000 + MAPPER_GONE_MS), Some(true));
    let said = texts(&machine.handle(30_000 + MAPPER_GONE_MS, Input::Tick));
    let has = |parts: &[&str]| said.iter().any(|action| parts.iter().all(|part| action.contains(part)));
    assert!(has(&["report devicestate/default/d", "unknown", "mapper m is gone"]), "{said:?}");
    assert!(has(&["report twin/default/d", r#""quality":"disconnected""#, r#""value":"3""#]), "{said:?}");
    quiet(&mut machine, 60_000);
}

#[test]
fn membership_is_answered() {
    let mut machine = started();
    let topic = "$hw/events/node/edge-1/membership/get";
    let actions = texts(&machine.handle(5, Input::Mqtt { topic, payload: br#"{"event_id":"m"}"# }));
    assert_eq!(
        actions,
        [
            "publish $hw/events/node/edge-1/membership/get/result {\"event_id\":\"m\",\"timestamp\":5,\"devices\":[{\"id\":\"default/d\",\"name\":\"d\",\"description\":\"front\"}]}"
        ]
    );
    let actions = texts(&machine.handle(5, Input::Mqtt { topic, payload: b"{" }));
    assert!(actions[0].contains("\"code\":400"), "{actions:?}");
    let topic = "$hw/events/node/other/membership/get";
    assert!(machine.handle(5, Input::Mqtt { topic, payload: b"{}" }).is_empty());
}

/// Random inputs: never a panic; versions never fall; the last report holds what `twin/get` shows; a restart loses nothing.
#[test]
fn seeds() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut machine = machine_with(Vec::new());
        let mut versions: BTreeMap<String, i64> = BTreeMap::new();
        let mut records: BTreeMap<String, Bytes> = BTreeMap::new();
        for step in 0..60 {
            let now_ms = step * 1000;
            let names = ["button", "lamp", "level", "extra", "other"];
            let name = names[random.below(names.len())];
            let value = ["true", "1", "x", "two words"][random.below(4)];
            let payload = match random.below(5) {
                0 => format!(r#"{{"twin":{{"{name}":null}}}}"#),
                1 => format!(r#"{{"twin":{{"{name}":{{"expected":{{"value":"{value}"}}}}}}}}"#),
                2 => "{\"twin\":".to_owned(),
                _ => format!(r#"{{"twin":{{"{name}":{{"actual":{{"value":"{value}"}}}}}}}}"#),
            };
            let input = match random.below(8) {
                0 => objects(&[]),
                1 => objects(&[device(&[("lamp", if random.below(2) == 0 { "true" } else { "false" })])]),
                2 => Input::Connected,
                3 => Input::Tick,
                _ => Input::Mqtt {
                    topic: "$hw/events/device/default/d/twin/update",
                    payload: payload.as_bytes(),
                },
            };
            let forgets = matches!(&input, Input::Objects { devices, .. } if devices.is_empty());
            let mut actions = machine.handle(now_ms, input);
            if forgets {
                versions.clear();
            }
            if random.below(20) == 0 {
                actions.extend(machine.handle(now_ms, Input::Drain));
                for action in &actions {
                    keep(&mut records, action);
                }
                machine = machine_with(records.clone().into_iter().collect());
                machine.handle(now_ms, if forgets { objects(&[]) } else { objects(&[device(&[])]) });
            }
            for action in &actions {
                keep(&mut records, action);
                let Action::Report { key, content, .. } = action else { continue };
                if !key.starts_with("twin/") {
                    continue;
                }
                let content: Value = serde_json::from_str(content.0.get()).unwrap();
                for (name, twin) in content["twin"].as_object().unwrap() {
                    let version = twin["actual_version"]["edge"].as_i64().unwrap_or(0);
                    let before = versions.insert(name.clone(), version).unwrap_or(0);
                    assert!(
                        version >= before,
                        "seed {seed} step {step}: {name} fell from {before} to {version}"
                    );
                }
            }
        }
    }
}

fn keep(records: &mut BTreeMap<String, Bytes>, action: &Action) {
    match action {
        Action::Persist { id, record, .. } => _ = records.insert(id.clone(), record.clone()),
        Action::Forget { id } => _ = records.remove(id),
        _ => {}
    }
}

#[tokio::test]
async fn the_shell_carries_it_between_store_bus_and_cloud() {
    let bench = testing::Bench::new();
    bench.meta.put_object("default/devicemodel/panel", model());
    bench.meta.put_object("default/device/d", device(&[("lamp", "true")]));
    let drain = rt::Drain::new();
    let run = tokio::spawn(super::run(bench.handles.clone(), Default::default(), drain.clone()));
    let topic = "$kinglet/mapper/gpio/device/default/d";
    until(|| bench.bus.retained(topic).is_some()).await;
    let bus = bench.handles.bus.clone();
    let update = Bytes::from_static(br#"{"twin":{"lamp":{"actual":{"value":"true"}}}}"#);
    bus.publish("$hw/events/device/default/d/twin/update", update, false).await.unwrap();
    until(|| {
        bench
            .uplink
            .reports_of("twin/default/d")
            .last()
            .is_some_and(|m| m.content.get().contains("\"actual\""))
    })
    .await;
    let report = bench.uplink.reports_of("twin/default/d").pop().unwrap();
    assert_eq!(
        (report.route.source.as_str(), report.route.group.as_str(), report.route.operation.as_str()),
        ("twin", "resource", "update")
    );
    assert_eq!(report.route.resource, "device/default/d/twin/edge_updated");
    bus.publish("default/user/alarm", Bytes::from_static(b"{\"a\":1}"), false).await.unwrap();
    until(|| !bench.uplink.sent.lock().unwrap().is_empty()).await;
    let sent = bench.uplink.sent.lock().unwrap()[0].clone();
    assert_eq!(
        (
            sent.route.source.as_str(),
            sent.route.group.as_str(),
            sent.route.operation.as_str(),
            sent.route.resource.as_str()
        ),
        ("bus", "user", "upload", "default/user/alarm")
    );
    assert_eq!(sent.content.get(), "\"{\\\"a\\\":1}\"");
    bench.meta.put_object(
        "default/device/d",
        json!({"metadata": {"name": "d", "namespace": "default", "uid": "u1"}, "spec": {}}),
    );
    until(|| {
        bench
            .conditions
            .0
            .lock()
            .unwrap()
            .iter()
            .any(|c| c.status && c.message.contains("device default/d: spec.protocol.protocolName"))
    })
    .await;
    drain.start();
    run.await.unwrap().unwrap();
    let record = bench.meta.get_local("twin", "default/d").expect("kept at the drain");
    assert!(std::str::from_utf8(&record).unwrap().contains("\"actual\":{\"value\":\"true\""));
}

pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("not in time");
}
