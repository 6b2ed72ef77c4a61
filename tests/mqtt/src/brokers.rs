//! The three brokers, each as a process of its own on addresses of its own: ours (edgecore's example `broker`), Debian's
//! mosquitto, and rumqttd (this crate's program `rumqttd-alone`).

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use e2e::{
    process::{Process, tail},
    steps::wait_until,
};

use crate::wire::V5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Ours,
    Mosquitto,
    Rumqttd,
}

pub const KINDS: [Kind; 3] = [Kind::Ours, Kind::Mosquitto, Kind::Rumqttd];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ours => "Kinglet",
            Kind::Mosquitto => "mosquitto",
            Kind::Rumqttd => "rumqttd",
        }
    }
}

/// How cargo builds rumqttd as a program.
pub const BUILD_RUMQTTD: [&str; 8] =
    ["build", "--locked", "-p", "mqtt-peers", "--features", "broker-rumqttd", "--bin", "rumqttd-alone"];

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    pub ours: PathBuf,
    /// `-`: not there.
    pub rumqttd: PathBuf,
}

impl Programs {
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        let all = self.rumqttd != Path::new("-");
        KINDS.into_iter().filter(move |kind| all || *kind != Kind::Rumqttd)
    }
}

/// A user name and password for a broker that wants one.
pub const USER: (&str, &str) = ("edge", "secret");

#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Only [`USER`] may connect.
    pub users: bool,
    /// Settings that the benchmark needs: queues as long as its bursts.
    pub bench: bool,
    /// Arguments for our broker only.
    pub ours: Vec<String>,
}

pub struct Broker {
    pub kind: Kind,
    /// MQTT 3.1.1; and MQTT 5, which is another port for rumqttd.
    pub v4: SocketAddr,
    pub v5: SocketAddr,
    process: Process,
}

impl Broker {
    pub fn start(kind: Kind, programs: &Programs, dir: &Path, setup: &Setup) -> Result<Broker> {
        fs::create_dir_all(dir)?;
        let (v4, other) = (free_address()?, free_address()?);
        let v5 = if kind == Kind::Rumqttd { other } else { v4 };
        let mut command = match kind {
            Kind::Ours => ours(&programs.ours, v4, setup),
            Kind::Mosquitto => mosquitto(dir, v4, setup)?,
            Kind::Rumqttd => rumqttd(&programs.rumqttd, v4, v5, setup),
        };
        let log = dir.join(format!("{}.log", kind.name()));
        let mut process = Process::start(kind.name(), &mut command, &log)?;
        wait_until(Duration::from_secs(20), &format!("{} listens", kind.name()), || {
            if let Some(status) = process.ended() {
                anyhow::bail!("it ended with {status}: {}", tail(&log, 20));
            }
            Ok((TcpStream::connect(v4).is_ok() && TcpStream::connect(v5).is_ok()).then_some(()))
        })?;
        Ok(Broker { kind, v4, v5, process })
    }

    pub fn address(&self, version: u8) -> SocketAddr {
        if version == V5 { self.v5 } else { self.v4 }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it said last.
    pub fn said(&self) -> String {
        tail(&self.process.log, 20)
    }

    /// All that it said.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.process.log).context("read the broker's log")
    }

    pub fn kill(self) {
        self.process.kill();
    }
}

/// A port that was free a moment ago: mosquitto cannot tell which it got.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?)
}

fn ours(program: &Path, address: SocketAddr, setup: &Setup) -> Command {
    let mut command = Command::new(program);
    command.args(["--listen", &format!("tcp://{address}")]);
    if setup.users {
        command.args(["--user", &format!("{}:{}", USER.0, USER.1)]);
    }
    command.args(&setup.ours);
    command
}

/// Debian's is in sbin, which is not in everybody's PATH.
pub fn mosquitto_program() -> &'static str {
    if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" }
}

fn mosquitto(dir: &Path, address: SocketAddr, setup: &Setup) -> Result<Command> {
    let mut text = format!("listener {} 127.0.0.1\npersistence false\n", address.port());
    if setup.users {
        let file = dir.join("passwords");
        fs::write(&file, format!("{}:{}\n", USER.0, USER.1))?;
        let hashed = Command::new("mosquitto_passwd").arg("-U").arg(&file).status();
        anyhow::ensure!(hashed.context("start mosquitto_passwd")?.success(), "mosquitto_passwd failed");
        text += &format!("allow_anonymous false\npassword_file {}\n", file.display());
    } else {
        text += "allow_anonymous true\n";
    }
    if setup.bench {
        // Without these it drops what its queue of 1000 does not hold.
        text += "max_inflight_messages 100\nmax_queued_messages 0\nmax_connections -1\n";
    }
    let file = dir.join("mosquitto.conf");
    fs::write(&file, text)?;
    let mut command = Command::new(mosquitto_program());
    command.arg("-c").arg(&file);
    if nix::unistd::geteuid().is_root() {
        // It would change to the user mosquitto, who cannot read the folder.
        fs::write(&file, fs::read_to_string(&file)? + "user root\n")?;
    }
    Ok(command)
}

fn rumqttd(program: &Path, v4: SocketAddr, v5: SocketAddr, setup: &Setup) -> Command {
    let mut command = Command::new(program);
    command.args([v4.to_string(), v5.to_string()]);
    if setup.users {
        command.args([USER.0, USER.1]);
    }
    command
}
