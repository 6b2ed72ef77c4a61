//! devices.kubeedge.io/v1beta1, by hand: these kinds have no protobuf form, so the tags are 0.

use super::Merge::Atomic;
use super::Shape::{List, Map, One};
use super::Type::*;
use super::{CORE_V1_LOCAL_OBJECT_REFERENCE, Field, META_V1_OBJECT_META, Message, Shape, Type};

const fn f(name: &'static str, shape: Shape, what: Type) -> Field {
    Field::new(name, 0, shape, what, Atomic)
}

macro_rules! messages {
    ($($ident:ident = $name:literal { $($field:expr),* $(,)? })*) => {
        $(pub static $ident: Message = Message { name: concat!("io.kubeedge.devices.v1beta1.", $name), fields: &[$($field),*] };)*
    };
}

messages! {
    DEVICE = "Device" {
        f("metadata", One, Message(&META_V1_OBJECT_META)),
        f("spec", One, Message(&DEVICE_SPEC)),
        // Up to v1.22 the twins are here, then in DeviceStatus; KubeEdge keeps what it does not know.
        f("status", One, Any),
    }
    DEVICE_SPEC = "DeviceSpec" {
        f("deviceModelRef", One, Message(&CORE_V1_LOCAL_OBJECT_REFERENCE)),
        f("nodeName", One, String),
        f("properties", List, Message(&DEVICE_PROPERTY)),
        f("protocol", One, Message(&PROTOCOL_CONFIG)),
        f("methods", List, Message(&DEVICE_METHOD)),
        f("stateReport", One, Message(&STATE_REPORT)),
    }
    STATE_REPORT = "StateReport" {
        f("reportCycle", One, Int),
        f("reportToCloud", One, Bool),
    }
    DEVICE_METHOD = "DeviceMethod" {
        f("name", One, String),
        f("description", One, String),
        f("propertyNames", List, String),
    }
    TWIN = "Twin" {
        f("propertyName", One, String),
        f("reported", One, Message(&TWIN_PROPERTY)),
        f("observedDesired", One, Message(&TWIN_PROPERTY)),
    }
    TWIN_PROPERTY = "TwinProperty" {
        f("value", One, String),
        f("metadata", Map, String),
    }
    PROTOCOL_CONFIG = "ProtocolConfig" {
        f("protocolName", One, String),
        f("configData", One, Any),
    }
    DEVICE_PROPERTY = "DeviceProperty" {
        f("name", One, String),
        f("desired", One, Message(&TWIN_PROPERTY)),
        f("visitors", One, Message(&PROTOCOL_CONFIG)),
        f("reportCycle", One, Int),
        f("collectCycle", One, Int),
        f("reportToCloud", One, Bool),
        f("pushMethod", One, Message(&PUSH_METHOD)),
    }
    PUSH_METHOD = "PushMethod" {
        f("http", One, Message(&PUSH_METHOD_HTTP)),
        f("mqtt", One, Message(&PUSH_METHOD_MQTT)),
        // Database credentials of four products; the mapper reads them, nobody here does.
        f("dbMethod", One, Any),
        f("otel", One, Any),
        f("anomalyDetection", One, Any),
    }
    PUSH_METHOD_HTTP = "PushMethodHTTP" {
        f("hostName", One, String),
        f("port", One, Int),
        f("requestPath", One, String),
        f("timeout", One, Int),
    }
    PUSH_METHOD_MQTT = "PushMethodMQTT" {
        f("address", One, String),
        f("topic", One, String),
        f("qos", One, Int),
        f("retained", One, Bool),
    }
    DEVICE_MODEL = "DeviceModel" {
        f("metadata", One, Message(&META_V1_OBJECT_META)),
        f("spec", One, Message(&DEVICE_MODEL_SPEC)),
    }
    DEVICE_MODEL_SPEC = "DeviceModelSpec" {
        f("properties", List, Message(&MODEL_PROPERTY)),
        f("protocol", One, String),
        f("protocolConfigData", One, Any),
    }
    MODEL_PROPERTY = "ModelProperty" {
        f("name", One, String),
        f("description", One, String),
        f("type", One, String),
        f("accessMode", One, String),
        f("minimum", One, String),
        f("maximum", One, String),
        f("unit", One, String),
        f("visitors", One, Message(&PROTOCOL_CONFIG)),
    }
    DEVICE_STATUS = "DeviceStatus" {
        f("metadata", One, Message(&META_V1_OBJECT_META)),
        f("spec", One, Message(&DEVICE_STATUS_SPEC)),
        f("status", One, Message(&DEVICE_STATUS_STATUS)),
    }
    DEVICE_STATUS_SPEC = "DeviceStatusSpec" {}
    DEVICE_STATUS_STATUS = "DeviceStatusStatus" {
        f("twins", List, Message(&TWIN)),
        f("state", One, String),
        f("lastOnlineTime", One, String),
        f("extensions", One, Any),
    }
}
