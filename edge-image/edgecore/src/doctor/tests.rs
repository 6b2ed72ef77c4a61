//! Machines made of folders: a healthy one, and one broken thing at a time.

use std::{fs, os::unix::fs::symlink, path::Path};

use super::{host::RuntimeFault, *};

const NOW: u64 = 1_800_000_000;

/// A machine on which nothing is wrong.
fn healthy() -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host { root: dir.path().into(), cfg: Config::default(), asked: Asked::default() };
    host.cfg.modules.edge_hub.websocket.server = "cloud.example:10000".into();
    host.asked.now_s = NOW;
    host.asked.runtime = Some(Ok(RuntimeView {
        name: "containerd 1.7".into(),
        config: serde_json::json!({"restrictOOMScoreAdj": false}),
        cgroup_driver: Some("cgroupfs".into()),
        network_problem: None,
        sandbox_image_absent: None,
    }));
    for (path, text) in [
        ("proc/cgroups", "#subsys_name hierarchy num enabled\ncpu 1 1 1\nmemory 2 1 1\npids 3 1 1\n"),
        ("proc/filesystems", "nodev\tproc\nnodev\toverlay\n"),
        ("proc/swaps", "Filename Type Size Used Priority\n"),
        ("proc/self/status", "Name:\tdoctor\nCapEff:\t000001ffffffffff\n"),
        ("proc/sys/kernel/osrelease", "6.1.0-edge\n"),
        ("lib/modules/6.1.0-edge/modules.builtin", "kernel/drivers/net/veth.ko\n"),
        ("lib/modules/6.1.0-edge/modules.dep", "kernel/net/bridge/bridge.ko.xz: kernel/net/llc.ko.xz\n"),
        ("etc/resolv.conf", "nameserver 192.0.2.53\n"),
        ("etc/cni/net.d/10-a.conflist", r#"{"plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}"#),
        ("opt/cni/bin/bridge", ""),
        ("opt/cni/bin/host-local", ""),
    ] {
        write(dir.path(), path, text);
    }
    process(dir.path(), 4, "containerd", "/usr/bin/containerd", &[]);
    symlink("/usr/bin/edgecore", dir.path().join("proc/self/exe")).unwrap();
    (dir, host)
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn process(root: &Path, pid: u32, name: &str, exe: &str, arguments: &[&str]) {
    write(root, &format!("proc/{pid}/comm"), &format!("{name}\n"));
    let line: String = [&[exe], arguments].concat().iter().map(|word| format!("{word}\0")).collect();
    write(root, &format!("proc/{pid}/cmdline"), &line);
    symlink(exe, root.join(format!("proc/{pid}/exe"))).unwrap();
}

/// What is found after `harm`; each finding as `level check: what | remedy`.
fn after(harm: impl FnOnce(&Path, &mut Host)) -> Vec<String> {
    let (dir, mut host) = healthy();
    harm(dir.path(), &mut host);
    let line = |f: &Finding| format!("{:?} {}: {} | {}", f.level, f.check, f.what, f.remedy);
    diagnose(&host).iter().map(line).collect()
}

fn expect(found: &[String], start: &str, parts: &[&str]) {
    let hit = found.iter().find(|line| line.starts_with(start));
    let hit = hit.unwrap_or_else(|| panic!("no {start:?} in {found:#?}"));
    for part in parts {
        assert!(hit.contains(part), "{hit} lacks {part:?}");
    }
    assert_eq!(found.len(), 1, "{found:#?}");
}

fn runtime(host: &mut Host, change: impl FnOnce(&mut RuntimeView)) {
    change(host.asked.runtime.as_mut().unwrap().as_mut().unwrap());
}

#[test]
fn a_healthy_machine_has_no_findings() {
    assert_eq!(after(|_, _| {}), Vec::<String>::new());
    let v2 = after(|root, _| write(root, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"));
    assert_eq!(v2, Vec::<String>::new());
}

#[test]
fn other_agents_are_named_with_how_to_end_them() {
    for (name, exe, arguments, stop) in [
        ("kubelet", "/usr/bin/kubelet", &[][..], "disable --now kubelet"),
        ("k3s-agent", "/usr/local/bin/k3s", &[], "k3s-agent"),
        ("k3s", "/usr/local/bin/k3s", &["agent"], "k3s-agent"),
        ("edgecore", "/usr/local/bin/edgecore", &[], "edgecore adopt"),
    ] {
        let found = after(|root, _| process(root, 77, name, exe, arguments));
        expect(&found, "Error other-agent", &["pid 77", exe, stop]);
    }
    let own = after(|root, _| process(root, 77, "edgecore", "/usr/bin/edgecore", &["--config", "x"]));
    expect(&own, "Note other-agent", &["this node's agent"]);
    let upgraded = after(|root, _| process(root, 77, "edgecore", "/usr/bin/edgecore (deleted)", &[]));
    expect(&upgraded, "Note other-agent", &[]);
    assert!(after(|root, _| process(root, 77, "edgecore", "/usr/bin/edgecore", &["join"])).is_empty());
    let contained = after(|root, _| {
        process(root, 77, "kubelet", "/usr/bin/kubelet", &[]);
        for (pid, namespace) in [("self", "pid:[1]"), ("77", "pid:[2]"), ("4", "pid:[1]")] {
            fs::create_dir_all(root.join(format!("proc/{pid}/ns"))).unwrap();
            symlink(namespace, root.join(format!("proc/{pid}/ns/pid"))).unwrap();
        }
    });
    assert_eq!(contained, Vec::<String>::new(), "a kubelet in a container has another machine");
}

#[test]
fn a_runtime_that_is_absent_deaf_or_without_cri() {
    let absent = after(|_, host| host.asked.runtime = None);
    expect(
        &absent,
        "Error runtime-socket",
        &["/run/containerd/containerd.sock does not exist", "apt install containerd"],
    );
    let fault = |no_cri| Some(Err(RuntimeFault { no_cri, message: "Version: what it said".into() }));
    let deaf = after(|_, host| host.asked.runtime = fault(false));
    expect(
        &deaf,
        "Error runtime-socket",
        &["does not answer", "what it said", "systemctl restart containerd"],
    );
    let off = after(|root, host| {
        host.asked.runtime = fault(true);
        write(root, "etc/containerd/config.toml", "disabled_plugins = [\"cri\"]\n");
    });
    expect(&off, "Error runtime-cri", &["CRI plugin off", "take \"cri\" out of disabled_plugins"]);
}

#[test]
fn a_sandbox_image_that_would_be_pulled() {
    let absent = |image: &str| {
        after(|_, host| runtime(host, |view| view.sandbox_image_absent = Some(image.to_owned())))
    };
    let told = absent("registry.k8s.io/pause:3.6");
    let remedy = "sandbox_image = \"docker.io/kinglet/pause:1\"";
    expect(&told, "Warning sandbox-image", &["registry.k8s.io/pause:3.6, which is not here", remedy]);
    assert!(absent("docker.io/kinglet/pause:1").is_empty(), "the agent imports its own when it starts");
}

#[test]
fn cgroup_drivers_that_differ() {
    let told = after(|_, host| runtime(host, |view| view.cgroup_driver = Some("systemd".into())));
    expect(
        &told,
        "Error cgroup-driver",
        &["containerd uses the cgroup driver systemd", "--cgroupdriver systemd"],
    );
    let of_file = after(|root, host| {
        runtime(host, |view| view.cgroup_driver = None);
        host.cfg.modules.edged.tailored_kubelet_config.cgroup_driver = "systemd".into();
        write(root, "etc/containerd/config.toml", "[x]\n  SystemdCgroup = false\n");
    });
    expect(
        &of_file,
        "Error cgroup-driver",
        &["cgroupfs, edgecore.yaml says systemd", "SystemdCgroup = true"],
    );
}

#[test]
fn without_the_right_to_lower_oom_scores() {
    let harm = |root: &Path| write(root, "proc/self/status", "CapEff:\t00000000a80425fb\n");
    expect(
        &after(|root, _| harm(root)),
        "Error oom-score",
        &["CAP_SYS_RESOURCE", "restrict_oom_score_adj = true"],
    );
    let told = after(|root, host| {
        harm(root);
        runtime(host, |view| view.config = serde_json::json!({"restrictOOMScoreAdj": true}));
    });
    assert_eq!(told, Vec::<String>::new());
}

#[test]
fn networks_for_pods() {
    let not_ready = |host: &mut Host| {
        runtime(host, |view| view.network_problem = Some("cni plugin not initialized".into()))
    };
    let none = after(|root, host| {
        not_ready(host);
        fs::remove_file(root.join("etc/cni/net.d/10-a.conflist")).unwrap();
    });
    expect(&none, "Error cni", &["/etc/cni/net.d has no network configuration", "10-kinglet.conflist"]);
    let no_plugin = after(|root, _| fs::remove_file(root.join("opt/cni/bin/host-local")).unwrap());
    expect(&no_plugin, "Error cni", &["uses host-local, not in /opt/cni/bin", "containernetworking-plugins"]);
    let bad = after(|_, host| not_ready(host));
    expect(&bad, "Error cni", &["containerd cannot use", "not initialized"]);
}

#[test]
fn kernels_that_lack_something() {
    let off = "memory 2 1 0\ncpu 1 1 1\npids 1 1 1\n";
    let pi = after(|root, _| {
        write(root, "proc/cgroups", off);
        write(root, "boot/firmware/cmdline.txt", "console=tty1 root=/dev/mmcblk0p2\n");
    });
    expect(
        &pi,
        "Error memory-cgroup",
        &["add cgroup_enable=memory cgroup_memory=1", "/boot/firmware/cmdline.txt"],
    );
    let set = after(|root, _| {
        write(root, "proc/cgroups", off);
        write(root, "boot/cmdline.txt", "console=tty1 cgroup_enable=memory\n");
    });
    expect(&set, "Error memory-cgroup", &["already: reboot"]);
    let v2 = after(|root, _| write(root, "sys/fs/cgroup/cgroup.controllers", "cpu pids\n"));
    expect(&v2, "Error memory-cgroup", &["update-grub"]);
    let no_pids = after(|root, _| write(root, "sys/fs/cgroup/cgroup.controllers", "memory cpu\n"));
    expect(&no_pids, "Warning memory-cgroup", &["pids are off"]);
    let overlay = after(|root, _| write(root, "proc/filesystems", "nodev proc\n"));
    expect(&overlay, "Error kernel-modules", &["no overlayfs"]);
    let bridge = after(|root, _| write(root, "lib/modules/6.1.0-edge/modules.dep", ""));
    expect(&bridge, "Warning kernel-modules", &["has no bridge", "modprobe bridge"]);
}

#[test]
fn swap_disks_and_clocks() {
    let swap = after(|root, _| {
        write(root, "proc/swaps", "Filename\n/var/swap file 1 0 -2\n/dev/zram0 partition 1 0 5\n")
    });
    expect(&swap, "Warning swap", &["(/var/swap)", "swapoff -a"]);
    let disk = |free| {
        after(move |_, host| {
            host.asked.disks =
                vec![Disk { holds: "images", path: "/var/lib/containerd".into(), free, total: 64 << 30 }]
        })
    };
    expect(&disk(50 << 20), "Error disk-space", &["50 MiB free for images"]);
    expect(&disk(500 << 20), "Warning disk-space", &[]);
    assert!(disk(5 << 30).is_empty());

    let reach =
        |at| Reach { key: "modules.edgeHub.httpServer", server: "c:10002".into(), result: Ok(Some(at)) };
    let skew = |at| after(move |_, host| host.asked.reached = vec![reach(at)]);
    expect(&skew(NOW + 4000), "Error clock", &["4000 s behind the cloud's", "timedatectl set-ntp true"]);
    expect(&skew(NOW - 60), "Warning clock", &["60 s ahead"]);
    assert!(skew(NOW + 5).is_empty());
    expect(
        &after(|_, host| host.asked.now_s = 86_400),
        "Error clock",
        &["1970-01-02", "before this program was made"],
    );
}

#[test]
fn the_certificate_and_the_clock() {
    let at = |now: u64| {
        after(move |root, host| {
            let ca = pki::Ca::create("KubeEdge", NOW).unwrap();
            let key = pki::Key::generate().unwrap();
            let csr = pki::new_csr(&key, &pki::Identity::node("n")).unwrap();
            let cert_der = ca.issue_node(&pki::Csr::parse(&csr).unwrap(), "n", NOW).unwrap();
            let path = root.join("node.pem");
            pki::Bundle::new(cert_der, key, ca.cert_der().to_vec()).store(&path).unwrap();
            let hub = &mut host.cfg.modules.edge_hub;
            (hub.tls_ca_file, hub.tls_cert_file, hub.tls_private_key_file) =
                (path.clone(), path.clone(), path);
            host.asked.now_s = now;
        })
    };
    assert!(at(NOW + 100).is_empty());
    expect(&at(NOW - 4_000_000), "Error clock", &["before the node's certificate begins"]);
    expect(&at(NOW + 40_000_000), "Error certificate", &["ended", "edgecore join again"]);
}

#[test]
fn ports_and_who_holds_them() {
    let taken = Taken {
        key: "modules.eventBus.mqttServerInternal",
        address: "127.0.0.1:1883".parse().unwrap(),
        reason: "in use".into(),
    };
    let held = after(|root, host| {
        host.asked.taken = vec![taken.clone()];
        process(root, 90, "mosquitto", "/usr/sbin/mosquitto", &[]);
        let table = "  sl  local_address rem_address   st tx rx tr tm retr uid timeout inode\n   0: 0100007F:075B 00000000:0000 0A 0:0 0:0 0 0 0 5551 1 x\n";
        write(root, "proc/net/tcp", table);
        fs::create_dir_all(root.join("proc/90/fd")).unwrap();
        symlink("socket:[5551]", root.join("proc/90/fd/5")).unwrap();
    });
    expect(&held, "Error ports", &["127.0.0.1:1883 is in use by mosquitto (pid 90)", "mqttMode: 2"]);
    let unknown = after(|_, host| host.asked.taken = vec![taken.clone()]);
    expect(&unknown, "Error ports", &["cannot be used: in use", "ss -ltnp 'sport = :1883'"]);
}

#[test]
fn clouds_and_names() {
    let reach = |key| {
        after(move |_, host| {
            host.asked.reached =
                vec![Reach { key, server: "cloud.example:10002".into(), result: Err("refused".into()) }]
        })
    };
    expect(
        &reach("modules.edgeHub.httpServer"),
        "Error cloud-ports",
        &["cloud.example:10002", "nc -vz cloud.example 10002"],
    );
    expect(&reach("modules.edgeStream.server"), "Warning cloud-ports", &[]);
    expect(&reach("modules.eventBus.mqttServerExternal"), "Warning mqtt-broker", &["mosquitto"]);
    let nameless = after(|_, host| host.asked.unresolved = Some("no such host".into()));
    expect(&nameless, "Error names", &["cloud.example has no address"]);
    let stub = after(|root, _| {
        write(root, "etc/resolv.conf", "nameserver 127.0.0.53\n");
        write(root, "run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n");
    });
    expect(&stub, "Warning names", &["127.0.0.53", "resolvConf: /run/systemd/resolve/resolv.conf"]);
    expect(&after(|root, _| write(root, "etc/resolv.conf", "")), "Warning names", &["names no server"]);
}

#[test]
fn text_and_json_say_the_same() {
    let (dir, mut host) = healthy();
    host.asked.runtime = None;
    write(dir.path(), "proc/swaps", "Filename\n/var/swap file 1 0 -2\n");
    let findings = diagnose(&host);
    assert!(
        has_errors(&findings) && findings[0].level == Level::Error && findings[1].level == Level::Warning
    );
    let text = text(&findings);
    assert!(text.starts_with("ERROR   runtime-socket: ") && text.contains("\n        do   "), "{text}");
    let json: serde_json::Value = serde_json::from_str(&json(&findings)).unwrap();
    assert_eq!(json[1]["level"], "warning");
    assert!(json[0]["remedy"].as_str().unwrap().contains("systemctl enable --now containerd"));
    assert!(super::text(&[]).contains("nothing is in the way"));
}

/// A program that ends with its value.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn found<'a>(findings: &'a [Finding], check: &str) -> Option<&'a Finding> {
    findings.iter().find(|finding| finding.check == check)
}

#[tokio::test]
async fn this_machine_with_a_kubelet_and_a_taken_port() {
    let dir = tempfile::tempdir().unwrap();
    let kubelet = dir.path().join("kubelet");
    fs::copy("/bin/sleep", &kubelet).unwrap();
    let child = Running(std::process::Command::new(&kubelet).arg("1000").spawn().unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut cfg = Config::default();
    cfg.modules.edged.tailored_kubelet_config.read_only_port = listener.local_addr().unwrap().port();
    cfg.modules.edged.tailored_kubelet_config.container_runtime_endpoint =
        format!("unix://{}", dir.path().join("none.sock").display());
    let findings = examine(Path::new("/"), &cfg).await;
    let agent = findings.iter().find(|f| f.check == "other-agent" && f.what.contains("a kubelet runs here"));
    assert!(agent.unwrap().what.contains(&format!("pid {}", child.0.id())), "{findings:#?}");
    let port = found(&findings, "ports").unwrap();
    assert!(port.what.contains(&format!("(pid {})", std::process::id())), "{port:?}");
    assert!(found(&findings, "runtime-socket").unwrap().what.contains("none.sock does not exist"));
    drop(listener);
    let findings = examine(Path::new("/"), &cfg).await;
    assert_eq!(found(&findings, "ports"), None, "the port is free again");
}

/// A containerd of the test's own with `more` in its configuration; nothing is run in it.
fn containerd(dir: &Path, more: &str) -> Running {
    let dir = dir.display();
    let config = format!(
        "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n{more}\n[grpc]\n  address = \"{dir}/c.sock\"\n[ttrpc]\n  address = \"{dir}/c.ttrpc\"\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{dir}/opt\"\n"
    );
    fs::write(format!("{dir}/config.toml"), config).unwrap();
    let log = fs::File::create(format!("{dir}/log")).unwrap();
    let mut command = std::process::Command::new("containerd");
    command.args(["--config", &format!("{dir}/config.toml")]).stderr(log);
    let running = Running(command.spawn().unwrap());
    let begun = std::time::Instant::now();
    while !fs::read_to_string(format!("{dir}/log")).unwrap().contains("successfully booted") {
        assert!(begun.elapsed().as_secs() < 60, "{}", fs::read_to_string(format!("{dir}/log")).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    running
}

#[tokio::test]
async fn real_containerds_that_are_set_up_wrongly() {
    const NAME: &str = "real_containerds_that_are_set_up_wrongly";
    if let Some(why) = e2e::containerd::missing() {
        return e2e::containerd::not_run(NAME, &why);
    }
    let judge = async |more: &dyn Fn(&str) -> String| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap().to_owned();
        fs::create_dir(dir.path().join("cni")).unwrap();
        let _running = containerd(dir.path(), &more(&path));
        let mut cfg = Config::default();
        cfg.modules.edged.tailored_kubelet_config.container_runtime_endpoint =
            format!("unix://{path}/c.sock");
        examine(Path::new("/"), &cfg).await
    };
    let cri = |dir: &str, keys: &str, options: &str| {
        format!(
            "[plugins.\"io.containerd.grpc.v1.cri\"]\n  {keys}\n  [plugins.\"io.containerd.grpc.v1.cri\".cni]\n    conf_dir = \"{dir}/cni\"\n    bin_dir = \"/usr/lib/cni\"\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n    runtime_type = \"io.containerd.runc.v2\"\n    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n      {options}\n"
        )
    };
    let off = judge(&|_| "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]".into()).await;
    assert!(found(&off, "runtime-cri").is_some() && found(&off, "runtime-socket").is_none(), "{off:#?}");

    let systemd = judge(&|dir| cri(dir, "restrict_oom_score_adj = true", "SystemdCgroup = true")).await;
    assert!(
        found(&systemd, "cgroup-driver").unwrap().what.contains("containerd uses the cgroup driver systemd")
    );
    let cni = found(&systemd, "cni").unwrap();
    assert!(cni.what.ends_with("/cni has no network configuration"), "{cni:?}");
    assert_eq!(found(&systemd, "oom-score"), None);

    let right = judge(&|dir| {
        fs::write(
            format!("{dir}/cni/10.conflist"),
            r#"{"cniVersion":"0.4.0","name":"k","plugins":[{"type":"bridge","bridge":"cni9","ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}]}"#,
        )
        .unwrap();
        cri(dir, "restrict_oom_score_adj = true", "SystemdCgroup = false")
    })
    .await;
    for check in ["cgroup-driver", "cni", "oom-score", "runtime-cri", "runtime-socket"] {
        assert_eq!(found(&right, check), None);
    }
}
