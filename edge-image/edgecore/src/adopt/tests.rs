//! Takeovers: values first, then containers that were made as a stock edged makes them, on a containerd of the test's own, with a
//! database that SQLite wrote (tests/vectors/sqlite/kubeedge.db), cut off at every step.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use e2e::containerd::{Containerd, SANDBOX_IMAGE, missing, not_run};
use serde_json::Value;

use super::{service::Stock, *};
use crate::{
    contract::{Applied, BoxFuture, Inbox, Meta},
    edged::{
        cri::{self, Cri, messages as m},
        observed::label,
        tests::containerd::{HELLO, archives},
    },
    meta::MetaStore,
};

const NODE: &str = "line-3";
const WEB: &str = "0a0a0a0a-0000-4000-8000-000000000001";
const SECOND: &str = "0a0a0a0a-0000-4000-8000-000000000002";
const WAIT: Duration = Duration::from_secs(90);

fn vector() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/sqlite/kubeedge.db")
}

fn contents() -> stock::Contents {
    stock::read(&sqlite::Database::open(&vector()).unwrap()).unwrap()
}

#[test]
fn a_database_becomes_objects_and_twins() {
    let contents = contents();
    let mut keys: Vec<String> = contents.objects.iter().map(|object| object.resource.to_string()).collect();
    keys.sort();
    let expected = [
        "default/configmap/settings",
        "default/device/oven",
        "default/devicemodel/thermo",
        "default/pod/second",
        "default/pod/web",
        "default/secret/keys",
        "null/node/line-3",
    ];
    assert_eq!(keys, expected);
    let second = contents.objects.iter().find(|object| object.uid == SECOND).unwrap();
    assert!(second.body.starts_with('{'), "an object in a string is taken out of it");
    assert_eq!(contents.damaged, ["default/configmap/nobody"], "the cloud's refusal is no object");
    assert_eq!(contents.left, [("podpatch".into(), 1), ("serviceaccounttoken".into(), 1)].into());

    let oven = &contents.devices["default/oven"];
    assert_eq!((oven.state.as_str(), oven.last_online.as_str()), ("online", "2026-11-21T15:11:34Z"));
    let temperature = serde_json::to_value(&oven.twins["temperature"]).unwrap();
    let wanted = serde_json::json!({
        "expected": { "value": "20", "metadata": { "timestamp": 1_795_273_890_000_i64 } },
        "actual": { "value": "42", "metadata": { "timestamp": 1_795_273_894_312_i64 } },
        "optional": true, "metadata": { "type": "int" },
        "expected_version": { "cloud": 3, "edge": 0 }, "actual_version": { "cloud": 0, "edge": 2 },
    });
    assert_eq!(temperature, wanted);
    let door = &oven.twins["door"];
    assert_eq!((door.expected.is_none(), door.expected_version, door.optional), (true, None, Some(false)));
}

#[test]
fn rows_of_any_text_do_not_panic() {
    let whole = "default/pod/x\u{1f}pod\u{1f}{\"metadata\":{\"uid\":\"u\"}}\u{1f}4\u{1f}{\"timestamp\":5}\u{1f}a\u{1f}b\u{1f}c\u{1f}d";
    let mut random = wire::link::Backoff::new(u64::MAX / 2, u64::MAX / 2, 3);
    for _ in 0..3000 {
        let mut bytes = whole.as_bytes().to_vec();
        let at = random.next_ms() as usize % bytes.len();
        bytes[at] = random.next_ms() as u8;
        fuzz_rows(&bytes);
    }
}

#[tokio::test]
async fn the_way_back_tells_kubeedge_what_changed() {
    let database = sqlite::Database::open(&vector()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = MetaStore::open(dir.path(), "").unwrap();
    let push = async |operation: &str, resource: &str, body: &str| {
        let body: Box<serde_json::value::RawValue> = serde_json::from_str(body).unwrap();
        let message =
            wire::Message::new(1, "edgecontroller", "resource", operation, resource).with_content(&body);
        let applied = store.apply(&message).await.unwrap();
        assert!(matches!(applied, Applied::Stored | Applied::Deleted), "{applied:?}");
    };
    let twins = |name: &str, edge: i64| {
        let mut twins = contents().devices["default/oven"].twins.clone();
        twins.entry(name.into()).or_default().actual_version =
            Some(crate::twin::types::Version { cloud: 0, edge });
        crate::twin::record::taken_over("d-1", twins, "online", "2026-11-21T15:11:34Z")
    };
    for object in contents().objects {
        push("insert", &object.resource.to_string(), &object.body).await;
    }
    store.put_local("twin", "default/oven", twins("door", 9), true).await.unwrap();
    assert!(back::changes(&database, &store).unwrap().is_empty(), "nothing happened, nothing is written");

    push("delete", "default/pod/second", &format!(r#"{{"metadata":{{"uid":"{SECOND}"}}}}"#)).await;
    let new = r#"{"kind":"Pod","metadata":{"name":"third","uid":"u-3","resourceVersion":"200"}}"#;
    push("insert", "default/pod/third", new).await;
    push(
        "update",
        "default/configmap/settings",
        r#"{"metadata":{"uid":"cm-1","resourceVersion":"300"},"data":{"a":"x"}}"#,
    )
    .await;
    store.put_local("twin", "default/oven", twins("lid", 4), true).await.unwrap();
    let changed = back::changes(&database, &store).unwrap();
    let path = dir.path().join("edgecore.db");
    fs::write(&path, database.rewrite(&changed).unwrap()).unwrap();
    let after = stock::read(&sqlite::Database::open(&path).unwrap()).unwrap();
    let mut pods: Vec<_> =
        after.objects.iter().filter(|o| o.resource.kind == "pod").map(|o| &*o.resource.name).collect();
    pods.sort_unstable();
    assert_eq!(pods, ["third", "web"]);
    assert!(after.objects.iter().any(|o| o.uid == "cm-1" && o.body.contains("\"300\"")));
    assert_eq!((after.damaged.len(), after.left.len()), (1, 2), "what is not ours stays");
    let oven = &after.devices["default/oven"].twins;
    assert_eq!(oven.keys().collect::<Vec<_>>(), ["door", "lid", "temperature"]);
    assert_eq!(oven["lid"].actual_version.unwrap().edge, 4);
    if let Ok(ran) = Command::new("sqlite3").arg(&path).arg("PRAGMA integrity_check").output() {
        assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "ok");
    }
}

const YAML: &str = "\
# ours
database:
  dataSource: DIR/lib/edgecore.db
modules:
  edgeHub:
    enable: true
    tlsCaFile: DIR/ca.crt   # the CA
    token: \"\"
    tlsCertFile: DIR/certs/server.crt
    tlsPrivateKeyFile: DIR/certs/server.key
    websocket: { enable: true, server: '127.0.0.1:1' }
  edgeStream:
    tlsTunnelCAFile: /etc/kubeedge/ca/rootCA.crt
  edged:
    hostnameOverride: line-3
";

#[test]
fn the_configuration_stays_but_for_the_certificate() {
    let ours = config::with_bundle(YAML, Path::new("/etc/kubeedge/certs/node.pem"));
    let (before, after) =
        (Config::parse(Path::new("a"), YAML).unwrap(), Config::parse(Path::new("b"), &ours).unwrap());
    assert!(Credentials::new(&after.config.modules.edge_hub).is_bundle(), "{ours}");
    assert_eq!(after.unknown.len(), before.unknown.len());
    for kept in [
        "# ours",
        "    token: \"\"",
        "tlsTunnelCAFile: /etc/kubeedge/ca/rootCA.crt",
        "hostnameOverride: line-3",
    ] {
        assert!(ours.contains(kept), "{ours}");
    }
    // keadm's minimal file names no files of certificates.
    let minimal = "modules:\n  edgeHub:\n    websocket:\n      server: a:1\n";
    let ours = config::with_bundle(minimal, Path::new("/p/node.pem"));
    assert!(
        Credentials::new(&Config::parse(Path::new("c"), &ours).unwrap().config.modules.edge_hub).is_bundle()
    );
}

#[test]
fn sandboxes_are_bound_by_uid_and_static_pods_by_name() {
    let pod = |body: &str| Arc::new(crate::edged::pod::Pod::parse(body.as_bytes()).unwrap());
    let objects = contents().objects;
    let pods: Vec<_> = objects.iter().filter(|o| o.resource.kind == "pod").map(|o| pod(&o.body)).collect();
    let own = pod(
        r#"{"metadata":{"name":"clock-line-3","namespace":"kube-system","uid":"of-the-file"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#,
    );
    let sandbox = |id: &str, name: &str, namespace: &str, uid: &str, attempt, state: m::PodSandboxState| {
        m::PodSandbox {
            id: id.into(),
            metadata: Some(m::PodSandboxMetadata { attempt, ..Default::default() }),
            state: state.into(),
            created_at: 5_000_000_000,
            labels: labels(name, namespace, uid),
        }
    };
    let ready = m::PodSandboxState::Ready;
    let mut ours = sandbox("o", "mine", "default", "u-ours", 0, ready);
    ours.labels.insert(label::NODE.into(), NODE.into());
    let mut container = m::Container { id: "k".into(), pod_sandbox_id: "a1".into(), ..Default::default() };
    container.labels = labels("web", "default", WEB);
    container.labels.insert(label::CONTAINER_NAME.into(), "c".into());
    container.state = m::ContainerState::Running.into();
    let details = cri::adopted::KubeletStatus {
        annotations: HashMap::from([
            ("io.kubernetes.container.terminationMessagePath".into(), "/dev/termination-log".into()),
            ("io.kubernetes.container.terminationMessagePolicy".into(), "FallbackToLogsOnError".into()),
        ]),
        mounts: vec![m::Mount {
            container_path: "/dev/termination-log".into(),
            host_path: "/p/8628ed70".into(),
            ..Default::default()
        }],
    };
    let running = runtime::Running {
        sandboxes: vec![
            sandbox("a0", "web", "default", WEB, 0, m::PodSandboxState::NotReady),
            sandbox("a1", "web", "default", WEB, 1, ready),
            sandbox("s", "clock-line-3", "kube-system", "of-the-kubelet", 0, ready),
            sandbox("x", "stray", "default", "u-stray", 0, ready),
            sandbox("y", "done", "default", "u-done", 0, m::PodSandboxState::NotReady),
            ours,
        ],
        containers: vec![container],
        details: HashMap::from([("k".into(), details)]),
    };
    let binding = runtime::bind(&running, &pods, &[own], NODE, "");
    assert_eq!(binding.unknown, ["default/stray"], "what ended and is in no database is nobody's business");
    let [web, clock] = &binding.bound[..] else { panic!("{binding:?}") };
    assert_eq!((web.record.next_sandbox, web.record.start_time, web.containers_running), (2, 5, 1));
    assert_eq!((web.record.cloud.as_deref(), web.record.incarnation.as_str()), (Some(""), WEB));
    assert_eq!(web.adopted.labels.len(), 3, "two sandboxes and a container");
    let of_container = &web.adopted.labels["k"];
    assert_eq!(
        of_container[label::CONTAINER_HASH],
        pods.iter().find(|p| p.metadata.uid == WEB).unwrap().spec.containers[0].hash()
    );
    assert_eq!(
        (of_container[label::TERMINATION_LOG].as_str(), of_container[label::LAST_WORDS].as_str()),
        ("/p/8628ed70", "log")
    );
    assert_eq!(clock.record.uid, "of-the-kubelet");
    assert_ne!(
        clock.record.cloud.as_deref(),
        Some(""),
        "of another cloud, so that it is bound to the file's uid"
    );
}

fn labels(name: &str, namespace: &str, uid: &str) -> HashMap<String, String> {
    HashMap::from(
        [(label::POD_NAME, name), (label::POD_NAMESPACE, namespace), (label::POD_UID, uid)]
            .map(|(key, value)| (key.into(), value.into())),
    )
}

/// Starts and stops nothing, and remembers what it was asked.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn say(&self, what: &str) {
        self.0.lock().unwrap().push(what.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Services for Told {
    fn find(&self, _: &Path) -> Stock {
        Stock { unit: "edgecore.service".into(), enabled: true, ..Stock::default() }
    }

    fn stop<'a>(&'a self, stock: &'a Stock) -> BoxFuture<'a, Result<(), String>> {
        self.say(&format!("stop {}", stock.unit));
        Box::pin(async { Ok(()) })
    }

    fn start<'a>(&'a self, stock: &'a Stock) -> BoxFuture<'a, Result<String, String>> {
        self.say(&format!("start {}", stock.unit));
        Box::pin(async { Ok(String::new()) })
    }

    fn start_ours<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<String, String>> {
        self.say("start ours");
        Box::pin(async { Ok(String::new()) })
    }

    fn stop_ours<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<(), String>> {
        self.say("stop ours");
        Box::pin(async { Ok(()) })
    }
}

/// A node as KubeEdge leaves it: files, and two pods that run.
struct StockNode {
    dir: PathBuf,
    options: Options,
    told: Told,
    /// Of its kubelet API.
    port: u16,
    containerd: Containerd,
}

impl StockNode {
    fn start() -> StockNode {
        let containerd = Containerd::start().unwrap();
        let dir = containerd.dir().to_owned();
        for folder in ["lib", "certs", "log/pods", "kubelet/pods", "run"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        fs::copy(vector(), dir.join("lib/edgecore.db")).unwrap();
        let ca = pki::Ca::create("KubeEdge", crate::credentials::unix_now_s()).unwrap();
        let key = pki::Key::generate().unwrap();
        let csr = pki::Csr::parse(&pki::new_csr(&key, &pki::Identity::node(NODE)).unwrap()).unwrap();
        let cert = ca.issue_node(&csr, NODE, crate::credentials::unix_now_s()).unwrap();
        fs::write(dir.join("ca.crt"), ca.cert_pem()).unwrap();
        fs::write(dir.join("certs/server.crt"), pki::pem_encode("CERTIFICATE", &cert)).unwrap();
        fs::write(dir.join("certs/server.key"), key.to_pem()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let more = format!(
            "    podSandboxImage: {SANDBOX_IMAGE}\n    rootDirectory: DIR/kubelet\n    tailoredKubeletConfig:\n      containerRuntimeEndpoint: unix://DIR/containerd.sock\n      podLogsDir: DIR/log/pods\n      staticPodPath: DIR/manifests\n      readOnlyPort: {port}\n      cgroupRoot: /kinglet-test/adopt-{port}\n      evictionHard: {{ memory.available: 1Mi }}\n  eventBus:\n    enable: false\n  deviceTwin:\n    enable: false\nkinglet:\n  runDir: DIR/run\n  preloadDir: DIR/none\n"
        );
        let text = format!("{YAML}{more}").replace("DIR", dir.to_str().unwrap());
        fs::write(dir.join("edgecore.yaml"), text).unwrap();
        let options =
            Options { config: dir.join("edgecore.yaml"), dry_run: false, undo: false, force: false };
        let node = StockNode { dir, options, told: Told::default(), port, containerd };
        for image in ["pause.tar", "hello.tar"] {
            let mut import = Command::new("ctr");
            import.arg("--address").arg(node.containerd.socket()).args(["-n", "k8s.io", "images", "import"]);
            let ran = import.arg(archives().join(image)).output().unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        }
        node.block_on(async {
            node.run_pod(
                "web",
                WEB,
                &[("data", "kubernetes.io~empty-dir"), ("settings", "kubernetes.io~configmap")],
            )
            .await;
            node.run_pod("second", SECOND, &[]).await;
        });
        node
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        rt::runtime().unwrap().block_on(future)
    }

    fn cri(&self) -> Cri {
        Cri::new(cri::channel(&self.containerd.endpoint()))
    }

    /// As a stock edged does: its labels, annotations, folders.
    async fn run_pod(&self, name: &str, uid: &str, volumes: &[(&str, &str)]) {
        let cri = self.cri();
        let pod_dir = self.dir.join("kubelet/pods").join(uid);
        let last_words = pod_dir.join("containers/c/8628ed70");
        fs::create_dir_all(last_words.parent().unwrap()).unwrap();
        fs::write(&last_words, "").unwrap();
        fs::set_permissions(&last_words, fs::Permissions::from_mode(0o666)).unwrap();
        let mut mounts = vec![("/dev/termination-log".to_string(), last_words)];
        for (volume, plugin) in volumes {
            let path = pod_dir.join("volumes").join(plugin).join(volume);
            fs::create_dir_all(&path).unwrap();
            mounts.push((format!("/{volume}"), path));
        }
        let mounts = mounts.into_iter().map(|(container_path, host)| m::Mount {
            container_path,
            host_path: host.to_str().unwrap().into(),
            ..m::Mount::default()
        });
        let logs = self.dir.join(format!("log/pods/default_{name}_{uid}"));
        fs::create_dir_all(logs.join("c")).unwrap();
        let sandbox = m::PodSandboxConfig {
            metadata: Some(m::PodSandboxMetadata {
                name: name.into(),
                uid: uid.into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: logs.to_str().unwrap().into(),
            labels: labels(name, "default", uid),
            ..m::PodSandboxConfig::default()
        };
        let id = cri.run_pod_sandbox(sandbox.clone()).await.unwrap();
        let mut container_labels = labels(name, "default", uid);
        container_labels.insert(label::CONTAINER_NAME.into(), "c".into());
        let annotations = [
            ("io.kubernetes.container.hash", "5d2f1a77"),
            ("io.kubernetes.container.restartCount", "3"),
            ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
            ("io.kubernetes.container.terminationMessagePolicy", "File"),
        ];
        let config = m::ContainerConfig {
            metadata: Some(m::ContainerMetadata { name: "c".into(), attempt: 3 }),
            image: Some(m::ImageSpec { image: HELLO.into() }),
            mounts: mounts.collect(),
            labels: container_labels,
            annotations: annotations.map(|(key, value)| (key.into(), value.into())).into(),
            log_path: "c/3.log".into(),
            ..m::ContainerConfig::default()
        };
        let request = m::CreateContainerRequest {
            pod_sandbox_id: id,
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let id = cri.create_container(request).await.unwrap();
        cri.start_container(&id).await.unwrap();
    }

    /// Of all containers and sandboxes: id, state, creation; and the processes.
    fn life(&self) -> Vec<String> {
        let mut lines = self.block_on(async {
            let cri = self.cri();
            let mut lines = Vec::new();
            for container in cri.list_containers(HashMap::new()).await.unwrap() {
                let status = cri.container_status(&container.id).await.unwrap();
                lines.push(format!(
                    "{} {} {} {}",
                    container.id, status.state, status.started_at, status.log_path
                ));
            }
            for sandbox in cri.list_pod_sandboxes(HashMap::new()).await.unwrap() {
                lines.push(format!("{} {} {}", sandbox.id, sandbox.state, sandbox.created_at));
            }
            lines
        });
        lines.extend(self.containerd.processes("hello").unwrap().iter().map(|pid| format!("pid {pid}")));
        lines.sort();
        lines
    }

    fn run(&self, cut: Option<Step>) -> Result<Vec<String>, AdoptError> {
        self.block_on(run(&self.options, &self.told, cut))
    }

    fn undo(&self) -> Result<Vec<String>, AdoptError> {
        self.block_on(undo(&self.options, &self.told))
    }

    /// All files of KubeEdge's with their content.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let names = ["edgecore.yaml", "ca.crt", "certs/server.crt", "certs/server.key", "lib/edgecore.db"];
        let mut files: Vec<_> =
            names.map(|name| (name.into(), fs::read(self.dir.join(name)).unwrap())).into();
        for folder in ["lib", "certs"] {
            for entry in fs::read_dir(self.dir.join(folder)).unwrap().flatten() {
                files.push((entry.file_name().to_string_lossy().into_owned(), Vec::new()));
            }
        }
        files.retain(|(name, _)| name != "adopted.undone");
        files.sort();
        files
    }

    fn status(&self, name: &str) -> Value {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.port));
        let fetch = || -> std::io::Result<String> {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.write_all(b"GET /pods HTTP/1.0\r\nHost: n\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
        };
        let list: Value = fetch().ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().find(|pod| pod["metadata"]["name"] == name).unwrap_or_default()["status"].clone()
    }
}

#[test]
fn a_node_is_taken_over_and_given_back_from_every_step_and_nothing_restarts() {
    const NAME: &str = "a_node_is_taken_over_and_given_back_from_every_step_and_nothing_restarts";
    if let Some(why) = missing() {
        return not_run(NAME, &why);
    }
    let node = StockNode::start();
    let (life, files) = (node.life(), node.files());
    assert_eq!(life.iter().filter(|line| line.starts_with("pid ")).count(), 2, "{life:#?}");

    let dry = Options { dry_run: true, ..node.options.clone() };
    let plan = node.block_on(run(&dry, &node.told, None)).unwrap().join("\n");
    for part in [
        "node line-3, certificate until 2027",
        "stop and disable edgecore.service",
        "2 pod",
        "1 devices with 2 twins",
        "default/web: 1 running containers go on",
        "no object: default/configmap/nobody",
        "nothing was changed",
    ] {
        assert!(plan.contains(part), "{part:?} is not in\n{plan}");
    }
    assert_eq!((node.files(), node.told.take()), (files.clone(), vec![]), "a dry run changes nothing");
    assert!(node.undo().unwrap_err().to_string().contains("nothing was taken over"));

    // Power cut behind every step: back from there, and on from there.
    for step in [Step::BackedUp, Step::Stopped, Step::Stored, Step::Switched] {
        assert!(matches!(node.run(Some(step)), Err(AdoptError::Cut)), "{step:?}");
        node.undo().unwrap();
        assert_eq!(node.files(), files, "back after {step:?}");
        assert!(matches!(node.run(Some(step)), Err(AdoptError::Cut)), "{step:?}");
        node.told.take();
        node.run(None).unwrap();
        let told = node.told.take();
        assert_eq!(told.last().map(String::as_str), Some("start ours"), "{step:?}");
        let stopped = told.contains(&"stop edgecore.service".to_owned());
        assert_eq!(stopped, step == Step::BackedUp, "what is done is not done again: {step:?}, {told:?}");
        assert!(matches!(node.run(None), Err(AdoptError::AlreadyOurs(_))));
        node.undo().unwrap();
        assert_eq!(node.told.take(), ["stop ours", "start edgecore.service"]);
        assert_eq!(node.files(), files, "there and back after {step:?}");
    }
    assert_eq!(node.life(), life, "nothing of this touched a container");

    node.run(None).unwrap();
    agent_goes_on(&node, &life);

    node.undo().unwrap();
    assert_eq!(node.files(), files);
    let stray = pod_of_nobody(&node);
    let error = node.run(None).unwrap_err().to_string();
    assert!(error.contains("default/stray runs here") && error.contains("--force"), "{error}");
    assert_eq!(node.files(), files, "refused before anything was touched: {stray}");
}

/// Our agent on what was taken over: it sees the same containers, with their restarts, and its volumes are theirs.
fn agent_goes_on(node: &StockNode, life: &[String]) {
    let cfg = Config::load(&node.options.config).unwrap().config;
    let store = MetaStore::open(&cfg.store_dir(), "").unwrap();
    let twin = String::from_utf8(store.get_local("twin", "default/oven").unwrap().to_vec()).unwrap();
    assert!(twin.contains("\"uid\":\"d-1\"") && twin.contains("\"edge\":9"), "{twin}");
    store.close();
    drop(store);

    let drain = rt::Drain::new();
    let (config, inner) = (node.options.config.clone(), drain.clone());
    let agent =
        std::thread::spawn(move || rt::runtime().unwrap().block_on(crate::run(&config, inner)).unwrap());
    let begun = Instant::now();
    let ready = |name| node.status(name)["containerStatuses"][0]["ready"] == true;
    while !(ready("web") && ready("second")) {
        assert!(begun.elapsed() < WAIT && !agent.is_finished(), "{:#}", node.status("web"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = node.status("web");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["restartCount"], 3, "{status:#}");
    let id = container["containerID"].as_str().unwrap().trim_start_matches("containerd://").to_owned();
    assert!(life.iter().any(|line| line.starts_with(&id)), "{id} in {life:#?}");
    assert_eq!(node.life(), life, "the agent restarted nothing");
    drain.start();
    agent.join().unwrap();
    assert_eq!(node.life(), life, "nor did its end");
    assert!(node.dir.join("kubelet/pods").join(WEB).join("volumes/kubernetes.io~empty-dir/data").is_dir());
}

/// A pod that runs and is in no database.
fn pod_of_nobody(node: &StockNode) -> String {
    let sandbox = m::PodSandboxConfig {
        metadata: Some(m::PodSandboxMetadata {
            name: "stray".into(),
            uid: "u-9".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: "stray".into(),
        log_directory: node.dir.join("log/stray").to_str().unwrap().into(),
        labels: labels("stray", "default", "u-9"),
        ..m::PodSandboxConfig::default()
    };
    node.block_on(async { node.cri().run_pod_sandbox(sandbox).await }).unwrap()
}
