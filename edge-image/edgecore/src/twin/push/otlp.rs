//! OpenTelemetry's metrics as protobuf (opentelemetry-proto, `metrics/v1`; the fields that are written here). The tags are facts of
//! that format.

use std::collections::BTreeMap;

use prost::Message;

use super::queue::Item;

#[derive(Clone, PartialEq, Message)]
pub struct ExportMetricsServiceRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_metrics: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResourceMetrics {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_metrics: Vec<ScopeMetrics>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

/// Of the kinds of values only texts are written.
#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    #[prost(string, tag = "1")]
    pub string_value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ScopeMetrics {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    pub metrics: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
pub struct InstrumentationScope {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "5")]
    pub gauge: Option<Gauge>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Gauge {
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<NumberDataPoint>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NumberDataPoint {
    #[prost(fixed64, tag = "3")]
    pub time_unix_nano: u64,
    /// A member of a one-of: also 0 is written.
    #[prost(double, optional, tag = "4")]
    pub as_double: Option<f64>,
}

/// Resource `device.id` for each device, a gauge for each property, as KubeEdge's mappers have it.
pub fn export(items: &[Item], scope: &str) -> Vec<u8> {
    let mut devices: BTreeMap<&str, BTreeMap<&str, Vec<NumberDataPoint>>> = BTreeMap::new();
    for item in items {
        let Some(number) = number(&item.value) else { continue };
        let nanos = u64::try_from(item.at_ms).unwrap_or(0).saturating_mul(1_000_000);
        let point = NumberDataPoint { time_unix_nano: nanos, as_double: Some(number) };
        devices.entry(&item.id).or_default().entry(&item.property).or_default().push(point);
    }
    let resource_metrics = devices.into_iter().map(|(id, properties)| {
        let metrics = properties
            .into_iter()
            .map(|(name, data_points)| Metric { name: name.into(), gauge: Some(Gauge { data_points }) });
        let id = KeyValue { key: "device.id".into(), value: Some(AnyValue { string_value: id.into() }) };
        ResourceMetrics {
            resource: Some(Resource { attributes: vec![id] }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope { name: scope.into() }),
                metrics: metrics.collect(),
            }],
        }
    });
    ExportMetricsServiceRequest { resource_metrics: resource_metrics.collect() }.encode_to_vec()
}

fn number(value: &str) -> Option<f64> {
    match value {
        "true" => Some(1.0),
        "false" => Some(0.0),
        text => text.parse().ok().filter(|number: &f64| number.is_finite()),
    }
}
