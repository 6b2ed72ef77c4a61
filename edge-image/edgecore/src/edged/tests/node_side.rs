//! The node's part of running pods against a real containerd: control groups, admission, device plugins, static pods.

use std::{fs, path::PathBuf, sync::mpsc, time::Duration};

use e2e::containerd::{missing, not_run};
use serde_json::{Value, json};

use super::containerd::{HELLO, Node, pod, wait_for, web};
use crate::{
    contract::DeviceCount,
    edged::{
        cgroup::usage_dir,
        device_plugin::{messages as api, tests::Scripted},
        pod::Pod,
    },
};

fn resources(cpu: &str, memory: &str) -> Value {
    json!({ "resources": { "requests": { "cpu": cpu }, "limits": { "cpu": "500m", "memory": memory } } })
}

fn group(node: &Node, object: &Value, controller: &str) -> PathBuf {
    let pod = Pod::parse(object.to_string().as_bytes()).unwrap();
    usage_dir(&node.settings.policy.cgroups, &pod, object["metadata"]["uid"].as_str().unwrap(), controller)
}

fn deleted(mut object: Value) -> Value {
    object["metadata"]["deletionTimestamp"] = json!("2026-11-21T08:00:00Z");
    object["metadata"]["deletionGracePeriodSeconds"] = json!(1);
    object["metadata"]["resourceVersion"] = json!("2");
    object
}

#[test]
fn pods_have_groups_with_limits_that_go_with_them() {
    if let Some(why) = missing() {
        return not_run("pods_have_groups_with_limits_that_go_with_them", &why);
    }
    let mut node = Node::start();
    let object = pod("web", resources("250m", "64Mi"), json!({}));
    node.apply(&object);
    node.wait_running("web");
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let read = |controller: &str, file: &str| {
        let path = group(&node, &object, controller).join(file);
        fs::read_to_string(&path).unwrap_or_else(|e| format!("{}: {e}", path.display())).trim().to_string()
    };
    let found = match v2 {
        false => [
            read("cpu", "cpu.shares"),
            read("cpu", "cpu.cfs_quota_us"),
            read("memory", "memory.limit_in_bytes"),
        ],
        true => [read("", "cpu.weight"), read("", "cpu.max"), read("", "memory.max")],
    };
    match v2 {
        false => assert_eq!(found, ["256", "50000", "67108864"]),
        true => assert_eq!(found, ["10", "50000 100000", "67108864"]),
    }
    let class = group(&node, &object, "cpu").parent().unwrap().to_owned();
    let (file, weight) = if v2 { ("cpu.weight", "10") } else { ("cpu.shares", "256") };
    let burstable = || {
        let text = fs::read_to_string(class.join(file)).unwrap_or_default();
        (text.trim() == weight).then_some(())
    };
    wait_for("the class to weigh what its pods ask for", burstable, || {
        fs::read_to_string(class.join(file)).unwrap_or_default()
    });
    let processes = |dir: PathBuf| {
        let inside = fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.path().is_dir());
        inside
            .map(|entry| fs::read_to_string(entry.path().join("cgroup.procs")).unwrap().lines().count())
            .sum::<usize>()
    };
    assert!(processes(group(&node, &object, "memory")) >= 2, "the sandbox and the container are in it");

    // Killed with a group on its hands: the next life sweeps what nobody has.
    node.kill_agent();
    let left = class.join("podleft-over");
    fs::create_dir_all(left.join("container")).unwrap();
    node.start_agent();
    wait_for("the left-over group to go", || (!left.exists()).then_some(()), String::new);
    node.apply(&deleted(object.clone()));
    let gone = || (!group(&node, &object, "cpu").exists()).then_some(());
    wait_for("the pod's group to go", gone, || format!("{:#}", node.status("web").unwrap_or_default()));
    node.kill_agent();
    let top = node.settings.policy.cgroups.mount.clone();
    let root = node.settings.policy.cgroups.root.trim_start_matches('/').to_string();
    drop(node);
    remove_empty(&top, &root);
}

/// Takes the test's own groups away.
fn remove_empty(mount: &std::path::Path, root: &str) {
    let trees = fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
    for tree in trees.chain([mount.to_path_buf()]) {
        for below in ["/kubepods/burstable", "/kubepods/besteffort", "/kubepods", ""] {
            let _ = fs::remove_dir(tree.join(format!("{root}{below}")));
        }
    }
}

#[test]
fn pods_that_cannot_be_admitted_are_failed_for_good() {
    if let Some(why) = missing() {
        return not_run("pods_that_cannot_be_admitted_are_failed_for_good", &why);
    }
    let mut node = Node::start();
    node.apply(&web("first", 8090));
    node.wait_running("first");
    node.bench.meta.put_object("null/node/edge-1", json!({ "metadata": { "uid": "n", "labels": {} } }));
    let mut greedy = pod("greedy", json!({ "resources": { "requests": { "cpu": "4000" } } }), json!({}));
    node.apply(&greedy);
    node.apply(&web("second", 8090));
    node.apply(&pod("elsewhere", json!({}), json!({ "nodeSelector": { "no": "such" } })));
    let sysctl = json!({ "securityContext": { "sysctls": [{ "name": "kernel.sem", "value": "1" }] } });
    node.apply(&pod("unsafe", json!({}), sysctl));
    let failed = |node: &Node, name: &str, reason: &str| {
        let status = node.wait_status(name, reason, |status| status["phase"] == "Failed");
        assert_eq!(status["reason"], reason, "{status:#}");
        assert!(status["message"].as_str().unwrap().starts_with("Pod was rejected: "), "{status:#}");
        assert!(status["containerStatuses"].is_null(), "kubectl would show their reasons: {status:#}");
        assert!(node.events(name).contains(reason), "{}", node.events(name));
    };
    for (name, reason) in [
        ("greedy", "OutOfcpu"),
        ("second", "NodePorts"),
        ("elsewhere", "NodeAffinity"),
        ("unsafe", "SysctlForbidden"),
    ] {
        failed(&node, name, reason);
    }
    // Room that comes later changes nothing: a Failed pod stays Failed.
    node.kill_agent();
    greedy["spec"]["containers"][0]["resources"] = json!({});
    greedy["metadata"]["resourceVersion"] = json!("3");
    node.apply(&greedy);
    node.start_agent();
    node.apply(&web("third", 8090));
    failed(&node, "third", "NodePorts");
    let status = node.status("greedy").unwrap();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("OutOfcpu")), "{status:#}");
    assert_eq!(node.status("first").unwrap()["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(node.sandboxes(), 1);
}

/// A plugin on a thread of its own; it ends with the sender.
fn plugin(
    dir: PathBuf,
    answer: api::ContainerAllocateResponse,
) -> (mpsc::Receiver<()>, tokio::sync::oneshot::Sender<()>) {
    let (ready, is_ready) = mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        rt::runtime().unwrap().block_on(async move {
            let _ = fs::remove_file(dir.join("thing.sock"));
            let plugin = Scripted::start(&dir, "thing.sock", &[("thing-0", true), ("thing-1", false)]).await;
            *plugin.answer.lock().unwrap() = Some(answer);
            ready.send(()).unwrap();
            let _ = ended.await;
        });
    });
    (is_ready, end)
}

#[test]
fn a_pod_gets_the_device_that_a_plugin_gives_it() {
    if let Some(why) = missing() {
        return not_run("a_pod_gets_the_device_that_a_plugin_gives_it", &why);
    }
    let mut node = Node::start();
    let dir = node.settings.kubelet_dir.join("device-plugins");
    wait_for("the socket", || dir.join("kubelet.sock").exists().then_some(()), String::new);
    let answer = api::ContainerAllocateResponse {
        envs: [("THING".to_string(), "thing-0".to_string())].into(),
        devices: vec![api::DeviceSpec {
            container_path: "/dev/thing".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }],
        ..Default::default()
    };
    let (ready, end) = plugin(dir.clone(), answer.clone());
    ready.recv_timeout(Duration::from_secs(30)).unwrap();
    let counts = |node: &Node| node.bench.handles.devices.borrow().get("example.com/gpu").copied();
    let counted = |capacity, allocatable| Some(DeviceCount { capacity, allocatable });
    let wait_counts = |node: &Node, capacity, allocatable| {
        let seen = || (counts(node) == counted(capacity, allocatable)).then_some(());
        wait_for("the node's devices", seen, || format!("{:?}", counts(node)));
    };
    wait_counts(&node, 2, 1);
    let asks =
        |name: &str| pod(name, json!({ "resources": { "limits": { "example.com/gpu": "1" } } }), json!({}));
    node.apply(&asks("user"));
    let id = node.wait_running("user")["containerStatuses"][0]["containerID"].clone();
    let process = || node.containerd.processes("hello").unwrap().first().copied();
    let process = wait_for("the container's process", process, String::new);
    let environment = fs::read(format!("/proc/{process}/environ")).unwrap();
    assert!(String::from_utf8_lossy(&environment).split('\0').any(|line| line == "THING=thing-0"));
    let device = fs::metadata(format!("/proc/{process}/root/dev/thing")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(device.rdev(), fs::metadata("/dev/null").unwrap().rdev());

    node.apply(&asks("late"));
    let status = node.wait_status("late", "Failed", |status| status["phase"] == "Failed");
    assert_eq!(status["reason"], "UnexpectedAdmissionError");
    assert_eq!(
        status["message"],
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/gpu. Requested: 1, Available: 0, which is unexpected"
    );
    // The plugin ends, the agent too: the pod goes on and holds its device.
    drop(end);
    wait_counts(&node, 2, 0);
    node.kill_agent();
    fs::remove_file(dir.join("kubelet.sock")).unwrap();
    node.start_agent();
    node.wait_running("user");
    wait_for("the socket again", || dir.join("kubelet.sock").exists().then_some(()), String::new);
    let (ready, _end) = plugin(dir, answer);
    ready.recv_timeout(Duration::from_secs(30)).unwrap();
    wait_counts(&node, 2, 1);
    node.apply(&asks("later"));
    let status = node.wait_status("later", "Failed", |status| status["phase"] == "Failed");
    assert_eq!(status["reason"], "UnexpectedAdmissionError", "{status:#}");
    assert_eq!(node.status("user").unwrap()["containerStatuses"][0]["containerID"], id);
    // Given back when the pod goes.
    node.apply(&deleted(asks("user")));
    let released = || node.bench.handles.meta.list_local("devicealloc").is_empty();
    let gone = || node.bench.uplink.reports_of("poddelete/default/user/uid-user").pop();
    wait_for("the pod to go", gone, String::new);
    node.bench.meta.delete_object("default/pod/user");
    wait_for("its device to be free", || released().then_some(()), String::new);
    node.apply(&asks("next"));
    node.wait_running("next");
}

#[test]
fn static_pods_run_without_a_cloud_and_have_mirrors() {
    if let Some(why) = missing() {
        return not_run("static_pods_run_without_a_cloud_and_have_mirrors", &why);
    }
    let mut node = Node::start();
    let folder = node.settings.policy.static_pods.clone();
    fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: {HELLO}\n"
    );
    fs::write(folder.join("web.yaml"), &text).unwrap();
    fs::write(folder.join("bad.yaml"), "kind: Pod\nmetadata: [\n").unwrap();
    let runs = |node: &Node| {
        let found = node.containerd.processes("hello").unwrap();
        (!found.is_empty()).then_some(found)
    };
    let before = wait_for("the static pod", || runs(&node), String::new);
    assert!(node.status("web-edge-1").is_none(), "the cloud knows no such pod yet");
    let raised = || node.bench.conditions.message("StaticPodsInvalid");
    assert!(raised().contains("bad.yaml") && raised().contains("line"), "{}", raised());

    let mirror = || node.bench.uplink.reports_of("mirror/default/web-edge-1").pop();
    let request = wait_for("the mirror's request", mirror, String::new);
    assert_eq!(
        (request.route.operation.as_str(), request.route.resource.as_str()),
        ("insert", "default/pod/web-edge-1")
    );
    let mut object: Value = request.content_as().unwrap();
    object["metadata"]["uid"] = json!("mirror-1");
    object["metadata"]["resourceVersion"] = json!("7");
    node.bench.meta.put_object("default/pod/web-edge-1", object);
    node.wait_status("web-edge-1", "the mirror's status", |status| status["phase"] == "Running");
    let told = node.bench.uplink.reports_of("podstatus/default/web-edge-1").pop().unwrap();
    assert!(told.content.get().contains("mirror-1"), "{}", told.content.get());
    assert_eq!(node.sandboxes(), 1, "a mirror does not run");

    // An agent that finds the folder unreadable keeps what runs.
    node.kill_agent();
    let aside = folder.with_extension("aside");
    fs::rename(&folder, &aside).unwrap();
    node.start_agent();
    wait_for(
        "the missing folder to be told",
        || node.bench.conditions.message("StaticPodsInvalid").contains("its pods go on").then_some(()),
        || node.bench.conditions.message("StaticPodsInvalid"),
    );
    assert_eq!(node.containerd.processes("hello").unwrap(), before);
    fs::rename(&aside, &folder).unwrap();
    fs::remove_file(folder.join("web.yaml")).unwrap();
    let ended = || node.containerd.processes("hello").unwrap().is_empty().then_some(());
    wait_for("the pod to go with its file", ended, String::new);
    let deleted = || {
        let message = node.bench.uplink.reports_of("mirror/default/web-edge-1").pop()?;
        (message.route.operation == "delete" && message.content.get().contains("mirror-1")).then_some(())
    };
    wait_for("the mirror's removal", deleted, String::new);
    assert!(node.bench.handles.meta.list_local("staticpod").is_empty());
}
