//! A container's environment: values, references, and the expansion of `$(NAME)`.
//!
//! A pure function over a lookup of config maps and secrets that the shell has fetched before.

use std::collections::BTreeMap;

use super::{
    pod::{Container, FieldRef, Pod, ResourceFieldRef},
    quantity,
};

/// Data of the config maps and secrets that a container names: by `configmap/<name>` and `secret/<name>`. `None`: it does not
/// exist, which is fine for an optional reference only.
pub type Sources = BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>;

/// What only the running node knows.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub node_name: String,
    pub host_ip: String,
    pub pod_ips: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} {name:?} not found; create it in namespace {namespace}")]
    NoObject { kind: &'static str, name: String, namespace: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}; add it")]
    NoKey { kind: &'static str, name: String, namespace: String, key: String },
    #[error("field {0:?} cannot be used in a fieldRef; see the Kubernetes documentation of the downward API")]
    Field(String),
    #[error("resource {0:?} cannot be used in a resourceFieldRef")]
    Resource(String),
    #[error("value of key {key} in {kind} {name} is not text, so it cannot be an environment variable")]
    NotText { kind: &'static str, name: String, key: String },
}

/// Which objects a container's environment needs: (`configmap` or `secret`, name).
pub fn references(container: &Container) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for source in &container.env_from {
        found.extend(source.config_map_ref.iter().map(|r| ("configmap", r.name.clone())));
        found.extend(source.secret_ref.iter().map(|r| ("secret", r.name.clone())));
    }
    for from in container.env.iter().filter_map(|variable| variable.value_from.as_ref()) {
        found.extend(from.config_map_key_ref.iter().map(|r| ("configmap", r.name.clone())));
        found.extend(from.secret_key_ref.iter().map(|r| ("secret", r.name.clone())));
    }
    found.sort();
    found.dedup();
    found
}

/// The variables in order; a later one of the same name wins.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    facts: &Facts,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: String, value: String| {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    };
    let namespace = &pod.metadata.namespace;
    for from in &container.env_from {
        for (kind, reference) in [("configmap", &from.config_map_ref), ("secret", &from.secret_ref)] {
            let Some(reference) = reference else { continue };
            match sources.get(&format!("{kind}/{}", reference.name)).cloned().flatten() {
                Some(data) => {
                    for (key, value) in data {
                        if let Ok(value) = String::from_utf8(value) {
                            set(format!("{}{key}", from.prefix), value);
                        }
                    }
                }
                None if reference.optional == Some(true) => {}
                None => {
                    let (name, namespace) = (reference.name.clone(), namespace.clone());
                    return Err(EnvError::NoObject { kind, name, namespace });
                }
            }
        }
    }
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for variable in &container.env {
        let value = match &variable.value_from {
            None => Some(expand(&variable.value, &known)),
            Some(from) => {
                if let Some(field) = &from.field_ref {
                    Some(field_value(pod, field, facts)?)
                } else if let Some(resource) = &from.resource_field_ref {
                    Some(resource_value(pod, container, resource)?)
                } else {
                    let map = from.config_map_key_ref.as_ref().map(|r| ("configmap", r));
                    let secret = from.secret_key_ref.as_ref().map(|r| ("secret", r));
                    match map.or(secret) {
                        Some((kind, r)) => key_value(kind, r, namespace, sources)?,
                        None => Some(String::new()),
                    }
                }
            }
        };
        if let Some(value) = value {
            known.insert(variable.name.clone(), value.clone());
            set(variable.name.clone(), value);
        }
    }
    Ok(env)
}

fn key_value(
    kind: &'static str,
    reference: &super::pod::KeyRef,
    namespace: &str,
    sources: &Sources,
) -> Result<Option<String>, EnvError> {
    let optional = reference.optional == Some(true);
    let (name, key) = (reference.name.clone(), reference.key.clone());
    let Some(data) = sources.get(&format!("{kind}/{name}")).and_then(Option::as_ref) else {
        let namespace = namespace.to_string();
        return if optional { Ok(None) } else { Err(EnvError::NoObject { kind, name, namespace }) };
    };
    let Some(value) = data.get(&key) else {
        let namespace = namespace.to_string();
        return if optional { Ok(None) } else { Err(EnvError::NoKey { kind, name, namespace, key }) };
    };
    match String::from_utf8(value.clone()) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(EnvError::NotText { kind, name, key }),
    }
}

/// The value of a downward API field.
pub fn field_value(pod: &Pod, field: &FieldRef, facts: &Facts) -> Result<String, EnvError> {
    let path = field.field_path.as_str();
    let metadata = &pod.metadata;
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']").map(str::to_string);
    Ok(match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "metadata.labels" => lines(&metadata.labels),
        "metadata.annotations" => lines(&metadata.annotations),
        "spec.nodeName" if pod.spec.node_name.is_empty() => facts.node_name.clone(),
        "spec.nodeName" => pod.spec.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => {
            let label = subscript("metadata.labels['").map(|key| metadata.labels.get(&key).cloned());
            let annotation =
                subscript("metadata.annotations['").map(|key| metadata.annotations.get(&key).cloned());
            match label.or(annotation) {
                Some(value) => value.unwrap_or_default(),
                None => return Err(EnvError::Field(path.to_string())),
            }
        }
    })
}

fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value:?}\n")).collect()
}

/// The value of a container's own limit or request, divided and rounded up.
pub fn resource_value(
    pod: &Pod,
    container: &Container,
    field: &ResourceFieldRef,
) -> Result<String, EnvError> {
    let unknown = || EnvError::Resource(field.resource.clone());
    let container = match field.container_name.as_str() {
        "" => container,
        name => pod.all_containers().find(|c| c.name == name).ok_or_else(unknown)?,
    };
    let (list, name) = field.resource.split_once('.').ok_or_else(unknown)?;
    let amounts = match list {
        "limits" => &container.resources.limits,
        "requests" => &container.resources.requests,
        _ => return Err(unknown()),
    };
    let milli = amounts.get(name).and_then(|text| quantity::parse_milli(text)).unwrap_or(0);
    let divisor = quantity::parse_milli(&field.divisor).filter(|divisor| *divisor > 0).unwrap_or(1000);
    Ok(((milli + divisor - 1) / divisor).to_string())
}

/// Kubernetes' expansion: `$(NAME)` of a known name is its value, `$$` is `$`, anything else stays as it is.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}
