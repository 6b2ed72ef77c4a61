//! `edgecore doctor`: looks at the machine before a pod does, and says for each thing that is in the way what it is, why it
//! matters, and the command that helps. `join` looks too, and stops at errors.
//!
//! Not here: repair. Nothing on the machine is changed, and no program is run.
//!
//! What has to be asked for (runtime, cloud, ports) is asked once ([`ask`]); each check is then a function over what was
//! answered and the files below one root ([`Host`]), so that a test makes a machine out of a folder. Start at [`examine`].

mod agents;
mod ask;
mod host;
mod machine;
mod network;
mod runtime;
#[cfg(test)]
mod tests;

use std::{fmt::Write as _, path::Path};

use serde::Serialize;

pub use ask::ask;
pub use host::{Asked, Disk, Host, Process, Reach, RuntimeView, Taken};

use crate::{config::Config, join};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Pods will not run, or what runs already is in danger.
    Error,
    /// It works, but not in every case.
    Warning,
    /// Worth knowing.
    Note,
}

/// Something that is in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// The check's name, for programs.
    pub check: &'static str,
    pub what: String,
    pub why: &'static str,
    /// A command or an edit that helps.
    pub remedy: String,
}

impl Finding {
    fn new(level: Level, check: &'static str, what: impl Into<String>) -> Finding {
        Finding { level, check, what: what.into(), why: "", remedy: String::new() }
    }

    fn error(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(Level::Error, check, what)
    }

    fn warning(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(Level::Warning, check, what)
    }

    fn note(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(Level::Note, check, what)
    }

    fn why(self, why: &'static str) -> Finding {
        Finding { why, ..self }
    }

    fn remedy(self, remedy: impl Into<String>) -> Finding {
        Finding { remedy: remedy.into(), ..self }
    }
}

/// All checks, in the order of their findings.
const CHECKS: [fn(&Host) -> Vec<Finding>; 14] = [
    agents::other_agents,
    runtime::socket,
    runtime::cri,
    runtime::cgroup_driver,
    runtime::oom_score,
    runtime::sandbox_image,
    runtime::cni,
    machine::memory_cgroup,
    machine::modules,
    machine::swap,
    machine::disks,
    machine::clock,
    network::ports,
    network::cloud_and_names,
];

/// What is in the way on this machine, the worst first.
pub fn diagnose(host: &Host) -> Vec<Finding> {
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(|check| check(host)).collect();
    findings.sort_by_key(|finding| finding.level);
    findings
}

/// Asks and looks.
pub async fn examine(root: &Path, cfg: &Config) -> Vec<Finding> {
    let asked = ask(root, cfg).await;
    diagnose(&Host { root: root.into(), cfg: cfg.clone(), asked })
}

/// What a first join does not say is the runtime's: the driver of its control groups. (A configuration that is there says it.)
pub async fn fill_from_runtime(options: &join::Options) -> join::Options {
    let mut filled = options.clone();
    let is_first = options.root == Path::new("/") && !options.root.join(crate::config::CONFIG_PATH).exists();
    if let (true, None, Ok(cfg)) = (is_first, &options.cgroup_driver, join::prospect(options)) {
        filled.cgroup_driver = ask::cgroup_driver(&options.root, &cfg).await;
    }
    filled
}

/// Looks at the machine before anything is asked of the cloud, says what is wrong, and stops a join at errors.
pub async fn before_join(options: &join::Options) -> Result<(), String> {
    // With another root the machine that will run it is another one.
    if options.root != Path::new("/") {
        return Ok(());
    }
    let cfg = join::prospect(options).map_err(|error| rt::error_chain(&error))?;
    let findings = examine(&options.root, &cfg).await;
    if !findings.is_empty() {
        eprint!("{}", text(&findings));
    }
    match has_errors(&findings) && !options.force {
        true => Err("not joined, because of the errors above; join all the same with --force".into()),
        false => Ok(()),
    }
}

pub fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Error)
}

/// For a person: three lines for each finding.
pub fn text(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is in the way of a node here\n".into();
    }
    let mut out = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Error => "ERROR",
            Level::Warning => "WARNING",
            Level::Note => "NOTE",
        };
        let _ = writeln!(out, "{level:8}{}: {}", finding.check, finding.what);
        for (name, line) in [("why", finding.why), ("do", finding.remedy.as_str())] {
            if !line.is_empty() {
                let _ = writeln!(out, "        {name:4} {line}");
            }
        }
    }
    out
}

/// For a program: an array of findings, empty when all is well.
pub fn json(findings: &[Finding]) -> String {
    serde_json::to_string_pretty(findings).expect("findings are plain text")
}
