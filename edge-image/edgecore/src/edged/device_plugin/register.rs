//! The registration socket: one gRPC method.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use dmi::grpc::{self, code};
use tokio::net::UnixStream;

use super::messages::{Empty, RegisterRequest, VERSION};
use crate::edged::limits;

pub use dmi::grpc::{Refusal, frame, unframe};

const PATH: &str = "/v1beta1.Registration/Register";

/// What a plugin may register as.
pub fn check(request: &RegisterRequest) -> Result<(), String> {
    if request.version != VERSION {
        return Err(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
            request.version
        ));
    }
    let name = &request.resource_name;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let valid = |(domain, name): (&str, &str)| {
        let reserved = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        !reserved && !domain.is_empty() && !name.is_empty() && domain.chars().chain(name.chars()).all(allowed)
    };
    if name.len() > 316 || name.starts_with("requests.") || !name.split_once('/').is_some_and(valid) {
        return Err(format!("the ResourceName {name:?} is invalid"));
    }
    let endpoint = &request.endpoint;
    if endpoint.is_empty() || endpoint.len() > 90 || endpoint.contains('/') || endpoint.starts_with('.') {
        return Err(format!("endpoint {endpoint:?} must be the name of a socket beside kubelet.sock"));
    }
    Ok(())
}

/// Serves one connection until its peer ends it.
pub async fn serve<F>(stream: UnixStream, register: Arc<impl Fn(RegisterRequest) -> F>)
where
    F: Future<Output = Result<(), Refusal>>,
{
    let service = |path: String, message: Bytes| {
        let register = register.clone();
        async move {
            if path != PATH {
                return Err(Refusal::new(code::UNIMPLEMENTED, format!("unknown method {path}")));
            }
            let request: RegisterRequest = grpc::decode(&message)?;
            check(&request).map_err(|reason| Refusal::new(code::UNKNOWN, reason))?;
            register(request).await?;
            Ok(frame(&Empty {}))
        }
    };
    grpc::serve(stream, limits::DEVICE_REGISTER_BYTES_MAX, &service).await;
}
