//! Whom a proxied request is for: a node's kubelet, or a port of a pod (kubernetes, `utilnet.SplitSchemeNamePort` and
//! `ResourceLocation` of pods).

use bytes::Bytes;
use http::header::{HeaderValue, LOCATION};
use http::request::Parts;
use http::{Response, StatusCode};
use kapi::{ApiError, meta};
use serde_json::Value;

use super::kubelet_path;
use crate::body::{Body, full};
use crate::nodes::PodPort;

/// `name`, `name:port` or `scheme:name:port`.
#[derive(Debug)]
pub(super) struct Place<'a> {
    text: &'a str,
    pub name: &'a str,
    scheme: &'a str,
    port: &'a str,
}

impl<'a> Place<'a> {
    pub fn parse(text: &'a str) -> Result<Place<'a>, ApiError> {
        let (scheme, name, port) = match text.split(':').collect::<Vec<_>>()[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => ("", "", ""),
        };
        if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
            return Err(ApiError::bad_request(format!("invalid proxy request \"{text}\"")));
        }
        Ok(Place { text, name, scheme, port })
    }

    /// The node; no other port of it than its kubelet's can be reached.
    pub fn kubelet(&self) -> Result<&'a str, ApiError> {
        if self.scheme == "http" || !matches!(self.port, "" | "10250") {
            let text = self.text;
            return Err(ApiError::bad_request(format!(
                "{text}: only the kubelet's port (10250) of a node can be reached"
            )));
        }
        Ok(self.name)
    }

    /// Without a port: the first one that the pod names, then 80. `base`: the client's path up to `proxy`.
    pub fn pod_port(&self, pod: &Value, base: &str) -> Result<PodPort, ApiError> {
        let tls = self.scheme == "https";
        let port = if self.port.is_empty() {
            first_port(pod).unwrap_or(if tls { 443 } else { 80 })
        } else {
            let invalid = || {
                ApiError::bad_request(format!("invalid pod request \"{}\": a port is a number", self.text))
            };
            self.port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?
        };
        let address = match meta::text(pod, "status.podIP") {
            "" => "localhost".to_owned(),
            ip if ip.contains(':') => format!("[{ip}]"),
            ip => ip.to_owned(),
        };
        Ok(PodPort {
            pod: self.name.to_owned(),
            port,
            tls,
            host: format!("{address}:{port}"),
            base: base.to_owned(),
            forward: kubelet_path("portForward", pod, ""),
        })
    }
}

fn first_port(pod: &Value) -> Option<u16> {
    let containers = meta::at(pod, "spec.containers").and_then(Value::as_array)?;
    let mut ports = containers.iter().filter_map(|container| container.get("ports")?.as_array()).flatten();
    ports.next()?.get("containerPort")?.as_u64()?.try_into().ok()
}

pub(super) fn query_of(parts: &Parts) -> String {
    parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default()
}

/// Relative links of a page at `.../proxy` would lead one level too high; the API server sends clients to `.../proxy/`.
pub(super) fn to_the_root(parts: &Parts) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let there = format!("{}/{}", parts.uri.path(), query_of(parts));
    if let Ok(there) = HeaderValue::from_str(&there) {
        response.headers_mut().insert(LOCATION, there);
    }
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_place_has_a_name_and_perhaps_scheme_and_port() {
        let pod = json!({"metadata": {"namespace": "a", "name": "web"}, "status": {"podIP": "fd00::7"},
            "spec": {"containers": [{"name": "one"}, {"name": "two", "ports": [{"containerPort": 8080}]}]}});
        let port = |text: &str, pod: &Value| {
            Place::parse(text)
                .and_then(|place| place.pod_port(pod, "/base"))
                .map(|port| (port.host, port.tls))
        };
        for (text, host, tls) in [
            ("web", "[fd00::7]:8080", false),
            ("web:", "[fd00::7]:8080", false),
            ("web:90", "[fd00::7]:90", false),
            ("https:web:443", "[fd00::7]:443", true),
            (":web:9", "[fd00::7]:9", false),
        ] {
            assert_eq!(port(text, &pod).unwrap(), (host.to_owned(), tls), "{text}");
        }
        let bare = json!({"metadata": {"namespace": "a", "name": "web"}});
        assert_eq!(port("web", &bare).unwrap().0, "localhost:80");
        assert_eq!(port("https:web:", &bare).unwrap().0, "localhost:443");
        for text in ["", ":1", "ftp:web:1", "a:b:c:d", "web:http", "web:0", "web:70000"] {
            assert_eq!(port(text, &pod).unwrap_err().code, 400, "{text}");
        }
    }

    #[test]
    fn only_the_kubelets_port_of_a_node() {
        let kubelet = |text| Place::parse(text).and_then(|place| place.kubelet().map(str::to_owned));
        for text in ["n", "n:", "n:10250", "https:n:10250", "https:n:"] {
            assert_eq!(kubelet(text).unwrap(), "n", "{text}");
        }
        for text in ["n:22", "http:n:10250", "https:n:22"] {
            assert_eq!(kubelet(text).unwrap_err().code, 400, "{text}");
        }
    }
}
