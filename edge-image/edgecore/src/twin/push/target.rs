//! `pushMethod` of a Device's property: where its values go besides the cloud (KubeEdge's mappers do this; here the node does, for
//! every mapper).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::http::Url;

/// Where requests go: one queue and one connection each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Http {
        url: Url,
        timeout_ms: u64,
    },
    /// `HOST:PORT`
    Mqtt {
        address: String,
    },
    Influx {
        url: Url,
        org: String,
        bucket: String,
    },
    Otlp {
        url: Url,
    },
}

/// What of a value is written there, besides itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    Http,
    Mqtt { topic: String, qos: u8, retain: bool },
    Influx { measurement: String, tags: BTreeMap<String, String>, field: String },
    Otlp,
}

/// One way of a property's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    pub place: Place,
    pub form: Form,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Methods {
    http: Option<Http>,
    mqtt: Option<Mqtt>,
    otel: Option<Otel>,
    db_method: Option<Databases>,
    anomaly_detection: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Http {
    host_name: String,
    port: i64,
    request_path: String,
    timeout: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Mqtt {
    address: String,
    topic: String,
    qos: i32,
    retained: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Otel {
    #[serde(rename = "endpointURL")]
    endpoint_url: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Databases {
    influxdb2: Option<Influx>,
    redis: Option<Value>,
    #[serde(rename = "TDEngine")]
    td_engine: Option<Value>,
    mysql: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Influx {
    #[serde(rename = "influxdb2ClientConfig")]
    client: InfluxClient,
    #[serde(rename = "influxdb2DataConfig")]
    data: InfluxData,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InfluxClient {
    url: String,
    org: String,
    bucket: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct InfluxData {
    measurement: String,
    tag: BTreeMap<String, String>,
    field_key: String,
}

/// The ways that a `pushMethod` names, and what of it cannot be done and why. `value_type`: the twin's.
pub fn read(method: &Value, value_type: &str) -> (Vec<Push>, Vec<String>) {
    let methods: Methods = match serde_json::from_value(method.clone()) {
        Ok(methods) => methods,
        Err(error) => return (Vec::new(), vec![format!("pushMethod cannot be read: {error}")]),
    };
    let databases = methods.db_method.unwrap_or_default();
    let mut found = Found::default();
    found.take("pushMethod.http", methods.http.as_ref().map(http));
    found.take("pushMethod.mqtt", methods.mqtt.as_ref().map(mqtt));
    found.take("pushMethod.otel", methods.otel.as_ref().map(|otel| otlp(otel, value_type)));
    found.take("pushMethod.dbMethod.influxdb2", databases.influxdb2.as_ref().map(influx));
    let unsupported = [
        ("dbMethod.redis", databases.redis.is_some()),
        ("dbMethod.TDEngine", databases.td_engine.is_some()),
        ("dbMethod.mysql", databases.mysql.is_some()),
        ("anomalyDetection", methods.anomaly_detection.is_some()),
    ];
    for (name, _) in unsupported.iter().filter(|(_, is_there)| *is_there) {
        let why = format!("pushMethod.{name} is not supported: use http, mqtt, otel or dbMethod.influxdb2");
        found.complaints.push(why);
    }
    (found.ways, found.complaints)
}

#[derive(Default)]
struct Found {
    ways: Vec<Push>,
    complaints: Vec<String>,
}

impl Found {
    fn take(&mut self, field: &str, way: Option<Result<Push, String>>) {
        match way {
            None => {}
            Some(Ok(push)) => self.ways.push(push),
            Some(Err(reason)) => self.complaints.push(format!("{field}.{reason}")),
        }
    }
}

fn http(http: &Http) -> Result<Push, String> {
    if http.host_name.is_empty() {
        return Err("hostName is missing: write http://HOST".into());
    }
    // KubeEdge puts the three together as they are; a host without a scheme does not work there.
    let path = if http.request_path.starts_with('/') { "" } else { "/" };
    let port = if http.port == 0 { String::new() } else { format!(":{}", http.port) };
    let text = format!("{}{port}{path}{}", http.host_name.trim_end_matches('/'), http.request_path);
    let url = Url::parse(&text).map_err(|reason| format!("hostName: {reason}"))?;
    // Seconds in KubeEdge's documentation, not used by its code.
    let timeout_ms = u64::try_from(http.timeout).unwrap_or(0).min(600) * 1_000;
    Ok(Push { place: Place::Http { url, timeout_ms }, form: Form::Http })
}

fn mqtt(mqtt: &Mqtt) -> Result<Push, String> {
    if !::mqtt::topic::topic_is_valid(&mqtt.topic) {
        return Err(format!("topic: {:?} is not a topic to publish to", mqtt.topic));
    }
    let address = &mqtt.address;
    let bare =
        ["tcp://", "mqtt://"].iter().find_map(|scheme| address.strip_prefix(scheme)).unwrap_or(address);
    let bare = bare.trim_end_matches('/');
    if bare.is_empty() || bare.contains("://") {
        return Err(format!("address: {address:?} is not an address: write tcp://HOST:PORT"));
    }
    let has_port = bare.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { bare.to_owned() } else { format!("{bare}:1883") };
    let form =
        Form::Mqtt { topic: mqtt.topic.clone(), qos: mqtt.qos.clamp(0, 1) as u8, retain: mqtt.retained };
    Ok(Push { place: Place::Mqtt { address }, form })
}

fn otlp(otel: &Otel, value_type: &str) -> Result<Push, String> {
    if matches!(value_type, "string" | "") {
        return Err("endpointURL: OpenTelemetry takes numbers, and the property is a text".into());
    }
    let url = Url::parse(&otel.endpoint_url).map_err(|reason| format!("endpointURL: {reason}"))?;
    Ok(Push { place: Place::Otlp { url }, form: Form::Otlp })
}

fn influx(influx: &Influx) -> Result<Push, String> {
    let InfluxClient { url, org, bucket } = &influx.client;
    let url = Url::parse(url).map_err(|reason| format!("influxdb2ClientConfig.url: {reason}"))?;
    if bucket.is_empty() {
        return Err("influxdb2ClientConfig.bucket is missing".into());
    }
    let InfluxData { measurement, tag, field_key } = &influx.data;
    if measurement.is_empty() || field_key.is_empty() {
        return Err("influxdb2DataConfig needs measurement and fieldKey".into());
    }
    let form = Form::Influx { measurement: measurement.clone(), tags: tag.clone(), field: field_key.clone() };
    Ok(Push { place: Place::Influx { url, org: org.clone(), bucket: bucket.clone() }, form })
}

/// Any bytes are ways, complaints or nothing. For random bytes.
pub fn fuzz_push(data: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<Value>(data) {
        read(&value, "int");
    }
}
