use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use super::{
    systemd, tree,
    tree::Version,
    values::{self, pod_requests, quota_us, shares, weight},
    *,
};
use crate::edged::pod::Pod;

fn pod(spec: Value) -> Pod {
    let object = json!({ "metadata": { "name": "p", "namespace": "d", "uid": "12-ab" }, "spec": spec });
    Pod::parse(object.to_string().as_bytes()).unwrap()
}

fn with(requests: Value, limits: Value) -> Pod {
    pod(
        json!({ "containers": [{ "name": "c", "image": "i", "resources": { "requests": requests, "limits": limits } }] }),
    )
}

#[test]
fn shares_quotas_and_weights_are_kubernetes_numbers() {
    for (milli, share, weighs) in [(0, 2, 1), (1, 2, 1), (100, 102, 4), (1000, 1024, 39), (4000, 4096, 157)] {
        assert_eq!((shares(milli), weight(shares(milli))), (share, weighs), "{milli}m");
    }
    assert_eq!((shares(u64::MAX), weight(262_144)), (262_144, 10_000));
    assert_eq!((quota_us(0), quota_us(5), quota_us(500)), (None, Some(1000), Some(50_000)));
}

#[test]
fn limits_of_a_pod_follow_its_class() {
    let both = json!({ "cpu": "500m", "memory": "64Mi" });
    let guaranteed = values::pod(&with(json!({}), both.clone()), Some(100), true);
    assert_eq!(guaranteed.shares, Some(512), "a limit is a request");
    assert_eq!((guaranteed.quota_us, guaranteed.memory_bytes), (Some(50_000), Some(64 << 20)));
    assert_eq!(guaranteed.pids, Some(100));
    assert_eq!(values::pod(&with(json!({}), both.clone()), None, false).quota_us, None);

    let best_effort = values::pod(&with(json!({}), json!({})), None, true);
    assert_eq!(best_effort, Limits { shares: Some(2), ..Limits::default() });

    let half = pod(json!({ "containers": [
        { "name": "a", "image": "i", "resources": { "limits": both, "requests": { "cpu": "100m" } } },
        { "name": "b", "image": "i", "resources": { "requests": { "cpu": "1" } } },
    ] }));
    let burstable = values::pod(&half, None, true);
    assert_eq!(burstable.shares, Some(1126), "1100m");
    assert_eq!((burstable.quota_us, burstable.memory_bytes), (None, None), "b has no limits");
    let huge = values::pod(&with(json!({}), json!({ "hugepages-2Mi": "4Mi", "cpu": "1" })), None, true);
    assert_eq!(huge.huge, [("2MB".to_string(), 4 << 20)].into());
}

#[test]
fn init_containers_count_beside_the_sidecars_started_before_them() {
    let container = |name: &str, cpu: &str, sidecar: bool| {
        let mut c = json!({ "name": name, "image": "i", "resources": { "requests": { "cpu": cpu } } });
        if sidecar {
            c["restartPolicy"] = json!("Always");
        }
        c
    };
    let cpu = |init: Vec<Value>, main: &str| {
        let pod = pod(json!({ "initContainers": init, "containers": [container("m", main, false)] }));
        pod_requests(&pod)["cpu"]
    };
    assert_eq!(cpu(vec![container("i", "2", false)], "1"), 2000);
    assert_eq!(cpu(vec![container("s", "1", true), container("i", "2", false)], "1"), 3000);
    assert_eq!(cpu(vec![container("i", "2", false), container("s", "1", true)], "1500m"), 2500);
    let mut whole = pod(json!({ "containers": [container("m", "1", false)], "overhead": { "cpu": "250m" } }));
    assert_eq!(pod_requests(&whole)["cpu"], 1250);
    whole.spec.resources = Some(serde_json::from_value(json!({ "requests": { "cpu": "3" } })).unwrap());
    assert_eq!(pod_requests(&whole)["cpu"], 3250, "requests of the whole pod win");
}

#[test]
fn places_are_kubelets() {
    let of = |driver, root: &str| {
        let cgroups = Cgroups::new(CgroupConfig { driver, root: root.into(), ..CgroupConfig::default() });
        let burstable = with(json!({ "cpu": "1" }), json!({}));
        let guaranteed = with(json!({}), json!({ "cpu": "1", "memory": "1Mi" }));
        [cgroups.parent(&burstable, "12-ab"), cgroups.parent(&guaranteed, "12-ab")]
    };
    assert_eq!(of(Driver::Cgroupfs, ""), ["/kubepods/burstable/pod12-ab", "/kubepods/pod12-ab"]);
    assert_eq!(of(Driver::Cgroupfs, "/a/../b/")[1], "/a/b/kubepods/pod12-ab");
    assert_eq!(of(Driver::Systemd, "/"), ["kubepods-burstable-pod12_ab.slice", "kubepods-pod12_ab.slice"]);
    let name = Name::pod("edge", Class::BestEffort, "12-ab");
    assert_eq!(
        name.path(Driver::Systemd),
        Path::new(
            "edge.slice/edge-kubepods.slice/edge-kubepods-besteffort.slice/edge-kubepods-besteffort-pod12_ab.slice"
        )
    );
    assert_eq!(names::pod_in("kubepods-besteffort-pod12_ab.slice", Driver::Systemd), Some("12_ab"));
    assert_eq!(names::pod_in("kubepods-besteffort.slice", Driver::Systemd), None);
    assert_eq!(names::pod_in("pod12-ab", Driver::Cgroupfs), Some("12-ab"));
    assert_eq!(names::pod_in("burstable", Driver::Cgroupfs), None);
}

#[test]
fn systemctl_is_told_a_slice_and_its_properties() {
    let limits = Limits {
        shares: Some(512),
        quota_us: Some(50_000),
        memory_bytes: Some(64 << 20),
        pids: Some(100),
        huge: Default::default(),
    };
    let name = Name::pod("", Class::Burstable, "12-ab");
    let told = |version| systemd::set_property(&name, &limits, version).unwrap().join(" ");
    assert_eq!(
        told(Version::V2),
        "set-property --runtime kubepods-burstable-pod12_ab.slice CPUWeight=20 CPUQuotaPeriodSec=100ms CPUQuota=50% MemoryMax=67108864 TasksMax=100"
    );
    assert!(
        told(Version::V1).contains("CPUShares=512 ") && told(Version::V1).contains("MemoryLimit=67108864")
    );
    assert_eq!(systemd::set_property(&name, &Limits::default(), Version::V2), None);
    assert_eq!(systemd::remove("a.slice")[1], ["revert", "a.slice"]);
}

/// A folder tree that answers like a cgroup v2 mount as far as files go.
fn v2() -> tempfile::TempDir {
    let mount = tempfile::tempdir().unwrap();
    fs::write(mount.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
    fs::write(mount.path().join("cgroup.subtree_control"), "cpu").unwrap();
    mount
}

fn prepared(folder: &Path, files: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    files.iter().for_each(|file| fs::write(folder.join(file), "").unwrap());
}

#[test]
fn groups_are_written_in_v1_and_v2_and_what_fails_names_the_remedy() {
    let guaranteed = with(json!({}), json!({ "cpu": "500m", "memory": "64Mi" }));
    let read =
        |path: std::path::PathBuf| fs::read_to_string(&path).unwrap_or_else(|e| format!("{path:?}: {e}"));

    let mount = v2();
    let group = mount.path().join("kubepods/pod12-ab");
    prepared(&mount.path().join("kubepods"), &[]);
    prepared(&group, &["cpu.weight", "cpu.max", "memory.max"]);
    let config = CgroupConfig { mount: mount.path().into(), ..CgroupConfig::default() };
    Cgroups::new(config.clone()).apply_pod(&guaranteed, "12-ab").unwrap();
    assert_eq!(read(group.join("cpu.weight")), "20");
    assert_eq!(read(group.join("cpu.max")), "50000 100000");
    assert_eq!(read(group.join("memory.max")), "67108864");
    assert_eq!(read(mount.path().join("cgroup.subtree_control")), "+pids", "what the kernel lacked yet");
    let error = Cgroups::new(config).apply_pod(&guaranteed, "other").unwrap_err().to_string();
    assert!(error.contains("no cpu controller") && error.contains("enable it at boot"), "{error}");

    let mount = tempfile::tempdir().unwrap();
    prepared(
        &mount.path().join("cpu/kubepods/pod12-ab"),
        &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"],
    );
    prepared(&mount.path().join("memory/kubepods/pod12-ab"), &["memory.limit_in_bytes"]);
    let config = CgroupConfig { mount: mount.path().into(), ..CgroupConfig::default() };
    let cgroups = Cgroups::new(config);
    assert!(!cgroups.is_v2());
    cgroups.apply_pod(&guaranteed, "12-ab").unwrap();
    assert_eq!(read(mount.path().join("cpu/kubepods/pod12-ab/cpu.cfs_quota_us")), "50000");
    assert_eq!(read(mount.path().join("memory/kubepods/pod12-ab/memory.limit_in_bytes")), "67108864");
    // On a kernel, files of a group do not keep it from being removed; here they do.
    fs::remove_dir_all(mount.path().join("cpu/kubepods/pod12-ab")).unwrap();
    fs::create_dir_all(mount.path().join("cpu/kubepods/pod12-ab/container/inner")).unwrap();
    fs::create_dir_all(mount.path().join("cpu/kubepods/burstable/podnew")).unwrap();
    fs::create_dir_all(mount.path().join("cpu/kubepods/burstable/podold")).unwrap();
    cgroups.sweep(&BTreeSet::from(["new".to_string()]));
    assert!(!mount.path().join("cpu/kubepods/pod12-ab").exists(), "removed with what is in it");
    assert!(!mount.path().join("cpu/kubepods/burstable/podold").exists());
    assert!(mount.path().join("cpu/kubepods/burstable/podnew").exists());
    cgroups.remove_pod("new");
    assert!(!mount.path().join("cpu/kubepods/burstable/podnew").exists());
    assert!(mount.path().join("memory/kubepods/pod12-ab").exists(), "what is not empty stays");
}

#[test]
fn without_groups_per_class_nothing_is_touched() {
    let mount = tempfile::tempdir().unwrap();
    let config = CgroupConfig {
        mount: mount.path().into(),
        per_qos: false,
        root: "edge".into(),
        ..CgroupConfig::default()
    };
    let cgroups = Cgroups::new(config);
    let pod = with(json!({ "cpu": "1" }), json!({}));
    cgroups.apply_pod(&pod, "12-ab").unwrap();
    assert_eq!(cgroups.parent(&pod, "12-ab"), "/edge");
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
}

/// The kernel's own files, where this machine lets us.
#[test]
fn the_kernel_takes_what_is_written() {
    let root = format!("kinglet-test/{}", std::process::id());
    let config = CgroupConfig { root, ..CgroupConfig::default() };
    let cgroups = Cgroups::new(config.clone());
    let pod = with(json!({ "cpu": "250m" }), json!({ "cpu": "500m", "memory": "64Mi" }));
    if let Err(error) = cgroups.apply_node(1000, 512 << 20).and_then(|()| cgroups.apply_pod(&pod, "12-ab")) {
        return e2e::containerd::not_run("the_kernel_takes_what_is_written", &error.to_string());
    }
    let (file, expected) = match tree::version(&config.mount) {
        Version::V1 => ("cpu.shares", "256"),
        Version::V2 => ("cpu.weight", "10"),
    };
    let dir = usage_dir(&config, &pod, "12-ab", "cpu");
    let written = fs::read_to_string(dir.join(file)).unwrap();
    cgroups.sweep(&BTreeSet::new());
    assert_eq!(written.trim(), expected);
    assert!(!dir.exists(), "an empty group is swept");
    for class in [Class::Burstable, Class::BestEffort, Class::Guaranteed] {
        cgroups.remove(&Name::class(&config.root, class));
    }
    tree::remove(&config.mount, Path::new(&config.root));
}
