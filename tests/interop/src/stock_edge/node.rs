//! One stock KubeEdge edge on this machine: its own containerd, network, processes and control groups, its files below one folder.
//!
//! Everything that an edgecore would change on the host is put aside in its mount namespace: `/etc/kubeedge`, `/var/lib/kubeedge`,
//! `/var/lib/kubelet`, and the kernel settings that its kubelet insists on, which are files there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    containerd::Containerd,
    process::{Process, tail},
    relay::Relay,
    steps::wait_until,
};

/// What kubelets write to the host, and the values that they want.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// Folders of the host that are its own inside.
const FOLDERS: [&str; 3] = ["/etc/kubeedge", "/var/lib/kubeedge", "/var/lib/kubelet"];
/// Of its own broker; the node has a network of its own.
pub const BROKER: u16 = 1884;

pub struct StockNode {
    edgecore: PathBuf,
    pub name: String,
    dir: PathBuf,
    /// Its control group, by which two of them on one machine do not meet.
    group: String,
    agent: Option<Process>,
    uplink: Option<Relay>,
    containerd: Containerd,
}

impl StockNode {
    pub fn new(edgecore: &Path, images: &Path, dir: &Path, name: &str) -> Result<StockNode> {
        let dir = dir.join(name);
        let inner = dir.join("containerd");
        fs::create_dir_all(&inner)?;
        for folder in FOLDERS {
            fs::create_dir_all(folder)
                .with_context(|| format!("make {folder} for something to be mounted on"))?;
            fs::create_dir_all(own(&dir, folder))?;
        }
        // It asks for the addresses of its own name and of the machine's, which no name server of this network answers in time.
        let machine = fs::read_to_string("/proc/sys/kernel/hostname")?;
        fs::write(dir.join("hosts"), format!("127.0.0.1 localhost\n10.77.0.1 {name} {machine}\n"))?;
        let group = format!("kinglet-interop-{}-{name}", std::process::id());
        let containerd = Containerd::start_after(&inner, &setup(&dir, &group)?)?;
        let node = StockNode {
            edgecore: edgecore.into(),
            name: name.into(),
            dir,
            group,
            agent: None,
            uplink: None,
            containerd,
        };
        for image in ["pause.tar", "busybox.tar"] {
            let mut import = node.inside("ctr")?;
            import.arg("--address").arg(node.containerd.socket()).args(["-n", "k8s.io", "images", "import"]);
            let output = import.arg(images.join(image)).output()?;
            ensure!(output.status.success(), "import {image}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(node)
    }

    /// Writes its configuration, from the defaults that it prints itself.
    pub fn configure(&mut self, cloud: &Cloud, token: &str) -> Result<()> {
        let output = Command::new(&self.edgecore).arg("--defaultconfig").output()?;
        ensure!(output.status.success(), "edgecore --defaultconfig: {}", output.status);
        let mut text = String::from_utf8(output.stdout)?;
        let containerd = self.containerd.endpoint();
        let hub = format!("127.0.0.1:{}", cloud.hub_port());
        let tunnel = cloud.tunnel_port().context("the tunnel is on")?;
        for (section, key, value) in [
            ("edged:", "hostnameOverride", self.name.as_str()),
            ("edged:", "podSandboxImage", e2e::containerd::SANDBOX_IMAGE),
            ("edged:", "reportEvent", "true"),
            ("edged:", "containerRuntimeEndpoint", &containerd),
            ("edged:", "imageServiceEndpoint", &containerd),
            ("edged:", "makeIPTablesUtilChains", "false"),
            ("edged:", "nodefs.available", "1%"),
            ("edged:", "imagefs.available", "1%"),
            ("edged:", "nodefs.inodesFree", "1%"),
            ("edged:", "imagefs.inodesFree", "1%"),
            ("edged:", "imageGCHighThresholdPercent", "100"),
            ("edged:", "imageGCLowThresholdPercent", "99"),
            // Volumes follow their objects at each look at the pod.
            ("edged:", "syncFrequency", "3s"),
            ("edgeHub:", "httpServer", &format!("https://127.0.0.1:{}", cloud.join_port())),
            ("edgeHub:", "token", token),
            ("websocket:", "server", &hub),
            ("edgeStream:", "enable", "true"),
            ("edgeStream:", "server", &format!("127.0.0.1:{tunnel}")),
            ("eventBus:", "mqttMode", "0"),
        ] {
            text = set(&text, section, key, value).with_context(|| format!("{section} {key}"))?;
        }
        fs::write(self.config(), text)?;
        let ports = [cloud.hub_port(), cloud.join_port(), tunnel];
        self.uplink = Some(Relay::start(self.containerd.inside()?, &ports)?);
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.dir.join("edgecore.yaml")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("edgecore.log")
    }

    pub fn start(&mut self) -> Result<()> {
        let mut command = self.inside("/bin/sh")?;
        // Into the control groups that its namespaces show as the roots.
        let script =
            "for group in /sys/fs/cgroup/*/cgroup.procs; do echo $$ > $group; done 2>/dev/null; exec \"$@\"";
        command
            .args(["-c", script, "sh"])
            .arg(&self.edgecore)
            .arg("--config")
            .arg(self.config())
            .args(["-v", "4"]);
        command.env("CHECK_EDGECORE_ENVIRONMENT", "false");
        self.agent = Some(Process::start("stock edgecore", &mut command, &self.log())?);
        Ok(())
    }

    /// Starts it again if it gave up, as systemd would.
    pub fn keep_running(&mut self) -> Result<()> {
        match self.agent.as_mut().map(Process::ended) {
            Some(None) => Ok(()),
            _ => self.start(),
        }
    }

    /// `TERM` or `KILL`.
    pub fn stop(&mut self, signal: &str) -> Result<()> {
        let mut agent = self.agent.take().context("the stock edgecore runs")?;
        let children = format!("/proc/{0}/task/{0}/children", agent.pid());
        let pid = fs::read_to_string(children)?.trim().to_owned();
        ensure!(!pid.is_empty(), "the stock edgecore has ended:\n{}", tail(&self.log(), 10));
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status()?;
        ensure!(sent.success(), "kill -{signal} {pid}: {sent}");
        let ended =
            wait_until(Duration::from_secs(20), "the end of the stock edgecore", || Ok(agent.ended()));
        ended.map(drop)
    }

    /// Waits for its end, which somebody else brought about.
    pub fn gone(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("the stock edgecore ran")?;
        let ended =
            wait_until(Duration::from_secs(20), "the end of the stock edgecore", || Ok(agent.ended()));
        ended.map(drop)
    }

    /// Removes its database, as on a device that was set up anew but for its certificates.
    pub fn empty_database(&self) -> Result<()> {
        let database = own(&self.dir, "/var/lib/kubeedge").join("edgecore.db");
        fs::remove_file(&database).with_context(|| format!("remove {}", database.display()))
    }

    /// A program in the node's namespaces.
    pub fn inside(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.containerd.inside()?));
        command.args(["--net", "--mount", "--pid", "--cgroup", "--", program]);
        Ok(command)
    }

    /// Runs in the node's network.
    pub fn in_network<T: Send>(&self, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.containerd.enter_network()?;
                run()
            });
            entered.join().map_err(|_| anyhow::anyhow!("the thread in the node's network panicked"))?
        })
    }

    /// Ids of the containers that run, sandboxes too.
    pub fn containers(&self) -> Result<Vec<String>> {
        let mut list = self.inside("ctr")?;
        list.arg("--address").arg(self.containerd.socket()).args(["-n", "k8s.io", "tasks", "ls"]);
        let output = list.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let running = text.lines().filter(|line| line.ends_with("RUNNING"));
        let mut ids: Vec<String> =
            running.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
        ids.sort();
        Ok(ids)
    }

    /// A shell script in a container that runs; for clusters whose API server has no way to the node.
    pub fn in_container(&self, container: &str, script: &str) -> Result<String> {
        let mut exec = self.inside("ctr")?;
        exec.arg("--address").arg(self.containerd.socket()).args([
            "-n",
            "k8s.io",
            "tasks",
            "exec",
            "--exec-id",
        ]);
        exec.args([&format!("look-{}", self.log_len()), container, "sh", "-c", script]);
        let output = exec.output()?;
        ensure!(
            output.status.success(),
            "in the container: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// How far its log has come: what [`StockNode::received`] counts from.
    pub fn log_len(&self) -> usize {
        fs::read_to_string(self.log()).unwrap_or_default().lines().count()
    }

    /// Objects that came from the cloud since, as `operation resource`. Its Node is left out: that comes whenever it changes.
    pub fn received(&self, since: usize) -> Vec<String> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let mut received = Vec::new();
        for line in log.lines().skip(since).filter(|line| line.contains("receive msg from cloud")) {
            let field = |name: &str| {
                let rest = &line[line.find(name)? + name.len()..];
                Some(rest.split([' ', '}']).next().unwrap_or_default())
            };
            let (Some(operation), Some(resource)) = (field("Operation:"), field("Resource:")) else {
                continue;
            };
            let is_push = matches!(operation, "insert" | "update" | "delete") && resource != "membership";
            if is_push && !resource.starts_with("null/node/") {
                received.push(format!("{operation} {resource}"));
            }
        }
        received
    }

    /// What it wrote last, for an error.
    pub fn complaints(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let bad = log.lines().filter(|line| line.starts_with(['E', 'F']) || line.starts_with("panic"));
        let bad: Vec<&str> = bad.map(|line| line.get(..300).unwrap_or(line)).collect();
        bad[bad.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for StockNode {
    fn drop(&mut self) {
        if self.agent.is_some() {
            // Whatever is wrong with it, its namespaces end it.
            drop(self.stop("KILL"));
        }
        drop(self.containerd.power_cut());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_group(&hierarchy.path().join(&self.group));
        }
    }
}

/// Its own folder for one of the host's.
fn own(dir: &Path, folder: &str) -> PathBuf {
    dir.join(folder.trim_start_matches('/').replace('/', "-"))
}

/// Control groups are removed from the leaves on; there are no processes in them any more.
fn remove_group(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    drop(fs::remove_dir(path));
}

/// What PID 1 of the namespaces does first: control groups of its own (version 1), so that a kubelet neither walks through those of
/// the whole machine nor tidies them up; then what stands in for the host's files.
fn setup(dir: &Path, group: &str) -> Result<String> {
    let mut script = format!(
        "\
if [ -z \"$INNER\" ]; then
  for parent in /sys/fs/cgroup/*/; do
    [ -e $parent/cgroup.procs ] && [ ! -L ${{parent%/}} ] || continue
    mkdir -p $parent/{group}
    for file in cpuset.cpus cpuset.mems; do
      [ ! -e $parent/$file ] || cat $parent/$file > $parent/{group}/$file
    done
    echo 1 > $parent/{group}/cgroup.procs
  done
  INNER=1 exec unshare --cgroup /bin/sh start.sh
fi
awk '$3 == \"cgroup\" {{print $2, $4}}' /proc/mounts | while read place options; do
  options=$(echo $options | tr , '\\n' | grep -v -x -e rw -e relatime -e nosuid -e nodev -e noexec -e xattr | tr '\\n' , )
  umount $place
  mount -t cgroup -o ${{options%,}} cgroup $place
done
"
    );
    let settings = dir.join("settings");
    fs::create_dir_all(&settings)?;
    for (name, value) in KERNEL_SETTINGS {
        let file = settings.join(name.replace('/', "."));
        fs::write(&file, format!("{value}\n"))?;
        script += &format!("mount --bind {} /proc/sys/{name}\n", file.display());
    }
    script += &format!("mount --bind {} /etc/hosts\n", dir.join("hosts").display());
    for folder in FOLDERS {
        script += &format!("mount --bind {} {folder}\n", own(dir, folder).display());
    }
    Ok(script)
}

/// The text with `key: value` in place of the first line with this key below `section`.
fn set(text: &str, section: &str, key: &str, value: &str) -> Result<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let start = lines.iter().position(|line| line.trim() == section).context("no such section")?;
    let indent = |line: &str| line.len() - line.trim_start().len();
    let depth = indent(&lines[start]);
    let of_section = |line: &&mut String| indent(line) > depth;
    let line = lines[start + 1..]
        .iter_mut()
        .take_while(of_section)
        .find(|line| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    let line = line.context("no such key in the defaults")?;
    let spaces = " ".repeat(indent(line));
    *line = format!("{spaces}{key}: {value}");
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_set_in_its_own_section() {
        let text = "a:\n  server: one\n  b:\n    server: two\nc:\n  server: three\n";
        let changed = set(text, "b:", "server", "x").unwrap();
        assert_eq!(changed, "a:\n  server: one\n  b:\n    server: x\nc:\n  server: three\n");
        assert!(set(text, "b:", "port", "1").is_err());
        assert!(set(text, "d:", "server", "1").is_err());
    }
}
