//! KubeEdge's Device Mapper Interface, v1beta1: what edgecore and mappers say to each other over unix sockets.
//!
//! Here: the messages ([`messages`]), what they mean as Kubernetes objects ([`convert`]), and gRPC's unary calls over any byte
//! stream ([`grpc`]). Not here: sockets, tasks, who is registered. Both edgecore (its side: `DeviceManagerService`) and our mapper
//! (its side: `DeviceMapperService`) use it.
//!
//! Invariants: what comes from outside has a length that is checked before memory is taken for it ([`limits`]); a message that
//! this crate does not know is skipped by protobuf's rules.
//!
//! Start at [`messages`]. Facts: kubeedge-wire.md section 6, and KubeEdge's `api/apis/dmi/v1beta1`.

pub mod authority;
pub mod convert;
pub mod grpc;
pub mod limits;
pub mod messages;

/// Served by edgecore, on `<dmiSockPath>/dmi.sock`.
pub const MANAGER: &str = "/v1beta1.DeviceManagerService/";
/// Served by each mapper, on the socket that it names when it registers.
pub const MAPPER: &str = "/v1beta1.DeviceMapperService/";

/// Entry for a fuzzer: every message that either side takes, and its meaning. Total.
pub fn fuzz_dmi(data: &[u8]) {
    use prost::Message;
    authority::fuzz_authority(data);
    let Ok(message) = grpc::unframe(data) else {
        let _ = grpc::unframe_all(data);
        return;
    };
    let _ = messages::MapperRegisterRequest::decode(message);
    let _ = messages::ReportDeviceStatusRequest::decode(message);
    let _ = messages::ReportDeviceStatesRequest::decode(message);
    let _ = messages::NamedRequest::decode(message);
    if let Ok(answer) = messages::MapperRegisterResponse::decode(message) {
        for (device, model) in answer.device_list.iter().zip(&answer.model_list) {
            let _ = convert::description(device, Some(model));
        }
    }
    if let Ok(request) = messages::DeviceRequest::decode(message)
        && let Some(device) = &request.device
    {
        let _ = convert::description(device, None);
    }
    if let Ok(value) = serde_json::from_slice(message) {
        let _ = convert::from_description(&value);
    }
}

#[cfg(test)]
mod tests;
