//! What pods get from their service account, and claims on their way from the API to a node, as a scripted edge sees them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use base64::Engine as _;
use common::{Cloud, Edge, pod, token};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

async fn joined(cloud: &Cloud, dir: &std::path::Path, node: &str) -> Edge {
    let device = cloud.join(node, &token(dir, &[])).await.unwrap();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    edge
}

fn linux() -> Value {
    json!({"kubernetes.io/os": "linux"})
}

fn token_request(pod: &str, uid: &Value, seconds: i64, audiences: &[&str]) -> Value {
    json!({"spec": {"audiences": audiences, "expirationSeconds": seconds,
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}}})
}

fn claims_of(answer: &Value) -> Value {
    let token = answer["status"]["token"].as_str().unwrap_or_else(|| panic!("no token in {answer}"));
    let payload = token.split('.').nth(1).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_what_their_service_account_gives_them() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let mut edge = joined(&cloud, dir.path(), "edge-1").await;
    let made = cloud.create(PODS, pod("web", linux())).await;
    let spec = &made["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["serviceAccount"]),
        (&json!("default"), &json!("default"))
    );
    let name = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(name.starts_with("kube-api-access-") && name.len() == "kube-api-access-".len() + 5, "{name}");
    let sources = &spec["volumes"][0]["projected"]["sources"];
    assert_eq!(sources[0]["serviceAccountToken"], json!({"expirationSeconds": 3607, "path": "token"}));
    assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
    assert_eq!(sources[2]["downwardAPI"]["items"][0]["path"], "namespace");
    let mount =
        json!({"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    assert_eq!(spec["containers"][0]["volumeMounts"][0], mount);
    // The node has the certificate before the pod, and may ask for it.
    let ca: Value = edge.pushed("insert", "default/configmap/kube-root-ca.crt").await.content_as().unwrap();
    assert!(ca["data"]["ca.crt"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    edge.pushed("insert", "default/pod/web").await;

    let mut alone = pod("alone", linux());
    alone["spec"]["automountServiceAccountToken"] = json!(false);
    assert_eq!(cloud.create(PODS, alone).await["spec"]["volumes"], Value::Null);
    let mut stranger = pod("stranger", linux());
    stranger["spec"]["serviceAccountName"] = json!("nobody");
    let refused = cloud.call("POST", PODS, Some(stranger)).await.unwrap_err();
    let words = "pods \"stranger\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found";
    assert_eq!((&refused["code"], &refused["message"]), (&json!(403), &json!(words)));

    // A namespace of a moment ago: its account is waited for.
    cloud.create("/api/v1/namespaces", json!({"metadata": {"name": "fresh"}})).await;
    let mut first = pod("first", linux());
    first["metadata"]["namespace"] = json!("fresh");
    let fresh = cloud.create("/api/v1/namespaces/fresh/pods", first).await;
    assert_eq!(fresh["spec"]["serviceAccountName"], "default");

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({"metadata": {"name": "puller"}, "automountServiceAccountToken": false, "imagePullSecrets": [{"name": "regcred"}]});
    cloud.create(accounts, account).await;
    let mut pulls = pod("pulls", linux());
    pulls["spec"]["serviceAccountName"] = json!("puller");
    let pulls = cloud.create(PODS, pulls).await;
    assert_eq!(pulls["spec"]["imagePullSecrets"], json!([{"name": "regcred"}]));
    assert_eq!(pulls["spec"]["volumes"], Value::Null, "the account says no");
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_of_the_pods_account_and_names_pod_and_node() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let mut edge = joined(&cloud, dir.path(), "edge-1").await;
    cloud.create("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "admin"}})).await;
    let made = cloud.create(PODS, pod("web", linux())).await;
    edge.pushed("insert", "default/pod/web").await;
    let uid = &made["metadata"]["uid"];
    let own = "default/serviceaccounttoken/default";

    let answer: Value =
        edge.ask("query", own, &token_request("web", uid, 3607, &[])).await.content_as().unwrap();
    let claims = claims_of(&answer);
    let private = &claims["kubernetes.io"];
    assert_eq!((&private["pod"]["uid"], &private["node"]["name"]), (uid, &json!("edge-1")), "{claims:#}");
    assert_eq!(claims["sub"], "system:serviceaccount:default:default");
    let issued = claims["iat"].as_i64().unwrap();
    assert_eq!(private["warnafter"], issued + 3607);
    assert!(
        claims["exp"].as_i64().unwrap() > issued + 300 * 86_400,
        "good for long, to be renewed within the hour"
    );

    let vault: Value =
        edge.ask("query", own, &token_request("web", uid, 7200, &["vault"])).await.content_as().unwrap();
    let claims = claims_of(&vault);
    assert_eq!(claims["aud"], json!(["vault"]));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 7200);

    for (resource, request, words) in [
        (
            "default/serviceaccounttoken/admin",
            token_request("web", uid, 3607, &[]),
            "runs as service account default, not as admin",
        ),
        (own, token_request("web", &json!("another"), 3607, &[]), "is another pod than another"),
        (own, token_request("web", uid, 60, &[]), "may not specify a duration less than 10 minutes"),
        (own, token_request("web", uid, 1 << 33, &[]), "may not specify a duration larger than 2^32 seconds"),
        (own, token_request("absent", uid, 3607, &[]), "not found"),
    ] {
        let refused: String = edge.ask("query", resource, &request).await.content_as().unwrap();
        assert!(refused.contains(words), "{refused}");
    }
    // The API itself holds to the same, whoever asks.
    let path = "/api/v1/namespaces/default/serviceaccounts/admin/token";
    let refused = cloud.call("POST", path, Some(token_request("web", uid, 3607, &[]))).await.unwrap_err();
    assert!(refused["message"].as_str().unwrap().contains("different serviceaccount name"), "{refused}");
    let node = json!({"spec": {"boundObjectRef": {"kind": "Node", "apiVersion": "v1", "name": "edge-1"}}});
    let answer = cloud.call("POST", path, Some(node)).await.unwrap();
    assert_eq!(claims_of(&answer)["kubernetes.io"]["node"]["name"], "edge-1");
    let other = json!({"spec": {"boundObjectRef": {"kind": "ConfigMap", "apiVersion": "v1", "name": "x"}}});
    assert!(cloud.call("POST", path, Some(other)).await.is_err());
    cloud.stop().await;
}

fn claim(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "resources": {"requests": {"storage": "1Gi"}}}})
}

fn volume(name: &str, os: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "local", "local": {"path": "/data"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": [os]}]}]}}}})
}

fn with_claim(name: &str, claim: &str) -> Value {
    let mut pod = pod(name, json!({}));
    pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    pod
}

fn unschedulable(pod: &Value) -> Option<String> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|c| c["type"] == "PodScheduled" && c["status"] == "False")?;
    condition["message"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_bound_on_the_node_of_its_first_pod_and_read_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let mut edge = joined(&cloud, dir.path(), "edge-1").await;
    let class = json!({"metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
    cloud.create("/apis/storage.k8s.io/v1/storageclasses", class).await;
    cloud.create(PODS, with_claim("web", "data")).await;
    let words = "0/1 nodes are available: persistentvolumeclaim \"data\" not found.";
    cloud.until(&format!("{PODS}/web"), |pod| (unschedulable(pod)? == words).then_some(())).await;

    cloud.create(CLAIMS, claim("data")).await;
    cloud.create("/api/v1/persistentvolumes", volume("elsewhere", "plan9")).await;
    let words = "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.";
    cloud.until(&format!("{PODS}/web"), |pod| (unschedulable(pod)? == words).then_some(())).await;
    let pending = cloud.get(&format!("{CLAIMS}/data")).await.unwrap();
    assert_eq!(pending["status"]["phase"], "Pending");
    let foreign: String =
        edge.ask("query", "default/persistentvolumeclaim/data", &Value::Null).await.content_as().unwrap();
    assert!(foreign.contains("is not used by a pod on node edge-1"), "{foreign}");

    cloud.create("/api/v1/persistentvolumes", volume("disk", "linux")).await;
    cloud.until(&format!("{PODS}/web"), |pod| (pod["spec"]["nodeName"] == "edge-1").then_some(())).await;
    let bound = cloud
        .until(&format!("{CLAIMS}/data"), |c| (c["status"]["phase"] == "Bound").then(|| c.clone()))
        .await;
    assert_eq!(
        (&bound["spec"]["volumeName"], &bound["status"]["capacity"]["storage"]),
        (&json!("disk"), &json!("2Gi"))
    );
    cloud.until("/api/v1/persistentvolumes/disk", |v| (v["status"]["phase"] == "Bound").then_some(())).await;
    cloud
        .until("/api/v1/persistentvolumes/elsewhere", |v| (v["status"]["phase"] == "Available").then_some(()))
        .await;

    // Volume and claim come before the pod, and are answered for.
    let pushed: Value = edge.pushed("insert", "null/persistentvolume/disk").await.content_as().unwrap();
    assert_eq!(
        (&pushed["kind"], &pushed["spec"]["local"]["path"]),
        (&json!("PersistentVolume"), &json!("/data"))
    );
    edge.pushed("insert", "default/persistentvolumeclaim/data").await;
    edge.pushed("insert", "default/pod/web").await;
    let answer: Value =
        edge.ask("query", "default/persistentvolumeclaim/data", &Value::Null).await.content_as().unwrap();
    assert_eq!(answer["spec"]["volumeName"], "disk");
    let answer: Value =
        edge.ask("query", "null/persistentvolume/disk", &Value::Null).await.content_as().unwrap();
    assert_eq!(answer["spec"]["claimRef"]["uid"], bound["metadata"]["uid"]);
    let foreign: String =
        edge.ask("query", "null/persistentvolume/elsewhere", &Value::Null).await.content_as().unwrap();
    assert!(foreign.contains("is not used by a pod on node edge-1"), "{foreign}");

    // In use: the claim stays until the pod is gone, then the volume is released and the node loses both.
    let deleting = cloud.call("DELETE", &format!("{CLAIMS}/data"), None).await.unwrap();
    assert!(deleting["metadata"]["deletionTimestamp"].is_string());
    let uid = cloud.get(&format!("{PODS}/web")).await.unwrap()["metadata"]["uid"].clone();
    cloud.call("DELETE", &format!("{PODS}/web"), None).await.unwrap();
    assert!(cloud.get(&format!("{CLAIMS}/data")).await.is_some(), "a pod on a node names it");
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    assert!(edge.ask("delete", "default/pod/web", &options).await.content_is_ok());
    cloud.until_gone(&format!("{CLAIMS}/data")).await;
    cloud
        .until("/api/v1/persistentvolumes/disk", |v| (v["status"]["phase"] == "Released").then_some(()))
        .await;
    edge.pushed("delete", "null/persistentvolume/disk").await;
    cloud.stop().await;
}
