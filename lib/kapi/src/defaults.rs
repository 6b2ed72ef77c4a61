//! What the server fills in, because clients and the node rely on it being there.

use base64::Engine as _;
use serde_json::{Map, Value, json};

use crate::{Kind, meta, storage};

/// Fills in an object that is created or changed. Idempotent.
pub fn apply(kind: &Kind, object: &mut Value) {
    match kind.kind {
        "Pod" => pod(object),
        "Namespace" => namespace(object),
        "Secret" => secret(object),
        "PersistentVolume" | "PersistentVolumeClaim" | "StorageClass" => {
            storage::apply_defaults(kind.kind, object);
        }
        _ => {}
    }
}

/// What a new object's status is.
pub fn initial_status(kind: &Kind, object: &mut Value) {
    let status = match kind.kind {
        "Pod" => json!({"phase": "Pending", "qosClass": qos(object)}),
        "Namespace" => json!({"phase": "Active"}),
        "PersistentVolume" => storage::start(object, storage::VOLUME_PROTECTION),
        "PersistentVolumeClaim" => storage::start(object, storage::CLAIM_PROTECTION),
        // Nodes are made with their status by the agent that registers them.
        "Node" => return,
        _ if kind.has_status && !kind.status_in_main => {
            if let Some(map) = object.as_object_mut() {
                map.remove("status");
            }
            return;
        }
        _ => return,
    };
    if let Some(map) = object.as_object_mut() {
        map.insert("status".into(), status);
    }
}

fn default(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    map.entry(key).or_insert_with(|| value.into());
}

fn each<'a>(map: &'a mut Map<String, Value>, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let list = map.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

fn namespace(object: &mut Value) {
    let name = meta::text(object, "metadata.name").to_string();
    let labels = meta::metadata(object).entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
    default(meta::child(object, "spec"), "finalizers", json!(["kubernetes"]));
}

fn secret(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    default(map, "type", "Opaque");
    if let Some(Value::Object(plain)) = map.remove("stringData") {
        let data = meta::child(object, "data");
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            data.insert(key, base64::engine::general_purpose::STANDARD.encode(text).into());
        }
    }
}

fn pod(object: &mut Value) {
    let spec = meta::child(object, "spec");
    // The old name of the field is kept in step, as upstream does.
    if let Some(name) = spec.get("serviceAccount").cloned() {
        default(spec, "serviceAccountName", name);
    }
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "serviceAccountName", "default");
    let name = spec["serviceAccountName"].clone();
    spec.insert("serviceAccount".into(), name);
    default(spec, "enableServiceLinks", true);
    default(spec, "securityContext", json!({}));
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, key).for_each(|entry| container(entry, host_network));
    }
    each(spec, "volumes").for_each(volume);
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if moves(image) { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut)
        && let Some(Value::Object(limits)) = resources.get("limits").cloned()
    {
        let requests = resources.entry("requests").or_insert_with(|| json!({}));
        if let Some(requests) = requests.as_object_mut() {
            limits.into_iter().for_each(|(name, value)| default(requests, &name, value));
        }
    }
    for port in each(container, "ports") {
        default(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            default(port, "hostPort", number);
        }
    }
    for env in each(container, "env") {
        let source = env.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef"));
        if let Some(reference) = source.and_then(Value::as_object_mut) {
            default(reference, "apiVersion", "v1");
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(key).and_then(Value::as_object_mut) {
            for (field, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                default(probe, field, value);
            }
            http_get(probe);
            // kubectl describe ends with a panic where it is not there.
            if let Some(grpc) = probe.get_mut("grpc").and_then(Value::as_object_mut) {
                default(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) {
        lifecycle.values_mut().filter_map(Value::as_object_mut).for_each(http_get);
    }
}

fn http_get(handler: &mut Map<String, Value>) {
    if let Some(get) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
        default(get, "path", "/");
        default(get, "scheme", "HTTP");
    }
}

fn downward(source: &mut Map<String, Value>) {
    for item in each(source, "items") {
        if let Some(reference) = item.get_mut("fieldRef").and_then(Value::as_object_mut) {
            default(reference, "apiVersion", "v1");
        }
    }
}

/// Whether an image reference means whatever is newest: no digest, and no tag or `latest`.
fn moves(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for key in ["secret", "configMap", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(key).and_then(Value::as_object_mut) {
            default(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        default(path, "type", "");
    }
    if let Some(source) = volume.get_mut("downwardAPI").and_then(Value::as_object_mut) {
        downward(source);
    }
    let Some(projected) = volume.get_mut("projected").and_then(Value::as_object_mut) else { return };
    for source in each(projected, "sources") {
        if let Some(token) = source.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
            // kubectl describe relies on this one too.
            default(token, "expirationSeconds", 3600);
        }
        if let Some(files) = source.get_mut("downwardAPI").and_then(Value::as_object_mut) {
            downward(files);
        }
    }
}

/// `Guaranteed` when every container has cpu and memory limits equal to its requests, `BestEffort` when none has any.
fn qos(pod: &Value) -> &'static str {
    let empty = Vec::new();
    let containers = ["spec.containers", "spec.initContainers"]
        .into_iter()
        .flat_map(|path| meta::at(pod, path).and_then(Value::as_array).unwrap_or(&empty));
    let (mut any, mut all) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let limit = meta::at(container, "resources.limits").and_then(|map| map.get(resource));
            let request = meta::at(container, "resources.requests").and_then(|map| map.get(resource));
            any |= limit.is_some() || request.is_some();
            all &= limit.is_some() && limit == request;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_path;

    #[test]
    fn what_clients_dereference_is_there() {
        let kind = by_path("", "v1", "pods").unwrap();
        let field = json!({"path": "name", "fieldRef": {"fieldPath": "metadata.name"}});
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x:1",
            "livenessProbe": {"grpc": {"port": 1}}, "lifecycle": {"preStop": {"httpGet": {"port": 80}}}}],
            "volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t"}}, {"downwardAPI": {"items": [field]}}]}}]}});
        apply(kind, &mut pod);
        let at = |path: &str| pod.pointer(path).cloned().unwrap_or_default();
        assert_eq!(at("/spec/containers/0/livenessProbe/grpc/service"), "");
        let get = json!({"port": 80, "path": "/", "scheme": "HTTP"});
        assert_eq!(at("/spec/containers/0/lifecycle/preStop/httpGet"), get);
        let sources = "/spec/volumes/0/projected/sources";
        assert_eq!(at(&format!("{sources}/0/serviceAccountToken/expirationSeconds")), 3600);
        assert_eq!(at(&format!("{sources}/1/downwardAPI/items/0/fieldRef/apiVersion")), "v1");
    }

    #[test]
    fn a_small_pod_gets_what_the_node_needs() {
        let kind = by_path("", "v1", "pods").unwrap();
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"hostNetwork": true, "containers": [
            {"name": "c", "image": "registry:5000/x", "ports": [{"containerPort": 80}],
             "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}], "volumes": [{"name": "v"}]}});
        apply(kind, &mut pod);
        initial_status(kind, &mut pod);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"][0], json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}));
        assert_eq!(pod["spec"]["restartPolicy"], "Always");
        assert_eq!(pod["spec"]["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"}));
        let again = pod.clone();
        apply(kind, &mut pod);
        assert_eq!(pod, again, "defaulting twice changes nothing");
        assert!(!moves("a/b:1") && moves("a:5/b") && !moves("a@sha256:0"));
        let mut secret = json!({"stringData": {"a": "b"}});
        apply(by_path("", "v1", "secrets").unwrap(), &mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "Yg=="}}));
    }
}
