//! A containerd of the test's own, in namespaces of its own: its processes, mounts, addresses and firewall rules end with it.
//!
//! Needs root and Debian's packages; [`missing`] says what is not there, and a test that cannot run says so loudly.
//! [`Containerd::power_cut`] kills everything at once, as a socket pulled from the wall does (but for the page cache);
//! [`Containerd::start_in`] comes back on the same disk.

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

pub const SANDBOX_IMAGE: &str = "docker.io/kinglet/pause:1";
const CNI_BIN: &str = "/usr/lib/cni";
const START_WAIT: Duration = Duration::from_secs(30);

/// What this machine lacks for a containerd of our own; `None`: nothing.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    for program in ["containerd", "containerd-shim-runc-v2", "runc", "ip", "iptables", "unshare", "nsenter"] {
        if !on_path(program) {
            return Some(format!(
                "needs {program} (apt-get install containerd runc containernetworking-plugins iptables iproute2)"
            ));
        }
    }
    let plugin = Path::new(CNI_BIN).join("bridge");
    (!plugin.exists())
        .then(|| format!("needs {} (apt-get install containernetworking-plugins)", plugin.display()))
}

/// The line that the test runner counts: a test that did not run is never a test that passed.
pub fn not_run(name: &str, why: &str) {
    // Not `println!`, which libtest keeps to itself when a test passes. The line must begin at the margin.
    let _ = std::io::stdout().write_all(format!("\nNOT RUN {name}: {why}\n").as_bytes());
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|dir| dir.join(program).is_file())
}

pub struct Containerd {
    dir: PathBuf,
    /// Absent when the caller keeps the folder.
    _temporary: Option<TempDir>,
    /// PID 1 of the namespaces.
    init: Child,
}

impl Containerd {
    /// Starts one in a new folder.
    pub fn start() -> Result<Containerd> {
        let temporary =
            tempfile::Builder::new().prefix("kgt").tempdir().context("cannot make a scratch folder")?;
        let mut containerd = Containerd::start_in(temporary.path())?;
        containerd._temporary = Some(temporary);
        Ok(containerd)
    }

    /// Starts one in a folder that may hold the state of an earlier one.
    pub fn start_in(dir: &Path) -> Result<Containerd> {
        Containerd::start_configured(dir, "", "")
    }

    /// As [`Containerd::start_in`]; `setup` is a part of a shell script that PID 1 inside runs first, in `dir`.
    pub fn start_after(dir: &Path, setup: &str) -> Result<Containerd> {
        Containerd::start_configured(dir, "", setup)
    }

    /// As [`Containerd::start_in`], with another shim than the packaged one: a program `containerd-shim-runc-v2-rs`.
    pub fn start_with_shim(dir: &Path, shim: &Path) -> Result<Containerd> {
        let runtime = format!(
            "    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n      runtime_type = \"io.containerd.runc.v2\"\n      runtime_path = \"{}\"\n",
            shim.display()
        );
        Containerd::start_configured(dir, &runtime, "")
    }

    fn start_configured(dir: &Path, more: &str, setup: &str) -> Result<Containerd> {
        fs::create_dir_all(dir.join("cni"))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        fs::write(dir.join("config.toml"), config(dir) + more)?;
        fs::write(dir.join("cni/10-kinglet.conflist"), CNI)?;
        fs::write(dir.join("start.sh"), format!("set -e\n{setup}{START}"))?;
        // Places that tests of one machine would otherwise share; empty file systems are mounted over them inside.
        for shared in ["/run/netns", "/var/lib/cni"] {
            fs::create_dir_all(shared).with_context(|| format!("cannot make {shared}"))?;
        }
        // What an earlier one left: its runtime state is gone with its namespaces, as after a boot.
        let _ = fs::remove_dir_all(dir.join("state"));
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("containerd.log"))?;
        let mut command = Command::new("unshare");
        command
            .args([
                "--net",
                "--mount",
                "--pid",
                "--ipc",
                "--fork",
                "--kill-child=SIGKILL",
                "--mount-proc",
                "--propagation",
                "slave",
            ])
            .args(["/bin/sh", "start.sh"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let init = command.spawn().context("cannot start unshare")?;
        let mut containerd = Containerd { dir: dir.to_owned(), _temporary: None, init };
        containerd.wait_ready()?;
        Ok(containerd)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// `unix:///...`, as `--remote-runtime-endpoint` takes it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
                && self.log().contains("containerd successfully booted")
            {
                return Ok(());
            }
            if let Some(status) = self.init.try_wait()? {
                bail!("containerd's namespaces ended with {status}:\n{}", self.log());
            }
            ensure!(
                begun.elapsed() < START_WAIT,
                "containerd was not ready after {START_WAIT:?}:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The shell that is PID 1 inside, as the host numbers it.
    pub fn inside(&self) -> Result<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.init.id());
        let text = fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
        text.split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
            .context("containerd's namespaces have ended")
    }

    /// Kills every process inside at once. The folder stays as it was.
    pub fn power_cut(&mut self) -> Result<()> {
        // The kernel kills all of a PID namespace with its PID 1, which is gone only after them; unshare waits for that.
        match self.inside() {
            Ok(inside) => {
                kill(Pid::from_raw(inside as i32), Signal::SIGKILL).context("cannot kill PID 1 inside")?
            }
            Err(_) => drop(self.init.kill()),
        }
        self.init.wait().context("cannot wait for containerd's namespaces")?;
        Ok(())
    }

    /// Kills containerd alone; containers go on, and a new containerd starts at once.
    pub fn restart_daemon(&mut self) -> Result<()> {
        let daemon = self.processes("containerd")?.into_iter().next().context("no containerd runs")?;
        let before = self.log().matches("containerd successfully booted").count();
        kill(Pid::from_raw(daemon as i32), Signal::SIGKILL)?;
        let begun = Instant::now();
        while self.log().matches("containerd successfully booted").count() <= before {
            ensure!(begun.elapsed() < START_WAIT, "containerd did not come back:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Host process ids of all processes inside with this name, oldest first.
    pub fn processes(&self, name: &str) -> Result<Vec<u32>> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let root = namespace(&self.inside()?.to_string());
        let ours = |pid: &u32| descends(*pid, self.init.id());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if command.trim_end() == name && root.is_some() && ours(&pid) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Moves the calling thread, and those that it starts, into the node's network for good.
    pub fn enter_network(&self) -> Result<()> {
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.inside()?))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")
    }

    /// GET over HTTP/1.0 from inside the node's network; the whole answer.
    pub fn http_get(&self, address: SocketAddr, path: &str) -> Result<String> {
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.inside()?))?;
        let path = path.to_string();
        // A thread has its own network namespace until it ends.
        let fetch = move || -> Result<String> {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        thread::spawn(fetch).join().map_err(|_| anyhow::anyhow!("the fetching thread panicked"))?
    }

    /// An address of the node that its host ports answer on.
    pub fn node_address(&self, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 77, 0, 1], port))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.power_cut();
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            let mut text = String::new();
            tail.iter().rev().for_each(|line| {
                let _ = writeln!(text, "{}", line.get(..400).unwrap_or(line));
            });
            eprintln!("--- the last lines of containerd's log\n{text}---");
        }
    }
}

fn descends(mut pid: u32, ancestor: u32) -> bool {
    while pid > 1 {
        if pid == ancestor {
            return true;
        }
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        let Some(parent) = parent else { return false };
        pid = parent;
    }
    false
}

/// PID 1 of the namespaces: mounts, loopback, an address for host ports, and containerd again whenever it ends.
const START: &str = "\
mount -t tmpfs tmpfs /run/netns
mount -t tmpfs tmpfs /var/lib/cni
ip link set lo up
ip link add node0 type bridge
ip address add 10.77.0.1/24 dev node0
ip link set node0 up
ip route add default via 10.77.0.2
echo 1 > /proc/sys/net/ipv4/ip_forward
set +e
while :; do containerd --config config.toml; sleep 0.05; done
";

/// Everything has its own network namespace, so one range serves all tests.
const CNI: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "kinglet",
  "plugins": [
    { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.78.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#;

/// `restrict_oom_score_adj`: containers of CI lack CAP_SYS_RESOURCE, and every sandbox would fail without it.
fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{dir}/containerd.sock"
[ttrpc]
  address = "{dir}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{SANDBOX_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{dir}/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_BIN}"
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"#
    )
}
