//! A container's environment: values, references, the downward API, and the expansion of `$(NAME)`.
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
    /// What pods may have of this node: the limit of a container that sets none, as the downward API tells it.
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
}

/// An environment, and what of it was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Environment {
    pub variables: Vec<(String, String)>,
    /// Texts of `InvalidEnvironmentVariableNames` events.
    pub skipped: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    NoObject { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {} {namespace}/{name}", type_name(kind))]
    NoKey { kind: &'static str, name: String, namespace: String, key: String },
    #[error("field {0:?} cannot be used in a fieldRef; see the Kubernetes documentation of the downward API")]
    Field(String),
    #[error("resource {0:?} cannot be used in a resourceFieldRef")]
    Resource(String),
    #[error("value of key {key} in {kind} {name} is not text, so it cannot be an environment variable")]
    NotText { kind: &'static str, name: String, key: String },
}

fn type_name(kind: &str) -> &'static str {
    if kind == "secret" { "Secret" } else { "ConfigMap" }
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

/// The variables in order; a later one of the same name wins. What a variable refers to with `$(NAME)` stands before it, or
/// comes from `envFrom`.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    facts: &Facts,
) -> Result<Environment, EnvError> {
    let namespace = &pod.metadata.namespace;
    let mut environment = Environment::default();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |known: &mut BTreeMap<String, String>, name: &str, value: String| {
        order.retain(|other| other != name);
        order.push(name.to_string());
        known.insert(name.to_string(), value);
    };
    for from in &container.env_from {
        for (kind, reference) in [("configmap", &from.config_map_ref), ("secret", &from.secret_ref)] {
            let Some(reference) = reference else { continue };
            let Some(data) = object(kind, &reference.name, reference.optional, sources)? else { continue };
            let mut invalid = Vec::new();
            for (key, value) in data {
                let name = format!("{}{key}", from.prefix);
                if is_variable_name(&name) {
                    set(&mut known, &name, text(kind, &reference.name, key, value)?);
                } else {
                    invalid.push(name);
                }
            }
            if !invalid.is_empty() {
                let source = if kind == "secret" { "secret" } else { "configMap" };
                environment.skipped.push(format!(
                    "Keys [{}] from the EnvFrom {source} {namespace}/{} were skipped since they are considered invalid \
                     environment variable names.",
                    invalid.join(", "),
                    reference.name
                ));
            }
        }
    }
    for variable in &container.env {
        let value = match &variable.value_from {
            // Kubelet looks at the source only when there is no value.
            Some(from) if variable.value.is_empty() => {
                if let Some(field) = &from.field_ref {
                    Some(field_value(pod, field, facts)?)
                } else if let Some(resource) = &from.resource_field_ref {
                    Some(resource_value(pod, Some(container), resource, facts)?)
                } else {
                    let map = from.config_map_key_ref.as_ref().map(|r| ("configmap", r));
                    let secret = from.secret_key_ref.as_ref().map(|r| ("secret", r));
                    match map.or(secret) {
                        Some((kind, r)) => key_value(kind, r, namespace, sources)?,
                        None => Some(String::new()),
                    }
                }
            }
            _ => Some(expand(&variable.value, &known)),
        };
        if let Some(value) = value {
            set(&mut known, &variable.name, value);
        }
    }
    let value = |name: String| {
        let value = known.remove(&name).expect("every name in the order is known");
        (name, value)
    };
    environment.variables = order.into_iter().map(value).collect();
    Ok(environment)
}

/// Letters, digits, `-`, `_`, `.`, not a digit first (Kubernetes' rule for names from `envFrom`).
fn is_variable_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.chars().all(inner)
        && name.chars().next().is_some_and(|first| !first.is_ascii_digit())
        && name != "."
        && !name.starts_with("..")
}

type Data = BTreeMap<String, Vec<u8>>;

/// `None`: it is not there, and need not be.
fn object<'a>(
    kind: &'static str,
    name: &str,
    optional: Option<bool>,
    sources: &'a Sources,
) -> Result<Option<&'a Data>, EnvError> {
    match sources.get(&format!("{kind}/{name}")).and_then(Option::as_ref) {
        None if optional != Some(true) => Err(EnvError::NoObject { kind, name: name.into() }),
        data => Ok(data),
    }
}

fn text(kind: &'static str, name: &str, key: &str, value: &[u8]) -> Result<String, EnvError> {
    let not_text = |_| EnvError::NotText { kind, name: name.into(), key: key.into() };
    String::from_utf8(value.to_vec()).map_err(not_text)
}

fn key_value(
    kind: &'static str,
    reference: &super::pod::KeyRef,
    namespace: &str,
    sources: &Sources,
) -> Result<Option<String>, EnvError> {
    let (name, key) = (&reference.name, &reference.key);
    let Some(data) = object(kind, name, reference.optional, sources)? else { return Ok(None) };
    match data.get(key) {
        Some(value) => text(kind, name, key, value).map(Some),
        None if reference.optional == Some(true) => Ok(None),
        None => {
            let (name, namespace, key) = (name.clone(), namespace.to_string(), key.clone());
            Err(EnvError::NoKey { kind, name, namespace, key })
        }
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
        "spec.serviceAccountName" => pod.service_account().to_string(),
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

/// One `key="value"` a line, sorted, with the value quoted as Go quotes it.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", go_quote(value))).collect();
    lines.join("\n")
}

fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a container's limit or request, divided and rounded up. Without a limit it is what pods may have of the node.
pub fn resource_value(
    pod: &Pod,
    own: Option<&Container>,
    field: &ResourceFieldRef,
    facts: &Facts,
) -> Result<String, EnvError> {
    let unknown = || EnvError::Resource(field.resource.clone());
    let container = match field.container_name.as_str() {
        "" => own,
        name => pod.all_containers().find(|c| c.name == name),
    };
    let container = container.ok_or_else(unknown)?;
    let (list, name) = field.resource.split_once('.').ok_or_else(unknown)?;
    let amounts = match list {
        "limits" => &container.resources.limits,
        "requests" => &container.resources.requests,
        _ => return Err(unknown()),
    };
    let own = amounts.get(name).and_then(|text| quantity::parse_milli(text)).filter(|milli| *milli > 0);
    let of_node = match (list, name) {
        ("limits", "cpu") => i128::from(facts.cpu_milli),
        ("limits", "memory") => i128::from(facts.memory_bytes) * 1000,
        ("limits", "ephemeral-storage") => i128::from(facts.storage_bytes) * 1000,
        _ => 0,
    };
    let milli = own.unwrap_or(of_node);
    let divisor = quantity::parse_milli(&field.divisor).filter(|divisor| *divisor > 0).unwrap_or(1000);
    Ok(((milli + divisor - 1) / divisor).to_string())
}

/// Kubernetes' expansion: `$(NAME)` of a known name is its value, `$$` is `$`, anything else stays as it is.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    expand_with(text, |name| known.get(name).cloned())
}

/// As [`expand`], with a lookup.
pub fn expand_with(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
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
