//! What the checks see: files below a root, and answers.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::config::Config;

/// A machine as the checks see it.
#[derive(Debug)]
pub struct Host {
    /// `/`; in tests a folder with `proc`, `sys` and `etc` in it.
    pub root: PathBuf,
    pub cfg: Config,
    pub asked: Asked,
}

/// What is not in a file.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Unix seconds.
    pub now_s: u64,
    /// `None`: its socket does not exist.
    pub runtime: Option<Result<RuntimeView, RuntimeFault>>,
    /// Addresses that this node wants to listen at and cannot.
    pub taken: Vec<Taken>,
    /// The cloud's ports, and the external broker.
    pub reached: Vec<Reach>,
    pub disks: Vec<Disk>,
    /// Why the cloud's host name has no address.
    pub unresolved: Option<String>,
}

/// The container runtime's answers.
#[derive(Clone, Debug, Default)]
pub struct RuntimeView {
    pub name: String,
    /// Its CRI configuration as JSON, where it tells one (containerd does).
    pub config: serde_json::Value,
    /// `systemd` or `cgroupfs`.
    pub cgroup_driver: Option<String>,
    /// Why pods cannot have a network, in the runtime's words.
    pub network_problem: Option<String>,
    /// The image that it starts each pod with, where that is not on this machine.
    pub sandbox_image_absent: Option<String>,
}

/// A runtime that does not answer as one.
#[derive(Clone, Debug)]
pub struct RuntimeFault {
    /// It answers, but has no CRI.
    pub no_cri: bool,
    pub message: String,
}

#[derive(Clone, Debug)]
pub struct Taken {
    /// The key of edgecore.yaml that names it.
    pub key: &'static str,
    pub address: SocketAddr,
    pub reason: String,
}

/// An attempt to connect.
#[derive(Clone, Debug)]
pub struct Reach {
    pub key: &'static str,
    pub server: String,
    /// The peer's clock in Unix seconds where it tells it, or why it cannot be reached.
    pub result: Result<Option<u64>, String>,
}

#[derive(Clone, Debug)]
pub struct Disk {
    /// What is kept there.
    pub holds: &'static str,
    pub path: PathBuf,
    pub free: u64,
    pub total: u64,
}

/// A process of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    pub arguments: Vec<String>,
    /// The program's file.
    pub exe: PathBuf,
}

impl Host {
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Empty when it is not there.
    pub fn read(&self, path: &str) -> String {
        fs::read(self.path(path))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Names in a folder, sorted.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Of this process' own pid namespace: what runs in a container has its own machine to look at.
    pub fn processes(&self) -> Vec<Process> {
        let namespace = |pid: &str| fs::read_link(self.path(&format!("proc/{pid}/ns/pid"))).ok();
        let ours = namespace("self");
        let of = |pid: u32| {
            if namespace(&pid.to_string()) != ours {
                return None;
            }
            let arguments = self.read(&format!("proc/{pid}/cmdline"));
            Some(Process {
                pid,
                name: self.read(&format!("proc/{pid}/comm")).trim_end().into(),
                arguments: arguments.split_terminator('\0').map(str::to_owned).collect(),
                exe: program(&self.path(&format!("proc/{pid}/exe"))),
            })
        };
        self.names("proc").iter().filter_map(|name| name.parse().ok()).filter_map(of).collect()
    }

    /// Of a process that is replaced while it runs, too.
    pub fn own_program(&self) -> PathBuf {
        program(&self.path("proc/self/exe"))
    }
}

fn program(link: &Path) -> PathBuf {
    let target = fs::read_link(link).unwrap_or_default();
    match target.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(path) => path.into(),
        None => target,
    }
}
