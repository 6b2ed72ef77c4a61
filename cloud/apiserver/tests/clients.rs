//! kube-rs against the API, in process: what controllers and other people's programs do.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use apiserver::{Api, Options};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

struct Fixture {
    api: Api,
    client: Client,
    drain: rt::Drain,
    dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::open(dir.path(), Options::default()).await.unwrap();
    let drain = rt::Drain::new();
    let (runner, stop) = (api.clone(), drain.clone());
    tokio::spawn(async move { runner.run(stop).await });
    let client = Client::new(api.client(), "default");
    Fixture { api, client, drain, dir }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.drain.start();
    }
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, node: Option<&str>) -> Pod {
    of(json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "nodeName": node, "containers": [{"name": "c", "image": "docker.io/kinglet/hello:1"}]}}))
}

/// Waits for a condition without a fixed pause; fails after ten seconds.
async fn eventually<F: AsyncFn() -> bool>(what: &str, condition: F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_pod_from_creation_to_the_nodes_last_word() {
    let f = fixture().await;
    let pods: kube::Api<Pod> = kube::Api::default_namespaced(f.client.clone());
    let made = pods.create(&PostParams::default(), &pod("web", Some("pi"))).await.unwrap();
    assert_eq!(made.spec.as_ref().unwrap().restart_policy.as_deref(), Some("Always"));
    assert_eq!(made.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
    assert_eq!(made.metadata.generation, Some(1));
    let again = pods.create(&PostParams::default(), &pod("web", None)).await.unwrap_err();
    assert_eq!(code(again), 409);

    // The main resource does not take a status, the status resource takes nothing else.
    let change = json!({"metadata": {"labels": {"x": "y"}}, "status": {"phase": "Running"}});
    let merged = pods.patch("web", &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    assert_eq!(merged.status.unwrap().phase.as_deref(), Some("Pending"));
    let change = json!({"status": {"phase": "Running"}, "spec": {"hostNetwork": true}});
    let status = pods.patch_status("web", &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    assert_eq!(status.status.unwrap().phase.as_deref(), Some("Running"));
    assert_eq!(status.spec.unwrap().host_network, None);
    assert_eq!(status.metadata.generation, Some(1), "neither counts as a change of what is wanted");

    // A bound pod ends in two steps.
    let deleted = pods.delete("web", &DeleteParams::default()).await.unwrap();
    let marked = deleted.left().expect("it goes on for its grace period");
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    let mut last = DeleteParams::default().grace_period(0);
    last.preconditions = Some(kube::api::Preconditions { uid: Some("other".into()), resource_version: None });
    assert_eq!(code(pods.delete("web", &last).await.unwrap_err()), 409);
    last.preconditions = Some(kube::api::Preconditions { uid: made.uid(), resource_version: None });
    assert!(pods.delete("web", &last).await.unwrap().is_right());
    assert_eq!(code(pods.get("web").await.unwrap_err()), 404);
    // One without a node has nobody to wait for.
    pods.create(&PostParams::default(), &pod("free", None)).await.unwrap();
    assert!(pods.delete("free", &DeleteParams::default()).await.unwrap().is_right());
}

fn code(error: kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("not an answer of the API: {other}"),
    }
}

#[tokio::test]
async fn a_stale_update_is_refused_and_one_without_a_version_is_not() {
    let f = fixture().await;
    let maps: kube::Api<ConfigMap> = kube::Api::default_namespaced(f.client.clone());
    let map: ConfigMap = of(json!({"metadata": {"name": "m"}, "data": {"a": "1"}}));
    let first = maps.create(&PostParams::default(), &map).await.unwrap();
    let mut second = first.clone();
    second.data.as_mut().unwrap().insert("a".into(), "2".into());
    let second = maps.replace("m", &PostParams::default(), &second).await.unwrap();
    assert_ne!(first.resource_version(), second.resource_version());
    let mut stale = first.clone();
    stale.data.as_mut().unwrap().insert("a".into(), "3".into());
    assert_eq!(code(maps.replace("m", &PostParams::default(), &stale).await.unwrap_err()), 409);
    stale.metadata.resource_version = None;
    maps.replace("m", &PostParams::default(), &stale).await.unwrap();
    let same = maps.replace("m", &PostParams::default(), &stale).await.unwrap();
    let read = maps.get("m").await.unwrap();
    assert_eq!(same.resource_version(), read.resource_version(), "what changes nothing has no new version");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let other: ConfigMap = of(json!({"metadata": {"generateName": "m-"}}));
    assert!(maps.create(&dry, &other).await.unwrap().name_any().starts_with("m-"));
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 2, "the CA's and ours");
}

#[tokio::test]
async fn a_watcher_sees_every_change_in_both_ways_of_starting() {
    for streaming in [false, true] {
        let f = fixture().await;
        let nodes: kube::Api<Node> = kube::Api::all(f.client.clone());
        for name in ["a", "b"] {
            let node: Node = of(json!({"metadata": {"name": name}}));
            nodes.create(&PostParams::default(), &node).await.unwrap();
        }
        let config = watcher::Config::default();
        let config = if streaming { config.streaming_lists() } else { config };
        let mut events = watcher(nodes.clone(), config).boxed();
        let mut seen = Vec::new();
        while let Some(event) = events.try_next().await.unwrap() {
            match event {
                watcher::Event::Init => {}
                watcher::Event::InitApply(node) => seen.push(format!("init {}", node.name_any())),
                watcher::Event::InitDone => {
                    let label = json!({"metadata": {"labels": {"x": "y"}}});
                    nodes.patch("a", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
                    nodes.delete("b", &DeleteParams::default()).await.unwrap();
                }
                watcher::Event::Apply(node) => {
                    seen.push(format!("apply {} {}", node.name_any(), node.labels().len()))
                }
                watcher::Event::Delete(node) => {
                    seen.push(format!("delete {}", node.name_any()));
                    break;
                }
            }
        }
        assert_eq!(seen, ["init a", "init b", "apply a 1", "delete b"], "streaming: {streaming}");
    }
}

#[tokio::test]
async fn selectors_turn_changes_into_coming_and_going() {
    let f = fixture().await;
    let pods: kube::Api<Pod> = kube::Api::default_namespaced(f.client.clone());
    let start = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    pods.create(&PostParams::default(), &pod("web", None)).await.unwrap();
    for value in ["on", "off"] {
        let change = json!({"metadata": {"labels": {"light": value}}});
        pods.patch("web", &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    }
    let params = WatchParams::default().labels("light=on").timeout(5);
    let mut events = pods.watch(&params, &start).await.unwrap().boxed();
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await.unwrap() {
        match event {
            WatchEvent::Added(pod) => seen.push(("added", pod.resource_version().unwrap())),
            WatchEvent::Deleted(pod) => {
                seen.push(("deleted", pod.resource_version().unwrap()));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let last = pods.get("web").await.unwrap().resource_version().unwrap();
    assert_eq!(seen[0].0, "added");
    assert_eq!(seen[1], ("deleted", last), "it carries the version of the change");
}

#[tokio::test]
async fn versions_of_a_lost_history_are_answered_with_410() {
    let f = fixture().await;
    let pods: kube::Api<Pod> = kube::Api::default_namespaced(f.client.clone());
    let error = pods.watch(&WatchParams::default(), "999999999").await.err().map(code);
    assert_eq!(error, Some(410));
}

#[tokio::test]
async fn pages_are_one_snapshot() {
    let f = fixture().await;
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(f.client.clone(), "kube-system");
    for index in 0..5 {
        let map: ConfigMap = of(json!({"metadata": {"name": format!("m{index}")}}));
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    let first = maps.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(4));
    maps.delete("m4", &DeleteParams::default()).await.unwrap();
    let mut names: Vec<String> = first.items.iter().map(ResourceExt::name_any).collect();
    let mut token = first.metadata.continue_.clone();
    while let Some(next) = token {
        let page = maps.list(&ListParams::default().limit(2).continue_token(&next)).await.unwrap();
        names.extend(page.items.iter().map(ResourceExt::name_any));
        assert_eq!(page.metadata.resource_version, first.metadata.resource_version);
        token = page.metadata.continue_;
    }
    assert_eq!(names, ["kube-root-ca.crt", "m0", "m1", "m2", "m3", "m4"]);
    let bad = maps.list(&ListParams::default().continue_token("zz")).await.unwrap_err();
    assert_eq!(code(bad), 400);
}

#[tokio::test]
async fn a_namespace_takes_its_content_along_and_owners_their_dependents() {
    let f = fixture().await;
    let namespaces: kube::Api<Namespace> = kube::Api::all(f.client.clone());
    let space: Namespace = of(json!({"metadata": {"name": "site"}}));
    namespaces.create(&PostParams::default(), &space).await.unwrap();
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(f.client.clone(), "site");
    eventually("the CA is published", async || maps.get_opt("kube-root-ca.crt").await.unwrap().is_some())
        .await;

    let owner: ConfigMap = of(json!({"metadata": {"name": "owner"}}));
    let owner = maps.create(&PostParams::default(), &owner).await.unwrap();
    let child: ConfigMap = of(json!({"metadata": {"name": "child", "ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}]}}));
    for (name, policy, child_stays) in [
        ("background", DeleteParams::background(), false),
        ("foreground", DeleteParams::foreground(), false),
        ("orphan", DeleteParams::orphan(), true),
    ] {
        let owner =
            maps.create(&PostParams::default(), &of(json!({"metadata": {"name": name}}))).await.unwrap();
        let mut child = child.clone();
        child.metadata.name = Some(format!("child-{name}"));
        child.metadata.owner_references.as_mut().unwrap()[0].name = name.into();
        child.metadata.owner_references.as_mut().unwrap()[0].uid = owner.uid().unwrap();
        maps.create(&PostParams::default(), &child).await.unwrap();
        maps.delete(name, &policy).await.unwrap();
        eventually("the owner is gone", async || maps.get_opt(name).await.unwrap().is_none()).await;
        let child_name = format!("child-{name}");
        if child_stays {
            eventually("the child is free", async || {
                maps.get(&child_name).await.unwrap().owner_references().is_empty()
            })
            .await;
        } else {
            eventually("the child is gone", async || maps.get_opt(&child_name).await.unwrap().is_none())
                .await;
        }
    }

    maps.create(&PostParams::default(), &child).await.unwrap();
    namespaces.delete("site", &DeleteParams::default()).await.unwrap();
    let late: ConfigMap = of(json!({"metadata": {"name": "late"}}));
    let refused = maps.create(&PostParams::default(), &late).await.unwrap_err();
    assert!(matches!(code(refused), 403 | 404));
    eventually("the namespace is gone", async || namespaces.get_opt("site").await.unwrap().is_none()).await;
    assert!(maps.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn objects_and_versions_outlive_a_restart() {
    let f = fixture().await;
    let pods: kube::Api<Pod> = kube::Api::default_namespaced(f.client.clone());
    let made = pods.create(&PostParams::default(), &pod("web", None)).await.unwrap();
    let ca = f.api.ca_pem();
    f.api.store().close();
    let api = Api::open(f.dir.path(), Options::default()).await;
    // The first store is closed but its handle still holds the lock while it lives.
    let api = match api {
        Ok(api) => api,
        Err(error) => panic!("{}", rt::error_chain(&error)),
    };
    assert_eq!(api.ca_pem(), ca);
    let pods: kube::Api<Pod> = kube::Api::default_namespaced(Client::new(api.client(), "default"));
    let read = pods.get("web").await.unwrap();
    assert_eq!(read.resource_version(), made.resource_version());
    // What was seen before the restart is where a watch goes on.
    let params = WatchParams::default().timeout(5);
    let mut events = pods.watch(&params, &made.resource_version().unwrap()).await.unwrap().boxed();
    pods.delete("web", &DeleteParams::default()).await.unwrap();
    assert!(matches!(events.try_next().await.unwrap(), Some(WatchEvent::Deleted(_))));
}
