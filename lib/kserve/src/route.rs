//! What a path asks for.

use kapi::Kind;
use kapi::apiservices;
use kapi::kinds;

use crate::metrics;
use crate::query::decode;

#[derive(Debug)]
pub(crate) enum Route {
    /// Objects of a kind.
    Objects(Target),
    /// `SelfSubjectAccessReview` and the like: created, answered, not kept.
    Review { group: String, resource: String },
    /// What nodes or pods use: measured, not kept. The target is the node or pod.
    Metrics(Target),
    /// Which groups are served, as objects.
    ApiServices(Target),
    /// Everything else: discovery, version, health.
    Path(String),
}

#[derive(Debug)]
pub(crate) struct Target {
    pub kind: &'static Kind,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows `proxy`, as it was sent: `/metrics/resource`.
    pub tail: String,
}

impl Target {
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
    pub fn subresource(&self) -> &str {
        self.subresource.as_deref().unwrap_or_default()
    }
}

/// `None`: a resource path that names nothing served.
pub(crate) fn route(path: &str) -> Option<Route> {
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Some(Route::Path(path.to_string())),
    };
    if matches!(group, "authorization.k8s.io" | "authentication.k8s.io") {
        let [resource] = rest else { return None };
        return (version == "v1")
            .then(|| Route::Review { group: group.to_string(), resource: resource.to_string() });
    }
    if group == metrics::GROUP {
        return metrics::target(rest).filter(|_| version == "v1beta1").map(Route::Metrics);
    }
    if group == apiservices::GROUP {
        return apiservice(rest).filter(|_| version == apiservices::VERSION).map(Route::ApiServices);
    }
    let words_before = parts.len() - rest.len();
    target(group, version, rest, |words| tail(path, words_before + words)).map(Route::Objects)
}

fn apiservice(rest: &[&str]) -> Option<Target> {
    let (name, subresource) = match rest {
        ["apiservices"] => (None, None),
        ["apiservices", name] => (Some(name.to_string()), None),
        ["apiservices", name, "status"] => (Some(name.to_string()), Some("status".to_string())),
        _ => return None,
    };
    Some(Target { kind: &apiservices::API_SERVICE, namespace: None, name, subresource, tail: String::new() })
}

/// A path without its first words, undecoded.
fn tail(path: &str, words: usize) -> String {
    let mut rest = path;
    for _ in 0..words {
        rest = rest.trim_start_matches('/');
        rest = &rest[rest.find('/').unwrap_or(rest.len())..];
    }
    rest.to_string()
}

fn target(group: &str, version: &str, rest: &[&str], tail: impl Fn(usize) -> String) -> Option<Target> {
    let whole = rest.len();
    let text = |value: &&str| Some(value.to_string());
    // `namespaces/x` is the namespace itself, `namespaces/x/pods` what is in it, `namespaces/x/status` a subresource.
    let (kind, namespace, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] if !matches!(*plural, "status" | "finalize") => {
            let kind = kinds::by_path(group, version, plural).filter(|kind| kind.namespaced)?;
            (kind, text(namespace), rest)
        }
        [plural, rest @ ..] => {
            let kind = kinds::by_path(group, version, plural)?;
            (kind, None, rest)
        }
        [] => return None,
    };
    let (name, subresource, tail) = match rest {
        [] => (None, None, String::new()),
        [name] => (text(name), None, String::new()),
        [name, "proxy", after @ ..] => (text(name), text(&"proxy"), tail(whole - after.len())),
        [name, subresource] => (text(name), text(subresource), String::new()),
        _ => return None,
    };
    if kind.namespaced && namespace.is_none() && name.is_some() {
        return None;
    }
    if let Some(subresource) = &subresource {
        let known = subresource == "status" && kind.has_status
            || kind.subresources().iter().any(|entry| entry.name == subresource);
        if !known {
            return None;
        }
    }
    Some(Target { kind, namespace, name, subresource, tail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let show = |path: &str| match route(path) {
            Some(Route::Objects(target)) => {
                format!(
                    "{} {} {} {}{}",
                    target.kind.kind,
                    target.namespace(),
                    target.name(),
                    target.subresource(),
                    target.tail
                )
            }
            Some(Route::Metrics(target)) => {
                format!("metrics {} {} {}", target.kind.kind, target.namespace(), target.name())
            }
            Some(Route::ApiServices(target)) => {
                format!("apiservice {} {}", target.name(), target.subresource())
            }
            Some(Route::Review { resource, .. }) => format!("review {resource}"),
            Some(Route::Path(path)) => format!("path {path}"),
            None => "none".into(),
        };
        for (path, shown) in [
            ("/api/v1/pods", "Pod   "),
            ("/api/v1/namespaces/a/pods", "Pod a  "),
            ("/api/v1/namespaces/a/pods/b", "Pod a b "),
            ("/api/v1/namespaces/a/pods/b/status", "Pod a b status"),
            ("/api/v1/namespaces/a/pods/b/binding", "Pod a b binding"),
            ("/api/v1/namespaces/a", "Namespace  a "),
            ("/api/v1/namespaces/a/finalize", "Namespace  a finalize"),
            ("/api/v1/nodes/n/status", "Node  n status"),
            ("/apis/devices.kubeedge.io/v1beta1/namespaces/d/devices/x", "Device d x "),
            ("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "review selfsubjectaccessreviews"),
            ("/api", "path /api"),
            ("/apis/devices.kubeedge.io/v1beta1", "path /apis/devices.kubeedge.io/v1beta1"),
            ("/apis/metrics.k8s.io/v1beta1/nodes/n", "metrics Node  n"),
            ("/apis/metrics.k8s.io/v1beta1/namespaces/a/pods", "metrics Pod a "),
            ("/apis/metrics.k8s.io/v1/pods", "none"),
            ("/apis/metrics.k8s.io/v1beta1/services", "none"),
            ("/apis/apiregistration.k8s.io/v1/apiservices", "apiservice  "),
            ("/apis/apiregistration.k8s.io/v1/apiservices/v1./status", "apiservice v1. status"),
            ("/apis/apiregistration.k8s.io/v1/others", "none"),
            ("/api/v1/pods/b", "none"),
            ("/api/v1/namespaces/a/pods/b:80/proxy/c", "Pod a b:80 proxy/c"),
            ("/api/v1/namespaces/a/nodes", "none"),
            ("/api/v1/namespaces/a/pods/b/log", "Pod a b log"),
            ("/api/v1/namespaces/a/pods/b/log/x", "none"),
            ("/api/v1/nodes/n/proxy", "Node  n proxy"),
            ("/api/v1/nodes/n/proxy/", "Node  n proxy/"),
            ("/api/v1/nodes/n/proxy/stats//a%2Fb", "Node  n proxy/stats//a%2Fb"),
            ("/api/v1/services", "none"),
            ("/api/v2/pods", "none"),
        ] {
            assert_eq!(show(path), shown, "{path}");
        }
    }
}
