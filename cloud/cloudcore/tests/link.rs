//! The link: registration, pods, delivery, restarts, devices, as a scripted edge sees them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Cloud, Device, Edge, command, pod, token};
use serde_json::{Value, json};
use wire::Message;

const POD: &str = "/api/v1/namespaces/default/pods/web";

async fn joined(cloud: &Cloud, dir: &std::path::Path, node: &str) -> (Device, Edge) {
    let device = cloud.join(node, &token(dir, &[])).await.unwrap();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    (device, edge)
}

fn linux() -> Value {
    json!({"kubernetes.io/os": "linux"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_whole_life() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (_, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    assert!(edge.cloud_id.ends_with(".1"), "{}", edge.cloud_id);
    // A v1.23 edge knows its own Node only from this.
    let node = edge.pushed("update", "null/node/edge-1").await;
    assert_eq!(
        (node.route.source.as_str(), node.header.resourceversion.is_empty()),
        ("edgecontroller", false)
    );

    cloud.create("/api/v1/namespaces/default/pods", pod("web", linux())).await;
    let push = edge.pushed("insert", "default/pod/web").await;
    let object: Value = push.content_as().unwrap();
    assert_eq!(
        (&object["kind"], &object["apiVersion"], &object["spec"]["nodeName"]),
        (&json!("Pod"), &json!("v1"), &json!("edge-1"))
    );
    assert_eq!(object["metadata"]["resourceVersion"], push.header.resourceversion.as_str());
    let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();

    let patch = json!({"metadata": {"uid": uid}, "status": {"phase": "Running", "podIP": "10.88.0.2",
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "image": "i", "imageID": "i", "state": {"running": {}}}]}});
    let object = edge.ask_object("patch", "default/podpatch/web", &Value::from(patch.to_string())).await;
    assert_eq!(object["status"]["phase"], "Running");
    cloud.until(POD, |pod| (pod["status"]["podIP"] == "10.88.0.2").then_some(())).await;

    // kubectl delete: first the wish, then, when the node has stopped it, the end.
    cloud.call("DELETE", POD, None).await.unwrap();
    let push: Value = edge.pushed("update", "default/pod/web").await.content_as().unwrap();
    assert!(push["metadata"]["deletionTimestamp"].is_string());
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "another"}});
    assert!(edge.ask("delete", "default/pod/web", &options).await.content_is_ok());
    assert!(cloud.get(POD).await.is_some(), "another pod's uid deletes nothing");
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    assert!(edge.ask("delete", "default/pod/web", &options).await.content_is_ok());
    cloud.until_gone(POD).await;
    let gone: Value = edge.pushed("delete", "default/pod/web").await.content_as().unwrap();
    assert_eq!(gone["metadata"], json!({"name": "web", "namespace": "default", "uid": uid}));
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_ack_brings_the_same_push_again() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (_, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    edge.drain().await;
    edge.acks = false;
    let mut web = pod("web", linux());
    // Else the first push would be the certificate that comes with the account's volume.
    web["spec"]["automountServiceAccountToken"] = json!(false);
    cloud.create("/api/v1/namespaces/default/pods", web).await;
    let first = edge.pushed("insert", "default/pod/web").await;
    let sent = tokio::time::Instant::now();
    let again = edge.pushed("insert", "default/pod/web").await;
    assert_eq!(again.header.msg_id, first.header.msg_id);
    assert!(sent.elapsed().as_millis() > 4_000, "after {:?}", sent.elapsed());
    edge.send(&again.ack(1)).await;
    edge.acks = true;
    cloud.call("PATCH", POD, Some(json!({"metadata": {"labels": {"a": "b"}}}))).await.unwrap();
    edge.pushed("update", "default/pod/web").await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_cloudcore_sends_what_the_node_lacks_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    for name in ["web", "stays", "goes"] {
        cloud.create("/api/v1/namespaces/default/pods", pod(name, linux())).await;
        edge.pushed("insert", &format!("default/pod/{name}")).await;
    }
    edge.drain().await;
    drop(edge);
    cloud.call("DELETE", "/api/v1/namespaces/default/pods/goes?gracePeriodSeconds=0", None).await.unwrap();
    cloud.until_gone("/api/v1/namespaces/default/pods/goes").await;
    cloud.call("PATCH", POD, Some(json!({"metadata": {"labels": {"a": "b"}}}))).await.unwrap();
    cloud.stop().await;

    let cloud = Cloud::start(dir.path()).await;
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.pushed("delete", "default/pod/goes").await;
    let web: Value = edge.pushed("update", "default/pod/web").await.content_as().unwrap();
    assert_eq!(web["metadata"]["labels"]["a"], "b");
    let more = edge.drain().await;
    assert!(!more.iter().any(|line| line.contains("pod/")), "{more:?}");
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_data_gets_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let mut device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    device.store_id = "first".into();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    cloud.create("/api/v1/namespaces/default/pods", pod("web", linux())).await;
    edge.pushed("insert", "default/pod/web").await;
    edge.drain().await;

    let mut edge = cloud.connect(&device).await.unwrap();
    let more = edge.drain().await;
    assert!(!more.iter().any(|line| line.contains("pod/web")), "the same store: {more:?}");
    device.store_id = "second".into();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.pushed("insert", "default/pod/web").await;

    // Re-imaged: a new certificate under the same name.
    let reset = command(dir.path(), &["node", "reset", "edge-1"]);
    assert!(reset.status.success());
    edge.keepalive().await;
    edge.ended().await;
    let device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.pushed("insert", "default/pod/web").await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_connection_of_a_node_is_its_link() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, first) = joined(&cloud, dir.path(), "edge-1").await;
    let mut second = cloud.connect(&device).await.unwrap();
    first.ended().await;
    cloud.create("/api/v1/namespaces/default/pods", pod("web", linux())).await;
    second.pushed("insert", "default/pod/web").await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_link_is_dropped_and_traffic_is_no_keepalive() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start_with(dir.path(), "modules: {cloudHub: {keepaliveInterval: 2}}").await;
    let (_, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    let started = tokio::time::Instant::now();
    let mut next = started;
    while started.elapsed().as_millis() < 3_000 {
        next += std::time::Duration::from_millis(500);
        tokio::time::sleep_until(next).await;
        edge.keepalive().await;
    }
    edge.drain().await;
    let quiet = tokio::time::Instant::now();
    edge.ended().await;
    assert!(quiet.elapsed().as_millis() > 1_000, "{:?}", quiet.elapsed());
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cannot_pass_for_another_or_touch_what_is_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    let false_name = Device {
        node: "edge-2".into(),
        ca: device.ca.clone(),
        certificate: device.certificate.clone(),
        key: device.key.clone(),
        store_id: String::new(),
    };
    let (status, text) = cloud.connect(&false_name).await.err().unwrap();
    assert!(status == 403 && text.contains("edge-2") && text.contains("edge-1"), "{status} {text}");

    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "others"}, "stringData": {"a": "b"}});
    cloud.create("/api/v1/namespaces/default/secrets", secret).await;
    let answer: String = edge.ask("query", "default/secret/others", &Value::Null).await.content_as().unwrap();
    assert!(answer.contains("secret default/others is not used by a pod on node edge-1"), "{answer}");

    let mut foreign = pod("web", json!({}));
    foreign["spec"]["nodeName"] = "edge-3".into();
    let foreign = cloud.create("/api/v1/namespaces/default/pods", foreign).await;
    let patch = json!({"metadata": {"uid": foreign["metadata"]["uid"]}, "status": {"phase": "Failed"}});
    let answer: Value = edge
        .ask("patch", "default/podpatch/web", &Value::from(patch.to_string()))
        .await
        .content_as()
        .unwrap();
    assert_eq!(answer["Err"]["ErrStatus"]["reason"], "Forbidden");
    let options = json!({"preconditions": {"uid": foreign["metadata"]["uid"]}});
    edge.ask("delete", "default/pod/web", &options).await;
    assert!(cloud.get(POD).await.is_some());
    let answer: Value =
        edge.ask("update", "null/node/edge-3", &json!({"metadata": {}})).await.content_as().unwrap();
    assert_eq!(answer["Err"]["ErrStatus"]["reason"], "Forbidden");
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_maps_and_tokens_come_with_the_pods_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (_, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    let mut web = pod("web", linux());
    web["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "cfg"}}]);
    cloud.create("/api/v1/namespaces/default/pods", web).await;
    edge.pushed("insert", "default/pod/web").await;
    let missing: String =
        edge.ask("query", "default/configmap/cfg", &Value::Null).await.content_as().unwrap();
    assert!(missing.contains("\"cfg\" not found"), "{missing}");

    let made =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cfg"}, "data": {"a": "1"}});
    cloud.create("/api/v1/namespaces/default/configmaps", made).await;
    edge.pushed("insert", "default/configmap/cfg").await;
    let answer = edge.ask("query", "default/configmap/cfg", &Value::Null).await;
    let object: Value = answer.content_as().unwrap();
    assert_eq!((&object["kind"], &object["data"]["a"]), (&json!("ConfigMap"), &json!("1")));
    assert_eq!(object["metadata"]["resourceVersion"], answer.header.resourceversion.as_str());
    let path = "/api/v1/namespaces/default/configmaps/cfg";
    cloud.call("PATCH", path, Some(json!({"data": {"a": "2"}}))).await.unwrap();
    let object: Value = edge.pushed("update", "default/configmap/cfg").await.content_as().unwrap();
    assert_eq!(object["data"]["a"], "2");
    cloud.call("DELETE", path, None).await.unwrap();
    edge.pushed("delete", "default/configmap/cfg").await;
    let uid = cloud.get(POD).await.unwrap()["metadata"]["uid"].clone();
    let bound = json!({"metadata": {"creationTimestamp": null}, "spec": {"audiences": null, "expirationSeconds": 3607,
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": uid}}, "status": {"token": "", "expirationTimestamp": null}});
    let token: Value =
        edge.ask("query", "default/serviceaccounttoken/default", &bound).await.content_as().unwrap();
    assert_eq!(token["status"]["token"].as_str().map(|token| token.split('.').count()), Some(3), "{token}");
    let refused: String = edge
        .ask("query", "default/serviceaccounttoken/default", &json!({"spec": {}}))
        .await
        .content_as()
        .unwrap();
    assert!(refused.contains("must be bound to a pod of node edge-1"), "{refused}");
    cloud.stop().await;
}

fn device(node: &str) -> (Value, Value) {
    let api = "devices.kubeedge.io/v1beta1";
    let model = json!({"apiVersion": api, "kind": "DeviceModel", "metadata": {"name": "thermometer"},
        "spec": {"protocol": "serial", "properties": [{"name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly"}]}});
    let device = json!({"apiVersion": api, "kind": "Device", "metadata": {"name": "oven"},
        "spec": {"deviceModelRef": {"name": "thermometer"}, "nodeName": node, "protocol": {"protocolName": "serial"},
                 "properties": [{"name": "temperature", "reportToCloud": true}]}});
    (model, device)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_devices_reports_become_its_status_from_the_first_one_on() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (joined_device, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    let (model, object) = device("edge-1");
    let base = "/apis/devices.kubeedge.io/v1beta1/namespaces/default";
    cloud.create(&format!("{base}/devicemodels"), model).await;
    cloud.create(&format!("{base}/devices"), object).await;
    let membership = edge.receive("membership", |m| m.route.resource == "membership").await;
    assert_eq!(
        (membership.route.source.as_str(), membership.route.group.as_str()),
        ("devicecontroller", "twin")
    );
    let content: Value = membership.content_as().unwrap();
    assert_eq!(content["added_devices"][0]["id"], "default/oven");
    edge.pushed("insert", "default/devicemodel/thermometer").await;
    let push = edge.pushed("insert", "default/device/oven").await;
    assert_eq!(push.route.source, "devicecontroller");

    let report = |value: &str, at: i64| {
        let twin = json!({"temperature": {"actual": {"value": value, "metadata": {"timestamp": at}}, "optional": false,
                          "metadata": {"type": "float"}, "actual_version": {"cloud": 0, "edge": 1}}});
        let content = json!({"event_id": "e", "timestamp": at, "twin": twin});
        Message::new(at, "twin", "resource", "update", "device/default/oven/twin/edge_updated")
            .with_content(&content)
    };
    let status = format!("{base}/devicestatuses/oven");
    for (value, at) in [("41.5", 7), ("42", 8)] {
        let message = report(value, at);
        edge.send(&message).await;
        let id = message.header.msg_id;
        let answer = edge.receive("the answer to a report", |m| m.header.parent_msg_id == id).await;
        assert!(
            answer.content_is_ok()
                && answer.route.resource == "twin"
                && answer.route.source == "devicecontroller"
        );
        let object = cloud.get(&status).await.expect("stored before it was answered");
        let reported = json!({"value": value, "metadata": {"timestamp": at.to_string(), "type": "float"}});
        assert_eq!(object["status"]["twins"], json!([{"propertyName": "temperature", "reported": reported}]));
        assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "Device");
    }
    let state = json!({"event_id": "e", "timestamp": 9, "device": {"name": "oven", "state": "online", "lastOnlineTime": "2026-01-01T00:00:00Z"}});
    let message = Message::new(9, "twin", "resource", "update", "device/default/oven/state/update")
        .with_content(&state.to_string());
    edge.send(&message).await;
    let id = message.header.msg_id;
    edge.receive("the answer to a state", |m| m.header.parent_msg_id == id).await;
    let object = cloud.get(&status).await.unwrap();
    assert_eq!(
        (&object["status"]["state"], &object["status"]["twins"][0]["reported"]["value"]),
        (&json!("online"), &json!("42"))
    );

    // Membership is not acknowledged: every link begins with it.
    let mut edge = cloud.connect(&joined_device).await.unwrap();
    edge.receive("membership", |m| m.route.resource == "membership").await;
    // A report of somebody else's device is answered and changes nothing.
    let (_, mut stranger) = joined(&cloud, dir.path(), "edge-2").await;
    let message = report("99", 10);
    stranger.send(&message).await;
    let id = message.header.msg_id;
    stranger.receive("the answer to a report", |m| m.header.parent_msg_id == id).await;
    assert_eq!(cloud.get(&status).await.unwrap()["status"]["twins"][0]["reported"]["value"], "42");
    cloud.call("DELETE", &format!("{base}/devices/oven"), None).await.unwrap();
    let gone: Value = edge.pushed("delete", "default/device/oven").await.content_as().unwrap();
    assert_eq!(gone["spec"]["protocol"]["protocolName"], "serial", "an edge finds the mapper by it");
    edge.pushed("delete", "default/devicemodel/thermometer").await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fits_nowhere_says_why_until_a_node_fits() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    cloud.create("/api/v1/namespaces/default/pods", pod("web", json!({"hall": "7"}))).await;
    let message = |pod: &Value| {
        let condition =
            pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "PodScheduled")?;
        (condition["status"] == "False" && condition["reason"] == "Unschedulable")
            .then(|| condition["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(cloud.until(POD, message).await, "no nodes available to schedule pods");
    let (_, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    let expected = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
    cloud.until(POD, |pod| (message(pod)? == expected).then_some(())).await;
    cloud
        .until("/api/v1/namespaces/default/events", |list| {
            let found = list["items"]
                .as_array()?
                .iter()
                .any(|event| event["reason"] == "FailedScheduling" && event["message"] == expected);
            found.then_some(())
        })
        .await;
    cloud
        .call("PATCH", "/api/v1/nodes/edge-1", Some(json!({"metadata": {"labels": {"hall": "7"}}})))
        .await
        .unwrap();
    edge.pushed("insert", "default/pod/web").await;
    cloud
        .until(POD, |pod| {
            let condition =
                pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "PodScheduled")?;
            (condition["status"] == "True").then_some(())
        })
        .await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_shown_as_unknown_and_keeps_its_pods() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start_with(dir.path(), "kinglet: {leaseGraceSeconds: 2}").await;
    let (device, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    cloud.create("/api/v1/namespaces/default/pods", pod("web", linux())).await;
    edge.pushed("insert", "default/pod/web").await;
    drop(edge);
    let condition = |name: &'static str, status: &'static str| {
        move |node: &Value| {
            let conditions = node["status"]["conditions"].as_array()?;
            let found = conditions.iter().find(|c| c["type"] == name && c["status"] == status)?;
            Some(found["message"].as_str().unwrap_or_default().to_owned())
        }
    };
    let node = "/api/v1/nodes/edge-1";
    let message = cloud.until(node, condition("Ready", "Unknown")).await;
    assert!(message.contains("last at 2026-01-01T00:00:00.000001Z"), "{message}");
    let message = cloud.until(node, condition("Autonomous", "True")).await;
    assert!(message.contains("not evicted"), "{message}");
    assert!(cloud.get(POD).await.is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_null()));

    let mut edge = cloud.connect(&device).await.unwrap();
    edge.renew("2026-01-01T00:01:00.000000Z").await;
    edge.status("True").await;
    cloud.until(node, condition("Autonomous", "False")).await;
    cloud.until(node, condition("Ready", "True")).await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_node_is_disconnected_and_registers_again() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    edge.drain().await;
    cloud.call("DELETE", "/api/v1/nodes/edge-1", None).await.unwrap();
    edge.ended().await;
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    cloud.until("/api/v1/nodes/edge-1", |_| Some(())).await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_end_nothing_and_large_ones_do() {
    use tokio_tungstenite::tungstenite::protocol::Message as Frame;
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (_, mut edge) = joined(&cloud, dir.path(), "edge-1").await;
    for bad in [
        "",
        "{",
        "[1]",
        "{\"header\":{},\"route\":{}}",
        "{\"header\":{},\"route\":{\"operation\":\"query\",\"resource\":\"a/b\"}}",
    ] {
        edge.send_frame(Frame::text(bad)).await;
    }
    edge.send_frame(Frame::binary(vec![0xff; 100])).await;
    let answer: Value =
        edge.ask("insert", "null/node/edge-1", &json!("not a node")).await.content_as().unwrap();
    assert_eq!(answer["Err"]["ErrStatus"]["code"], 400);
    let answer: String = edge.ask("query", "default/unheardof/x", &Value::Null).await.content_as().unwrap();
    assert!(answer.contains("does not serve operation query on default/unheardof/x"), "{answer}");
    let huge = "x".repeat(wire::limits::MESSAGE_BYTES_MAX + 1);
    // The link may be gone before all of it is written.
    if edge.try_send(Frame::text(huge)).await {
        edge.ended().await;
    }
    cloud.stop().await;
}
