//! The suites, in the order in which they run: what fails fast comes first.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::Outcome;
use crate::{Options, checks, cloud_image, demo, images, prerequisites, programs, run::cargo};

pub struct Suite {
    pub name: &'static str,
    pub about: &'static str,
    pub run: fn(&Path, &Options) -> Result<Outcome>,
}

pub const ALL: &[Suite] = &[
    Suite { name: "checks", about: "import rules, supply chain, rustfmt, clippy", run: check_sources },
    Suite {
        name: "unit",
        about: "all crates' own tests, with kubectl, containerd and mosquitto where they are",
        run: unit,
    },
    Suite {
        name: "mqtt",
        about: "our broker, mosquitto and rumqttd by the specifications' statements; mosquitto's and Paho's clients; bad behaviour",
        run: crate::mqtt::suite,
    },
    Suite {
        name: "device",
        about: "the device's programs: build for aarch64 musl, static; the sensor's firmware in QEMU",
        run: device,
    },
    Suite { name: "cloud", about: "cloudcore as a static program and as OCI images", run: cloud },
    Suite { name: "image", about: "the qemu-virt and rpi images; the latter boots as a Pi 3", run: image },
    Suite {
        name: "host",
        about: "join, pod, restarts, power cut on this machine's containerd; the cloud's image",
        run: demo::host,
    },
    Suite {
        name: "alone",
        about: "a node without a cloud: devices from a folder, a loop in a static pod, Home Assistant's discovery",
        run: demo::alone,
    },
    Suite {
        name: "pods",
        about: "the table of pods (tests/pods) on this machine's containerd",
        run: demo::pods,
    },
    Suite {
        name: "streams",
        about: "kubectl logs, exec, attach, cp, port-forward, debug and top through the link, on this machine's containerd",
        run: demo::streams,
    },
    Suite {
        name: "interop",
        about: "KubeEdge's programs and a real kube-apiserver (KINGLET_PEERS), and our doubles of them",
        run: demo::interop,
    },
    Suite {
        name: "guest",
        about: "the release image in QEMU: the whole story, power cut included",
        run: demo::guest,
    },
    Suite {
        name: "mutations",
        about: "what is broken on purpose turns the end-to-end test red",
        run: crate::mutations::suite,
    },
];

fn check_sources(root: &Path, _: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut case = |name: &str, result: Result<()>| match result {
        Ok(()) => outcome.passed += 1,
        Err(error) => outcome.failed.push(format!("{name}: {error:#}")),
    };
    case("sources", checks::run(root));
    case("rustfmt", command(cargo(root).args(["fmt", "--all", "--check"])));
    let clippy = ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    case("clippy", command(cargo(root).args(clippy)));
    Ok(outcome)
}

fn unit(root: &Path, options: &Options) -> Result<Outcome> {
    let tools = prerequisites::tools(root, options.debian_mirror.as_deref())?;
    let mut command = cargo(root);
    command
        .args(["test", "--locked", "--workspace", "--no-fail-fast"])
        .env("KINGLET_KUBECTL", tools.program("kubectl"));
    count_tests(root, &mut command)
}

/// Runs a test command and counts by libtest's result lines and our own `NOT RUN` lines. All output goes to
/// target/test-unit.log; results, failures and what did not run are shown. Cargo says on its error output which program did
/// not build, or ended by a signal in the middle of a test: those lines are the failure where no test has one.
fn count_tests(root: &Path, command: &mut Command) -> Result<Outcome> {
    let mut log =
        std::fs::File::create(root.join("target/test-unit.log")).context("create target/test-unit.log")?;
    let mut child = command
        .args(["--", "--show-output"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start cargo test")?;
    let said = BufReader::new(child.stderr.take().context("stderr is piped")?);
    let said = std::thread::spawn(move || {
        let mut errors = Vec::new();
        for line in said.lines().map_while(Result::ok) {
            eprintln!("{line}");
            if ["error", "    `", "Caused by", "  process didn't exit"]
                .iter()
                .any(|start| line.starts_with(start))
            {
                errors.push(line);
            }
        }
        errors
    });
    let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut reader = Reader::default();
    for line in output.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        if reader.line(&line) {
            println!("{line}");
        }
    }
    let mut outcome = reader.outcome;
    let status = child.wait()?;
    let errors = said.join().unwrap_or_default();
    if !status.success() && outcome.failed.is_empty() {
        outcome.failed.push(format!("cargo test ended with {status}: {}", errors.join("; ")));
    }
    outcome.passed = outcome.passed.saturating_sub(outcome.not_run.len() as u32);
    if outcome.passed == 0 {
        bail!("cargo test ran no test: {}", errors.join("; "));
    }
    Ok(outcome)
}

/// Reads what libtest says.
#[derive(Default)]
struct Reader {
    outcome: Outcome,
    in_failures: bool,
    /// The last list of names under `failures:`. The line of a test's end is no use: what a child of it printed may stand in it.
    named: Vec<String>,
}

impl Reader {
    /// True for a line that a person wants to see.
    fn line(&mut self, line: &str) -> bool {
        if line == "failures:" {
            (self.in_failures, self.named) = (true, Vec::new());
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            let passed = rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(" passed"));
            self.outcome.passed += passed.and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
            let failed = self.named.drain(..);
            self.outcome
                .failed
                .extend(failed.map(|name| format!("{name} (again: cargo test --workspace {name})")));
            self.in_failures = false;
            return true;
        } else if let Some(what) = line.strip_prefix("NOT RUN ") {
            self.outcome.not_run.push(what.to_owned());
            return true;
        } else if let (true, Some(name)) = (self.in_failures, line.strip_prefix("    ")) {
            self.named.push(name.to_owned());
        }
        self.in_failures
    }
}

fn device(root: &Path, options: &Options) -> Result<Outcome> {
    let programs = programs::device(root, options.debian_mirror.as_deref())?;
    let cross = crate::cross_env::build(root)?;
    let mut outcome = Outcome::default();
    for program in [
        &programs.edgecore,
        &programs.mapper,
        &programs.init,
        &programs.pods.hello,
        &programs.pods.rule,
        &programs.pods.pause,
        &cross,
    ] {
        match crate::elf::check_static(program) {
            Ok(()) => outcome.passed += 1,
            Err(error) => outcome.failed.push(format!("{error:#}")),
        }
    }
    let sensor = programs::sensor(root)?;
    let tools = prerequisites::tools(root, options.debian_mirror.as_deref())?;
    let qemu = qemu::Programs::in_tools(tools.dir()).qemu_system_aarch64;
    match e2e::sensor::speaks(&qemu, &sensor) {
        Ok(()) => outcome.passed += 2,
        Err(error) => {
            let firmware = sensor.display();
            outcome.failed.push(format!("{firmware}: {error:#} (again: cargo xtask test --suite device)"));
        }
    }
    outcome
        .not_run
        .push("`cross build` itself: no container engine here; built under its variables instead".into());
    Ok(outcome)
}

fn cloud(root: &Path, options: &Options) -> Result<Outcome> {
    let program = programs::cloudcore(root, programs::host_target()?)?;
    crate::elf::check_static(&program)?;
    cloud_image::build(root, programs::host_target()?, &program, options)?;
    Ok(Outcome { passed: 2, ..Outcome::default() })
}

fn image(root: &Path, options: &Options) -> Result<Outcome> {
    images::build(root, "qemu-virt", options)?;
    let (rpi, _) = images::build(root, "rpi", options)?;
    let tools = prerequisites::tools(root, options.debian_mirror.as_deref())?;
    let (dir, mut steps) = (demo::scratch("rpi")?, e2e::steps::Steps::default());
    let booted = e2e::rpi::boots(
        &rpi.img,
        &root.join("devices"),
        &qemu::Programs::in_tools(tools.dir()),
        &dir,
        &mut steps,
    );
    let mut outcome = Outcome { passed: 2 + steps.done.len() as u32, ..Outcome::default() };
    match booted {
        Ok(()) => drop(std::fs::remove_dir_all(&dir)),
        Err(error) => outcome.failed.push(format!("rpi: {error:#} (again: cargo xtask test --suite image)")),
    }
    Ok(outcome)
}

fn command(command: &mut Command) -> Result<()> {
    crate::run::run(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_read() {
        let mut reader = Reader::default();
        let shown = [
            "NOT RUN edged::containerd: needs root",
            "test a::b ... noise of a child",
            "FAILED",
            "failures:",
            "---- a::b stdout ----",
            "    left: 1",
            "failures:",
            "    a::b",
            "test result: FAILED. 7 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "    none of a failure",
        ]
        .map(|line| reader.line(line));
        assert_eq!(shown, [true, false, false, true, true, true, true, true, true, false]);
        let Outcome { passed, failed, not_run, .. } = reader.outcome;
        assert_eq!((passed, not_run.len()), (7, 1));
        assert_eq!(failed, ["a::b (again: cargo test --workspace a::b)"]);
    }
}
