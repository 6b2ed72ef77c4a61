use super::*;

fn daemon_set_with(spec: Value) -> Value {
    json!({"metadata": {"name": "proxy", "namespace": "kube-system"}, "spec": {"template": {"spec": spec}}})
}

fn terms(terms: Value) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
}

/// The object after the patch of a finding's command.
fn patched(object: &Value, finding: &Finding) -> Value {
    let text = finding.patch.split('\'').nth(1).unwrap();
    let mut object = object.clone();
    let patch: Value = serde_json::from_str(text).unwrap();
    object["spec"]["template"]["spec"]["affinity"] = patch["spec"]["template"]["spec"]["affinity"].clone();
    object
}

#[test]
fn a_daemon_set_that_reaches_edges_is_found_and_its_patch_keeps_it_away() {
    for spec in [
        json!({}),
        json!({"nodeSelector": {"kubernetes.io/os": "linux"}}),
        terms(
            json!([{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}]}]),
        ),
        // Two ways in; one of them is closed already.
        terms(json!([
            {"matchExpressions": [{"key": EDGE_LABEL, "operator": "DoesNotExist"}]},
            {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "Exists"}]}
        ])),
    ] {
        let object = daemon_set_with(spec.clone());
        let finding = daemon_set(&object, &[]).unwrap_or_else(|| panic!("not found: {spec}"));
        assert_eq!(daemon_set(&patched(&object, &finding), &[]), None, "{}", finding.patch);
    }
}

#[test]
fn a_daemon_set_that_stays_away_is_not_named() {
    for spec in [
        terms(json!([{"matchExpressions": [{"key": EDGE_LABEL, "operator": "DoesNotExist"}]}])),
        json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
        json!({"nodeSelector": {"node-role.kubernetes.io/control-plane": ""}}),
        terms(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}])),
        // No node matches an empty term.
        terms(json!([{}])),
    ] {
        assert_eq!(daemon_set(&daemon_set_with(spec.clone()), &[]), None, "{spec}");
    }
    let labelled = BTreeMap::from([("site".to_owned(), "hall-3".to_owned())]);
    let object = daemon_set_with(json!({"nodeSelector": {"site": "hall-3"}}));
    assert!(daemon_set(&object, &[labelled]).is_some(), "a label of an edge node that is there counts too");
}

#[test]
fn webhooks_that_change_pods_or_stand_before_nodes_are_found() {
    let with = |rule: Value, more: Value| {
        let mut webhook = json!({"name": "w", "rules": [rule]});
        webhook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": "c"}, "webhooks": [webhook]})
    };
    let pods = json!({"apiGroups": [""], "resources": ["pods"]});
    let leases = json!({"apiGroups": ["*"], "resources": ["*"]});
    let found = webhooks(&with(pods.clone(), json!({})), "mutatingwebhookconfiguration");
    assert!(found[0].patch.contains("/webhooks/0/namespaceSelector\""), "{}", found[0].patch);
    assert!(webhooks(&with(pods.clone(), json!({})), "validatingwebhookconfiguration").is_empty());
    assert_eq!(webhooks(&with(leases.clone(), json!({})), "validatingwebhookconfiguration").len(), 1);
    let ignored = json!({"failurePolicy": "Ignore"});
    assert!(webhooks(&with(leases, ignored), "validatingwebhookconfiguration").is_empty());
    let away = json!({"namespaceSelector": {"matchExpressions": [{"key": NAMESPACE_LABEL, "operator": "DoesNotExist"}]}});
    assert!(webhooks(&with(pods.clone(), away), "mutatingwebhookconfiguration").is_empty());
    let other = json!({"namespaceSelector": {"matchExpressions": [{"key": "x", "operator": "Exists"}]}});
    let found = webhooks(&with(pods, other), "mutatingwebhookconfiguration");
    assert!(found[0].patch.contains("matchExpressions/-"), "what is there stays: {}", found[0].patch);
}
