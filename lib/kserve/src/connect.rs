//! Subresources that the node answers: which node and which container, whether the options make sense, and what its kubelet is
//! asked. Words and codes are upstream's (kubernetes, pkg/registry/core/pod/strategy.go and its validation of PodLogOptions).

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use kapi::{ApiError, Cause, meta, time};
use serde_json::Value;

use crate::backend::Backend;
use crate::body::full;
use crate::limits::PORTS_MAX;
use crate::nodes::{NodeAsk, Purpose};
use crate::object::parse;
use crate::query::{Query, encode};
use crate::route::Target;
use crate::server::{Answer, Server};

mod place;

use place::{Place, query_of, to_the_root};

impl<B: Backend> Server<B> {
    pub(crate) async fn connect(
        &self,
        target: &Target,
        query: &Query,
        parts: &Parts,
        body: &Bytes,
    ) -> Answer {
        let nodes = self.inner.options.nodes.clone().ok_or_else(ApiError::no_such_path)?;
        let is_proxy = target.subresource() == "proxy";
        let place = if is_proxy { Some(Place::parse(target.name())?) } else { None };
        let name = place.as_ref().map_or(target.name(), |place| place.name);
        let key = crate::object::key(target.kind, target.namespace(), name);
        let record = self.inner.backend.get(&key).ok_or_else(|| ApiError::not_found(target.kind, name))?;
        let ask = if let Some(place) = place {
            if target.kind.kind == "Pod"
                && target.tail.is_empty()
                && matches!(parts.method, Method::GET | Method::HEAD)
            {
                return Ok(to_the_root(parts));
            }
            let path = if target.tail.is_empty() { "/" } else { &target.tail };
            let path = format!("{path}{}", query_of(parts));
            let (node, purpose) = match target.kind.kind {
                "Node" => (place.kubelet()?.to_owned(), Purpose::Proxy),
                _ => {
                    let pod = parse(&record)?;
                    let base = parts.uri.path().strip_suffix(target.tail.as_str()).unwrap_or_default();
                    (host(&pod)?.to_owned(), Purpose::PodPort(place.pod_port(&pod, base)?))
                }
            };
            NodeAsk { node, path, purpose }
        } else {
            let pod = parse(&record)?;
            let asked = match target.subresource() {
                "log" => log(&pod, query)?,
                "portforward" => Some(port_forward(&pod, query, parts.method == Method::GET)?),
                which => Some(command(&pod, query, which)?),
            };
            match asked {
                Some(asked) => asked,
                // There is no log yet, and no node to ask for one.
                None => {
                    let mut empty = Response::new(full(Bytes::new()));
                    *empty.status_mut() = StatusCode::NO_CONTENT;
                    return Ok(empty);
                }
            }
        };
        nodes.call(ask, parts, body).await
    }
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    let list = meta::at(pod, list).and_then(Value::as_array);
    list.into_iter().flatten().map(|container| meta::text(container, "name")).collect()
}

/// The container that is meant. `kubectl` reads the annotation for the default one itself.
fn container<'a>(pod: &'a Value, asked: &'a str) -> Result<&'a str, ApiError> {
    let name = meta::text(pod, "metadata.name");
    let containers = names(pod, "spec.containers");
    let init = names(pod, "spec.initContainers");
    if !asked.is_empty() {
        let known = containers.contains(&asked)
            || init.contains(&asked)
            || names(pod, "spec.ephemeralContainers").contains(&asked);
        let unknown = || ApiError::bad_request(format!("container {asked} is not valid for pod {name}"));
        return if known { Ok(asked) } else { Err(unknown()) };
    }
    match containers.as_slice() {
        [one] => Ok(one),
        [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {name}"))),
        many => {
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(text))
        }
    }
}

fn host(pod: &Value) -> Result<&str, ApiError> {
    match meta::text(pod, "spec.nodeName") {
        "" => {
            let name = meta::text(pod, "metadata.name");
            Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")))
        }
        node => Ok(node),
    }
}

/// `/<what>/<namespace>/<pod>[/<container>]`.
fn kubelet_path(what: &str, pod: &Value, container: &str) -> String {
    let (namespace, name) = (meta::text(pod, "metadata.namespace"), meta::text(pod, "metadata.name"));
    let mut path = format!("/{what}/{}/{}", encode(namespace), encode(name));
    if !container.is_empty() {
        path.push('/');
        path.push_str(&encode(container));
    }
    path
}

fn with_query(path: String, pairs: &[(String, String)]) -> String {
    let query: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

/// `None`: the pod is on no node yet.
fn log(pod: &Value, query: &Query) -> Result<Option<NodeAsk>, ApiError> {
    let name = meta::text(pod, "metadata.name");
    let pairs = log_options(name, query)?;
    let container = container(pod, query.text("container"))?;
    let node = meta::text(pod, "spec.nodeName");
    let path = with_query(kubelet_path("containerLogs", pod, container), &pairs);
    let ask = || NodeAsk { node: node.into(), path, purpose: Purpose::Log { pod: name.into() } };
    Ok((!node.is_empty()).then(ask))
}

/// The options as the kubelet reads them, checked as PodLogOptions are.
fn log_options(pod: &str, query: &Query) -> Result<Vec<(String, String)>, ApiError> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut causes = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        match query.get(flag) {
            None | Some("false" | "0") => {}
            Some("true" | "1" | "") => pairs.push((flag.into(), "true".into())),
            Some(other) => {
                return Err(ApiError::bad_request(format!("{flag}: \"{other}\" is not true or false")));
            }
        }
    }
    for (field, least, why) in [
        ("sinceSeconds", 1, "must be greater than 0"),
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
    ] {
        let text = query.text(field);
        if text.is_empty() {
            continue;
        }
        let number: i64 = text
            .parse()
            .map_err(|_| ApiError::bad_request(format!("{field}: \"{text}\" is not a number")))?;
        if number < least {
            causes.push(invalid(field, number, why));
        }
        pairs.push((field.into(), number.to_string()));
    }
    let since = query.text("sinceTime");
    if !since.is_empty() {
        if time::parse(since).is_none() {
            return Err(ApiError::bad_request(format!("sinceTime: \"{since}\" is not a time (RFC 3339)")));
        }
        if !query.text("sinceSeconds").is_empty() {
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
                field: String::new(),
            });
        }
        pairs.push(("sinceTime".into(), since.into()));
    }
    match query.text("stream") {
        "" | "All" => {}
        stream @ ("Stdout" | "Stderr") => {
            if !query.text("tailLines").is_empty() {
                causes.push(Cause {
                    reason: "FieldValueForbidden",
                    message: "Forbidden: `tailLines` and specific `stream` are mutually exclusive for now"
                        .into(),
                    field: String::new(),
                });
            }
            pairs.push(("stream".into(), stream.into()));
        }
        other => causes.push(Cause {
            reason: "FieldValueNotSupported",
            message: format!(
                "Unsupported value: \"{other}\": supported values: \"All\", \"Stderr\", \"Stdout\""
            ),
            field: "stream".into(),
        }),
    }
    if causes.is_empty() { Ok(pairs) } else { Err(ApiError::invalid_options("PodLogOptions", pod, causes)) }
}

fn invalid(field: &str, value: i64, why: &str) -> Cause {
    Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {value}: {why}"),
        field: field.into(),
    }
}

/// exec and attach.
fn command(pod: &Value, query: &Query, which: &str) -> Result<NodeAsk, ApiError> {
    let container = container(pod, query.text("container"))?;
    let node = host(pod)?;
    let (stdin, stdout, stderr) = (query.flag("stdin"), query.flag("stdout"), query.flag("stderr"));
    let tty = query.flag("tty");
    if !(stdin || stdout || stderr) {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let mut pairs: Vec<(String, String)> = Vec::new();
    let commands: Vec<&str> = query.all("command").collect();
    if which == "exec" {
        if commands.is_empty() {
            return Err(ApiError::bad_request("you must specify at least one command for the container"));
        }
        pairs.extend(commands.iter().map(|word| ("command".to_string(), word.to_string())));
    }
    for (name, on) in [("input", stdin), ("output", stdout), ("error", stderr), ("tty", tty)] {
        if on {
            pairs.push((name.into(), "1".into()));
        }
    }
    let path = with_query(kubelet_path(which, pod, container), &pairs);
    let pod = meta::text(pod, "metadata.name").to_string();
    // A terminal has one output, and the node counts streams so.
    let purpose = Purpose::Command { pod, stdin, stdout, stderr: stderr && !tty, tty };
    Ok(NodeAsk { node: node.into(), path, purpose })
}

fn port_forward(pod: &Value, query: &Query, websocket: bool) -> Result<NodeAsk, ApiError> {
    let node = host(pod)?;
    let mut ports = Vec::new();
    for text in query.all("ports").flat_map(|list| list.split(',')) {
        let port: u16 = text.trim().parse().unwrap_or(0);
        if port == 0 || ports.len() == PORTS_MAX {
            return Err(ApiError::bad_request(format!(
                "ports: \"{text}\" must be between 1 and 65535, inclusive; at most {PORTS_MAX}"
            )));
        }
        ports.push(port);
    }
    let list: Vec<String> = ports.iter().map(u16::to_string).collect();
    let pairs =
        if websocket && !ports.is_empty() { vec![("port".into(), list.join(","))] } else { Vec::new() };
    let path = with_query(kubelet_path("portForward", pod, ""), &pairs);
    let pod = meta::text(pod, "metadata.name").to_string();
    Ok(NodeAsk { node: node.into(), path, purpose: Purpose::PortForward { pod, ports } })
}

#[cfg(test)]
mod tests;
