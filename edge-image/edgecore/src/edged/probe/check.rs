//! One question to a container, from its spec to an answer. Texts are those of kubelet's probers, which users search for.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};

use super::{Outcome, exec, grpc, http, tcp};
use crate::edged::{
    cri::Cri,
    pod::{Container, HttpGetAction, PortRef, Probe},
};

/// As a kubelet of the version that this node reports.
pub const USER_AGENT: &str = "kube-probe/1.32";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Exec { container_id: String, command: Vec<String> },
    Http(http::Request),
    Tcp { host: String, port: u16 },
    Grpc { host: String, port: u16, service: String },
}

impl Check {
    /// `ip`: the pod's address, of the node for a pod on the host's network. The error is the text of an errored probe.
    pub fn of(probe: &Probe, container: &Container, container_id: &str, ip: &str) -> Result<Check, String> {
        if let Some(exec) = &probe.exec {
            return Ok(Check::Exec { container_id: container_id.into(), command: exec.command.clone() });
        }
        if let Some(get) = &probe.http_get {
            return Ok(Check::Http(http_request(get, container, ip, USER_AGENT)?));
        }
        if let Some(socket) = &probe.tcp_socket {
            let host = if socket.host.is_empty() { ip } else { &socket.host };
            return Ok(Check::Tcp { host: host.into(), port: resolve_port(&socket.port, container)? });
        }
        if let Some(grpc) = &probe.grpc {
            let service = grpc.service.clone().unwrap_or_default();
            return Ok(Check::Grpc { host: ip.into(), port: grpc.port, service });
        }
        Err("missing probe handler; give the probe one of exec, httpGet, tcpSocket and grpc".into())
    }
}

/// The request of a probe or a hook.
pub fn http_request(
    get: &HttpGetAction,
    container: &Container,
    ip: &str,
    user_agent: &'static str,
) -> Result<http::Request, String> {
    let headers = get.http_headers.iter().map(|header| (header.name.clone(), header.value.clone())).collect();
    Ok(http::Request {
        tls: get.scheme.eq_ignore_ascii_case("https"),
        host: if get.host.is_empty() { ip.into() } else { get.host.clone() },
        port: resolve_port(&get.port, container)?,
        path: get.path.clone(),
        headers,
        user_agent,
    })
}

/// A port by number, by its name in the container's ports, or a number written as text.
fn resolve_port(port: &PortRef, container: &Container) -> Result<u16, String> {
    let number = match port {
        PortRef::Number(number) => *number,
        PortRef::Name(name) => match container.ports.iter().find(|port| port.name == *name) {
            Some(port) => port.container_port,
            None => name.parse().map_err(|_| format!("strconv.Atoi: parsing {name:?}: invalid syntax"))?,
        },
    };
    if number == 0 { Err(format!("invalid port number: {number}")) } else { Ok(number) }
}

/// Makes checks. Holds what they share.
pub struct Checker {
    cri: Cri,
    tls: OnceLock<Option<Arc<ClientConfig>>>,
}

impl Checker {
    pub fn new(cri: Cri) -> Checker {
        Checker { cri, tls: OnceLock::new() }
    }

    /// Ends within the time given, or a little later for an exec that the runtime cannot end.
    pub async fn check(&self, check: Check, time: Duration) -> Outcome {
        match check {
            Check::Exec { container_id, command } => {
                exec::probe(&self.cri, &container_id, command, time).await
            }
            Check::Http(request) => {
                let answer = http::get(&request, time, self.tls()).await;
                answer.map_or_else(Outcome::Failure, |answer| answer.outcome())
            }
            Check::Tcp { host, port } => tcp::probe(&host, port, time).await,
            Check::Grpc { host, port, service } => grpc::probe(&host, port, service, time).await,
        }
    }

    /// Certificates are not checked, as kubelet does not: a container's is for its service's name, and asked is an address.
    pub fn tls(&self) -> Option<Arc<ClientConfig>> {
        self.tls.get_or_init(|| pki::tls::for_probes().ok().map(Arc::new)).clone()
    }
}

/// Connects, with Go's text of what went wrong.
pub async fn connect(host: &str, port: u16, time: Duration) -> Result<TcpStream, String> {
    let address = join(host, port);
    match timeout(time, TcpStream::connect((host.trim_matches(['[', ']']), port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.raw_os_error().is_none() => {
            Err(format!("dial tcp: lookup {host}: {}", system_text(&error)))
        }
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", system_text(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// `1.2.3.4:80`, `[fd00::2]:80`.
pub fn join(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// "connection refused", without the number that Rust adds.
pub fn system_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Of what was printed or answered, as much as kubelet shows.
pub fn shown(bytes: &[u8], len_max: usize) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(len_max)]).into_owned()
}
