use serde_json::{Value, json};

use super::{
    resources::oom_score_adj,
    security::{ImageUser, check, check_non_root, needs_image_user},
    *,
};

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{ "name": "c", "image": "i" }]);
    }
    let metadata = json!({ "name": "web", "namespace": "shop", "uid": "u1" });
    Pod::parse(json!({ "metadata": metadata, "spec": spec }).to_string().as_bytes()).unwrap()
}

/// One container with these fields.
fn with(container: Value, of_pod: Value) -> Pod {
    let mut container = container;
    container["name"] = json!("c");
    container["image"] = json!("i");
    pod(json!({ "containers": [container], "securityContext": of_pod }))
}

fn node() -> NodeSetup {
    NodeSetup {
        node_name: "edge-1".into(),
        memory_bytes: 1000 << 20,
        cluster_domain: "cluster.local".into(),
        seccomp_dir: "/var/lib/kubelet/seccomp".into(),
        ..NodeSetup::default()
    }
}

fn record() -> Record {
    Record { incarnation: "u1".into(), namespace: "shop".into(), name: "web".into(), ..Record::default() }
}

fn rendered(pod: &Pod, target: Option<&str>) -> cri::ContainerConfig {
    let container = pod.all_containers().last().unwrap();
    let parts = Parts {
        env: vec![("A".into(), "own".into())],
        mounts: Vec::new(),
        attempt: 0,
        user: ImageUser::new(Some(33), String::new()),
        target: target.map(str::to_string),
        devices: Devices {
            env: vec![("A".into(), "device's".into()), ("GPU".into(), "0".into())],
            devices: vec![cri::Device {
                container_path: "/dev/gpu".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            ..Devices::default()
        },
    };
    super::container(pod, container, &record(), &node(), parts)
}

fn security(pod: &Pod) -> cri::LinuxContainerSecurityContext {
    rendered(pod, None).linux.unwrap().security_context.unwrap()
}

fn box_of(pod: &Pod) -> cri::LinuxPodSandboxConfig {
    sandbox(pod, &record(), 0, &node(), &Resolver::default()).linux.unwrap()
}

fn user(security: &cri::LinuxContainerSecurityContext) -> (Option<i64>, Option<i64>) {
    (security.run_as_user.as_ref().map(|v| v.value), security.run_as_group.as_ref().map(|v| v.value))
}

#[test]
fn users_and_groups() {
    let own = json!({ "securityContext": { "runAsUser": 1000 } });
    let of_pod = json!({ "runAsUser": 7, "runAsGroup": 8, "fsGroup": 9, "supplementalGroups": [10, 11] });
    let found = security(&with(own, of_pod.clone()));
    assert_eq!(user(&found), (Some(1000), Some(8)), "the container's field wins over the pod's");
    assert_eq!(found.supplemental_groups, [10, 11, 9]);
    let of_box = box_of(&with(json!({}), of_pod)).security_context.unwrap();
    assert_eq!(of_box.run_as_user.unwrap().value, 7);
    let alone = security(&with(json!({}), json!({ "runAsGroup": 8 })));
    assert_eq!(user(&alone), (Some(33), Some(8)), "a group alone has the image's user beside it");
    assert_eq!(user(&security(&with(json!({}), json!({})))), (None, None));
}

#[test]
fn run_as_non_root_is_kept_with_kubelets_words() {
    let refused = |own: Value, of_pod: Value, image: ImageUser| {
        let pod = with(json!({ "securityContext": own }), of_pod);
        check_non_root(&pod, &pod.spec.containers[0], &image).err().unwrap_or_default()
    };
    let yes = json!({ "runAsNonRoot": true });
    assert_eq!(
        refused(yes.clone(), json!({}), ImageUser::new(None, String::new())),
        "container has runAsNonRoot and image will run as root (pod: \"web_shop(u1)\", container: c)"
    );
    assert_eq!(
        refused(json!({ "runAsUser": 0 }), yes.clone(), ImageUser::default()),
        "container's runAsUser breaks non-root policy (pod: \"web_shop(u1)\", container: c)"
    );
    let named = refused(yes.clone(), json!({}), ImageUser::new(None, "www".into()));
    assert!(
        named.starts_with("container has runAsNonRoot and image has non-numeric user (www), cannot verify")
    );
    assert_eq!(refused(yes.clone(), json!({}), ImageUser::new(Some(33), String::new())), "");
    assert_eq!(refused(yes.clone(), json!({ "runAsUser": 5 }), ImageUser::default()), "");
    assert_eq!(refused(json!({ "runAsNonRoot": false }), yes, ImageUser::new(None, String::new())), "");
    let asks = |of_pod| {
        let pod = with(json!({}), of_pod);
        needs_image_user(&pod, &pod.spec.containers[0])
    };
    assert!(asks(json!({ "runAsNonRoot": true })) && asks(json!({ "runAsGroup": 1 })));
    assert!(!asks(json!({})) && !asks(json!({ "runAsUser": 1, "runAsGroup": 1 })));
}

#[test]
fn rights_of_a_container() {
    let plain = security(&with(json!({}), json!({})));
    assert!(!plain.privileged && !plain.readonly_rootfs && !plain.no_new_privs);
    assert!(plain.masked_paths.contains(&"/proc/kcore".to_string()));
    assert!(plain.readonly_paths.contains(&"/proc/sys".to_string()));
    let of = |own: Value| security(&with(json!({ "securityContext": own }), json!({})));
    let caps = of(json!({ "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } })).capabilities.unwrap();
    assert_eq!(
        (caps.add_capabilities, caps.drop_capabilities),
        (vec!["NET_ADMIN".to_string()], vec!["ALL".to_string()])
    );
    let strict = of(json!({ "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false }));
    assert!(strict.readonly_rootfs && strict.no_new_privs);
    assert!(!of(json!({ "allowPrivilegeEscalation": true })).no_new_privs);
    let unmasked = of(json!({ "procMount": "Unmasked" }));
    assert!(unmasked.masked_paths.is_empty() && unmasked.readonly_paths.is_empty());
    assert!(!of(json!({ "procMount": "Default" })).masked_paths.is_empty());
    let privileged = with(json!({ "securityContext": { "privileged": true } }), json!({}));
    assert!(security(&privileged).privileged && security(&privileged).masked_paths.is_empty());
    assert!(box_of(&privileged).security_context.unwrap().privileged);
}

#[test]
fn seccomp_and_apparmor_profiles() {
    let seccomp = |own: Value, of_pod: Value| {
        let found = security(&with(json!({ "securityContext": own }), of_pod)).seccomp.unwrap();
        (cri::ProfileType::try_from(found.profile_type).unwrap(), found.localhost_ref)
    };
    let profile = |kind: &str| json!({ "seccompProfile": { "type": kind, "localhostProfile": "a/b.json" } });
    assert_eq!(seccomp(json!({}), json!({})).0, cri::ProfileType::Unconfined);
    assert_eq!(seccomp(json!({}), profile("RuntimeDefault")).0, cri::ProfileType::RuntimeDefault);
    assert_eq!(seccomp(profile("Unconfined"), profile("RuntimeDefault")).0, cri::ProfileType::Unconfined);
    let local = seccomp(profile("Localhost"), json!({}));
    assert_eq!(local, (cri::ProfileType::Localhost, "/var/lib/kubelet/seccomp/a/b.json".to_string()));
    let refused = |path: &str| {
        let own = json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": path } });
        let pod = with(json!({ "securityContext": own }), json!({}));
        check(&pod, &pod.spec.containers[0]).err().unwrap_or_default()
    };
    assert!(
        refused("").contains("must be set") && refused("../x").contains("below the node's seccomp folder")
    );
    assert_eq!(refused("a/b.json"), "");

    let armor = |own: Value, annotation: Option<&str>| {
        let mut pod = with(json!({ "securityContext": own }), json!({}));
        let key = "container.apparmor.security.beta.kubernetes.io/c".to_string();
        pod.metadata.annotations.extend(annotation.map(|value| (key, value.to_string())));
        let found = security(&pod);
        (found.apparmor.map(|p| p.localhost_ref), found.apparmor_profile)
    };
    assert_eq!(armor(json!({}), None), (None, String::new()), "the runtime's own choice");
    let local = json!({ "appArmorProfile": { "type": "Localhost", "localhostProfile": "k8s-deny" } });
    assert_eq!(armor(local, None), (Some("k8s-deny".into()), "localhost/k8s-deny".into()));
    assert_eq!(armor(json!({}), Some("localhost/x")), (Some("x".into()), "localhost/x".into()));
    assert_eq!(
        armor(json!({ "appArmorProfile": { "type": "Unconfined" } }), Some("localhost/x")).1,
        "unconfined"
    );
}

#[test]
fn namespaces_of_host_pod_container_and_target() {
    use cri::NamespaceMode::{Container, Node, Pod as Shared, Target};
    let of = |spec: Value, target| {
        let options = rendered(&pod(spec), target).linux.unwrap().security_context.unwrap().namespace_options;
        options.map(|o| ([o.network, o.pid, o.ipc], o.target_id)).unwrap()
    };
    let modes = |network: cri::NamespaceMode, pid: cri::NamespaceMode, ipc: cri::NamespaceMode| {
        [network.into(), pid.into(), ipc.into()]
    };
    assert_eq!(of(json!({}), None).0, modes(Shared, Container, Shared));
    let host = json!({ "hostNetwork": true, "hostPID": true, "hostIPC": true });
    assert_eq!(of(host, None).0, modes(Node, Node, Node));
    assert_eq!(of(json!({ "shareProcessNamespace": true }), None).0, modes(Shared, Shared, Shared));
    let debug = json!({ "ephemeralContainers": [{ "name": "d", "image": "i", "targetContainerName": "c" }] });
    assert_eq!(of(debug, Some("id1")), (modes(Shared, Target, Shared), "id1".to_string()));
}

#[test]
fn sandbox_names_ports_and_sysctls() {
    let names = |spec: Value| {
        let pod = pod(spec);
        (
            sandbox(&pod, &record(), 0, &node(), &Resolver::default()).hostname,
            check_sandbox(&pod, &node()).err(),
        )
    };
    assert_eq!(names(json!({})), ("web".to_string(), None));
    assert_eq!(names(json!({ "hostNetwork": true })).0, "");
    assert_eq!(names(json!({ "hostname": "db", "subdomain": "x" })).0, "db");
    let full = json!({ "hostname": "db", "subdomain": "x", "setHostnameAsFQDN": true });
    assert_eq!(names(full), ("db.x.shop.svc.cluster.local".to_string(), None));
    let long = json!({ "hostname": "a".repeat(50), "subdomain": "x", "setHostnameAsFQDN": true });
    assert!(
        names(long).1.unwrap().contains("is too long (64 characters is the max, 75 characters requested)")
    );
    let class = names(json!({ "runtimeClassName": "gvisor" })).1.unwrap();
    assert!(class.contains("RuntimeClass.node.k8s.io \"gvisor\" not found"), "{class}");

    let ports = pod(json!({
        "containers": [{ "name": "c", "image": "i", "ports": [
            { "containerPort": 80, "hostPort": 8080, "protocol": "UDP", "hostIP": "127.0.0.1" }, { "containerPort": 81 } ] }],
        "initContainers": [
            { "name": "s", "image": "i", "restartPolicy": "Always", "ports": [{ "containerPort": 5, "hostPort": 6 }] },
            { "name": "i", "image": "i", "ports": [{ "containerPort": 7, "hostPort": 8 }] } ],
    }));
    let mapped: Vec<(i32, i32, i32, String)> = port_mappings(&ports)
        .into_iter()
        .map(|m| (m.protocol, m.container_port, m.host_port, m.host_ip))
        .collect();
    assert_eq!(mapped, [(1, 80, 8080, "127.0.0.1".to_string()), (0, 5, 6, String::new())]);

    let sysctls = with(
        json!({}),
        json!({ "sysctls": [
        { "name": "net/ipv4/tcp_syncookies", "value": "1" }, { "name": "kernel.shm_rmid_forced", "value": "0" } ] }),
    );
    let set = box_of(&sysctls).sysctls;
    assert_eq!((&set["net.ipv4.tcp_syncookies"][..], &set["kernel.shm_rmid_forced"][..]), ("1", "0"));
}

#[test]
fn resources_and_devices_of_a_container() {
    let limits = json!({ "resources": {
        "requests": { "cpu": "250m", "memory": "100Mi" },
        "limits": { "cpu": "1500m", "memory": "200Mi", "hugepages-2Mi": "4Mi" } } });
    let config = rendered(&with(limits, json!({})), None);
    let got = config.linux.unwrap().resources.unwrap();
    assert_eq!((got.cpu_shares, got.cpu_quota, got.cpu_period), (256, 150_000, 100_000));
    assert_eq!((got.memory_limit_in_bytes, got.oom_score_adj), (200 << 20, 900));
    assert_eq!((got.hugepage_limits[0].page_size.as_str(), got.hugepage_limits[0].limit), ("2MB", 4 << 20));
    let envs: Vec<(String, String)> = config.envs.into_iter().map(|e| (e.key, e.value)).collect();
    assert_eq!(envs, [("GPU".into(), "0".into()), ("A".into(), "own".into())], "a pod's own value wins");
    assert_eq!(config.devices[0].host_path, "/dev/null");
    let none = rendered(&with(json!({}), json!({})), None).linux.unwrap().resources.unwrap();
    assert_eq!((none.cpu_shares, none.cpu_quota, none.cpu_period, none.memory_limit_in_bytes), (2, 0, 0, 0));
}

#[test]
fn oom_scores_are_kubelets() {
    let of = |pod: &Pod| oom_score_adj(pod, &pod.spec.containers[0], 1000 << 20);
    let asking = |memory: &str| with(json!({ "resources": { "requests": { "memory": memory } } }), json!({}));
    assert_eq!(of(&with(json!({}), json!({}))), 1000);
    let both = json!({ "cpu": "1", "memory": "1Mi" });
    assert_eq!(of(&with(json!({ "resources": { "limits": both } }), json!({}))), -997);
    assert_eq!((of(&asking("250Mi")), of(&asking("1")), of(&asking("5Gi"))), (750, 999, 3));
    let mut critical = with(json!({}), json!({}));
    critical.spec.priority_class_name = "system-node-critical".into();
    assert_eq!(of(&critical), 1000, "the name alone is not enough");
    critical.spec.priority = Some(2_000_001_000);
    assert_eq!(of(&critical), -997);
    let sidecar = pod(json!({
        "initContainers": [{ "name": "s", "image": "i", "restartPolicy": "Always" }],
        "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "memory": "300Mi" } } }],
    }));
    assert_eq!(oom_score_adj(&sidecar, &sidecar.spec.init_containers[0], 1000 << 20), 700);
}
