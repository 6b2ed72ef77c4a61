//! The real kubectl against logs, exec, attach, cp and port-forward of a node of the test's: over WebSocket, which is what 1.31 and
//! newer do, and over SPDY, which is what older ones do.
//!
//! kubectl is `$KINGLET_KUBECTL`, the one that xtask fetched into target/tools, or the one in the path. Without one this says `NOT RUN`.
#![allow(clippy::unwrap_used)]

mod node;
mod tools;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use apiserver::{Api, Options};
use serde_json::{Value, json};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let Some(kubectl) = find_kubectl() else {
        println!(
            "NOT RUN apiserver::kubectl_streams: no kubectl; set KINGLET_KUBECTL or let `cargo xtask test` fetch it"
        );
        println!(
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s"
        );
        return ExitCode::SUCCESS;
    };
    let started = Instant::now();
    let filter = std::env::args().nth(1).filter(|word| !word.starts_with('-')).unwrap_or_default();
    let fixture = Fixture::start(kubectl);
    let (mut passed, mut failed) = (0, 0);
    let mut run = |name: String, case: &dyn Fn() -> Result<(), String>| {
        if !name.contains(&filter) {
            return;
        }
        match case() {
            Ok(()) => passed += 1,
            Err(why) => {
                failed += 1;
                println!("{name}: {why}\n");
            }
        }
    };
    for (name, case) in PLAIN {
        run(name.to_string(), &|| case(&fixture));
    }
    for (name, case) in STREAMS {
        for websocket in [true, false] {
            let way = if websocket { "websocket" } else { "spdy" };
            run(format!("{name}_{way}"), &|| case(&fixture, websocket));
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        started.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

type Plain = fn(&Fixture) -> Result<(), String>;
type Case = fn(&Fixture, bool) -> Result<(), String>;

const PLAIN: &[(&str, Plain)] = &[
    ("logs", logs),
    ("logs_of_many", logs_of_many),
    ("logs_followed", logs_followed),
    ("debug", debug),
    ("top", top),
];

const STREAMS: &[(&str, Case)] = &[
    ("exec_exit_codes", exec_exit_codes),
    ("exec_input_ends", exec_input_ends),
    ("exec_large_both_ways", exec_large_both_ways),
    ("exec_refused", exec_refused),
    ("attach", attach),
    ("cp_both_ways", cp_both_ways),
    ("port_forward", port_forward),
];

fn find_kubectl() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path =
        || std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|path| path.is_file());
    tools::kubectl().or_else(on_path)
}

struct Fixture {
    kubectl: PathBuf,
    dir: tempfile::TempDir,
    node: Arc<node::Node>,
    _runtime: tokio::runtime::Runtime,
}

impl Fixture {
    fn start(kubectl: PathBuf) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let node = Arc::new(node::Node::default());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let options = Options { nodes: Some(Arc::new(node::Dialer(node.clone()))), ..Options::default() };
            let api = Api::open(&dir.path().join("api"), options).await.unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            api.write_kubeconfig(&dir.path().join("kubeconfig"), &url).unwrap();
            tokio::spawn(async move { api.serve(listener, rt::Drain::new()).await });
        });
        let fixture = Fixture { kubectl, dir, node, _runtime: runtime };
        let chosen = json!({"kubectl.kubernetes.io/default-container": "two"});
        fixture.make(json!({"kind": "Node", "metadata": {"name": node::NODE}}));
        fixture.make(pod("web", node::NODE, &["c"], json!({})));
        fixture.make(pod("pair", node::NODE, &["one", "two"], chosen));
        fixture.make(pod("choice", node::NODE, &["one", "waiting", "quiet"], json!({})));
        fixture.make(pod("look", node::NODE, &["c"], json!({})));
        let running =
            ["patch", "pod", "web", "--subresource=status", "-p", r#"{"status":{"phase":"Running"}}"#];
        assert!(fixture.run(true, &running, b"").status.success());
        fixture.make(pod("far", "mars", &["c"], json!({})));
        fixture.make(pod("free", "", &["c"], json!({})));
        fixture
    }

    fn make(&self, mut object: Value) {
        object["apiVersion"] = "v1".into();
        let path = self.dir.path().join("object.json");
        std::fs::write(&path, object.to_string()).unwrap();
        let output = self.run(true, &["create", "--validate=false", "-f", path.to_str().unwrap()], b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, websocket: bool, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket.to_string())
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket.to_string())
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// With its input closed at the end. One that does not end is a failure, not a hang.
    fn run(&self, websocket: bool, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(websocket, arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let write = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let pid = child.id();
        let (done, ended) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if ended.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").arg(pid.to_string()).status();
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(done);
        let _ = (watchdog.join(), write.join());
        output
    }

    fn text(&self, websocket: bool, arguments: &[&str], input: &str) -> String {
        let output = self.run(websocket, arguments, input.as_bytes());
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            text.push_str(&format!("[exit {}]\n", output.status.code().unwrap_or(-1)));
        }
        text
    }
}

fn pod(name: &str, on: &str, containers: &[&str], annotations: Value) -> Value {
    let containers: Vec<Value> =
        containers.iter().map(|name| json!({"name": name, "image": "docker.io/kinglet/hello:1"})).collect();
    json!({"kind": "Pod", "metadata": {"name": name, "labels": {"app": "all"}, "annotations": annotations},
        "spec": {"nodeName": on, "containers": containers}})
}

fn expect(what: &str, got: &str, wanted: &str) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{what}\n--- expected\n{wanted}--- got\n{got}---")) }
}

fn logs(f: &Fixture) -> Result<(), String> {
    for (arguments, wanted) in [
        ("logs web", "log of c: \n"),
        (
            "logs web --tail=3 --since=1m --limit-bytes=9 --timestamps --previous",
            "log of c: limitBytes=9 previous=true sinceSeconds=60 tailLines=3 timestamps=true\n",
        ),
        ("logs web --since-time=2026-01-02T03:04:05Z", "log of c: sinceTime=2026-01-02T03:04:05Z\n"),
        ("logs pair", "log of two: \n"),
        ("logs pair -c one", "log of one: \n"),
        ("logs free", ""),
        (
            "logs choice -c waiting",
            "Error from server (BadRequest): container \"waiting\" in pod \"choice\" is waiting to start: ContainerCreating\n[exit 1]\n",
        ),
        ("logs web -c x", "error: container x is not valid for pod web\n[exit 1]\n"),
        (
            "logs far",
            "Error from server (InternalError): error dialing backend: node mars is not connected; it is reached again when its link is up (kubectl get node mars)\n[exit 1]\n",
        ),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        expect(arguments, &f.text(true, &words, ""), wanted)?;
    }
    Ok(())
}

fn logs_of_many(f: &Fixture) -> Result<(), String> {
    let all = f.text(true, &["logs", "pair", "--all-containers", "--prefix"], "");
    // kubectl asks for them in no order.
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    expect("all containers", &all.join("\n"), "[pod/pair/one] log of one: \n[pod/pair/two] log of two: ")?;
    // Those of a selector are asked one by one, a few lines of each.
    f.make(json!({"kind": "Pod", "metadata": {"name": "labelled", "labels": {"only": "me"}},
        "spec": {"nodeName": node::NODE, "containers": [{"name": "c", "image": "i"}]}}));
    let selected = f.text(true, &["logs", "-l", "only=me", "--prefix"], "");
    expect("a selector", &selected, "[pod/labelled/c] log of c: tailLines=10\n")
}

fn logs_followed(f: &Fixture) -> Result<(), String> {
    let ends = f.text(true, &["logs", "-f", "web"], "");
    expect("until the container ends", &ends, "line 1 of c\nline 2 of c\nline 3 of c\n")?;
    let mut child =
        f.command(true, &["logs", "-f", "choice", "-c", "quiet"]).spawn().map_err(|e| e.to_string())?;
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().unwrap()).read_line(&mut line);
    let open = f.node.open.load(Ordering::Relaxed);
    stop(&mut child);
    read.map_err(|error| error.to_string())?;
    expect("each line as it comes", &line, "log of quiet: follow=true\n")?;
    let deadline = Instant::now() + DEADLINE;
    while f.node.open.load(Ordering::Relaxed) >= open {
        if Instant::now() > deadline {
            return Err("the node's stream did not end with kubectl".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Of a node that answers and one that does not; of a pod with two containers, and others that nobody measured.
fn top(f: &Fixture) -> Result<(), String> {
    f.make(json!({"kind": "Node", "metadata": {"name": "mars"}}));
    let room = r#"{"status":{"allocatable":{"cpu":"2","memory":"1Gi"}}}"#;
    f.text(true, &["patch", "node", node::NODE, "--subresource=status", "-p", room], "");
    let used = |cpu: u64, memory: u64| json!({"cpu": {"time": "2026-01-02T03:04:05Z", "usageNanoCores": cpu}, "memory": {"workingSetBytes": memory}});
    let container = |name: &str, cpu: u64, memory: u64| {
        let mut out = used(cpu, memory);
        out["name"] = name.into();
        out
    };
    let summary = json!({"node": used(500_000_000, 256 << 20), "pods": [{
        "podRef": {"name": "pair", "namespace": "default"},
        "containers": [container("one", 3_000_000, 5 << 20), container("two", 40_000_000, 7 << 20)]}]});
    *f.node.summary.lock().unwrap() = summary.to_string();
    let spaces = |text: String| -> String {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
    };
    let (dialed, started) = (f.node.dialed.load(Ordering::Relaxed), Instant::now());
    for (arguments, wanted) in [
        (
            "top node",
            "NAME CPU(cores) CPU(%) MEMORY(bytes) MEMORY(%)\npi 500m 25% 256Mi 25%\nmars <unknown> <unknown> <unknown> <unknown>\n",
        ),
        ("top pod", "NAME CPU(cores) MEMORY(bytes)\npair 43m 12Mi\n"),
        (
            "top pod pair --containers",
            "POD NAME CPU(cores) MEMORY(bytes)\npair one 3m 5Mi\npair two 40m 7Mi\n",
        ),
        (
            "top pod -A -l app=all --sum",
            "NAMESPACE NAME CPU(cores) MEMORY(bytes)\ndefault pair 43m 12Mi\n ________ ________\n 43m 12Mi\n",
        ),
        ("top pod -l app=none", "No resources found in default namespace.\n"),
        (
            "get --raw /apis/metrics.k8s.io/v1beta1/namespaces/default/pods/web",
            "Error from server (NotFound): podmetrics.metrics.k8s.io \"default/web\" not found\n[exit 1]\n",
        ),
        ("get pods.metrics.k8s.io", "NAME CPU MEMORY WINDOW\npair 43000000n 12288Ki 15s\n"),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        let wanted: String = spaces(wanted.to_string());
        expect(arguments, &spaces(f.text(true, &words, "")), &wanted)?;
    }
    // Each answer is kept for a quarter of a minute, however many ask.
    let (asked, kept) = (f.node.dialed.load(Ordering::Relaxed) - dialed, started.elapsed().as_secs() / 15);
    if asked <= 1 + kept as usize { Ok(()) } else { Err(format!("the node was asked {asked} times")) }
}

fn stop(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// `kubectl debug` adds a container to a running pod.
fn debug(f: &Fixture) -> Result<(), String> {
    let arguments = [
        "debug",
        "look",
        "--image=busybox:1",
        "--container=look",
        "--target=c",
        "--profile=general",
        "--",
        "sh",
    ];
    let said = f.text(true, &arguments, "");
    if !said.contains("Targeting container \"c\"") || said.contains("exit") {
        return Err(said);
    }
    let path = "{.spec.ephemeralContainers[*].name} {.spec.ephemeralContainers[*].targetContainerName} \
                {.spec.ephemeralContainers[*].imagePullPolicy} {.spec.containers[*].name}";
    let got = f.text(true, &["get", "pod", "look", "-o", &format!("jsonpath={path}")], "");
    expect("the pod afterwards", &got, "look c IfNotPresent c")?;
    let again = f.text(true, &arguments, "");
    if again.contains("exit 1") && again.contains("may not be changed") {
        Ok(())
    } else {
        Err(format!("again: {again}"))
    }
}

fn exec_exit_codes(f: &Fixture, websocket: bool) -> Result<(), String> {
    let run = |line: &str| f.text(websocket, &["exec", "web", "--", "sh", "-c", line], "");
    expect("output", &run("echo out; echo err >&2"), "out\nerr\n")?;
    let failed = run("exit 42");
    expect("a code", &failed, "command terminated with exit code 42\n[exit 42]\n")?;
    let none = f.text(websocket, &["exec", "web", "--", "no-such-program"], "");
    if none.contains("executable file not found") && none.ends_with("[exit 1]\n") {
        Ok(())
    } else {
        Err(none)
    }
}

/// `echo x | kubectl exec -i -- cat` must end.
fn exec_input_ends(f: &Fixture, websocket: bool) -> Result<(), String> {
    let got = f.text(websocket, &["exec", "-i", "web", "--", "cat"], "some words\n");
    expect("cat", &got, "some words\n")
}

fn exec_large_both_ways(f: &Fixture, websocket: bool) -> Result<(), String> {
    let data: Vec<u8> = (0..8 * 1024 * 1024_u32).map(|at| (at * 31 % 251) as u8).collect();
    let output = f.run(websocket, &["exec", "-i", "web", "--", "cat"], &data);
    if output.status.success() && output.stdout == data {
        return Ok(());
    }
    Err(format!(
        "{} bytes of {}: {}",
        output.stdout.len(),
        data.len(),
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn exec_refused(f: &Fixture, websocket: bool) -> Result<(), String> {
    for (arguments, wanted) in [
        (
            "exec free -- ls",
            "Error from server (BadRequest): pod free does not have a host assigned\n[exit 1]\n",
        ),
        ("exec none -- ls", "Error from server (NotFound): pods \"none\" not found\n[exit 1]\n"),
        (
            "exec far -- ls",
            "Error from server (InternalError): error dialing backend: node mars is not connected; it is reached again when its link is up (kubectl get node mars)\n[exit 1]\n",
        ),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        expect(arguments, &f.text(websocket, &words, ""), wanted)?;
    }
    Ok(())
}

fn attach(f: &Fixture, websocket: bool) -> Result<(), String> {
    let got = f.text(websocket, &["attach", "-i", "web"], "hear me\nbye\n");
    if got.contains("attached\n") && got.contains("bye\n") { Ok(()) } else { Err(got) }
}

fn cp_both_ways(f: &Fixture, websocket: bool) -> Result<(), String> {
    let (here, there) = (f.dir.path().join("here"), f.dir.path().join(format!("there-{websocket}")));
    for folder in [&here, &there] {
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    }
    let data: Vec<u8> = (0..3 * 1024 * 1024_u32).map(|at| (at * 17 % 253) as u8).collect();
    std::fs::write(here.join("file"), &data).map_err(|error| error.to_string())?;
    let (file, far) = (here.join("file"), there.join("copied"));
    let up = f.text(websocket, &["cp", file.to_str().unwrap(), &format!("web:{}", far.display())], "");
    if std::fs::read(&far).ok().as_ref() != Some(&data) {
        return Err(format!("to the pod: {up}"));
    }
    let back = here.join(format!("back-{websocket}"));
    let down = f.text(websocket, &["cp", &format!("web:{}", far.display()), back.to_str().unwrap()], "");
    if std::fs::read(&back).ok() != Some(data) {
        return Err(format!("from the pod: {down}"));
    }
    Ok(())
}

fn port_forward(f: &Fixture, websocket: bool) -> Result<(), String> {
    let server = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in server.incoming().flatten() {
            std::thread::spawn(move || {
                let mut read = socket.try_clone().unwrap();
                let mut write = socket;
                let _ = std::io::copy(&mut read, &mut write);
                let _ = write.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    let mut child = f
        .command(websocket, &["port-forward", "pod/web", &format!(":{port}")])
        .spawn()
        .map_err(|error| error.to_string())?;
    let outcome = forwarded(&mut child);
    stop(&mut child);
    outcome
}

fn forwarded(child: &mut Child) -> Result<(), String> {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).map_err(|error| error.to_string())?;
    // Forwarding from 127.0.0.1:40000 -> 80
    let local = line.split(' ').nth(2).ok_or_else(|| format!("it said: {line}"))?.to_string();
    let threads: Vec<_> = (0..5_u8)
        .map(|seed| {
            let local = local.clone();
            std::thread::spawn(move || -> Result<(), String> {
                let data: Vec<u8> = (0..400_000_u32).map(|at| (at % 249) as u8 ^ seed).collect();
                let mut socket = TcpStream::connect(&local).map_err(|error| error.to_string())?;
                socket.set_read_timeout(Some(DEADLINE)).map_err(|error| error.to_string())?;
                let mut write = socket.try_clone().map_err(|error| error.to_string())?;
                let sent = data.clone();
                let writer = std::thread::spawn(move || {
                    let sent = write.write_all(&sent);
                    let _ = write.shutdown(std::net::Shutdown::Write);
                    sent
                });
                let mut back = Vec::new();
                socket.read_to_end(&mut back).map_err(|error| format!("after {}: {error}", back.len()))?;
                let _ = writer.join();
                if back == data { Ok(()) } else { Err(format!("{} bytes of {}", back.len(), data.len())) }
            })
        })
        .collect();
    threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a panic".to_string())?)
}
