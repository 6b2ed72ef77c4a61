//! A cloudcore on this machine with its embedded API, or on a cluster's, on free ports that stay its own over restarts.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{kubectl::Kubectl, process::Process, steps::wait_until};

pub struct Cloud {
    program: PathBuf,
    dir: PathBuf,
    advertise: Vec<String>,
    ports: Option<[u16; 3]>,
    /// KubeEdge's tunnel for logs and exec; `None`: off. 0 until it has a port.
    tunnel: Option<u16>,
    /// CA, certificate and key of the port where a cluster's API server finds the nodes' kubelets.
    stream: Option<[PathBuf; 3]>,
    stream_port: u16,
    /// Of a cluster; `None`: the embedded API.
    cluster: Option<PathBuf>,
    /// More flags.
    flags: Vec<String>,
    running: Option<Process>,
}

impl Cloud {
    /// `advertise`: the names and addresses that edges reach it by; they go into its certificate.
    pub fn new(program: &Path, dir: &Path, advertise: &[&str]) -> Result<Cloud> {
        std::fs::create_dir_all(dir)?;
        let advertise = advertise.iter().map(|a| a.to_string()).collect();
        Ok(Cloud {
            program: program.into(),
            dir: dir.into(),
            advertise,
            ports: None,
            tunnel: None,
            stream: None,
            stream_port: 0,
            cluster: None,
            flags: Vec::new(),
            running: None,
        })
    }

    /// On the cluster of this kubeconfig.
    pub fn on_cluster(self, kubeconfig: &Path) -> Cloud {
        Cloud { cluster: Some(kubeconfig.into()), ..self }
    }

    /// With more flags.
    pub fn with_flags(self, flags: &[&str]) -> Cloud {
        Cloud { flags: flags.iter().map(|flag| flag.to_string()).collect(), ..self }
    }

    /// Where another cloudcore was: its hub, join port and tunnel.
    pub fn at(self, hub: u16, join: u16, tunnel: Option<u16>) -> Cloud {
        Cloud { ports: Some([0, hub, join]), tunnel, ..self }
    }

    /// With KubeEdge's CloudStream.
    pub fn with_tunnel(self) -> Cloud {
        Cloud { tunnel: Some(0), ..self }
    }

    /// With a stream port: a cluster's API server may ask for containers with certificates of this CA.
    pub fn with_stream(self, stream: [PathBuf; 3]) -> Cloud {
        Cloud { stream: Some(stream), ..self }
    }

    pub fn start(&mut self) -> Result<()> {
        let [api, hub, join] = self.ports.unwrap_or([0; 3]).map(|port| port.to_string());
        let endpoints = self.dir.join("endpoints.json");
        let _ = std::fs::remove_file(&endpoints);
        let mut command = Command::new(&self.program);
        command.arg("--data-dir").arg(&self.dir).args(["--bind-address", "127.0.0.1"]);
        command.args(["--api-port", &api, "--hub-port", &hub, "--join-port", &join]);
        if let Some(port) = self.tunnel {
            let config = self.dir.join("cloudcore.yaml");
            let files = self.stream.as_ref().map(|[ca, cert, key]| {
                let [ca, cert, key] = [ca, cert, key].map(|path| path.display());
                format!(", tlsStreamCAFile: {ca}, tlsStreamCertFile: {cert}, tlsStreamPrivateKeyFile: {key}")
            });
            let (files, stream) = (files.unwrap_or_default(), self.stream_port);
            let section = format!("{{enable: true, tunnelPort: {port}, streamPort: {stream}{files}}}");
            std::fs::write(&config, format!("modules:\n  cloudStream: {section}\n"))?;
            command.arg("--config").arg(config);
        }
        if let Some(kubeconfig) = &self.cluster {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        command.args(&self.flags);
        for address in &self.advertise {
            command.args(["--advertise-address", address]);
        }
        let mut process = Process::start("cloudcore", &mut command, &self.log())?;
        wait_until(Duration::from_secs(30), "cloudcore's listeners", || {
            if let Some(status) = process.ended() {
                bail!("cloudcore ended with {status}:\n{}", crate::process::tail(&process.log, 10));
            }
            Ok(endpoints.exists().then_some(()))
        })?;
        let seen: serde_json::Value = serde_json::from_slice(&std::fs::read(&endpoints)?)?;
        let port = |key: &str| -> Result<u16> {
            let text = seen[key].as_str().with_context(|| format!("endpoints.json has no {key}"))?;
            text.rsplit(':')
                .next()
                .and_then(|p| p.trim_end_matches('/').parse().ok())
                .with_context(|| format!("no port in {text}"))
        };
        let api = if self.cluster.is_none() { port("api")? } else { 0 };
        self.ports = Some([api, port("hub")?, port("join")?]);
        if self.stream.is_some() {
            self.stream_port = port("stream")?;
        }
        self.tunnel = self.tunnel.map(|_| port("tunnel")).transpose()?;
        self.running = Some(process);
        Ok(())
    }

    pub fn hub_port(&self) -> u16 {
        self.ports.map_or(0, |ports| ports[1])
    }

    pub fn join_port(&self) -> u16 {
        self.ports.map_or(0, |ports| ports[2])
    }

    /// Where nodes dial KubeEdge's tunnel.
    pub fn tunnel_port(&self) -> Option<u16> {
        self.tunnel
    }

    /// Where an API server finds the nodes' kubelets; 0 unless it is on a cluster.
    pub fn stream_port(&self) -> u16 {
        self.stream_port
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("cloudcore.log")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.clone().unwrap_or_else(|| self.dir.join("kubeconfig"))
    }

    pub fn kubectl(&self, program: &Path) -> Kubectl {
        Kubectl::new(program, &self.kubeconfig(), &self.dir)
    }

    pub fn token(&self, extra: &[&str]) -> Result<String> {
        self.command(&[&["token"], extra].concat())
    }

    /// A command of cloudcore's, such as `token`, where this one keeps its things. What it printed.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--data-dir").arg(&self.dir);
        if let Some(kubeconfig) = &self.cluster {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        let output = command.output()?;
        if !output.status.success() {
            let name = arguments.first().copied().unwrap_or_default();
            bail!("cloudcore {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// How often something had to be sent to a node again, since it was not acknowledged in time. A whole link has none.
    pub fn resends(&self) -> Result<usize> {
        let log = std::fs::read_to_string(self.log())?;
        Ok(log.lines().filter(|line| line.contains("it is sent again")).count())
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.running.as_ref().context("cloudcore is not running")?.pid())
    }

    pub fn rss_kb(&self) -> Result<u64> {
        crate::process::proc_status_kb(self.pid()?, "VmRSS")
    }

    /// SIGTERM, and it must end cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |process| process.stop(Duration::from_secs(10)))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.running.take() {
            process.kill();
        }
    }
}
