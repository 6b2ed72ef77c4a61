use std::sync::Arc;

use serde_json::json;
use store::sim::{Cut, SimDisk};

use super::*;
use crate::contract::testing::{FakeUplink, meta_conformance};

fn on(disk: &SimDisk) -> MetaStore {
    MetaStore::new(Store::open_with(Box::new(disk.clone()), Options::default()).unwrap(), "cloud-1")
}

fn push(operation: &str, resource: &str, uid: &str, version: &str) -> Message {
    let name = resource.rsplit('/').next().unwrap();
    Message::new(1, "edgecontroller", "resource", operation, resource)
        .with_content(&json!({"metadata": {"name": name, "uid": uid, "resourceVersion": version}}))
        .with_resource_version(version)
}

#[tokio::test]
async fn the_store_conforms() {
    meta_conformance(&on(&SimDisk::new())).await;
}

#[tokio::test]
async fn what_apply_returned_for_survives_a_power_cut() {
    let disk = SimDisk::new();
    let meta = on(&disk);
    meta.apply(&push("insert", "default/pod/web", "u1", "1")).await.unwrap();
    meta.apply(&push("insert", "null/node/edge-1", "n1", "2")).await.unwrap();
    meta.put_local("podstate", "u1", Bytes::from_static(b"incarnation"), true).await.unwrap();
    let after = disk.after_power_cut(Cut::LoseAll);
    drop(meta);

    let meta = on(&after);
    let pods = meta.list("pod");
    assert_eq!((pods.len(), pods[0].uid.as_str(), pods[0].resource_version.as_str()), (1, "u1", "1"));
    assert_eq!(meta.get(&Resource::new("null", "node", "edge-1")).unwrap().uid, "n1", "cluster scope");
    assert_eq!(meta.get_local("podstate", "u1").unwrap(), "incarnation");
    let again = meta.apply(&push("insert", "default/pod/web", "u1", "1")).await.unwrap();
    assert_eq!(again, Applied::Unchanged, "delivered again after the cut, applied once");
    let record = meta.store.get(&Key::new("pod", "default", "web")).unwrap();
    assert_eq!(&*record.upstream.as_ref().unwrap().id, "cloud-1");
}

#[tokio::test]
async fn without_syncs_the_same_test_would_fail() {
    let disk = SimDisk::new();
    disk.ignore_syncs(true, true);
    let meta = on(&disk);
    meta.apply(&push("insert", "default/pod/web", "u1", "1")).await.unwrap();
    let lost = match Store::open_with(Box::new(disk.after_power_cut(Cut::LoseAll)), Options::default()) {
        Ok(store) => MetaStore::new(store, "").list("pod").is_empty(),
        Err(_) => true,
    };
    assert!(lost, "a disk that ignores syncs loses the pod, so the test above can fail");
}

#[tokio::test]
async fn a_disk_that_is_full_is_an_error_and_changes_nothing() {
    let disk = SimDisk::new();
    let meta = on(&disk);
    meta.apply(&push("insert", "default/pod/web", "u1", "1")).await.unwrap();
    disk.limit_space(Some(0));
    let error = meta.apply(&push("update", "default/pod/web", "u1", "2")).await.unwrap_err();
    assert!(rt::error_chain(&error).contains("no space left"), "{error}");
    assert_eq!(meta.list("pod")[0].resource_version, "1");
}

#[tokio::test]
async fn malformed_objects_are_ignored_with_a_reason() {
    let meta = on(&SimDisk::new());
    let bare = |operation: &str, content: serde_json::Value| {
        Message::new(1, "edgecontroller", "resource", operation, "default/pod/web").with_content(&content)
    };
    for (message, why) in [
        (bare("insert", json!(null)), "not an object"),
        (bare("insert", json!({"metadata": {"name": "web"}})), "not an object"),
        (bare("insert", json!("text")), "not an object"),
        (bare("insert", json!({"metadata": 5})), "not an object"),
        (bare("delete", json!({"metadata": {"name": "web"}})), "deletes nothing"),
        (bare("patch", json!({"metadata": {"uid": "u"}})), "operation"),
        (push("insert", "membership", "u", "1"), "resource"),
    ] {
        match meta.apply(&message).await.unwrap() {
            Applied::Ignored(reason) => assert!(reason.contains(why), "{reason}"),
            other => panic!("{other:?} for {message:?}"),
        }
    }
    let in_a_string =
        bare("insert", json!(r#"{"metadata":{"name":"web","uid":"u1","resourceVersion":"5"}}"#));
    assert_eq!(meta.apply(&in_a_string).await.unwrap(), Applied::Stored);
    assert_eq!(meta.list("pod")[0].body, r#"{"metadata":{"name":"web","uid":"u1","resourceVersion":"5"}}"#);
}

#[tokio::test]
async fn a_missing_config_map_is_asked_for_and_each_refusal_is_told_apart() {
    let (store, uplink) = (Arc::new(on(&SimDisk::new())), FakeUplink::new());
    let front = Front::new(store.clone(), uplink.clone());
    let resource = Resource::new("default", "configmap", "c");
    let answer = |content: serde_json::Value| {
        Message::new(1, "edgecontroller", "resource", "response", "default/configmap/c")
            .with_content(&content)
    };
    assert!(matches!(front.fetch(&resource).await, Err(MetaError::Offline(_))), "no link");
    uplink.answer(answer(json!("configmaps \"c\" not found")));
    assert!(matches!(front.fetch(&resource).await, Err(MetaError::NotFound(_))));
    uplink.answer(answer(json!({"ErrStatus": {"reason": "NotFound", "message": "no"}})));
    assert!(matches!(front.fetch(&resource).await, Err(MetaError::NotFound(_))));
    uplink.answer(answer(json!({"ErrStatus": {"reason": "Forbidden", "message": "node may not"}})));
    assert_eq!(front.fetch(&resource).await.unwrap_err().to_string(), "the cloud answered: node may not");

    store.apply(&push("response", "default/configmap/c", "c1", "7")).await.unwrap();
    assert_eq!(front.fetch(&resource).await.unwrap().resource_version, "7");
    let asked = uplink.requests.lock().unwrap();
    assert_eq!(asked.len(), 4, "what is stored is not asked for");
    assert_eq!((asked[0].route.operation.as_str(), asked[0].content.get()), ("query", "null"));
}

#[test]
fn a_damaged_store_is_an_error_that_names_it() {
    let disk =
        SimDisk::with_file("store.log", b"this is not a log of ours at all, but long enough to be one");
    let error = Store::open_with(Box::new(disk), Options::default()).err().unwrap();
    assert!(error.to_string().contains("move it away"), "{error}");
}

#[test]
fn mutated_objects_do_not_panic() {
    let whole = push("insert", "default/pod/web", "u1", "1").encode().into_bytes();
    let mut random = wire::link::Backoff::new(u64::MAX / 2, u64::MAX / 2, 5);
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        let at = random.next_ms() as usize % bytes.len();
        bytes[at] = random.next_ms() as u8;
        fuzz_object(&bytes);
    }
}
