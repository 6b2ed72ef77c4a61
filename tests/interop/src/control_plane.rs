//! A real Kubernetes control plane on free ports of the loopback: etcd, kube-apiserver with RBAC, and kube-controller-manager where
//! it is among the peers. All of it ends with the value.
//!
//! There is no scheduler: a flow's pods name their node.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use e2e::{
    kubectl::Kubectl,
    process::{Process, tail},
    steps::{Steps, wait_for, wait_until},
};
use serde_json::json;

use crate::{Bench, Flow, Peer, Peers, ports};

/// What a flow on a control plane needs.
pub const NEEDS: &[Peer] = &[Peer::Etcd, Peer::Apiserver];

pub const FLOWS: &[Flow] =
    &[Flow { name: "a control plane starts and answers", needs: NEEDS, run: starts_and_answers }];

const START_TIME_MAX: Duration = Duration::from_secs(90);
const ATTEMPTS: usize = 3;

pub struct ControlPlane {
    dir: PathBuf,
    kubectl: PathBuf,
    port: u16,
    has_controllers: bool,
    // In the order in which they end.
    _controllers: Option<Process>,
    _apiserver: Process,
    _etcd: Process,
}

impl ControlPlane {
    /// Starts it below `dir`. `extra`: more flags of the API server.
    pub fn start(peers: &Peers, dir: &Path, extra: &[&str]) -> Result<ControlPlane> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match ControlPlane::try_start(peers, dir, extra) {
                Ok(plane) => return Ok(plane),
                // The ports may have been taken meanwhile.
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    fn try_start(peers: &Peers, dir: &Path, extra: &[&str]) -> Result<ControlPlane> {
        let dir = dir.join("control-plane");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        certificates(&dir)?;
        let [etcd_port, etcd_peer, port, controllers_port] = ports::free()?;
        let etcd = etcd(peers, &dir, etcd_port, etcd_peer)?;
        let controllers = peers.find(Peer::ControllerManager);
        let mut command = Command::new(peers.get(Peer::Apiserver)?);
        command.args([
            format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", dir.join("server.crt").display()),
            format!("--tls-private-key-file={}", dir.join("server.key").display()),
            format!("--client-ca-file={}", dir.join("ca.crt").display()),
            format!("--kubelet-client-certificate={}", dir.join("admin.crt").display()),
            format!("--kubelet-client-key={}", dir.join("admin.key").display()),
            format!("--service-account-key-file={}", dir.join("sa.key").display()),
            format!("--service-account-signing-key-file={}", dir.join("sa.key").display()),
            format!("--cert-dir={}", dir.display()),
        ]);
        command.args([
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
        ]);
        if controllers.is_none() {
            // Nobody makes service accounts then.
            command.arg("--disable-admission-plugins=ServiceAccount");
        }
        let mut apiserver =
            Process::start("kube-apiserver", command.args(extra), &dir.join("kube-apiserver.log"))?;
        kubeconfig(&dir, "admin", port)?;
        let kubectl = peers.get(Peer::Kubectl)?;
        let admin = Kubectl::new(&kubectl, &dir.join("admin.kubeconfig"), &dir);
        wait_until(START_TIME_MAX, "the API server to be ready", || {
            if let Some(status) = apiserver.ended() {
                bail!("kube-apiserver ended with {status}:\n{}", tail(&apiserver.log, 10));
            }
            Ok(admin.run(&["get", "--raw", "/readyz"]).ok())
        })?;
        let has_controllers = controllers.is_some();
        let controllers = controllers.map(|program| {
            let mut command = Command::new(program);
            command.args([
                format!("--kubeconfig={}", dir.join("admin.kubeconfig").display()),
                format!("--service-account-private-key-file={}", dir.join("sa.key").display()),
                format!("--root-ca-file={}", dir.join("ca.crt").display()),
                format!("--secure-port={controllers_port}"),
                format!("--cert-dir={}", dir.display()),
            ]);
            command.args([
                "--bind-address=127.0.0.1",
                "--leader-elect=false",
                "--use-service-account-credentials=true",
            ]);
            Process::start("kube-controller-manager", &mut command, &dir.join("controller-manager.log"))
        });
        let controllers = controllers.transpose()?;
        let plane = ControlPlane {
            dir,
            kubectl,
            port,
            has_controllers,
            _controllers: controllers,
            _apiserver: apiserver,
            _etcd: etcd,
        };
        let namespaces = ["default", "kube-system"];
        wait_for(START_TIME_MAX, "the first namespaces", || {
            plane.kubectl().run(&[&["get", "namespace"], &namespaces[..]].concat()).map(Some)
        })?;
        if plane.has_controllers {
            wait_for(START_TIME_MAX, "the default service account", || {
                plane.kubectl().run(&["get", "serviceaccount", "default"]).map(Some)
            })?;
        }
        Ok(plane)
    }

    /// kubectl with all rights.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.kubectl, &self.kubeconfig(), &self.dir)
    }

    /// All rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The port of the API on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Is there a kube-controller-manager: service accounts and their tokens, garbage collection, the judging of nodes?
    pub fn has_controllers(&self) -> bool {
        self.has_controllers
    }

    /// Signed the API's certificate and all clients of it, its kubelet client too.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// A certificate of the CA above for this machine's loopback, made now: `<name>.crt` and `<name>.key` (PEM).
    pub fn certificate(&self, name: &str, subject: &str) -> Result<(PathBuf, PathBuf)> {
        signed(&self.dir, name, subject)?;
        Ok((self.dir.join(format!("{name}.crt")), self.dir.join(format!("{name}.key"))))
    }

    /// A kubeconfig of a service account, which must exist; its token is valid for an hour.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.kubectl().run(&["create", "token", account, "-n", namespace, "--duration=1h"])?;
        let path = self.dir.join(format!("{namespace}-{account}.kubeconfig"));
        write_kubeconfig(&path, &self.dir, self.port, &json!({"token": token.trim()}))?;
        Ok(path)
    }
}

fn starts_and_answers(bench: &Bench, steps: &mut Steps) -> Result<()> {
    let peers = bench.peers()?;
    let (plane, _) = steps.step("it starts", || ControlPlane::start(peers, &bench.dir, &[]))?;
    steps.step("the administrator may all, a stranger nothing", || {
        let kubectl = plane.kubectl();
        kubectl.run(&["get", "nodes"])?;
        let allowed = kubectl.run(&["auth", "can-i", "list", "nodes", "--as", "nobody"]);
        anyhow::ensure!(allowed.is_err(), "RBAC is not on");
        Ok(())
    })?;
    Ok(())
}

fn etcd(peers: &Peers, dir: &Path, port: u16, peer_port: u16) -> Result<Process> {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new(peers.get(Peer::Etcd)?);
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    Process::start("etcd", &mut command, &dir.join("etcd.log"))
}

/// A CA, the API's certificate, the administrator's, and the key of service accounts.
fn certificates(dir: &Path) -> Result<()> {
    key(&dir.join("ca.key"))?;
    key(&dir.join("sa.key"))?;
    let (ca_key, ca) = (dir.join("ca.key"), dir.join("ca.crt"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-new", "-days", "2", "-subj", "/CN=interop-ca", "-key"]).arg(&ca_key);
    openssl(command.arg("-out").arg(&ca))?;
    signed(dir, "server", "/CN=kube-apiserver")?;
    signed(dir, "admin", "/O=system:masters/CN=admin")
}

fn key(path: &Path) -> Result<()> {
    openssl(
        Command::new("openssl")
            .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
            .arg(path),
    )
}

fn signed(dir: &Path, name: &str, subject: &str) -> Result<()> {
    let file = |extension: &str| dir.join(format!("{name}.{extension}"));
    key(&file("key"))?;
    let mut request = Command::new("openssl");
    request.args(["req", "-new", "-subj", subject, "-key"]).arg(file("key")).arg("-out").arg(file("csr"));
    openssl(&mut request)?;
    std::fs::write(
        file("ext"),
        "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc,IP:10.96.0.1\nextendedKeyUsage=serverAuth,clientAuth\n",
    )?;
    let mut sign = Command::new("openssl");
    sign.args(["x509", "-req", "-days", "2", "-CAcreateserial", "-in"]).arg(file("csr"));
    sign.arg("-CA").arg(dir.join("ca.crt")).arg("-CAkey").arg(dir.join("ca.key"));
    sign.arg("-CAserial").arg(file("srl")).arg("-extfile").arg(file("ext"));
    openssl(sign.arg("-out").arg(file("crt")))
}

fn openssl(command: &mut Command) -> Result<()> {
    let output = command.output().context("run openssl; install it")?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn kubeconfig(dir: &Path, user: &str, port: u16) -> Result<()> {
    let credentials = json!({
        "client-certificate": dir.join(format!("{user}.crt")),
        "client-key": dir.join(format!("{user}.key")),
    });
    write_kubeconfig(&dir.join(format!("{user}.kubeconfig")), dir, port, &credentials)
}

fn write_kubeconfig(path: &Path, dir: &Path, port: u16, user: &serde_json::Value) -> Result<()> {
    let server = format!("https://127.0.0.1:{port}");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": server, "certificate-authority": dir.join("ca.crt")}}],
        "users": [{"name": "it", "user": user}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    std::fs::write(path, serde_json::to_vec_pretty(&config)?).with_context(|| path.display().to_string())
}
