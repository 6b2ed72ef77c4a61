//! What lies in cloud/deploy: the kinds are what the schema table gives, the plain manifests are what the chart gives, and the
//! configuration in them is one that cloudcore reads.
//!
//! `UPDATE=1 cargo test -p cloudcore --test deploy` writes the generated files anew. A real API server takes them in
//! `cargo xtask test --suite interop`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use cloudcore::config::Config;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The file is what it should be, or with UPDATE=1 it becomes so.
fn generated(path: &Path, text: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, text).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let again = "UPDATE=1 cargo test -p cloudcore --test deploy";
    assert!(found == text, "{} is not what is generated; run {again}", path.display());
}

/// The chart's templates use little of Helm, so that this is all of it: values, and values as JSON.
fn render(template: &str, values: &Value) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (expression, after) = after.split_once("}}").expect("an expression ends");
        text += before;
        let expression = expression.trim();
        let (path, as_json) = match expression.split_once('|') {
            Some((path, filter)) => {
                assert_eq!(filter.trim(), "toJson", "a filter that this test does not know: {expression}");
                (path.trim(), true)
            }
            None => (expression, false),
        };
        let path = path.strip_prefix(".Values.").unwrap_or_else(|| panic!("not a value: {expression}"));
        let value = path.split('.').fold(values, |value, key| &value[key]);
        assert!(!value.is_null(), "values.yaml has no {path}");
        text += &match value {
            Value::String(plain) if !as_json => plain.clone(),
            other => other.to_string(),
        };
        rest = after;
    }
    text + rest
}

const TEMPLATES: [&str; 6] =
    ["serviceaccount", "rbac", "configmap", "deployment", "service", "poddisruptionbudget"];

fn rendered(values: &Value) -> Vec<String> {
    let folder = deploy().join("helm/kinglet/templates");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".yaml").map(str::to_owned))
        .collect();
    names.sort();
    let mut known = TEMPLATES.map(str::to_owned).to_vec();
    known.sort();
    assert_eq!(names, known, "a template that nobody checks");
    TEMPLATES
        .iter()
        .map(|name| std::fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap())
        .map(|template| render(&template, values))
        .collect()
}

fn values() -> Value {
    let text = std::fs::read_to_string(deploy().join("helm/kinglet/values.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    let parts = text.split("\n---\n").map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{error}\n{part}"))).collect()
}

#[test]
fn the_kinds_are_what_the_schema_table_gives() {
    let text = cloudcore::admin::crds();
    generated(&deploy().join("crds/kinglet.yaml"), &text);
    generated(&deploy().join("helm/kinglet/crds/kinglet.yaml"), &text);
    let names: Vec<Value> = documents(&text).iter().map(|one| one["metadata"]["name"].clone()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
}

#[test]
fn the_plain_manifests_are_the_chart_with_its_own_values() {
    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: kubeedge\n";
    let head = "# Generated from cloud/deploy/helm/kinglet with its own values. Set advertiseAddress, then kubectl apply -f this and\n# cloud/deploy/crds/kinglet.yaml; docs/kubernetes.md says more.\n";
    let text = format!("{head}{NAMESPACE}---\n{}", rendered(&values()).join("---\n"));
    generated(&deploy().join("kubernetes/kinglet.yaml"), &text);
    let mut kinds: Vec<String> =
        documents(&text).iter().map(|one| one["kind"].as_str().unwrap().to_owned()).collect();
    kinds.dedup();
    let expected = [
        "Namespace",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "Role",
        "RoleBinding",
        "ConfigMap",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
    ];
    assert_eq!(kinds, expected);
}

/// As the embedded API would take it, strictly.
fn fits(kind: &kapi::Kind, mut object: Value) {
    let mut findings = kapi::decode::Findings::default();
    kapi::decode::conform(kind, &mut object, &mut findings).unwrap();
    assert_eq!(findings.texts, Vec::<String>::new(), "{}", kind.kind);
    let causes = kapi::validate::object(kind, &object);
    assert!(causes.is_empty(), "{}: {causes:?}", kind.kind);
}

#[test]
fn its_objects_fit_the_schema_where_the_table_has_their_kind() {
    let mut checked = Vec::new();
    for object in rendered(&values()).iter().flat_map(|text| documents(text)) {
        let (version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        if let Some(entry) = kapi::kinds::by_name(version, kind) {
            fits(entry, object.clone());
            checked.push(kind.to_owned());
        }
        if kind == "Deployment" {
            // A pod of it is a pod.
            let mut pod = object["spec"]["template"].clone();
            pod["apiVersion"] = "v1".into();
            pod["kind"] = "Pod".into();
            pod["metadata"]["name"] = "cloudcore".into();
            let entry = kapi::kinds::by_name("v1", "Pod").unwrap();
            fits(entry, pod);
            checked.push("Pod".into());
        }
    }
    assert_eq!(checked, ["ServiceAccount", "ConfigMap", "Pod"]);
}

#[test]
fn its_configuration_is_read_and_other_values_reach_it() {
    let mut values = values();
    values["advertiseAddress"] = serde_json::json!(["192.0.2.7", "192.0.2.8"]);
    values["acceptMissing"] = true.into();
    values["nodeLimit"] = 77.into();
    let all: Vec<Value> = rendered(&values).iter().flat_map(|text| documents(text)).collect();
    let config = all.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    let text = config["data"]["cloudcore.yaml"].as_str().unwrap();
    let loaded = Config::parse("cloudcore.yaml".as_ref(), text).unwrap();
    assert_eq!(loaded.unknown, []);
    assert_eq!(loaded.config.modules.cloud_hub.advertise_address, ["192.0.2.7", "192.0.2.8"]);
    assert_eq!(
        (loaded.config.modules.cloud_hub.node_limit, loaded.config.kinglet.accept_missing),
        (77, true)
    );
}
