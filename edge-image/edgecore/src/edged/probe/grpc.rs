//! gRPC's health check (grpc.health.v1): success is `SERVING`.

use std::time::Duration;

use ::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tonic::{Code, Request, Status, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use super::{
    Outcome,
    check::{USER_AGENT, connect, join},
};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    #[prost(enumeration = "HealthStatus", tag = "1")]
    pub status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum HealthStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// An answer is two bytes.
const ANSWER_BYTES_MAX: usize = 4096;

pub async fn probe(host: &str, port: u16, service: String, time: Duration) -> Outcome {
    let address = join(host, port);
    let seconds = time.as_secs();
    let begun = std::time::Instant::now();
    // Connected before anything is asked, so that a refused connection is told as one.
    let stream = match connect(host, port, time).await {
        Ok(stream) => stream,
        Err(text) if text.ends_with("timeout") => {
            return Outcome::Failure(format!(
                "timeout: failed to connect service {address:?} within {seconds}s: context deadline exceeded"
            ));
        }
        Err(text) => {
            return Outcome::Failure(format!("error: failed to connect service at {address:?}: {text}"));
        }
    };
    let answer = tokio::time::timeout(time.saturating_sub(begun.elapsed()), ask(stream, &address, service));
    match answer.await {
        Ok(Ok(answer)) => judge(answer.status),
        Ok(Err(status)) if status.code() == Code::Unimplemented => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Ok(Err(status)) => Outcome::Failure(format!(
            "error: health rpc probe failed: rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        )),
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {seconds}s")),
    }
}

fn judge(status: i32) -> Outcome {
    let name = match HealthStatus::try_from(status) {
        Ok(HealthStatus::Serving) => return Outcome::Success,
        Ok(HealthStatus::Unknown) => "UNKNOWN".to_string(),
        Ok(HealthStatus::NotServing) => "NOT_SERVING".to_string(),
        Ok(HealthStatus::ServiceUnknown) => "SERVICE_UNKNOWN".to_string(),
        Err(_) => status.to_string(),
    };
    Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
}

async fn ask(
    stream: tokio::net::TcpStream,
    address: &str,
    service: String,
) -> Result<HealthCheckResponse, Status> {
    let failed = |error: &dyn std::error::Error| Status::unavailable(error.to_string());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| failed(&error))?;
    let endpoint = endpoint.user_agent(USER_AGENT).map_err(|error| failed(&error))?;
    let mut once = Some(stream);
    let connector = tower::service_fn(move |_: ::http::Uri| {
        // A second connection is not made: the probe is over with the first.
        let stream = once.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { stream.map(TokioIo::new).map_err(std::io::Error::from) }
    });
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| failed(&error))?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    grpc.ready().await.map_err(|error| failed(&error))?;
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    Ok(grpc.unary(Request::new(HealthCheckRequest { service }), path, codec).await?.into_inner())
}
