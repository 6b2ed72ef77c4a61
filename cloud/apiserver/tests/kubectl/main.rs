//! The real kubectl against the API over TLS: every command of `commands.txt`, with what it prints.
//!
//! kubectl is `$KINGLET_KUBECTL`, or the one that xtask fetched into target/tools. Without one this says `NOT RUN`.
//! `UPDATE=1 cargo test -p apiserver --test kubectl` writes what was printed into the file where it differs.
#![allow(clippy::unwrap_used)]

mod script;
#[path = "../tools/mod.rs"]
mod tools;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use apiserver::{Api, Options};

fn main() -> ExitCode {
    let Some(kubectl) = tools::kubectl() else {
        println!(
            "NOT RUN apiserver::kubectl: no kubectl; set KINGLET_KUBECTL or let `cargo xtask test` fetch it"
        );
        println!(
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s"
        );
        return ExitCode::SUCCESS;
    };
    let started = std::time::Instant::now();
    let fixture = Fixture::start(kubectl);
    let mut failures = Vec::new();
    let passed = fixture.run_script(&mut failures) + fixture.run_watch(&mut failures);
    for failure in &failures {
        println!("{failure}\n");
    }
    let word = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        failures.len(),
        started.elapsed().as_secs_f64()
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Fixture {
    kubectl: PathBuf,
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Fixture {
    fn start(kubectl: PathBuf) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let api = Api::open(&dir.path().join("api"), Options::default()).await.unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            api.write_kubeconfig(&dir.path().join("kubeconfig"), &url).unwrap();
            let drain = rt::Drain::new();
            let (controllers, stop) = (api.clone(), drain.clone());
            tokio::spawn(async move { controllers.run(stop).await });
            tokio::spawn(async move { api.serve(listener, drain).await });
        });
        Fixture { kubectl, dir, _runtime: runtime }
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .env("KUBE_EDITOR", "sed -i s/colour/color/")
            .current_dir(self.dir.path());
        command
    }

    /// Standard output, then standard error, then the exit code if it is not 0.
    fn run(&self, arguments: &[String], input: &str) -> String {
        let mut command = self.command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that does not read its input closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        if !output.status.success() {
            text.push_str(&format!("[exit {}]\n", output.status.code().unwrap_or(-1)));
        }
        text
    }

    fn run_script(&self, failures: &mut Vec<String>) -> usize {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubectl/commands.txt");
        let mut steps = script::parse(&std::fs::read_to_string(&path).unwrap());
        let (mut passed, update) = (0, std::env::var_os("UPDATE").is_some());
        for step in &mut steps {
            let Some(arguments) = &step.arguments else { continue };
            let got = self.run(arguments, &step.input);
            if script::matches(&step.expected, &got) {
                passed += 1;
                continue;
            }
            if update {
                step.expected = got;
                continue;
            }
            failures.push(format!(
                "kubectl {}\n--- expected\n{}--- got\n{got}--- (tests/kubectl/commands.txt)",
                arguments.join(" "),
                step.expected
            ));
        }
        if update {
            std::fs::write(&path, script::render(&steps)).unwrap();
        }
        passed
    }

    /// `get -w`: rows come as things change.
    fn run_watch(&self, failures: &mut Vec<String>) -> usize {
        let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        let mut child = self
            .command(&words("get configmaps -w --output-watch-events --field-selector metadata.name=seen"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        // kubectl says nothing while the list is empty, so the first change may come before its watch starts: both ways
        // the row is the same.
        for command in ["create configmap seen", "label configmap seen a=b", "delete configmap seen"] {
            self.run(&words(command), "");
        }
        let mut seen = Vec::new();
        while let Ok(line) = lines.recv_timeout(Duration::from_secs(10)) {
            let word = line.split_whitespace().next().unwrap_or_default().to_string();
            let last = word == "DELETED";
            seen.push(word);
            if last {
                break;
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        let _ = reader.join();
        let expected = ["EVENT", "ADDED", "MODIFIED", "DELETED"];
        if seen == expected {
            return 1;
        }
        failures.push(format!("kubectl get configmaps -w: expected {expected:?}, got {seen:?}"));
        0
    }
}
