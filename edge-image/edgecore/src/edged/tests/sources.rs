//! What pods are made of, out of a meta in memory and a scripted cloud: kubelet's words for what is missing, tokens that outlive
//! links and restarts, claims.

use serde_json::{Value, json};
use wire::Message;

use crate::{
    contract::testing::Bench,
    edged::{
        env::{self, Facts},
        fuzz,
        pod::Pod,
        sources::Fetcher,
        tokens::Tokens,
        unix_ms,
    },
};

fn pod(spec: Value) -> Pod {
    let mut all = json!({ "containers": [{ "name": "c", "image": "i" }] });
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let metadata = json!({
        "name": "web", "namespace": "default", "uid": "u1",
        "labels": { "app": "web", "b": "quote \" and é\n" }, "annotations": { "note": "x" },
    });
    Pod::parse(json!({ "metadata": metadata, "spec": all }).to_string().as_bytes()).unwrap()
}

fn object(name: &str, rest: Value) -> Value {
    let mut object =
        json!({ "metadata": { "name": name, "namespace": "default", "uid": name, "resourceVersion": "1" } });
    for (key, value) in rest.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

struct World {
    bench: Bench,
    tokens: Tokens,
}

impl World {
    fn new() -> World {
        let bench = Bench::new();
        let tokens = Tokens::new(bench.handles.clone());
        World { bench, tokens }
    }

    fn fetcher(&self) -> Fetcher<'_> {
        Fetcher { handles: &self.bench.handles, tokens: &self.tokens, ask: true }
    }

    /// The files of the pod's first volume as `path mode content`, or the text of the event.
    async fn files(&self, spec: Value) -> Result<Vec<String>, String> {
        let pod = pod(spec);
        let found = self.fetcher().files(&pod, &pod.spec.volumes[0], &Facts::default()).await;
        let files = found.map_err(|missing| missing.mount("v").message)?.unwrap();
        let line = |file: &crate::edged::volumes::File| {
            format!("{} {:o} {}", file.path, file.mode, String::from_utf8_lossy(&file.data))
        };
        Ok(files.files.iter().map(line).collect())
    }

    async fn env(&self, container: Value) -> Result<env::Environment, String> {
        let mut all = json!({ "name": "c", "image": "i" });
        for (key, value) in container.as_object().unwrap() {
            all[key] = value.clone();
        }
        let pod = pod(json!({ "containers": [all] }));
        let container = &pod.spec.containers[0];
        let sources = self.fetcher().environment(&pod, container).await.map_err(|error| error.message)?;
        env::resolve(&pod, container, &sources, &facts()).map_err(|error| error.to_string())
    }

    async fn claim(&self) -> Result<String, String> {
        let pod =
            pod(json!({ "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "pvc" } }] }));
        let (claims, problems) = self.fetcher().claims(&pod).await;
        match problems.into_iter().next() {
            Some(problem) => Err(problem.message),
            None => Ok(claims["data"].path.display().to_string()),
        }
    }
}

fn facts() -> Facts {
    Facts {
        node_name: "edge-1".into(),
        host_ip: "192.0.2.1".into(),
        pod_ips: vec!["10.0.0.2".into(), "fd00::2".into()],
        cpu_milli: 4000,
        memory_bytes: 1 << 30,
        storage_bytes: 0,
    }
}

#[tokio::test]
async fn missing_objects_and_keys_have_kubelets_words() {
    let world = World::new();
    world.bench.meta.put_remote("default/configmap/cfg", object("cfg", json!({ "data": { "a": "1" } })));
    world.bench.meta.put_remote("default/secret/key", object("key", json!({ "data": { "p": "c2VzYW1l" } })));
    let of = |source: Value| json!({ "volumes": [{ "name": "v", "configMap": source }] });
    let secret = |source: Value| json!({ "volumes": [{ "name": "v", "secret": source }] });
    let projected =
        |sources: Value| json!({ "volumes": [{ "name": "v", "projected": { "sources": sources } }] });
    let set_up = |why: &str| Err(format!("MountVolume.SetUp failed for volume \"v\" : {why}"));
    for (spec, expected) in [
        (of(json!({ "name": "cfg" })), Ok(vec!["a 644 1".to_string()])),
        (of(json!({ "name": "cfg", "defaultMode": 0o400 })), Ok(vec!["a 400 1".into()])),
        (
            of(json!({ "name": "cfg", "items": [{ "key": "a", "path": "x/y", "mode": 0o600 }] })),
            Ok(vec!["x/y 600 1".into()]),
        ),
        (of(json!({ "name": "x" })), set_up("configmap \"x\" not found")),
        (of(json!({ "name": "x", "optional": true })), Ok(vec![])),
        (
            of(json!({ "name": "cfg", "items": [{ "key": "b", "path": "b" }] })),
            set_up("configmap references non-existent config key: b"),
        ),
        (of(json!({ "name": "cfg", "optional": true, "items": [{ "key": "b", "path": "b" }] })), Ok(vec![])),
        (secret(json!({ "secretName": "key" })), Ok(vec!["p 644 sesame".into()])),
        (secret(json!({ "secretName": "x" })), set_up("secret \"x\" not found")),
        (
            secret(json!({ "secretName": "key", "items": [{ "key": "q", "path": "q" }] })),
            set_up("references non-existent secret key: q"),
        ),
        (
            projected(
                json!([{ "configMap": { "name": "x" } }, { "secret": { "name": "y" } }, { "configMap": { "name": "cfg" } }]),
            ),
            set_up("[configmap \"x\" not found, secret \"y\" not found]"),
        ),
        (
            projected(
                json!([{ "configMap": { "name": "cfg" } }, { "secret": { "name": "key", "items": [{ "key": "p", "path": "deep/p" }] } }]),
            ),
            Ok(vec!["a 644 1".into(), "deep/p 644 sesame".into()]),
        ),
        (
            projected(json!([{ "clusterTrustBundle": { "name": "x", "path": "p" } }])),
            set_up("projected clusterTrustBundle is not supported on this node; use a config map"),
        ),
    ] {
        assert_eq!(world.files(spec.clone()).await, expected, "{spec}");
    }
}

#[tokio::test]
async fn environments_say_what_is_missing_and_what_was_skipped() {
    let world = World::new();
    let data =
        json!({ "data": { "GOOD": "1", "2bad": "2", "also.fine": "3" }, "binaryData": { "BIN": "//8=" } });
    world.bench.meta.put_remote("default/configmap/cfg", object("cfg", data));
    world
        .bench
        .meta
        .put_remote("default/configmap/plain", object("plain", json!({ "data": { "A": "1", "9": "x" } })));
    let from = |kind: &str, name: &str, key: &str| json!({ "env": [{ "name": "X", "valueFrom": { kind: { "name": name, "key": key } } }] });
    for (container, words) in [
        (from("configMapKeyRef", "x", "y"), "configmap \"x\" not found"),
        (from("secretKeyRef", "x", "y"), "secret \"x\" not found"),
        (from("configMapKeyRef", "cfg", "y"), "couldn't find key y in ConfigMap default/cfg"),
        (json!({ "envFrom": [{ "configMapRef": { "name": "x" } }] }), "configmap \"x\" not found"),
        (
            json!({ "envFrom": [{ "configMapRef": { "name": "cfg" } }] }),
            "value of key BIN in configmap cfg is not text, so it cannot be an environment variable",
        ),
    ] {
        assert_eq!(world.env(container.clone()).await.unwrap_err(), words, "{container}");
    }
    let all = json!({
        "envFrom": [{ "configMapRef": { "name": "plain" } }, { "prefix": "P_", "configMapRef": { "name": "plain" } },
            { "secretRef": { "name": "absent", "optional": true } }],
        "env": [
            { "name": "B", "value": "$(A)-$(P_9)-$(LATER)-$$(A)" },
            { "name": "LATER", "value": "x" },
            { "name": "A", "value": "own" },
            { "name": "NONE", "valueFrom": { "configMapKeyRef": { "name": "plain", "key": "z", "optional": true } } },
        ],
    });
    let found = world.env(all).await.unwrap();
    let text: Vec<String> = found.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(text, ["P_9=x", "P_A=1", "B=1-x-$(LATER)-$(A)", "LATER=x", "A=own"]);
    assert_eq!(
        found.skipped,
        [
            "Keys [9] from the EnvFrom configMap default/plain were skipped since they are considered invalid environment variable names."
        ]
    );
}

#[tokio::test]
async fn the_downward_api_is_complete() {
    let world = World::new();
    let field = |path: &str| json!({ "name": path, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let resource = |name: &str, resource: &str, divisor: &str| json!({ "name": name, "valueFrom": { "resourceFieldRef": { "resource": resource, "divisor": divisor } } });
    let container = json!({
        "resources": { "limits": { "cpu": "1500m" }, "requests": { "memory": "1Mi" } },
        "env": [
            field("metadata.name"), field("metadata.namespace"), field("metadata.uid"), field("metadata.labels['app']"),
            field("metadata.annotations['note']"), field("metadata.labels['none']"), field("spec.nodeName"),
            field("spec.serviceAccountName"), field("status.hostIP"), field("status.hostIPs"), field("status.podIP"), field("status.podIPs"),
            resource("cpu", "limits.cpu", ""), resource("millicpu", "limits.cpu", "1m"), resource("memory", "limits.memory", "1Mi"),
            resource("requested", "requests.memory", "1"), resource("no request", "requests.cpu", "1"),
        ],
    });
    let found = world.env(container).await.unwrap();
    let values: Vec<&str> = found.variables.iter().map(|(_, value)| value.as_str()).collect();
    let expected = [
        "web",
        "default",
        "u1",
        "web",
        "x",
        "",
        "edge-1",
        "default",
        "192.0.2.1",
        "192.0.2.1",
        "10.0.0.2",
        "10.0.0.2,fd00::2",
        "2",
        "1500",
        "1024",
        "1048576",
        "0",
    ];
    assert_eq!(values, expected);
    let refused = world.env(json!({ "env": [field("spec.restartPolicy")] })).await.unwrap_err();
    assert!(refused.contains("spec.restartPolicy"), "{refused}");

    let items = json!([
        { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        { "path": "cpu", "mode": 0o440, "resourceFieldRef": { "containerName": "c", "resource": "requests.cpu" } },
    ]);
    let files = world
        .files(json!({ "volumes": [{ "name": "v", "downwardAPI": { "items": items } }] }))
        .await
        .unwrap();
    assert_eq!(files, ["labels 644 app=\"web\"\nb=\"quote \\\" and é\\n\"", "cpu 440 0"]);
}

fn bound(size: &str) -> Value {
    object("pvc", json!({ "spec": { "volumeName": "pv" }, "status": { "phase": size } }))
}

#[tokio::test]
async fn claims_wait_in_kubelets_words_until_they_are_bound() {
    let world = World::new();
    let meta = &world.bench.meta;
    let waits = |why: &str| {
        Err(format!(
            "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: \
             error processing PVC default/pvc: {why}"
        ))
    };
    let claim = "default/persistentvolumeclaim/pvc";
    let volume = |spec: Value| json!({ "metadata": { "name": "pv", "uid": "pv", "resourceVersion": "1" }, "spec": spec });
    assert_eq!(
        world.claim().await,
        waits("failed to fetch PVC from API server: persistentvolumeclaims \"pvc\" not found")
    );
    meta.put_object(claim, object("pvc", json!({ "status": { "phase": "Pending" } })));
    assert_eq!(world.claim().await, waits("PVC is not bound"));
    meta.put_object(claim, bound("Bound"));
    assert_eq!(
        world.claim().await,
        waits("failed to fetch PV pv from API server: persistentvolumes \"pv\" not found")
    );
    let pv = "null/persistentvolume/pv";
    meta.put_object(pv, volume(json!({ "hostPath": { "path": "/data" } })));
    assert!(world.claim().await.unwrap_err().contains("nil pv.Spec.ClaimRef"));
    let ours = json!({ "uid": "pvc" });
    meta.put_object(pv, volume(json!({ "hostPath": { "path": "/data" }, "claimRef": { "uid": "other" } })));
    assert!(
        world
            .claim()
            .await
            .unwrap_err()
            .contains("ClaimRef.UID other that does not point to the expected PVC UID pvc")
    );
    meta.put_object(pv, volume(json!({ "hostPath": { "path": "/data" }, "claimRef": ours })));
    assert_eq!(world.claim().await, Ok("/data".into()));
    meta.put_object(
        pv,
        volume(json!({ "csi": { "driver": "x" }, "capacity": { "storage": "1Gi" }, "claimRef": ours })),
    );
    assert!(
        world
            .claim()
            .await
            .unwrap_err()
            .contains("volume type csi is not supported on this node; use hostPath")
    );

    let term = json!({ "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }] });
    let affinity = json!({ "required": { "nodeSelectorTerms": [term] } });
    meta.put_object(
        pv,
        volume(json!({ "local": { "path": "/mnt" }, "claimRef": ours, "nodeAffinity": affinity })),
    );
    assert_eq!(
        world.claim().await,
        Ok("/mnt".into()),
        "the node's labels are not known: the scheduler knew them"
    );
    let node = |label: &str| json!({ "metadata": { "name": "edge-1", "uid": "n", "resourceVersion": "1", "labels": { "disk": label } } });
    meta.put_object("null/node/edge-1", node("hdd"));
    assert_eq!(
        world.claim().await,
        Err("MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms".into())
    );
    meta.put_object("null/node/edge-1", node("ssd"));
    assert_eq!(world.claim().await, Ok("/mnt".into()));
    let mut deleting = bound("Bound");
    deleting["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    meta.put_object(claim, deleting);
    assert_eq!(world.claim().await, waits("PVC is being deleted"));
}

fn api_access() -> Value {
    json!({ "volumes": [{ "name": "kube-api-access-x", "projected": { "sources": [
        { "serviceAccountToken": { "path": "token", "expirationSeconds": 3607 } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }] } },
    ] } }] })
}

fn answer(token: &str, expires_in: i64) -> Message {
    let expires = jiff::Timestamp::from_second(unix_ms() / 1000 + expires_in).unwrap();
    Message::new(1, "edgecontroller", "resource", "response", "default/serviceaccounttoken/default").with_content(&json!({
        "kind": "TokenRequest", "spec": { "expirationSeconds": 3607 }, "status": { "token": token, "expirationTimestamp": expires.to_string() },
    }))
}

#[tokio::test]
async fn a_token_is_asked_for_once_kept_over_a_restart_and_never_lost() {
    let mut world = World::new();
    let pod = pod(api_access());
    let volume = &pod.spec.volumes[0];
    let requests = |world: &World| world.bench.uplink.requests.lock().unwrap().len();

    // No cloud and no token: the pod starts, and says so.
    let files = world.fetcher().files(&pod, volume, &Facts::default()).await.unwrap().unwrap();
    assert_eq!(files.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["namespace"]);
    assert!(
        files.warning.unwrap().contains("the pod runs without it and gets it when the cloud is reachable")
    );
    assert!(world.tokens.is_due(&pod));
    // One that was asked for by name is waited for.
    let mut named = pod.clone();
    named.spec.volumes[0].name = "vault".into();
    let missing = world.fetcher().files(&named, &named.spec.volumes[0], &Facts::default()).await.unwrap_err();
    assert!(
        missing.text.starts_with("failed to fetch token: the cloud cannot be reached"),
        "{}",
        missing.text
    );

    world.bench.uplink.answer(answer("first", 3607));
    let before = requests(&world);
    for _ in 0..2 {
        let files = world.fetcher().files(&pod, volume, &Facts::default()).await.unwrap().unwrap();
        assert_eq!((files.files[0].path.as_str(), files.files[0].data.as_slice()), ("token", &b"first"[..]));
        assert_eq!(files.warning, None);
    }
    assert_eq!(requests(&world), before + 1, "the second time it is known");
    let request: Value = world.bench.uplink.requests.lock().unwrap()[before].content_as().unwrap();
    assert_eq!(
        request["spec"]["boundObjectRef"],
        json!({ "kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "u1" })
    );

    world.tokens.store("u1").await;
    world.tokens = Tokens::new(world.bench.handles.clone());
    let files = world.fetcher().files(&pod, volume, &Facts::default()).await.unwrap().unwrap();
    assert_eq!(files.files[0].data, b"first", "after a restart, without a question");
    assert_eq!(requests(&world), before + 1);

    // At 80 % of its life it is renewed; a failure to do so keeps the old one, in silence until it has expired.
    for (left, expected, warns) in [(700, "second", false), (-5, "second", true)] {
        world.tokens.forget("u1").await;
        world.bench.uplink.answer(answer("second", left));
        world.fetcher().files(&pod, volume, &Facts::default()).await.unwrap();
        let files = world.fetcher().files(&pod, volume, &Facts::default()).await.unwrap().unwrap();
        assert_eq!(files.files[0].data, expected.as_bytes(), "{left}");
        assert_eq!(files.warning.is_some(), warns, "{left}: {:?}", files.warning);
    }
    let condition = |status: bool| {
        world
            .bench
            .conditions
            .0
            .lock()
            .unwrap()
            .iter()
            .rev()
            .find(|c| c.condition_type == "ServiceAccountTokenExpired")
            .is_some_and(|c| c.status == status)
    };
    world.tokens.tell_expired();
    assert!(condition(true));
    world.bench.uplink.answer(answer("third", 3607));
    let files = world.fetcher().files(&pod, volume, &Facts::default()).await.unwrap().unwrap();
    assert_eq!((files.files[0].data.as_slice(), files.warning), (&b"third"[..], None));
    assert!(condition(false));

    let refusal =
        Message::new(1, "edgecontroller", "resource", "response", "r").with_content("no such account");
    world.tokens.forget("u1").await;
    assert!(world.bench.handles.meta.list_local("podtoken").is_empty(), "its record goes with the pod");
    world.bench.uplink.answer(refusal);
    let missing = world.fetcher().files(&pod, volume, &Facts::default()).await.unwrap_err();
    assert_eq!(missing.text, "failed to fetch token: no such account");
}

#[tokio::test]
async fn the_mode_of_a_token_follows_the_pods_user_and_group() {
    for (security, mode, owner) in [
        (json!({}), 0o644, None),
        (json!({ "runAsUser": 1000 }), 0o600, Some(1000)),
        (json!({ "fsGroup": 2000 }), 0o600, None),
    ] {
        let world = World::new();
        world.bench.uplink.answer(answer("t", 3607));
        let mut spec = api_access();
        spec["securityContext"] = security.clone();
        let pod = pod(spec);
        let files =
            world.fetcher().files(&pod, &pod.spec.volumes[0], &Facts::default()).await.unwrap().unwrap();
        assert_eq!((files.files[0].mode, files.files[0].owner), (mode, owner), "{security}");
    }
    let two = json!({ "containers": [
        { "name": "a", "image": "i", "securityContext": { "runAsUser": 1 } }, { "name": "b", "image": "i", "securityContext": { "runAsUser": 2 } },
    ] });
    assert_eq!(pod(two).common_user(), None);
}

#[test]
fn claims_and_tokens_survive_any_bytes() {
    let whole = json!({
        "metadata": { "name": "pv", "uid": "u" }, "status": { "phase": "Bound", "token": "t", "expirationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "volumeName": "pv", "claimRef": { "uid": "u" }, "local": { "path": "/x" }, "expirationSeconds": 3607,
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "a", "operator": "Gt", "values": ["1"] }] }] } } },
        "token": "t", "expires": 5, "lifetime_s": 7,
    });
    let messages = [whole.to_string(), answer("t", 1).encode(), "22 27 0:21 / /a\\040b rw - x y z\n".into()];
    let mut seed: u64 = 7;
    let mut random = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % n
    };
    for round in 0..3000 {
        let mut bytes = messages[round % 3].clone().into_bytes();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len().max(1));
            match random(4) {
                _ if bytes.is_empty() => bytes.push(b'{'),
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\"{}[]:,-09e\\"[random(12)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        fuzz::fuzz_volumes(&bytes);
    }
}
