mod pins;

use std::{cell::RefCell, rc::Rc};

use serde_json::{Value, json};

use super::*;
use crate::{
    gpio::{
        GpioDriver,
        fake::{DirectOutputs, LABEL, World},
    },
    holder::Outputs,
    limits::READINGS_MAX,
};

struct FakeOpener {
    world: World,
    outputs: DirectOutputs,
}

impl Opener for FakeOpener {
    fn open(
        &mut self,
        now_ms: u64,
        device: &str,
        plan: &Plan,
        readings: &mut Vec<Reading>,
    ) -> Result<Box<dyn Driver>, String> {
        let outputs = Rc::new(RefCell::new(self.outputs.clone()));
        let driver = GpioDriver::open(now_ms, device, &plan.properties, &mut self.world, outputs, readings)?;
        Ok(Box::new(driver))
    }

    fn release(&mut self, device: &str, properties: &[&str]) {
        for property in properties {
            let _ = self.outputs.release(&format!("{device}/{property}"));
        }
    }
}

struct Bench {
    engine: Engine,
    world: World,
    outputs: DirectOutputs,
}

impl Bench {
    fn new() -> Bench {
        let world = World::default();
        let outputs = DirectOutputs::new(&world);
        let opener = FakeOpener { world: world.clone(), outputs: outputs.clone() };
        let mut engine = Engine::new(Box::new(opener));
        engine.connected(0);
        Bench { engine, world, outputs }
    }

    fn describe(&mut self, now_ms: u64, value: &Value) {
        self.engine.description(now_ms, "gpio", "default/d", value.to_string().as_bytes());
    }

    /// Messages as `topic suffix: twins or state`.
    fn messages(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        self.engine.flush(7, 7, |topic, payload| {
            let value: Value = serde_json::from_str(payload).unwrap();
            let topic = topic.strip_prefix("$hw/events/device/").unwrap();
            all.push(match value.get("twin") {
                Some(twin) => {
                    let twin = twin.as_object().unwrap();
                    let twins: Vec<String> = twin
                        .iter()
                        .map(|(name, twin)| match twin["actual"]["value"].as_str() {
                            Some(value) => format!("{name}={value}"),
                            None => format!("{name}?{}", twin["metadata"]["quality"].as_str().unwrap()),
                        })
                        .collect();
                    format!("{topic} {}", twins.join(" "))
                }
                None => format!(
                    "{topic} {} {}",
                    value["state"].as_str().unwrap(),
                    value["reason"].as_str().unwrap()
                ),
            });
            true
        });
        all
    }
}

fn description(desired: Option<&str>, lamp_line: u64, cycle: u64) -> Value {
    let mut lamp =
        json!({"name": "lamp", "visitors": {"configData": {"line": lamp_line, "direction": "output"}}});
    if let Some(desired) = desired {
        lamp["desired"] = json!({"value": desired});
    }
    json!({"version": 1, "device": {"metadata": {"name": "d", "namespace": "default"}, "spec": {
        "protocol": {"protocolName": "gpio", "configData": {"chip": LABEL}},
        "properties": [{"name": "button", "reportCycle": cycle, "visitors": {"configData": {"line": 5}}}, lamp]}}})
}

#[test]
fn inputs_are_reported_and_wishes_are_applied() {
    let mut bench = Bench::new();
    bench.describe(0, &description(Some("1"), 2, 0));
    assert!(bench.world.high(2));
    assert_eq!(bench.messages(), ["default/d/state/update online ", "default/d/twin/update button=0 lamp=1"]);
    bench.world.flip(5, true);
    let mut waits = Vec::new();
    bench.engine.waits(&mut waits);
    assert_eq!(waits.len(), 1);
    bench.engine.ready(10, "default/d");
    assert_eq!(bench.messages(), ["default/d/twin/update button=1"]);
    // A pulse shorter than a turn is two updates.
    bench.world.flip(5, false);
    bench.world.flip(5, true);
    bench.engine.ready(20, "default/d");
    assert_eq!(bench.messages(), ["default/d/twin/update button=0", "default/d/twin/update button=1"]);
    bench.describe(30, &description(Some("off"), 2, 0));
    assert!(!bench.world.high(2));
    assert_eq!(bench.messages(), ["default/d/twin/update lamp=0"]);
    bench.describe(31, &description(Some("off"), 2, 0));
    assert!(bench.messages().is_empty());
    bench.describe(40, &description(Some("off"), 3, 0));
    assert!(!bench.world.taken(2) && bench.world.taken(3), "another line");
    bench.engine.description(50, "gpio", "default/d", b"");
    assert!(!bench.world.taken(3) && !bench.world.taken(5));
}

#[test]
fn nothing_is_lost_while_the_broker_is_away() {
    let mut bench = Bench::new();
    bench.describe(0, &description(None, 2, 0));
    bench.messages();
    bench.engine.disconnected(0);
    for level in [true, false, true] {
        bench.world.flip(5, level);
        bench.engine.ready(1, "default/d");
    }
    bench.engine.connected(0);
    assert_eq!(
        bench.messages(),
        ["default/d/state/update online ", "default/d/twin/update button=1 lamp=0"],
        "the last values, once"
    );
    // The broker takes nothing for a while: bounded, and the last value survives.
    for at in 0..500 {
        bench.world.flip(5, at % 2 == 0);
        bench.engine.ready(2, "default/d");
    }
    let mut refused = 0;
    bench.engine.flush(7, 7, |_, _| {
        refused += 1;
        false
    });
    assert_eq!(refused, 1);
    // What was a storm is told when it is over.
    bench.engine.tick(1000);
    let messages = bench.messages();
    assert!(
        messages.len() <= READINGS_MAX && messages.last().unwrap() == "default/d/twin/update button=0",
        "{messages:?}"
    );
}

#[test]
fn an_unplugged_chip_is_offline_until_it_is_back_and_others_go_on() {
    let mut bench = Bench::new();
    *bench.world.unplugged.borrow_mut() = true;
    bench.describe(0, &description(None, 2, 0));
    bench.engine.description(
        0,
        "gpio",
        "default/bad",
        br#"{"device":{"spec":{"protocol":{"protocolName":"gpio"},"properties":[{"name":"x"}]}}}"#,
    );
    assert_eq!(
        bench.messages(),
        [
            "default/bad/state/update unhealthy spec.properties[0].visitors.configData.line is missing: write the line's offset (17) or its name (\"GPIO17\")",
            "default/d/state/update offline there is no GPIO chip with the label fake-chip; there are: none",
            "default/d/twin/update button?disconnected lamp?disconnected",
        ]
    );
    assert_eq!(bench.engine.deadline_ms(), Some(1000));
    bench.engine.tick(1000);
    assert_eq!(bench.engine.deadline_ms(), Some(3000), "the pauses grow");
    *bench.world.unplugged.borrow_mut() = false;
    bench.engine.tick(3000);
    assert_eq!(bench.messages(), ["default/d/state/update online ", "default/d/twin/update button=0 lamp=0"]);
    *bench.world.unplugged.borrow_mut() = true;
    bench.engine.ready(4000, "default/d");
    assert!(bench.messages()[0].starts_with("default/d/state/update offline"));
    bench.engine.description(5000, "gpio", "default/bad", b"nonsense");
    assert!(bench.messages()[0].contains("unhealthy the description is not a Device"));
}

#[test]
fn outputs_outlive_the_mapper_and_come_back_after_the_line_holder() {
    let mut bench = Bench::new();
    bench.describe(0, &description(Some("1"), 2, 0));
    bench.messages();
    // A new mapper, the same line-holder: the level never changes.
    let opener = FakeOpener { world: bench.world.clone(), outputs: bench.outputs.clone() };
    bench.engine = Engine::new(Box::new(opener));
    assert!(bench.world.high(2) && bench.world.taken(2) && !bench.world.taken(5));
    bench.engine.connected(0);
    bench.describe(10, &description(Some("1"), 2, 0));
    assert!(bench.messages()[1].contains("lamp=1"));
    // A new line-holder: it knows no line, and the mapper notices at its next refresh.
    bench.outputs.restart(&bench.world);
    bench.world.flip(2, false);
    let at = bench.engine.deadline_ms().unwrap();
    bench.engine.tick(at);
    assert!(bench.world.high(2) && bench.messages().is_empty());
    *bench.outputs.running.borrow_mut() = false;
    bench.describe(at + 2000, &description(Some("0"), 2, 0));
    assert!(
        bench.messages().iter().any(|message| message.contains("offline the line-holder does not answer"))
    );
}

#[test]
fn a_wish_out_of_range_is_refused_and_the_one_before_stands() {
    let mut bench = Bench::new();
    let with_model = |desired: &str| {
        let mut description = description(Some(desired), 2, 0);
        description["model"] = json!({"spec": {"properties": [
            {"name": "lamp", "type": "BOOLEAN", "accessMode": "ReadWrite"},
            {"name": "button", "type": "BOOLEAN", "accessMode": "ReadOnly"}]}});
        description
    };
    bench.describe(0, &with_model("on"));
    assert_eq!(
        bench.messages(),
        ["default/d/state/update online ", "default/d/twin/update button=false lamp=true"]
    );
    bench.describe(1, &with_model("7"));
    assert!(bench.world.high(2), "the wish before stands");
    let reason =
        "spec.properties[1].desired.value of lamp: \"7\" is no level; write 1, 0, true, false, on or off";
    let mut last = Vec::new();
    bench.engine.flush(1000, 5_000, |topic, payload| {
        last.push((topic.to_owned(), serde_json::from_str::<Value>(payload).unwrap()));
        true
    });
    assert_eq!((&last[0].1["state"], &last[0].1["reason"]), (&json!("unhealthy"), &json!(reason)));
    assert_eq!(
        last[1].1["twin"],
        json!({"lamp": {"actual": {"value": "true", "metadata": {"timestamp": 4_001}},
            "metadata": {"quality": "good", "refused": reason}}}),
        "with the time of the reading"
    );
    bench.describe(2, &with_model("off"));
    assert!(!bench.world.high(2));
    let messages = bench.messages();
    assert_eq!(messages[0], "default/d/state/update online ");
    assert!(
        messages[1..].iter().all(|message| message == "default/d/twin/update lamp=false"),
        "{messages:?}"
    );
    // Refused from the start: the device is driven all the same.
    bench.engine.description(3, "gpio", "default/d", b"");
    bench.describe(4, &with_model("7"));
    assert!(bench.world.taken(2) && bench.world.taken(5));
    assert!(bench.messages()[0].starts_with("default/d/state/update unhealthy spec.properties[1]"));
}

#[test]
fn a_method_that_no_driver_has_is_the_caller_s_fault() {
    let mut bench = Bench::new();
    assert_eq!(bench.engine.call(0, "default/d", "fly", ""), Err("there is no device default/d".into()));
    bench.describe(0, &description(None, 2, 0));
    bench.messages();
    assert_eq!(
        bench.engine.call(1, "default/d", "fly", ""),
        Err("no such method: fly; there are pulse, blink, toggle and reset".into())
    );
    assert!(bench.messages().is_empty(), "the device goes on");
    *bench.world.unplugged.borrow_mut() = true;
    bench.engine.ready(2, "default/d");
    assert!(bench.engine.call(3, "default/d", "fly", "").unwrap_err().starts_with("the device is offline: "));
}

#[test]
fn values_are_repeated_when_asked_for() {
    let mut bench = Bench::new();
    bench.describe(0, &description(None, 2, 1000));
    bench.messages();
    assert_eq!(bench.engine.deadline_ms(), Some(1000));
    bench.engine.tick(1000);
    assert_eq!(bench.messages(), ["default/d/twin/update button=0"]);
    assert_eq!(bench.engine.deadline_ms(), Some(2000));
}

#[test]
fn what_the_inventory_does_not_name_is_gone() {
    let mut bench = Bench::new();
    bench.describe(0, &description(Some("1"), 2, 0));
    for (protocol, payload) in [
        ("serial", r#"{"devices":[]}"#),
        ("gpio", r#"{"devices":["default/d"]}"#),
        ("gpio", "nonsense"),
        ("gpio", ""),
    ] {
        bench.engine.inventory(1, protocol, payload.as_bytes());
        assert!(bench.world.taken(2), "{protocol} {payload:?}");
    }
    bench.engine.description(2, "serial", "default/d", b"");
    assert!(bench.world.taken(2), "the topic of another protocol");
    bench.engine.inventory(3, "gpio", br#"{"devices":["default/other"]}"#);
    assert!(!bench.world.taken(2) && !bench.world.taken(5));
}
