//! Messages of DMI v1beta1, written by hand with prost. Field numbers are KubeEdge's; a released field never changes its number.
//!
//! The parts that a Device object has in the same shape are read from and written to its JSON with serde (the CRD's names).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub type Texts = BTreeMap<String, String>;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MapperRegisterRequest {
    /// The mapper wants its devices, and to be called about changes.
    #[prost(bool, tag = "1")]
    pub with_data: bool,
    #[prost(message, optional, tag = "2")]
    pub mapper: Option<MapperInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MapperInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
    #[prost(string, tag = "3")]
    pub api_version: String,
    #[prost(string, tag = "4")]
    pub protocol: String,
    /// Path of the mapper's socket.
    #[prost(bytes = "vec", tag = "5")]
    pub address: Vec<u8>,
    #[prost(string, tag = "6")]
    pub state: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MapperRegisterResponse {
    #[prost(message, repeated, tag = "1")]
    pub model_list: Vec<DeviceModel>,
    #[prost(message, repeated, tag = "2")]
    pub device_list: Vec<Device>,
    /// Ours: this is Kinglet's edgecore, which knows of quality and reasons. Others skip the field.
    #[prost(bool, tag = "1000")]
    pub kinglet: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportDeviceStatusRequest {
    #[prost(string, tag = "1")]
    pub device_name: String,
    #[prost(message, optional, tag = "2")]
    pub reported_device: Option<DeviceStatus>,
    #[prost(string, tag = "3")]
    pub device_namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportDeviceStatesRequest {
    #[prost(string, tag = "1")]
    pub device_name: String,
    #[prost(string, tag = "2")]
    pub device_namespace: String,
    #[prost(string, tag = "3")]
    pub state: String,
    /// Ours: why.
    #[prost(string, tag = "1000")]
    pub reason: String,
}

/// RegisterDevice and UpdateDevice; also the answer to GetDevice.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceRequest {
    #[prost(message, optional, tag = "1")]
    pub device: Option<Device>,
}

/// CreateDeviceModel and UpdateDeviceModel.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelRequest {
    #[prost(message, optional, tag = "1")]
    pub model: Option<DeviceModel>,
}

/// RemoveDevice, RemoveDeviceModel and GetDevice; also the answers that name a device or a model.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamedRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub spec: Option<DeviceSpec>,
    #[prost(message, optional, tag = "3")]
    pub status: Option<DeviceStatus>,
    #[prost(string, tag = "4")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceSpec {
    /// Name of the model, of the same namespace.
    #[prost(string, tag = "1")]
    pub device_model_reference: String,
    #[prost(message, optional, tag = "2")]
    pub protocol: Option<ProtocolConfig>,
    #[prost(message, repeated, tag = "3")]
    pub properties: Vec<DeviceProperty>,
    #[prost(message, repeated, tag = "4")]
    pub methods: Vec<DeviceMethod>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceStatus {
    #[prost(message, repeated, tag = "1")]
    pub twins: Vec<Twin>,
    #[prost(bool, tag = "2")]
    pub report_to_cloud: bool,
    #[prost(int64, tag = "3")]
    pub report_cycle: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Twin {
    #[prost(string, tag = "1")]
    pub property_name: String,
    #[prost(message, optional, tag = "2")]
    pub observed_desired: Option<TwinProperty>,
    #[prost(message, optional, tag = "3")]
    pub reported: Option<TwinProperty>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TwinProperty {
    #[prost(string, tag = "1")]
    pub value: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub metadata: Texts,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceMethod {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub description: String,
    #[prost(string, repeated, tag = "3")]
    #[serde(rename = "propertyNames")]
    pub property_names: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceProperty {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub desired: Option<TwinProperty>,
    #[prost(message, optional, tag = "3")]
    pub visitors: Option<Config>,
    /// Milliseconds, as the next.
    #[prost(int64, tag = "4")]
    pub report_cycle: i64,
    #[prost(int64, tag = "5")]
    pub collect_cycle: i64,
    #[prost(bool, tag = "6")]
    pub report_to_cloud: bool,
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_method: Option<PushMethod>,
}

/// A protocol's name and what it needs to know: of a device, and of a property (there it is called visitor).
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    #[prost(string, tag = "1")]
    pub protocol_name: String,
    #[prost(message, optional, tag = "2")]
    pub config_data: Option<CustomizedValue>,
}

pub type ProtocolConfig = Config;

/// Free keys and values; in JSON a plain object.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CustomizedValue {
    #[prost(btree_map = "string, message", tag = "1")]
    pub data: BTreeMap<String, Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceModel {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub spec: Option<ModelSpec>,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// Field 2, commands, is of v1alpha1 and nobody's.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSpec {
    #[prost(message, repeated, tag = "1")]
    pub properties: Vec<ModelProperty>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelProperty {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub description: String,
    #[prost(string, tag = "3")]
    #[serde(rename = "type")]
    pub value_type: String,
    #[prost(string, tag = "4")]
    pub access_mode: String,
    #[prost(string, tag = "5")]
    #[serde(deserialize_with = "crate::convert::text")]
    pub minimum: String,
    #[prost(string, tag = "6")]
    #[serde(deserialize_with = "crate::convert::text")]
    pub maximum: String,
    #[prost(string, tag = "7")]
    pub unit: String,
}

/// Where a mapper pushes a property's values itself.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PushMethod {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<PushHttp>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<PushMqtt>,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db_method: Option<DbMethod>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otel: Option<PushOtel>,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anomaly_detection: Option<CustomizedValue>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PushHttp {
    #[prost(string, tag = "1")]
    pub host_name: String,
    #[prost(int64, tag = "2")]
    pub port: i64,
    #[prost(string, tag = "3")]
    pub request_path: String,
    #[prost(int64, tag = "4")]
    pub timeout: i64,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PushMqtt {
    #[prost(string, tag = "1")]
    pub address: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(int32, tag = "3")]
    pub qos: i32,
    #[prost(bool, tag = "4")]
    pub retained: bool,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PushOtel {
    #[prost(string, tag = "1")]
    #[serde(rename = "endpointURL")]
    pub endpoint_url: String,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DbMethod {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub influxdb2: Option<Influxdb2>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    #[prost(message, optional, tag = "3")]
    #[serde(rename = "TDEngine", skip_serializing_if = "Option::is_none")]
    pub td_engine: Option<TdEngine>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mysql: Option<MySql>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Influxdb2 {
    #[prost(message, optional, tag = "1")]
    #[serde(rename = "influxdb2ClientConfig")]
    pub client: Option<Influxdb2Client>,
    #[prost(message, optional, tag = "2")]
    #[serde(rename = "influxdb2DataConfig")]
    pub data: Option<Influxdb2Data>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Influxdb2Client {
    #[prost(string, tag = "1")]
    pub url: String,
    #[prost(string, tag = "2")]
    pub org: String,
    #[prost(string, tag = "3")]
    pub bucket: String,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Influxdb2Data {
    #[prost(string, tag = "1")]
    pub measurement: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub tag: Texts,
    #[prost(string, tag = "3")]
    pub field_key: String,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Redis {
    #[prost(message, optional, tag = "1")]
    #[serde(rename = "redisClientConfig")]
    pub client: Option<RedisClient>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct RedisClient {
    #[prost(string, tag = "1")]
    pub addr: String,
    #[prost(int32, tag = "2")]
    pub db: i32,
    #[prost(int32, tag = "3")]
    pub poolsize: i32,
    #[prost(int32, tag = "4")]
    #[serde(rename = "minIdleConns")]
    pub min_idle_conns: i32,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TdEngine {
    #[prost(message, optional, tag = "1")]
    #[serde(rename = "TDEngineClientConfig")]
    pub client: Option<TdEngineClient>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TdEngineClient {
    #[prost(string, tag = "1")]
    pub addr: String,
    #[prost(string, tag = "2")]
    #[serde(rename = "dbName")]
    pub db_name: String,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct MySql {
    #[prost(message, optional, tag = "1")]
    #[serde(rename = "mysqlClientConfig")]
    pub client: Option<MySqlClient>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct MySqlClient {
    #[prost(string, tag = "1")]
    pub addr: String,
    #[prost(string, tag = "2")]
    pub database: String,
    #[prost(string, tag = "3")]
    #[serde(rename = "userName")]
    pub user_name: String,
}
