//! Ports of this node, ports of the cloud, names.

use std::{fs, net::SocketAddr};

use super::{Finding, Host, Level};
use crate::join::split_address;

pub fn ports(host: &Host) -> Vec<Finding> {
    host.asked.taken.iter().filter_map(|taken| port(host, taken)).collect()
}

fn port(host: &Host, taken: &super::Taken) -> Option<Finding> {
    let (address, number) = (taken.address, taken.address.port());
    let holder = holder(host, address);
    let by = match &holder {
        // Our own agent has what it wants.
        Some((_, name)) if name == "edgecore" => return None,
        Some((pid, name)) => format!("is in use by {name} (pid {pid})"),
        None => format!("cannot be used: {}", taken.reason),
    };
    let stop = match &holder {
        Some((_, name)) if name == "mosquitto" => {
            "systemctl disable --now mosquitto, or keep it and set modules.eventBus.mqttMode: 2".into()
        }
        Some((_, name)) => format!("stop {name}, or choose another port with {}", taken.key),
        None => format!("ss -ltnp 'sport = :{number}' names it; or choose another port with {}", taken.key),
    };
    Some(
        Finding::error("ports", format!("{address} {by}"))
            .why("mappers, metrics or logs of this node have no place to connect to")
            .remedy(stop),
    )
}

/// Who listens at a port, through the kernel's table of sockets and the processes' open files.
fn holder(host: &Host, address: SocketAddr) -> Option<(u32, String)> {
    let port = format!(":{:04X}", address.port());
    let tables = ["proc/net/tcp", "proc/net/tcp6"].map(|file| host.read(file));
    let inodes: Vec<String> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A is LISTEN.
            let listens = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
            listens.then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
        })
        .collect();
    let processes = host.processes();
    let holds = |pid: u32| {
        let folder = format!("proc/{pid}/fd");
        host.names(&folder).iter().any(|fd| {
            fs::read_link(host.path(&format!("{folder}/{fd}")))
                .is_ok_and(|target| inodes.iter().any(|inode| target.to_str() == Some(inode)))
        })
    };
    if inodes.is_empty() {
        return None;
    }
    processes.into_iter().find(|process| holds(process.pid)).map(|process| (process.pid, process.name))
}

pub fn cloud_and_names(host: &Host) -> Vec<Finding> {
    let mut findings: Vec<Finding> = host.asked.reached.iter().filter_map(unreachable).collect();
    if let Some(problem) = &host.asked.unresolved {
        let server = &host.cfg.modules.edge_hub.websocket.server;
        let name = split_address(server).map_or(server.as_str(), |(name, _)| name);
        findings.push(
            Finding::error("names", format!("{name} has no address: {problem}"))
                .why("the node cannot find its cloud")
                .remedy("name a server that answers in /etc/resolv.conf, write the address into /etc/hosts, or join with the address"),
        );
    }
    findings.extend(resolver(host));
    findings
}

fn unreachable(reach: &super::Reach) -> Option<Finding> {
    let problem = reach.result.as_ref().err()?;
    let (port, server) = (reach.server.rsplit(':').next().unwrap_or_default(), &reach.server);
    let what = format!("{server} ({}) cannot be reached: {problem}", reach.key);
    Some(match reach.key {
        "modules.eventBus.mqttServerExternal" => Finding::warning("mqtt-broker", what)
            .why("devices have no way to the node")
            .remedy("systemctl enable --now mosquitto, or modules.eventBus.mqttMode: 0 for the broker inside edgecore"),
        key => Finding::new(
            if key == "modules.edgeStream.server" { Level::Warning } else { Level::Error },
            "cloud-ports",
            what,
        )
        .why(match key {
            "modules.edgeHub.httpServer" => "the node cannot get or renew its certificate",
            "modules.edgeStream.server" => "kubectl logs and exec do not reach this node",
            _ => "the node runs what it has, and gets nothing new",
        })
        .remedy(format!(
            "let TCP {port} through the firewall between them, and look whether cloudcore runs: nc -vz {} {port}",
            server.rsplit_once(':').map_or("", |(name, _)| name)
        )),
    })
}

/// What pods get as their resolver.
fn resolver(host: &Host) -> Option<Finding> {
    const CHECK: &str = "names";
    let kubelet = &host.cfg.modules.edged.tailored_kubelet_config;
    if !kubelet.cluster_dns.is_empty() {
        return None;
    }
    let path = kubelet.resolv_conf.to_string_lossy().into_owned();
    let text = host.read(&path);
    let servers: Vec<&str> =
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim).collect();
    if servers.is_empty() {
        let finding = Finding::warning(CHECK, format!("{path} names no server"))
            .why("pods cannot resolve names")
            .remedy(format!("add a line such as: nameserver 192.0.2.53 to {path}"));
        return Some(finding);
    }
    let loopback = servers.iter().all(|server| server.starts_with("127.") || *server == "::1");
    let upstream = "/run/systemd/resolve/resolv.conf";
    loopback.then(|| {
        let remedy = match host.exists(upstream) {
            true => format!("modules.edged.tailoredKubeletConfig.resolvConf: {upstream}"),
            false => "name a server in modules.edged.tailoredKubeletConfig.clusterDNS".into(),
        };
        Finding::warning(
            CHECK,
            format!("{path} only names {}, which is the pod itself inside a pod", servers.join(", ")),
        )
        .why("pods with their own network cannot resolve names")
        .remedy(remedy)
    })
}
