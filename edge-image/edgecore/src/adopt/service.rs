//! Ending one agent and starting the other: through systemd where it runs, else by process id with a line that says what to do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    contract::BoxFuture,
    doctor::{Asked, Host},
};

/// The unit of our package.
pub const OUR_UNIT: &str = "kinglet-edgecore.service";
const STOP_TIME: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(100);

/// How KubeEdge's edgecore is run here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stock {
    /// systemd's unit; empty: none.
    pub unit: String,
    /// The unit starts at boot.
    pub enabled: bool,
    /// Its command line, when it ran.
    pub command: Vec<String>,
}

type Done = Result<(), String>;

/// What starts and ends programs.
pub trait Services: Send + Sync {
    /// How the agent of this configuration runs, if it does.
    fn find(&self, config: &Path) -> Stock;
    fn stop<'a>(&'a self, stock: &'a Stock) -> BoxFuture<'a, Done>;
    /// A line that says what was done, or what a person has to do.
    fn start<'a>(&'a self, stock: &'a Stock) -> BoxFuture<'a, Result<String, String>>;
    fn start_ours<'a>(&'a self, config: &'a Path) -> BoxFuture<'a, Result<String, String>>;
    fn stop_ours<'a>(&'a self, config: &'a Path) -> BoxFuture<'a, Done>;
}

/// This machine.
pub struct System {
    root: PathBuf,
}

impl System {
    pub fn new() -> System {
        System { root: "/".into() }
    }

    fn has_systemd(&self) -> bool {
        self.root.join("run/systemd/system").is_dir()
    }

    /// Agents of this configuration: KubeEdge's, or ours.
    fn agents(&self, config: &Path, ours: bool) -> Vec<crate::doctor::Process> {
        let host =
            Host { root: self.root.clone(), cfg: crate::config::Config::default(), asked: Asked::default() };
        let own = host.own_program();
        let is_ours = |process: &crate::doctor::Process| process.exe == own;
        let all = host.processes().into_iter();
        all.filter(|process| {
            process.pid != std::process::id()
                && process.name == "edgecore"
                && is_ours(process) == ours
                && runs_with(&process.arguments, config)
        })
        .collect()
    }

    /// Ends processes and waits until they are gone.
    fn end(&self, config: &Path, ours: bool) -> BoxFuture<'_, Done> {
        let config = config.to_owned();
        Box::pin(async move {
            for process in self.agents(&config, ours) {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(process.pid).unwrap_or(i32::MAX));
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
                    .map_err(|error| format!("cannot end edgecore (pid {pid}): {error}"))?;
            }
            let begun = Instant::now();
            while let Some(process) = self.agents(&config, ours).first() {
                if begun.elapsed() > STOP_TIME {
                    return Err(format!(
                        "edgecore (pid {}) does not end, or something starts it again: stop it there, then run this command again",
                        process.pid
                    ));
                }
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        })
    }
}

impl Default for System {
    fn default() -> System {
        System::new()
    }
}

/// The configuration that a command line names: `--config FILE`, `--config=FILE`, or neither and it is the usual one. `None`: it
/// is a command of ours, and no agent.
fn config_of(arguments: &[String]) -> Option<PathBuf> {
    let mut words = arguments.iter().skip(1);
    let mut named = PathBuf::from("/").join(crate::config::CONFIG_PATH);
    while let Some(word) = words.next() {
        if ["join", "doctor", "adopt", "config", "runtime"].contains(&word.as_str()) {
            return None;
        }
        if let Some(file) = word.trim_start_matches('-').strip_prefix("config=") {
            named = file.into();
        } else if ["--config", "-config", "-c"].contains(&word.as_str()) {
            named = words.next().map(PathBuf::from).unwrap_or_default();
        }
    }
    Some(named)
}

fn runs_with(arguments: &[String], config: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    config_of(arguments).is_some_and(|named| real(&named) == real(config))
}

fn systemctl(arguments: &[&str]) -> Result<String, String> {
    let ran = Command::new("systemctl").args(arguments).output();
    let ran = ran.map_err(|error| format!("cannot run systemctl {}: {error}", arguments.join(" ")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match ran.status.success() {
        true => Ok(text(&ran.stdout)),
        false => Err(format!("systemctl {}: {}", arguments.join(" "), text(&ran.stderr))),
    }
}

/// The unit that a process belongs to, from its control group.
fn unit_of(cgroup: &str) -> Option<String> {
    let last =
        cgroup.lines().filter_map(|line| line.rsplit('/').next()).find(|name| name.ends_with(".service"));
    last.map(str::to_owned)
}

impl Services for System {
    fn find(&self, config: &Path) -> Stock {
        let process = self.agents(config, false).into_iter().next();
        let command = process.as_ref().map(|process| process.arguments.clone()).unwrap_or_default();
        if !self.has_systemd() {
            return Stock { command, ..Stock::default() };
        }
        let cgroup = process.map(|process| self.root.join(format!("proc/{}/cgroup", process.pid)));
        let cgroup = cgroup.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let is_known = |unit: &str| systemctl(&["cat", unit]).is_ok();
        let unit =
            unit_of(&cgroup).or_else(|| Some("edgecore.service".to_owned()).filter(|unit| is_known(unit)));
        let unit = unit.unwrap_or_default();
        let enabled = !unit.is_empty() && systemctl(&["is-enabled", &unit]).is_ok();
        Stock { unit, enabled, command }
    }

    fn stop<'a>(&'a self, stock: &'a Stock) -> BoxFuture<'a, Done> {
        Box::pin(async move {
            if !stock.unit.is_empty() {
                systemctl(&["stop", &stock.unit])?;
                if stock.enabled {
                    systemctl(&["disable", &stock.unit])?;
                }
            }
            match stock.config() {
                Some(config) => self.end(&config, false).await,
                None => Ok(()),
            }
        })
    }

    fn start<'a>(&'a self, stock: &'a Stock) -> BoxFuture<'a, Result<String, String>> {
        Box::pin(async move {
            if stock.unit.is_empty() {
                return Ok(match stock.command.is_empty() {
                    true => "KubeEdge's edgecore did not run; start it as you did before".into(),
                    false => format!("start it again, if it does not run: {}", stock.command.join(" ")),
                });
            }
            if stock.enabled {
                systemctl(&["enable", &stock.unit])?;
            }
            systemctl(&["start", &stock.unit])?;
            Ok(format!("{} runs again", stock.unit))
        })
    }

    fn start_ours<'a>(&'a self, config: &'a Path) -> BoxFuture<'a, Result<String, String>> {
        Box::pin(async move {
            if self.has_systemd() && systemctl(&["cat", OUR_UNIT]).is_ok() {
                systemctl(&["enable", "--now", OUR_UNIT])?;
                return Ok(format!("{OUR_UNIT} runs"));
            }
            let program = std::env::current_exe().unwrap_or_else(|_| "edgecore".into());
            Ok(format!("now start: {} --config {}", program.display(), config.display()))
        })
    }

    fn stop_ours<'a>(&'a self, config: &'a Path) -> BoxFuture<'a, Done> {
        Box::pin(async move {
            if self.has_systemd() && systemctl(&["cat", OUR_UNIT]).is_ok() {
                systemctl(&["disable", "--now", OUR_UNIT])?;
            }
            self.end(config, true).await
        })
    }
}

impl Stock {
    /// The configuration that its command line names, if it ran.
    fn config(&self) -> Option<PathBuf> {
        if self.command.is_empty() { None } else { config_of(&self.command) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_and_units() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let config = Path::new("/nowhere/e.yaml");
        for line in ["edgecore --config /nowhere/e.yaml", "edgecore --config=/nowhere/e.yaml --v=4"] {
            assert!(runs_with(&words(line), config), "{line}");
            let stock = Stock { command: words(line), ..Stock::default() };
            assert_eq!(stock.config().as_deref(), Some(config));
        }
        for line in
            ["edgecore", "edgecore --config /nowhere/f.yaml", "edgecore adopt --config /nowhere/e.yaml"]
        {
            assert!(!runs_with(&words(line), config), "{line}");
        }
        assert!(runs_with(&words("edgecore"), Path::new("/etc/kubeedge/config/edgecore.yaml")));
        let v1 = "3:memory:/system.slice/edgecore.service\n0::/system.slice/edgecore.service\n";
        assert_eq!(unit_of(v1).as_deref(), Some("edgecore.service"));
        assert_eq!(unit_of("0::/user.slice/session-1.scope\n"), None);
    }
}
