use serde_json::{Value, json};

use super::{
    gpio::{Bias, Direction, Drive, Edge, LineRef},
    *,
};

fn gpio_device() -> Value {
    json!({"version": 3, "device": {
        "metadata": {"name": "panel-1", "namespace": "default"},
        "spec": {"deviceModelRef": {"name": "panel"}, "protocol": {"protocolName": "gpio", "configData": {"chip": "9030000.pl061"}},
            "properties": [
                {"name": "button", "reportToCloud": true, "reportCycle": 5, "visitors": {"protocolName": "gpio", "configData":
                    {"LINE": "5", "direction": "Input", "bias": "pull-up", "debounceMs": "20", "activeLow": true}}},
                {"name": "lamp", "desired": {"value": "on"}, "visitors": {"protocolName": "gpio", "configData":
                    {"line": "GPIO17", "direction": "output", "failsafe": false, "drive": "open-drain", "initial": "keep"}}}]}},
        "model": {"spec": {"properties": [{"name": "button", "type": "BOOLEAN"}, {"name": "lamp", "type": "INT"}]}}})
}

fn serial_device() -> Value {
    json!({"device": {"metadata": {"name": "sensor", "namespace": "default"},
        "spec": {"protocol": {"protocolName": "serial", "configData": {"path": "/dev/ttyS0", "baudRate": "9600"}},
            "properties": [
                {"name": "temperature", "visitors": {"configData": {}}},
                {"name": "heater", "desired": {"value": "1"}, "visitors": {"configData": {"write": "heater={}", "prefix": "h:", "separator": ",", "field": 1}}}]}}})
}

fn plan_of(value: &Value) -> Result<Plan, String> {
    read(value.to_string().as_bytes()).and_then(|(_, plan)| plan)
}

#[test]
fn gpio_fields() {
    let plan = plan_of(&gpio_device()).unwrap();
    let (Access::Line(button), Access::Line(lamp)) = (&plan.properties[0].access, &plan.properties[1].access)
    else {
        panic!()
    };
    assert_eq!((button.chip.as_deref(), &button.line), (Some("9030000.pl061"), &LineRef::Offset(5)));
    assert_eq!(
        (button.direction, button.bias, button.edge, button.debounce_us, button.active_low),
        (Direction::Input, Bias::PullUp, Edge::Both, 20_000, true)
    );
    assert_eq!(
        (&lamp.line, lamp.drive, lamp.initial, lamp.safety.value, lamp.safety.deadline_ms),
        (&LineRef::Name("GPIO17".into()), Drive::OpenDrain, None, Some(0), 30_000)
    );
    assert_eq!((plan.properties[0].report_cycle_ms, plan.properties[0].level_text(true)), (100, "true"));
    assert_eq!(
        (plan.properties[1].desired.as_deref(), plan.properties[1].level_text(true)),
        (Some("on"), "1")
    );
}

#[test]
fn serial_fields() {
    let plan = plan_of(&serial_device()).unwrap();
    let (Access::Text(temperature), Access::Text(heater)) =
        (&plan.properties[0].access, &plan.properties[1].access)
    else {
        panic!()
    };
    assert_eq!(temperature.value("  temperature= 21.5 ").as_deref(), Some("21.5"));
    assert_eq!(temperature.value("humidity=3"), None);
    assert_eq!(heater.value("h:a,b,c").as_deref(), Some("b"));
    assert_eq!(heater.value("h:a"), None);
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    let gpio: &[(&str, Value, &str)] = &[
        (
            "/device/spec/protocol/protocolName",
            json!("opcua"),
            "spec.protocol.protocolName: this mapper knows gpio, ",
        ),
        ("/device/spec/protocol/configData", json!(7), "spec.protocol.configData: 7 is not an object"),
        (
            "/device/spec/protocol/configData",
            json!({"chips": "x"}),
            "spec.protocol.configData.chips: unknown field; known are chip",
        ),
        (
            "/device/spec/properties/0/visitors/configData",
            json!({}),
            "spec.properties[0].visitors.configData.line is missing: write the line's offset (17) or its name",
        ),
        ("/device/spec/properties/0/visitors/configData/LINE", json!(4096), "line: 4096 is no offset"),
        (
            "/device/spec/properties/0/visitors/configData/direction",
            json!("sideways"),
            "direction: sideways is unknown; use input, output",
        ),
        (
            "/device/spec/properties/0/visitors/configData/debounceMs",
            json!(-1),
            "debounceMs: -1 is not a whole number from 0 to 10000",
        ),
        (
            "/device/spec/properties/0/visitors/configData/activeLow",
            json!("maybe"),
            "activeLow: maybe is neither true nor false",
        ),
        (
            "/device/spec/properties/0/visitors/configData/direction",
            json!("output"),
            "debounceMs: has a meaning for an input only",
        ),
        (
            "/device/spec/properties/1/visitors/configData/direction",
            json!("input"),
            "drive: has a meaning for an output only",
        ),
        (
            "/device/spec/properties/1/visitors/configData/failsafe",
            json!("down"),
            "failsafe: \"down\" is no level; write 1, 0, true",
        ),
        (
            "/device/spec/properties/0/name",
            json!("two words"),
            "spec.properties[0].name: \"two words\" is not a property name",
        ),
    ];
    let serial: &[(&str, Value, &str)] = &[
        ("/device/spec/protocol/configData", json!({}), "spec.protocol.configData.path is missing"),
        ("/device/spec/protocol/configData/path", json!("/etc/passwd"), "write one below /dev"),
        (
            "/device/spec/protocol/configData/baudRate",
            json!(12345),
            "12345 is not a rate that the kernel knows",
        ),
        ("/device/spec/protocol/configData/framing", json!("frames"), "channel is missing"),
        ("/device/spec/properties/1/visitors/configData/write", json!("on"), "with a place for the value"),
        ("/device/spec/properties/1/visitors/configData/separator", json!(", "), "is not one character"),
    ];
    for (device, cases) in [(gpio_device(), gpio), (serial_device(), serial)] {
        for (pointer, value, expected) in cases {
            let mut spoilt = device.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            spoilt.pointer_mut(parent).unwrap()[key] = value.clone();
            let error = plan_of(&spoilt).expect_err(expected);
            assert!(error.contains(expected), "{pointer}: {error}");
        }
    }
    let mut frames = serial_device();
    frames["device"]["spec"]["protocol"]["configData"]["framing"] = json!("frames");
    frames["device"]["spec"]["properties"] = json!([{"name": "level", "visitors": {"configData": {}}}]);
    assert!(plan_of(&frames).unwrap_err().contains("channel is missing: write the channel"));
    assert!(read(b"{").unwrap_err().contains("the description is not a Device"));
}

#[test]
fn a_device_s_configuration_is_laid_over_its_model_s() {
    let mut device = gpio_device();
    device["device"]["spec"]["protocol"]["configData"] = json!(null);
    device["model"]["spec"]["protocolConfigData"] = json!({"chip": "of-model"});
    device["model"]["spec"]["properties"][0]["visitors"] =
        json!({"configData": {"line": 9, "bias": "pull-down", "EDGE": "rising"}});
    let plan = plan_of(&device).unwrap();
    let Access::Line(button) = &plan.properties[0].access else { panic!() };
    assert_eq!((button.chip.as_deref(), &button.line), (Some("of-model"), &LineRef::Offset(5)));
    assert_eq!((button.bias, button.edge), (Bias::PullUp, Edge::Rising));
}

/// The verdict on a desired value, with the property's model merged into the sample's.
fn verdict(device: &Value, property: usize, model: Value, desired: &str) -> (Option<String>, Option<String>) {
    let mut device = device.clone();
    let name = device["device"]["spec"]["properties"][property]["name"].clone();
    device["model"] = json!({"spec": {"properties": [model]}});
    device["model"]["spec"]["properties"][0]["name"] = name;
    device["device"]["spec"]["properties"][property]["desired"] = json!({"value": desired});
    let property = plan_of(&device).unwrap().properties.swap_remove(property);
    (property.desired, property.refused)
}

#[test]
fn desired_values_are_of_the_model_s_type_and_range() {
    let device = serial_device();
    let heater = |model: &Value, desired: &str| verdict(&device, 1, model.clone(), desired);
    let degrees = json!({"type": "float", "minimum": "-5.5", "maximum": 30, "unit": "C"});
    let bounded = json!({"type": "INT", "minimum": "0", "maximum": "10", "accessMode": "ReadWrite"});
    let of = |kind: &str| json!({"type": kind});
    let good: &[(&Value, &str, &str)] = &[
        (&degrees, "21.50", "21.50"),
        (&degrees, "-5.5", "-5.5"),
        (&degrees, "30", "30"),
        (&bounded, "10", "10"),
        (&bounded, "3.0", "3"),
        (&of("BOOLEAN"), "on", "true"),
        (&of("BOOLEAN"), "0", "false"),
        (&of("DOUBLE"), "1e300", "1e300"),
        (&of("BYTES"), "00fF", "00fF"),
        (&of("STRING"), "eco", "eco"),
        (&of(""), "eco", "eco"),
        (&json!({"type": "STRING", "maximum": ""}), "eco", "eco"),
    ];
    for (model, desired, expected) in good {
        assert_eq!(heater(model, desired), (Some((*expected).into()), None), "{model}");
    }
    let bad: &[(&Value, &str, &str)] = &[
        (&degrees, "30.1", "30.1 C is above the model's maximum 30 C"),
        (&degrees, "-6", "-6 C is below the model's minimum -5.5 C"),
        (&degrees, "NaN", "write a finite number"),
        (&degrees, "warm", "\"warm\" is no FLOAT; write a number such as 21.5"),
        (&of("FLOAT"), "1e300", "use DOUBLE"),
        (&bounded, "11", "11 is above the model's maximum 10"),
        (&bounded, "2.5", "\"2.5\" is no INT; write a whole number"),
        (&bounded, "99999999999999999999", "is no INT"),
        (&of("BOOLEAN"), "2", "write true or false"),
        (&of("BYTES"), "abc", "two hexadecimal digits"),
        (&of("STRING"), "two words", "is no twin value"),
        (&json!({"type": "INT", "accessMode": "ReadOnly"}), "1", "accessMode is ReadOnly"),
    ];
    for (model, desired, expected) in bad {
        let (desired, refused) = heater(model, desired);
        let refused = refused.unwrap();
        assert!(desired.is_none() && refused.contains(expected), "{refused}");
        assert!(refused.starts_with("spec.properties[1].desired.value of heater: "), "{refused}");
    }
    let (_, refused) = verdict(&device, 0, of("INT"), "1");
    assert!(refused.unwrap().contains("remove the value, or set configData.write"));
    let (_, refused) = verdict(&gpio_device(), 1, of("INT"), "bright");
    assert!(refused.unwrap().contains("\"bright\" is no level"));
    for (model, expected) in [
        (of("STREAM"), "DeviceModel, property heater: type STREAM is no value that a twin can hold"),
        (of("PICTURE"), "type PICTURE is unknown; use INT"),
        (json!({"type": "INT", "minimum": "low"}), "minimum \"low\" is no number"),
        (json!({"type": "INT", "minimum": 5, "maximum": "4"}), "minimum 5 is above maximum 4"),
    ] {
        let mut spoilt = device.clone();
        spoilt["model"] = json!({"spec": {"properties": [model]}});
        spoilt["model"]["spec"]["properties"][0]["name"] = json!("heater");
        let error = plan_of(&spoilt).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn check_says_what_a_device_means() {
    let said = crate::check::check(&gpio_device().to_string(), None).unwrap();
    assert_eq!(
        said,
        "device default/panel-1\n  button: reads line 5 of 9030000.pl061; reported on change and every 100 ms\n  \
         lamp: drives line \"GPIO17\" of 9030000.pl061; wanted: on; reported on change\n"
    );
    let mut device = serial_device()["device"].clone();
    device["kind"] = json!("Device");
    let said = crate::check::check(&json!({"items": [device]}).to_string(), None).unwrap();
    assert!(
        said.contains("opens /dev/ttyS0 at 9600 baud, text lines") && said.contains("writes \"heater={}\""),
        "{said}"
    );
    assert!(said.contains("without its DeviceModel"), "{said}");
    assert!(crate::check::check("{\"kind\": \"Device\"", None).unwrap_err().contains("not JSON"));
    assert!(
        crate::check::check("{\"kind\": \"Pod\"}", None).unwrap_err().contains("no object of kind Device")
    );
}

/// What newcomers are given first must be right.
#[cfg(feature = "yaml")]
#[test]
fn the_samples_and_the_readme_are_valid() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let samples = std::fs::read_to_string(root.join("cloud/deploy/samples/devices.yaml")).unwrap();
    let said = crate::check::check(&samples, None).unwrap();
    assert!(
        said.contains("button: reads line 5 of 9030000.pl061") && said.contains("lamp: drives line 2"),
        "{said}"
    );
    assert!(said.contains("opens /dev/ttyS0 at 115200 baud") && !said.contains("note:"), "{said}");
    let readme = std::fs::read_to_string(root.join("edge-image/mapper/README.md")).unwrap();
    let gpio = readme.split("```yaml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(crate::check::check(gpio, None).unwrap().contains("wanted: true"));
    let serial = readme.split("```yaml").nth(2).and_then(|rest| rest.split("```").next()).unwrap();
    let device = format!("kind: Device\nmetadata: {{name: sensor}}\nspec:\n{serial}");
    assert!(crate::check::check(&device, None).unwrap().contains("writes \"heater={}\""));
    let error = crate::check::check(&device.replace("baudRate: 115200", "baudRate: fast"), None).unwrap_err();
    assert!(
        error.starts_with(
            "device default/sensor: spec.protocol.configData.baudRate: fast is not a whole number"
        ),
        "{error}"
    );
}
