use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use super::{
    convert::{description, from_description},
    grpc::{CallError, Channel, Refusal, code, decode, frame, serve, unframe},
    messages::{DeviceRequest, MapperInfo, MapperRegisterRequest, NamedRequest},
    *,
};

fn sample() -> Value {
    json!({"version": 7, "device": {"metadata": {"name": "meter", "namespace": "plant"}, "spec": {
            "deviceModelRef": {"name": "sdm120"}, "nodeName": "n",
            "protocol": {"protocolName": "modbus", "configData": {"port": 502, "slave": "1", "timeout": 0.1}},
            "properties": [
                {"name": "power", "reportCycle": 1000, "collectCycle": 500, "reportToCloud": true,
                 "visitors": {"protocolName": "ignored", "configData": {"register": 12, "big": 5_000_000_000i64, "swap": true}},
                 "pushMethod": {"mqtt": {"address": "tcp://h:1883", "topic": "t", "qos": 1},
                    "dbMethod": {"influxdb2": {"influxdb2ClientConfig": {"url": "u"}}, "TDEngine": {"TDEngineClientConfig": {"dbName": "d"}}}}},
                {"name": "relay", "desired": {"value": "true", "metadata": {"type": "boolean"}}}],
            "methods": [{"name": "reset", "propertyNames": ["power"]}],
            "stateReport": {"reportToCloud": true, "reportCycle": 9000}}},
        "model": {"metadata": {"name": "sdm120", "namespace": "plant"}, "spec": {
            "protocolConfigData": {"port": 1, "parity": "none"},
            "properties": [
                {"name": "power", "type": "FLOAT", "accessMode": "ReadOnly", "minimum": 0, "maximum": "7.5", "unit": "kW",
                 "visitors": {"protocolName": "modbus", "configData": {"register": 1, "function": 4, "list": [1]}}},
                {"name": "relay", "type": "BOOLEAN"}]}}})
}

#[test]
fn a_device_s_own_configuration_is_laid_over_its_model_s() {
    let (device, model) = from_description(&sample()).unwrap();
    let there = description(&device, Some(&model));
    assert_eq!(
        there["device"]["spec"]["protocol"],
        json!({"protocolName": "modbus", "configData": {"port": 502, "slave": "1", "timeout": 0.1, "parity": "none"}})
    );
    let properties = &there["device"]["spec"]["properties"];
    assert_eq!(
        properties[0]["visitors"],
        json!({"protocolName": "modbus",
            "configData": {"register": 12, "function": 4, "big": 5_000_000_000i64, "swap": true, "list": "[1]"}})
    );
    assert_eq!(properties[0]["pushMethod"]["mqtt"]["topic"], "t");
    assert_eq!(properties[0]["pushMethod"]["dbMethod"]["TDEngine"]["TDEngineClientConfig"]["dbName"], "d");
    assert_eq!(properties[1]["desired"]["value"], "true");
    let property = &there["model"]["spec"]["properties"][0];
    assert_eq!((&property["minimum"], &property["maximum"]), (&json!("0"), &json!("7.5")));
    assert_eq!((&property["type"], &property["accessMode"]), (&json!("FLOAT"), &json!("ReadOnly")));
    // What KubeEdge's framework follows without looking whether it is there.
    let spec = device.spec.as_ref().unwrap();
    assert!(spec.properties.iter().all(|property| property.desired.is_some()
        && property.visitors.as_ref().is_some_and(|visitors| visitors.config_data.is_some())));
    let status = device.status.as_ref().unwrap();
    assert_eq!((status.report_to_cloud, status.report_cycle), (true, 9000));
    // Over the wire and back it is the same.
    let bytes = DeviceRequest { device: Some(device.clone()) }.encode_to_vec();
    assert_eq!(DeviceRequest::decode(&bytes[..]).unwrap().device, Some(device));
    assert!(from_description(&json!({"device": 7})).unwrap_err().contains("the description is no Device"));
}

/// Bytes of `MapperRegisterRequest` as protoc's encoding of KubeEdge's message has them.
#[test]
fn field_numbers_are_frozen() {
    let mapper = MapperInfo {
        name: "m".into(),
        version: "v".into(),
        api_version: "a".into(),
        protocol: "p".into(),
        address: b"/s".to_vec(),
        state: "ok".into(),
    };
    let request = MapperRegisterRequest { with_data: true, mapper: Some(mapper) };
    assert_eq!(
        frame(&request),
        Bytes::from_static(
            b"\0\0\0\0\x18\x08\x01\x12\x14\x0a\x01m\x12\x01v\x1a\x01a\x22\x01p\x2a\x02/s\x32\x02ok"
        )
    );
    assert_eq!(unframe(b"\0\0\0\0\x02\x08\x01").map(|message| message.to_vec()), Ok(vec![8, 1]));
    for (bytes, error) in [
        (&b"\0\0\0"[..], "cut off"),
        (b"\0\0\0\0\x03\x08\x01", "says 3"),
        (b"\x01\0\0\0\x00", "compressed"),
        (b"\0\xff\xff\xff\xff", "says 4294967295"),
        (b"\0\0\0\0\0x", "1 bytes follow"),
    ] {
        assert!(unframe(bytes).unwrap_err().contains(error), "{error}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn calls_answers_and_refusals() {
    let (near, far) = tokio::io::duplex(1024);
    let service = |path: String, message: Bytes| async move {
        let request: NamedRequest = decode(&message)?;
        match path.as_str() {
            "/v1beta1.DeviceMapperService/GetDevice" => {
                Ok(frame(&NamedRequest { name: request.name + "!", ..NamedRequest::default() }))
            }
            _ => Err(Refusal::new(code::UNIMPLEMENTED, format!("100% unknown: {path} ü"))),
        }
    };
    let server = serve(far, 100_000, &service);
    let client = async {
        let mut channel = Channel::open(near).await.unwrap();
        for name in ["a".to_owned(), "x".repeat(90_000)] {
            let request = NamedRequest { name, namespace: String::new() };
            let answer: NamedRequest = channel.call(&format!("{MAPPER}GetDevice"), &request).await.unwrap();
            assert_eq!(answer.name, request.name + "!");
        }
        let refused = channel.call::<NamedRequest>("/other", &NamedRequest::default()).await;
        let Err(CallError::Refused(refusal)) = refused else { panic!() };
        assert_eq!(refusal, Refusal::new(code::UNIMPLEMENTED, "100% unknown: /other ü"));
        let long = NamedRequest { name: "x".repeat(200_000), namespace: String::new() };
        let refused = channel.call::<NamedRequest>(&format!("{MAPPER}GetDevice"), &long).await;
        match refused {
            Err(CallError::Refused(refusal)) => assert_eq!(refusal.code, code::RESOURCE_EXHAUSTED),
            // The refusal ends the stream while the request is still being sent.
            Err(CallError::Broken(_)) => {}
            Ok(_) => panic!("the limit does not hold"),
        }
    };
    tokio::join!(server, client);
}

#[test]
fn any_bytes() {
    let (device, model) = from_description(&sample()).unwrap();
    let good = frame(&messages::MapperRegisterResponse {
        model_list: vec![model],
        device_list: vec![device],
        kinglet: true,
    })
    .to_vec();
    let text = sample().to_string();
    let mut state = 7u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for round in 0..4000 {
        let mut bytes = match round % 3 {
            0 => good.clone(),
            1 => frame(&DeviceRequest::default()).iter().copied().chain(text.bytes()).collect(),
            _ => (0..random() % 64).map(|_| random() as u8).collect(),
        };
        for _ in 0..random() % 8 {
            if !bytes.is_empty() {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
        }
        bytes.truncate(random() % (bytes.len() + 1) + 1);
        fuzz_dmi(&bytes);
    }
}
