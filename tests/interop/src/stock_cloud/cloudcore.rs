//! An unmodified KubeEdge cloudcore on this machine, on ports of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use e2e::{
    kubectl::Kubectl,
    process::{Process, tail},
    steps::{wait_for, wait_until},
};
use serde_json::json;

use super::crds;
use crate::{ControlPlane, ports};

const START_TIME_MAX: Duration = Duration::from_secs(60);
/// cloudcore takes the first port above this that is not in its record. The record is made so that it takes a free one.
const TUNNEL_PORT_BASE: u16 = 10350;
const TUNNEL_PORTS: u16 = 400;

pub struct StockCloud {
    program: PathBuf,
    dir: PathBuf,
    pub hub: u16,
    pub join: u16,
    pub tunnel: u16,
    /// Where the API server reaches nodes.
    pub stream: u16,
    /// As it tells it.
    pub version: String,
    /// 23 of v1.23.1.
    pub minor: u32,
    running: Option<Process>,
}

impl StockCloud {
    pub fn new(program: &Path, plane: &ControlPlane, dir: &Path) -> Result<StockCloud> {
        let program = program.to_owned();
        let dir = dir.join("kubeedge");
        std::fs::create_dir_all(&dir)?;
        let kubectl = plane.kubectl();
        let _ = kubectl.run(&["create", "namespace", "kubeedge"]);
        let stream = record_tunnel_port(&kubectl, &dir)?;
        let [hub, join, tunnel, monitor, quic] = ports::free()?;
        let (certificate, key) = plane.certificate("stream", "/CN=cloudstream")?;
        let absent = dir.join("in-the-secrets");
        let hub_files = |prefix: &str| {
            json!({
                format!("{prefix}CAFile"): absent.join("ca.crt"),
                format!("{prefix}CertFile"): absent.join("tls.crt"),
                format!("{prefix}PrivateKeyFile"): absent.join("tls.key"),
            })
        };
        let mut cloud_hub = hub_files("tls");
        merge(
            &mut cloud_hub,
            json!({
                "enable": true, "advertiseAddress": ["127.0.0.1"], "dnsNames": ["localhost"], "nodeLimit": 10,
                "tlsCAKeyFile": absent.join("ca.key"), "keepaliveInterval": 30, "writeTimeout": 30,
                "tokenRefreshDuration": 12, "edgeCertSigningDuration": 365,
                "https": {"enable": true, "address": "127.0.0.1", "port": join},
                "websocket": {"enable": true, "address": "127.0.0.1", "port": hub},
                "quic": {"enable": false, "address": "127.0.0.1", "port": quic},
                "unixsocket": {"enable": true, "address": format!("unix://{}", dir.join("kubeedge.sock").display())},
            }),
        );
        let mut cloud_stream = hub_files("tlsTunnel");
        merge(
            &mut cloud_stream,
            json!({
                "enable": true, "streamPort": stream, "tunnelPort": tunnel,
                "tlsStreamCAFile": plane.ca(), "tlsStreamCertFile": certificate, "tlsStreamPrivateKeyFile": key,
            }),
        );
        let config = json!({
            "apiVersion": "cloudcore.config.kubeedge.io/v1alpha2", "kind": "CloudCore",
            "commonConfig": {"monitorServer": {"bindAddress": format!("127.0.0.1:{monitor}")}},
            "kubeAPIConfig": {
                "kubeConfig": plane.kubeconfig(), "contentType": "application/vnd.kubernetes.protobuf", "qps": 100, "burst": 200,
            },
            "modules": {
                "cloudHub": cloud_hub, "cloudStream": cloud_stream,
                "deviceController": {"enable": true}, "edgeController": {"enable": true, "nodeUpdateFrequency": 10},
                "syncController": {"enable": true}, "taskManager": {"enable": true}, "dynamicController": {"enable": false},
                "router": {"enable": false}, "iptablesManager": {"enable": false, "mode": "internal"},
            },
        });
        std::fs::write(dir.join("cloudcore.yaml"), serde_json::to_vec_pretty(&config)?)?;
        let version = version(&program, &dir)?;
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
        let minor = minor.with_context(|| format!("cloudcore's version is {version}"))?;
        crds::apply(&kubectl, &dir, minor)?;
        Ok(StockCloud { program, dir, hub, join, tunnel, stream, version, minor, running: None })
    }

    pub fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.dir.join("cloudcore.yaml"));
        let mut process = Process::start("KubeEdge cloudcore", &mut command, &self.log())?;
        let hub = self.hub;
        wait_until(START_TIME_MAX, "cloudcore's hub", || {
            if let Some(status) = process.ended() {
                bail!("cloudcore ended with {status}:\n{}", tail(&process.log, 10));
            }
            Ok(std::net::TcpStream::connect(("127.0.0.1", hub)).is_ok().then_some(()))
        })?;
        self.running = Some(process);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.running.take() {
            process.kill();
        }
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("cloudcore.log")
    }

    /// The token that `keadm gettoken` would print.
    pub fn token(&self, kubectl: &Kubectl) -> Result<String> {
        wait_for(START_TIME_MAX, "KubeEdge's token", || {
            secret(kubectl, "tokensecret", "tokendata", &self.dir).map(Some)
        })
        .and_then(|bytes| Ok(String::from_utf8(bytes)?))
    }

    /// The CA that signs nodes, as PEM files: certificate and key.
    pub fn ca(&self, kubectl: &Kubectl) -> Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (self.dir.join("ca.pem"), self.dir.join("ca-key.pem"));
        for (name, of, to, kind) in
            [("cadata", "x509", &certificate, "ca.der"), ("cakeydata", "ec", &key, "ca-key.der")]
        {
            let der = self.dir.join(kind);
            std::fs::write(&der, secret(kubectl, "casecret", name, &self.dir)?)?;
            let output = Command::new("openssl")
                .args([of, "-inform", "der", "-in"])
                .arg(&der)
                .arg("-out")
                .arg(to)
                .output()?;
            if !output.status.success() {
                bail!("openssl {of}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok((certificate, key))
    }
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    if let (Some(into), serde_json::Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

/// What is under a key of a secret of KubeEdge's.
fn secret(kubectl: &Kubectl, name: &str, key: &str, dir: &Path) -> Result<Vec<u8>> {
    let object = kubectl.json(&["get", "secret", "-n", "kubeedge", name])?;
    let text = object["data"][key].as_str().with_context(|| format!("secret {name} has no {key}"))?;
    let file = dir.join(format!("{name}.b64"));
    std::fs::write(&file, text)?;
    let output = Command::new("base64").arg("-d").arg(&file).output()?;
    Ok(output.stdout)
}

/// Makes cloudcore tell the API server a port as the node's kubelet port on which its stream server really listens: elsewhere
/// that takes firewall rules (`iptablesManager`).
fn record_tunnel_port(kubectl: &Kubectl, dir: &Path) -> Result<u16> {
    let free = |port: &u16| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok();
    let start = TUNNEL_PORT_BASE + 1 + (std::process::id() % 97) as u16;
    let port = (start..TUNNEL_PORT_BASE + TUNNEL_PORTS).find(free).context("no free port for cloudStream")?;
    let taken: serde_json::Map<String, serde_json::Value> =
        (TUNNEL_PORT_BASE + 1..port).map(|port| (port.to_string(), true.into())).collect();
    let record = json!({"ipTunnelPort": {}, "port": taken}).to_string();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "tunnelport", "namespace": "kubeedge", "annotations": {"tunnelportrecord.kubeedge.io": record}},
    });
    kubectl.apply_text(dir, &map.to_string())?;
    Ok(port)
}

/// What it says of itself at its start; there is no flag for it.
fn version(program: &Path, dir: &Path) -> Result<String> {
    let mut command = Command::new(program);
    command.arg("--config").arg(dir.join("cloudcore.yaml"));
    let process = Process::start("KubeEdge cloudcore", &mut command, &dir.join("version.log"))?;
    let found = wait_until(START_TIME_MAX, "cloudcore's version", || {
        let log = std::fs::read_to_string(&process.log)?;
        let version = log.split("Version: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        Ok(version.map(str::to_owned))
    });
    process.kill();
    found
}
