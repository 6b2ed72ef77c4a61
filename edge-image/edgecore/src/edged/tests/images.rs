//! Images against a real containerd: pulls from a registry on loopback, passwords, mirrors, policies, back-off.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use e2e::{
    containerd::{Containerd, missing, not_run},
    registry::{Auth, Registry},
};
use serde_json::{Value, json};

use crate::runtime_guard;

use super::containerd::{Node, archives, pod, wait_for, web};

fn needs() -> Option<String> {
    missing()
}

macro_rules! needs_containerd {
    ($name:literal) => {
        if let Some(why) = needs() {
            return not_run($name, &why);
        }
    };
}

/// A node whose only preloaded image is the sandbox's, and a registry in its network namespace.
fn node_with_registry(auth: Auth) -> (Node, Registry) {
    let node = Node::start_with(|settings| {
        let dir = settings.run_dir.with_file_name("only-pause");
        fs::create_dir(&dir).unwrap();
        fs::copy(archives().join("pause.tar"), dir.join("pause.tar")).unwrap();
        settings.preload_dir = dir;
    });
    let registry = Registry::start(Some(node.containerd.inside().unwrap()), auth).unwrap();
    registry.publish(&archives().join("hello.tar"), "team/app", "1").unwrap();
    (node, registry)
}

fn with_image(mut pod: Value, image: &str, policy: &str) -> Value {
    pod["spec"]["containers"][0]["image"] = json!(image);
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
    pod
}

fn waiting(node: &Node, pod: &str, reason: &str) -> String {
    let status = node.wait_status(pod, reason, |status| {
        status["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    });
    status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap_or_default().to_string()
}

fn pull_secret(name: &str, registry: &str, user: &str, password: &str) -> Value {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    let config = json!({ "auths": { registry: { "auth": auth } } }).to_string();
    json!({
        "metadata": { "name": name, "namespace": "default", "uid": name, "resourceVersion": "1" },
        "type": "kubernetes.io/dockerconfigjson",
        "data": { ".dockerconfigjson": STANDARD.encode(config) },
    })
}

#[test]
fn an_image_is_pulled_from_a_registry_and_its_absence_is_told_as_a_kubelet_does() {
    needs_containerd!("an_image_is_pulled_from_a_registry_and_its_absence_is_told_as_a_kubelet_does");
    let (node, registry) = node_with_registry(Auth::Nobody);
    let image = registry.name("team/app", "1");
    node.apply(&with_image(web("web", 8080), &image, "IfNotPresent"));
    let status = node.wait_running("web");
    assert!(
        status["containerStatuses"][0]["imageID"].as_str().unwrap().contains("team/app@sha256:"),
        "{status:#}"
    );
    let events = node.events("web");
    assert!(events.contains(&format!("Normal Pulling Pulling image \"{image}\"")), "{events}");
    assert!(events.contains(&format!("Normal Pulled Successfully pulled image \"{image}\" in ")), "{events}");
    assert!(!registry.take_asked().is_empty());

    node.apply(&with_image(web("again", 8081), &image, "IfNotPresent"));
    node.wait_running("again");
    let present = format!("Normal Pulled Container image \"{image}\" already present on machine");
    assert!(node.events("again").contains(&present), "{}", node.events("again"));
    assert!(registry.take_asked().is_empty(), "nothing was asked for");

    node.apply(&with_image(web("always", 8082), &image, "Always"));
    node.wait_running("always");
    assert!(registry.take_asked().iter().any(|path| path.contains("/manifests/1")), "Always asks");

    let absent = registry.name("team/absent", "1");
    node.apply(&with_image(web("absent", 8083), &absent, ""));
    let message = waiting(&node, "absent", "ErrImagePull");
    assert!(
        message.starts_with("rpc error: code = NotFound desc = failed to pull and unpack image"),
        "{message}"
    );
    let message = waiting(&node, "absent", "ImagePullBackOff");
    assert!(
        message.starts_with(&format!("Back-off pulling image \"{absent}\": ErrImagePull: rpc error")),
        "{message}"
    );
    let events = node.events("absent");
    for text in [
        format!("Warning Failed Failed to pull image \"{absent}\": rpc error: code = NotFound"),
        "Warning Failed Error: ErrImagePull".to_string(),
        format!("Normal BackOff Back-off pulling image \"{absent}\""),
        "Warning Failed Error: ImagePullBackOff".to_string(),
    ] {
        assert!(events.contains(&text), "{text} is not in\n{events}");
    }
    // It appears in the registry, and the pod comes up by itself.
    registry.publish(&archives().join("hello.tar"), "team/absent", "1").unwrap();
    node.wait_running("absent");

    node.apply(&with_image(web("bad", 8084), "Team/App", ""));
    assert_eq!(
        waiting(&node, "bad", "InvalidImageName"),
        "Failed to apply default image tag \"Team/App\": couldn't parse image name \"Team/App\": invalid reference format: repository name (App) must be lowercase"
    );
}

#[test]
fn pull_secrets_open_a_registry_and_a_wrong_password_does_not() {
    needs_containerd!("pull_secrets_open_a_registry_and_a_wrong_password_does_not");
    let basic = Auth::Basic { user: "edge".into(), password: "sesame".into() };
    let (node, registry) = node_with_registry(basic);
    let image = registry.name("team/app", "1");
    let address = registry.address().to_string();
    let with_secret = |name: &str, port: u16, secret: &str| {
        let mut pod = with_image(web(name, port), &image, "Always");
        pod["spec"]["imagePullSecrets"] = json!([{ "name": secret }]);
        pod
    };
    node.bench.meta.put_remote("default/secret/wrong", pull_secret("wrong", &address, "edge", "guess"));
    node.bench.meta.put_remote("default/secret/right", pull_secret("right", &address, "edge", "sesame"));

    node.apply(&with_image(web("none", 8080), &image, "Always"));
    let message = waiting(&node, "none", "ErrImagePull");
    assert!(message.contains("401 Unauthorized"), "{message}");
    node.apply(&with_secret("wrong", 8081, "wrong"));
    waiting(&node, "wrong", "ErrImagePull");
    assert!(!node.events("wrong").contains("guess"), "a password is never told");
    node.apply(&with_secret("missing", 8082, "absent"));
    waiting(&node, "missing", "ErrImagePull");
    let told = "Warning FailedToRetrieveImagePullSecret Unable to retrieve some image pull secrets (absent); attempting to pull the image may not succeed.";
    assert!(node.events("missing").contains(told), "{}", node.events("missing"));
    assert!(registry.refused() >= 3);
    node.apply(&with_secret("right", 8083, "right"));
    node.wait_running("right");

    registry.set_auth(Auth::Bearer { user: "edge".into(), password: "sesame".into() });
    node.remove_image(&image);
    node.apply(&with_secret("token", 8084, "right"));
    node.wait_running("token");
    assert!(registry.take_asked().iter().any(|path| path == "/token"));
}

#[test]
fn a_mirror_of_hosts_toml_is_used() {
    needs_containerd!("a_mirror_of_hosts_toml_is_used");
    let (node, registry) = node_with_registry(Auth::Nobody);
    let dir = node.containerd.dir().join("certs.d/registry.invalid");
    fs::create_dir_all(&dir).unwrap();
    let hosts = format!(
        "server = \"https://registry.invalid\"\n[host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
        registry.address()
    );
    fs::write(dir.join("hosts.toml"), hosts).unwrap();
    node.apply(&with_image(web("web", 8080), "registry.invalid/team/app:1", ""));
    let status = node.wait_running("web");
    assert!(
        status["containerStatuses"][0]["image"].as_str().unwrap().starts_with("registry.invalid/team/app")
    );
}

#[test]
fn a_slow_registry_holds_up_only_its_pod_and_a_deleted_pod_ends_the_pull() {
    needs_containerd!("a_slow_registry_holds_up_only_its_pod_and_a_deleted_pod_ends_the_pull");
    let (node, registry) = node_with_registry(Auth::Nobody);
    registry.hold();
    for n in 0..4 {
        let name = format!("slow-{n}");
        registry.publish(&archives().join("hello.tar"), &name, "1").unwrap();
        node.apply(&with_image(web(&name, 8100 + n), &registry.name(&name, "1"), ""));
    }
    let pulling = || registry.take_asked().iter().any(|path| path.contains("/blobs/")).then_some(());
    wait_for("the pull to begin", pulling, || node.containerd.log());
    fs::copy(archives().join("hello.tar"), node.settings.preload_dir.join("hello.tar")).unwrap();
    node.apply(&web("quick", 8080));
    node.wait_running("quick");
    for n in 0..4 {
        let name = format!("slow-{n}");
        let mut pod = with_image(web(&name, 8100 + n), &registry.name(&name, "1"), "");
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T08:00:00Z");
        pod["metadata"]["resourceVersion"] = json!("2");
        node.apply(&pod);
        let gone = || node.bench.uplink.reports_of(&format!("poddelete/default/{name}/uid-{name}")).pop();
        wait_for("the deleted pod to go while its image is held back", gone, String::new);
    }
    registry.release();
    // The turn at the registry was given back.
    node.apply(&with_image(pod("after", json!({}), json!({})), &registry.name("slow-1", "1"), "Always"));
    node.wait_running("after");
}

/// What a power cut may do to the files of containerd; the store of the agent has its own tests.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Nothing,
    Truncated,
    Zeroed,
    NoLayers,
    NoContent,
    MetaZeroed,
    MetaCut,
    LayersMetaZeroed,
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => walk(&entry.path(), visit),
            kind if kind.is_file() => visit(&entry.path()),
            _ => {}
        }
    }
}

fn damage(root: &Path, damage: Damage) {
    let meta = root.join("io.containerd.metadata.v1.bolt/meta.db");
    let overlay = root.join("io.containerd.snapshotter.v1.overlayfs");
    let length = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
    let cut = |path: &Path, length: u64| {
        if let Ok(file) = fs::OpenOptions::new().write(true).open(path) {
            file.set_len(length).unwrap();
        }
    };
    let zero = |path: &Path| {
        let whole = length(path);
        cut(path, 0);
        cut(path, whole);
    };
    // Every file of this run is newer than the last sync of a machine that never syncs.
    let mut unsynced = Vec::new();
    for part in ["io.containerd.content.v1.content", "io.containerd.snapshotter.v1.overlayfs/snapshots"] {
        walk(&root.join(part), &mut |path| unsynced.push(path.to_owned()));
    }
    match damage {
        Damage::Nothing => {}
        Damage::Truncated => unsynced.iter().for_each(|path| cut(path, length(path) / 2)),
        Damage::Zeroed => unsynced.iter().for_each(|path| zero(path)),
        Damage::NoLayers => {
            for entry in fs::read_dir(overlay.join("snapshots")).into_iter().flatten().flatten() {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        Damage::NoContent => drop(fs::remove_dir_all(root.join("io.containerd.content.v1.content/blobs"))),
        Damage::MetaZeroed => zero(&meta),
        Damage::MetaCut => cut(&meta, length(&meta) / 2),
        Damage::LayersMetaZeroed => zero(&overlay.join("metadata.db")),
    }
}

/// Once around: the power fails somewhere in the first import and start of a pod, and the pod runs in the end.
fn cut_and_come_back(seed: u64, damage_done: Damage) {
    let random = seed.wrapping_add(7).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) >> 33;
    let moment = Duration::from_millis(random % 1200);
    let state = format!(
        "seed {seed} (SEED={seed} cargo test -p edgecore --lib twenty_moments): cut after {moment:?}, then {damage_done:?}"
    );
    let mut node = Node::start_with(|_| {});
    let dir = node.containerd.dir().to_owned();
    node.apply(&web("web", 8080));
    // The moment of the cut is the point here, not something to wait for.
    std::thread::sleep(moment);
    node.kill_agent();
    node.containerd.power_cut().unwrap();
    damage(&dir.join("root"), damage_done);
    let told = runtime_guard::check(&dir.join("root")).unwrap();
    eprintln!("{state}; {told:?}");
    let again = Containerd::start_in(&dir).unwrap_or_else(|error| panic!("{state}: {error:#}"));
    // Another boot: what was looked at before it does not count.
    let forget = node.bench.handles.meta.delete_local("imageboot", "id");
    rt::runtime().unwrap().block_on(forget).unwrap();
    node.bench.uplink.reports.lock().unwrap().clear();
    node.start_agent();
    node.wait_running("web");
    let page = || again.http_get(again.node_address(8080), "/").ok();
    let page = wait_for("the page", page, || state.clone());
    assert!(page.contains("hello from web"), "{state}");
    assert_eq!(node.sandboxes(), 1, "{state}");
    node.kill_agent();
}

#[test]
fn an_import_cut_off_at_twenty_moments_is_repaired_whatever_was_damaged() {
    needs_containerd!("an_import_cut_off_at_twenty_moments_is_repaired_whatever_was_damaged");
    let kinds = [
        Damage::Truncated,
        Damage::MetaZeroed,
        Damage::NoLayers,
        Damage::Zeroed,
        Damage::LayersMetaZeroed,
        Damage::NoContent,
        Damage::MetaCut,
        Damage::Nothing,
    ];
    archives();
    if let Some(seed) = std::env::var("SEED").ok().and_then(|text| text.parse::<u64>().ok()) {
        let _ = rt::log::init("info");
        return cut_and_come_back(seed, kinds[seed as usize % kinds.len()]);
    }
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= 20 {
                        return;
                    }
                    cut_and_come_back(seed, kinds[seed as usize % kinds.len()]);
                }
            });
        }
    });
}
