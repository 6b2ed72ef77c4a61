//! The whole of edged against a containerd of its own; meta and the cloud are the contract's fakes, and outlive the agent.

#[path = "kubelet.rs"]
mod kubelet;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use e2e::containerd::{Containerd, SANDBOX_IMAGE, missing, not_run};
use mkimage::oci;
use rt::Drain;
use serde_json::{Value, json};

use crate::{
    config::Config,
    contract::{RuntimeStatus, testing::Bench},
    edged::{
        Settings,
        cgroup::{CgroupConfig, tree},
        cri::Cri,
        logs::Rotation,
        policy::NodePolicy,
        pressure::settings::PressureSettings,
        run_with,
    },
};

pub(crate) const HELLO: &str = "docker.io/kinglet/hello:1";
/// Two cores carry many tests at once.
const WAIT: Duration = Duration::from_secs(90);

/// The folder of archives that a device's image has in /usr/share/kinglet/images, made from this checkout.
pub(crate) fn archives() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let make = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        let cargo = |folder: PathBuf, package: &[&str]| {
            let mut command = Command::new(env!("CARGO"));
            command.args(["build", "--quiet", "--release", "--target", &target]).args(package);
            // What cargo sets for tests must not reach another cargo.
            let built = command
                .current_dir(folder)
                .env_remove("CARGO_TARGET_DIR")
                .env_remove("RUSTFLAGS")
                .status()
                .unwrap();
            assert!(built.success(), "cargo build for {target} failed");
        };
        cargo(root.join("edge-image/pause"), &[]);
        cargo(root.clone(), &["-p", "hello"]);
        let dir = tempfile::tempdir().unwrap();
        let spec = |reference: &str, program: PathBuf, to: &str| oci::Spec {
            reference: reference.into(),
            arch: oci::oci_arch(std::env::consts::ARCH).into(),
            files: vec![oci::File::program(program, to)],
            entrypoint: vec![format!("/{to}")],
            ..oci::Spec::default()
        };
        let pause = root.join(format!("edge-image/pause/target/{target}/release/pause"));
        let hello = root.join(format!("target/{target}/release/hello"));
        oci::write_archive(&spec(SANDBOX_IMAGE, pause, "pause"), &dir.path().join("pause.tar")).unwrap();
        oci::write_archive(&spec(HELLO, hello, "hello"), &dir.path().join("hello.tar")).unwrap();
        dir
    };
    DIR.get_or_init(make).path()
}

/// A node: containerd, a store that outlives the agent, and the agent.
pub(super) struct Node {
    agent: Option<Agent>,
    pub(super) bench: Bench,
    pub(super) settings: Settings,
    // Dropped after the agent: its folder holds what the agent writes.
    pub(super) containerd: Containerd,
    // Dropped last: groups are removed when nothing is in them.
    _groups: Groups,
}

/// The control groups of a test's pods.
struct Groups(PathBuf);

impl Groups {
    const ALL: &str = "kinglet-test";

    /// Of the node in `dir`. What tests left behind that were killed goes too: their folders are gone.
    fn of(dir: &Path) -> Groups {
        static SWEPT: std::sync::Once = std::sync::Once::new();
        SWEPT.call_once(|| {
            let all = fs::read_dir(CgroupConfig::default().mount.join("memory").join(Groups::ALL));
            for entry in all.into_iter().flatten().flatten() {
                let name = entry.file_name();
                if !dir.with_file_name(&name).exists() && entry.path().is_dir() {
                    tree::remove(&CgroupConfig::default().mount, &Path::new(Groups::ALL).join(name));
                }
            }
        });
        Groups(Path::new(Groups::ALL).join(dir.file_name().unwrap()))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // The kernel ends the processes of the runtime's namespace a moment after the runtime.
        let until = Instant::now() + Duration::from_secs(10);
        while !tree::remove(&CgroupConfig::default().mount, &self.0) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The agent on a thread of its own, as it is a process of its own.
struct Agent {
    kill: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Node {
    pub(super) fn start() -> Node {
        Node::start_with(|_| {})
    }

    /// With settings changed before the agent's first start.
    pub(super) fn start_with(change: impl FnOnce(&mut Settings)) -> Node {
        let containerd = Containerd::start().unwrap();
        let dir = containerd.dir().to_owned();
        fs::write(dir.join("resolv.conf"), "nameserver 10.77.0.53\nsearch example.test\n").unwrap();
        let mut settings = settings(&dir, &containerd.endpoint(), archives());
        change(&mut settings);
        let _groups = Groups::of(&dir);
        let mut node = Node { agent: None, bench: Bench::new(), settings, containerd, _groups };
        node.start_agent();
        node
    }

    pub(super) fn start_agent(&mut self) {
        let (handles, settings) = (self.bench.handles.clone(), self.settings.clone());
        let (kill, killed) = tokio::sync::oneshot::channel();
        let run = async move {
            tokio::select! {
                () = run_with(handles, settings, Drain::new()) => {}
                _ = killed => {}
            }
        };
        let thread = std::thread::spawn(|| rt::runtime().unwrap().block_on(run));
        self.agent = Some(Agent { kill, thread });
    }

    /// As SIGKILL: whatever step is under way is left as it is.
    pub(super) fn kill_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            let _ = agent.kill.send(());
            agent.thread.join().unwrap();
        }
    }

    pub(super) fn apply(&self, pod: &Value) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        self.bench.meta.put_object(&format!("default/pod/{name}"), pod.clone());
    }

    pub(super) fn status(&self, name: &str) -> Option<Value> {
        let message = self.bench.uplink.reports_of(&format!("podstatus/default/{name}")).pop()?;
        let text: String = serde_json::from_str(message.content.get()).unwrap();
        let patch: Value = serde_json::from_str(&text).unwrap();
        Some(patch["status"].clone())
    }

    pub(super) fn wait_status(&self, name: &str, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        wait_for(
            what,
            || self.status(name).filter(|status| test(status)),
            || format!("{:#}", self.status(name).unwrap_or_default()),
        )
    }

    pub(super) fn wait_running(&self, name: &str) -> Value {
        self.wait_status(name, "Running and ready", |status| {
            status["phase"] == "Running" && status["containerStatuses"][0]["ready"] == true
        })
    }

    pub(super) fn wait_page(&self, port: u16) -> String {
        let fetch = || self.containerd.http_get(self.containerd.node_address(port), "/").ok();
        wait_for("the page on the host port", fetch, String::new)
    }

    pub(super) fn sandboxes(&self) -> usize {
        rt::runtime().unwrap().block_on(async {
            let cri = Cri::new(crate::edged::cri::channel(&self.settings.endpoint));
            cri.list_pod_sandboxes(Default::default()).await.unwrap().len()
        })
    }

    /// Names are removed, and with them what only they hold.
    pub(super) fn remove_image(&self, image: &str) {
        rt::runtime().unwrap().block_on(async {
            let cri = Cri::new(crate::edged::cri::channel(&self.settings.endpoint));
            let find = || async { cri.image_status(image).await.unwrap() };
            if let Some(found) = find().await {
                cri.remove_image(&found.id).await.unwrap();
            }
        });
    }

    /// How many images the runtime lists.
    pub(super) fn images(&self) -> usize {
        rt::runtime().unwrap().block_on(async {
            let cri = Cri::new(crate::edged::cri::channel(&self.settings.endpoint));
            cri.list_images().await.unwrap().len()
        })
    }

    /// What was told of a pod: `type reason message`, a line each.
    pub(super) fn events(&self, pod: &str) -> String {
        let mut lines = String::new();
        for message in self.bench.uplink.sent.lock().unwrap().iter() {
            let content: Value = message.content_as().unwrap_or_default();
            let event = content.get("event").unwrap_or(&content);
            if event["involvedObject"]["name"] == pod {
                let text = |key: &str| event[key].as_str().unwrap_or_default().to_string();
                lines += &format!("{} {} {}\n", text("type"), text("reason"), text("message"));
            }
        }
        lines
    }

    pub(super) fn log(&self, pod: &str, uid: &str, container: &str, attempt: u32) -> String {
        let path = self.settings.log_dir.join(format!("default_{pod}_{uid}/{container}/{attempt}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kill_agent();
        }
    }
}

pub(super) fn settings(dir: &Path, endpoint: &str, archives: &Path) -> Settings {
    Settings {
        endpoint: endpoint.into(),
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".into(),
        resolv_conf: dir.join("resolv.conf"),
        log_dir: dir.join("log"),
        log_rotation: Rotation { bytes_max: 1024 * 1024, files_max: 3 },
        kubelet_dir: dir.join("kubelet"),
        run_dir: dir.join("run"),
        preload_dir: archives.to_owned(),
        node_ip: "10.77.0.1".into(),
        report_events: true,
        cloud_id: "cloud-1".into(),
        images: Default::default(),
        // Nothing of this machine's own troubles.
        pressure: PressureSettings { thresholds: Vec::new(), ..PressureSettings::default() },
        policy: policy(dir),
    }
}

/// Below a group of the test's own, for tests of one machine run side by side.
fn policy(dir: &Path) -> NodePolicy {
    let mut policy = NodePolicy::new(&Config::default());
    policy.cgroups.root = format!("/{}/{}", Groups::ALL, dir.file_name().unwrap().to_str().unwrap());
    policy.static_pods = dir.join("manifests");
    policy
}

pub(super) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>, state: impl Fn() -> String) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < WAIT, "waited {WAIT:?} for: {what}\nlast seen: {}", state());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) fn pod(name: &str, container: Value, spec: Value) -> Value {
    let mut container = container;
    container["name"] = json!("c");
    container["image"] = json!(HELLO);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "1", "labels": { "app": name } },
        "spec": { "containers": [container], "terminationGracePeriodSeconds": 5 },
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

pub(super) fn web(name: &str, port: u16) -> Value {
    pod(name, json!({ "ports": [{ "containerPort": 8080, "hostPort": port }] }), json!({}))
}

macro_rules! needs_containerd {
    ($name:literal) => {
        if let Some(why) = missing() {
            return not_run($name, &why);
        }
    };
}

#[test]
fn a_pod_runs_answers_and_is_deleted_gracefully() {
    needs_containerd!("a_pod_runs_answers_and_is_deleted_gracefully");
    let node = Node::start();
    let mut pod = web("web", 8080);
    node.apply(&pod);
    let status = node.wait_running("web");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.78.0."), "{status:#}");
    assert_eq!((&status["hostIP"], &status["qosClass"]), (&json!("10.77.0.1"), &json!("BestEffort")));
    assert!(node.wait_page(8080).contains("hello from web"));
    assert!(
        matches!(&*node.bench.handles.runtime.borrow(), RuntimeStatus::Ready { version } if version.starts_with("containerd://"))
    );
    assert!(node.log("web", "uid-web", "c", 0).contains("listening on port 8080"));

    pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T08:00:00Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(5);
    pod["metadata"]["resourceVersion"] = json!("2");
    node.apply(&pod);
    let gone = || node.bench.uplink.reports_of("poddelete/default/web/uid-web").pop();
    let gone = wait_for("the final delete request", gone, || format!("{:#}", node.status("web").unwrap()));
    assert_eq!(gone.route.resource, "default/pod/web");
    assert_eq!(gone.content.get(), r#"{"gracePeriodSeconds":0,"preconditions":{"uid":"uid-web"}}"#);
    let status = node.status("web").unwrap();
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"], 0, "ended by SIGTERM in time: {status:#}");
    assert_eq!(node.sandboxes(), 0);
    node.bench.meta.delete_object("default/pod/web");
    let record = || node.bench.handles.meta.list_local("podstate").is_empty().then_some(());
    wait_for("the record to go", record, String::new);
    assert!(!node.settings.kubelet_dir.join("pods/uid-web").exists());
}

#[test]
fn running_containers_are_adopted_when_agent_or_containerd_come_back() {
    needs_containerd!("running_containers_are_adopted_when_agent_or_containerd_come_back");
    let mut node = Node::start();
    node.apply(&web("web", 8080));
    let before = node.wait_running("web");
    let pids = node.containerd.processes("hello").unwrap();
    assert_eq!(pids.len(), 1);

    node.kill_agent();
    node.bench.uplink.reports.lock().unwrap().clear();
    node.start_agent();
    let after = node.wait_running("web");
    for same in ["containerID", "restartCount", "state"] {
        assert_eq!(before["containerStatuses"][0][same], after["containerStatuses"][0][same], "{same}");
    }
    assert_eq!(before["startTime"], after["startTime"]);

    let mut runtime = node.bench.handles.runtime.subscribe();
    runtime.borrow_and_update();
    node.containerd.restart_daemon().unwrap();
    // Another pod proves that the agent found the new daemon.
    node.apply(&web("second", 8081));
    node.wait_running("second");
    assert!(node.wait_page(8080).contains("hello from web"));
    assert!(
        node.containerd.processes("hello").unwrap().contains(&pids[0]),
        "the first pod's process never ended"
    );
    assert_eq!(node.status("web").unwrap()["containerStatuses"][0]["restartCount"], 0);

    // The store is lost, the pods are not: they are adopted by their labels.
    node.kill_agent();
    for (name, _) in node.bench.handles.meta.list_local("podstate") {
        rt::runtime().unwrap().block_on(node.bench.handles.meta.delete_local("podstate", &name)).unwrap();
    }
    node.start_agent();
    let records = || (node.bench.handles.meta.list_local("podstate").len() == 2).then_some(());
    wait_for("records made anew", records, String::new);
    assert!(node.containerd.processes("hello").unwrap().contains(&pids[0]));
}

#[test]
fn a_power_cut_brings_the_pod_back_without_a_cloud() {
    needs_containerd!("a_power_cut_brings_the_pod_back_without_a_cloud");
    let mut node = Node::start();
    node.apply(&web("web", 8080));
    node.wait_running("web");
    node.kill_agent();
    node.containerd.power_cut().unwrap();
    node.bench.uplink.reports.lock().unwrap().clear();
    let dir = node.containerd.dir().to_owned();
    let again = Containerd::start_in(&dir).unwrap();
    node.start_agent();
    let status = node.wait_running("web");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 1, "{status:#}");
    let answer = wait_for("the page", || again.http_get(again.node_address(8080), "/").ok(), String::new);
    assert!(answer.contains("hello from web"));
    assert_eq!(node.sandboxes(), 1, "the dead sandbox is removed");
}

#[test]
fn restart_policies_and_exit_codes() {
    needs_containerd!("restart_policies_and_exit_codes");
    let node = Node::start();
    let ends = |code: &str| json!({ "args": ["exit", code] });
    node.apply(&pod("never", ends("3"), json!({ "restartPolicy": "Never" })));
    node.apply(&pod("once", ends("0"), json!({ "restartPolicy": "OnFailure" })));
    node.apply(&pod("always", ends("7"), json!({})));
    let failed = node.wait_status("never", "Failed", |status| status["phase"] == "Failed");
    assert_eq!(failed["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3, "{failed:#}");
    let done = node.wait_status("once", "Succeeded", |status| status["phase"] == "Succeeded");
    assert_eq!(done["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed", "{done:#}");
    let looping = node.wait_status("always", "CrashLoopBackOff", |status| {
        status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let container = &looping["containerStatuses"][0];
    assert_eq!(
        (&looping["phase"], &container["restartCount"]),
        (&json!("Running"), &json!(1)),
        "{looping:#}"
    );
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 7);
}

#[test]
fn environment_volumes_and_init_containers() {
    needs_containerd!("environment_volumes_and_init_containers");
    let node = Node::start();
    let object = |name: &str, data: Value| json!({ "metadata": { "name": name, "namespace": "default", "uid": name, "resourceVersion": "1" }, "data": data });
    node.bench.meta.put_remote("default/configmap/settings", object("settings", json!({ "color": "blue" })));
    node.bench.meta.put_remote("default/secret/key", object("key", json!({ "pass": "c2VzYW1l" })));
    let host = node.containerd.dir().join("from-host");
    fs::write(&host, "seen from inside").unwrap();
    let print = |name: &str, file: &str| {
        json!({
            "name": name, "image": HELLO, "args": ["print", file],
            "volumeMounts": [
                { "name": "settings", "mountPath": "/settings" }, { "name": "key", "mountPath": "/key" },
                { "name": "host", "mountPath": "/host" }, { "name": "scratch", "mountPath": "/scratch" },
            ],
        })
    };
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [print("first", "/settings/color"), print("second", "/key/pass"), print("third", "/host")],
        "volumes": [
            { "name": "settings", "configMap": { "name": "settings" } },
            { "name": "key", "secret": { "secretName": "key" } },
            { "name": "host", "hostPath": { "path": host.display().to_string(), "type": "File" } },
            { "name": "scratch", "emptyDir": {} },
        ],
    });
    let main = json!({
        "args": ["env"],
        "env": [
            { "name": "PLAIN", "value": "a" },
            { "name": "BOTH", "value": "$(PLAIN)-$(NAME)-$(NOT_THERE)" },
            { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "COLOR", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "color" } } },
        ],
        "envFrom": [{ "prefix": "S_", "secretRef": { "name": "key" } }],
    });
    node.apply(&pod("all", main, spec));
    let status = node.wait_status("all", "Succeeded", |status| status["phase"] == "Succeeded");
    assert_eq!(status["initContainerStatuses"].as_array().unwrap().len(), 3, "{status:#}");
    for (container, text) in [("first", "blue"), ("second", "sesame"), ("third", "seen from inside")] {
        assert!(node.log("all", "uid-all", container, 0).contains(text), "{container}");
    }
    let env = node.log("all", "uid-all", "c", 0);
    for line in ["PLAIN=a", "NAME=all", "COLOR=blue", "S_pass=sesame", "BOTH=a-$(NAME)-$(NOT_THERE)"] {
        assert!(env.contains(line), "{line} is not in:\n{env}");
    }
}

#[test]
fn what_cannot_run_says_why() {
    needs_containerd!("what_cannot_run_says_why");
    let node = Node::start();
    let waiting = |name: &str, reason: &str| {
        let status = node
            .wait_status(name, reason, |s| s["containerStatuses"][0]["state"]["waiting"]["reason"] == reason);
        status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap_or_default().to_string()
    };
    let mut never = pod("never", json!({ "imagePullPolicy": "Never" }), json!({}));
    never["spec"]["containers"][0]["image"] = json!("docker.io/kinglet/absent:1");
    node.apply(&never);
    assert!(waiting("never", "ErrImageNeverPull").contains("docker.io/kinglet/absent:1"));

    let env = json!([{ "name": "X", "valueFrom": { "configMapKeyRef": { "name": "absent", "key": "x" } } }]);
    node.apply(&pod("unset", json!({ "env": env }), json!({})));
    assert!(waiting("unset", "CreateContainerConfigError").contains("\"absent\" not found"));

    node.apply(&pod("lost", json!({}), json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/nowhere/at/all", "type": "Directory" } }] })));
    let lost = node.wait_status("lost", "the reason", |s| {
        s["containerStatuses"][0]["state"]["waiting"]["message"].is_string()
    });
    assert!(lost.to_string().contains("/nowhere/at/all"), "{lost:#}");

    node.apply(&json!({ "metadata": { "name": "bad", "namespace": "default", "uid": "uid-bad", "resourceVersion": "1" }, "spec": { "containers": "none" } }));
    let bad = node.wait_status("bad", "Failed", |status| status["phase"] == "Failed");
    assert_eq!(bad["reason"], "InvalidPodSpec");
}

#[test]
fn a_damaged_archive_is_named_and_the_others_are_used() {
    needs_containerd!("a_damaged_archive_is_named_and_the_others_are_used");
    let mut node = Node::start();
    node.kill_agent();
    let dir = node.containerd.dir().join("archives");
    fs::create_dir(&dir).unwrap();
    fs::copy(archives().join("pause.tar"), dir.join("pause.tar")).unwrap();
    let whole = fs::read(archives().join("hello.tar")).unwrap();
    fs::write(dir.join("cut.tar"), &whole[..whole.len() / 2]).unwrap();
    node.settings.preload_dir = dir.clone();
    node.bench.conditions.0.lock().unwrap().clear();
    node.start_agent();
    let condition = || {
        let conditions = node.bench.conditions.0.lock().unwrap();
        conditions.iter().find(|c| c.condition_type == "PreloadedImageUnusable" && c.status).cloned()
    };
    let condition = wait_for("the condition", condition, String::new);
    assert!(
        condition.message.contains("cut.tar") && condition.message.contains("copy it again"),
        "{}",
        condition.message
    );

    // Right length, wrong content: found when it is stored.
    fs::remove_file(dir.join("cut.tar")).unwrap();
    let mut flipped = whole.clone();
    let at = whole.windows(4).position(|w| w == b"\x7fELF").unwrap_or(whole.len() * 2 / 3);
    flipped[at + 200] ^= 0xff;
    fs::write(dir.join("flipped.tar"), &flipped).unwrap();
    let fresh = Containerd::start().unwrap();
    node.kill_agent();
    node.settings.endpoint = fresh.endpoint();
    node.start_agent();
    node.apply(&web("web", 8080));
    let status = node.wait_status("web", "the reason", |s| {
        s["containerStatuses"][0]["state"]["waiting"]["message"]
            .as_str()
            .is_some_and(|m| m.contains("flipped.tar"))
    });
    assert_eq!(status["phase"], "Pending");
    // The remedy works: the archive is copied again.
    fs::remove_file(dir.join("flipped.tar")).unwrap();
    fs::write(dir.join("hello.tar"), &whole).unwrap();
    node.wait_running("web");
}

#[test]
fn without_a_runtime_the_condition_names_socket_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    let endpoint = format!("unix://{}/absent.sock", dir.path().display());
    let settings = settings(dir.path(), &endpoint, dir.path());
    let runtime = rt::runtime().unwrap();
    let drain = Drain::new();
    let mut status = bench.handles.runtime.subscribe();
    runtime.block_on(async {
        let run = run_with(bench.handles.clone(), settings, drain.clone());
        tokio::select! {
            () = run => panic!("it does not end by itself"),
            changed = status.changed() => changed.unwrap(),
        }
    });
    let RuntimeStatus::Down { message } = status.borrow().clone() else { panic!("not down") };
    assert!(
        message.contains("absent.sock does not exist") && message.contains("systemctl start containerd"),
        "{message}"
    );
    let conditions = bench.conditions.0.lock().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c.condition_type == "ContainerRuntimeUnavailable" && c.status && c.message == message)
    );
}
