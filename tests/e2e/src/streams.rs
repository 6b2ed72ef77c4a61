//! Logs, commands, files, ports and usage of a pod, through the one link: real kubectl, cloudcore, edgecore and containerd.
//!
//! Everything that changes its protocol is done twice: over WebSocket, as kubectl 1.31 and newer do it, and over SPDY, as older ones
//! do. Needs root.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Programs,
    cloud::Cloud,
    host::{NODE, Node, SOON},
    kubectl::Kubectl,
    process::{proc_status_kb, tail},
    steps::{Steps, wait_for, wait_until},
};

const READY: Duration = Duration::from_secs(60);
/// One command of kubectl; one that takes longer hangs.
const COMMAND: Duration = Duration::from_secs(60);
/// A slow reader's stream may cost each program this much: its buffers, and what the allocator keeps.
const SLOW_READER_KB_MAX: u64 = 4096;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: streams }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: docker.io/kinglet/busybox:1
      command: [sh, -c, "for i in 1 2 3; do echo line $i; done; mkdir /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Pod
metadata: { name: pair, annotations: { kubectl.kubernetes.io/default-container: second } }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
    - { name: first, image: "docker.io/kinglet/busybox:1", command: [sh, -c, "echo of the first; exec sleep 10000"] }
    - { name: second, image: "docker.io/kinglet/busybox:1", stdin: true, command: [sh, -c, "echo of the second; exec cat"] }
"#;

struct Story<'a> {
    kubectl: &'a Kubectl,
    dir: &'a Path,
}

/// What carries the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Link,
    /// KubeEdge's EdgeStream and CloudStream.
    Tunnel,
}

/// Runs the whole story.
pub fn run(programs: &Programs, dir: &Path, carrier: Carrier, steps: &mut Steps) -> Result<()> {
    let mut cloud = Cloud::new(&programs.cloudcore, &dir.join("cloud"), &["127.0.0.1"])?;
    if carrier == Carrier::Tunnel {
        cloud = cloud.with_tunnel();
    }
    cloud.start()?;
    let kubectl = cloud.kubectl(&programs.kubectl);
    let mut node = Node::new(programs, dir)?;
    node.join(&cloud, &cloud.token(&[])?, NODE)?;
    node.start()?;
    let outcome = story(&mut cloud, &node, &Story { kubectl: &kubectl, dir }, steps);
    outcome.with_context(|| {
        format!("edgecore's log:\n{}\ncloudcore's log:\n{}", tail(&node.log(), 15), tail(&cloud.log(), 15))
    })
}

fn story(cloud: &mut Cloud, node: &Node, story: &Story<'_>, steps: &mut Steps) -> Result<()> {
    let kubectl = story.kubectl;
    steps.step("pods run", || {
        wait_for(READY, "node Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))?;
        kubectl.apply_text(story.dir, &PODS.replace("NODE", NODE))?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/streams", "pod/pair", "--timeout=60s"])
    })?;
    steps.step("logs, with options, of containers and of several", || story.logs())?;
    steps.step("logs -f goes on, and ends with the client", || story.follow())?;
    for websocket in [true, false] {
        let way = if websocket { "WebSocket" } else { "SPDY" };
        steps.step(&format!("exec: output, codes, input that ends ({way})"), || story.exec(websocket))?;
        steps.step(&format!("exec -it: a terminal of the client's size ({way})"), || {
            story.terminal(websocket)
        })?;
        steps.step(&format!("attach ({way})"), || story.attach(websocket))?;
        steps.step(&format!("cp both ways ({way})"), || story.copy(websocket))?;
        steps.step(&format!("port-forward, several connections ({way})"), || story.ports(websocket))?;
        steps.step(&format!("a reader that does not read costs no memory ({way})"), || {
            story.slow_reader(websocket, cloud, node)
        })?;
    }
    steps.step("pods/proxy: a server in a pod, and one that is not there", || story.proxy())?;
    steps.step("debug: a container beside the others", || story.debug())?;
    steps.step("the log of the time without a cloud", || {
        same(&story.text(true, &["exec", "streams", "-c", "main", "--", "sh", "-c", SPEAK_LATER], "")?, "")?;
        cloud.kill();
        wait_for(SOON, "the line on the node's disk", || {
            Ok(logged(node, "said while nobody heard")?.then_some(()))
        })?;
        cloud.start()?;
        kubectl.fresh_lease(NODE, READY)?;
        wait_for(SOON, "the line", || {
            let text = kubectl.run(&["logs", "streams", "-c", "main"])?;
            Ok(text.contains("said while nobody heard").then_some(()))
        })
    })?;
    steps.step("top node, top pod --containers", || story.top())?;
    Ok(())
}

/// Leaves a process behind that speaks into the container's log when the cloud is gone.
const SPEAK_LATER: &str = "(sleep 2; echo said while nobody heard) > /proc/1/fd/1 2>&1 < /dev/null &";

/// Whether a line is in the log that the runtime keeps of the pod.
fn logged(node: &Node, line: &str) -> Result<bool> {
    for entry in std::fs::read_dir(node.root().join("var/log/pods"))?.flatten() {
        let log = entry.path().join("main/0.log");
        if std::fs::read_to_string(log).is_ok_and(|text| text.contains(line)) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Story<'_> {
    fn command(&self, websocket: bool, args: &[&str]) -> Command {
        let mut command = self.kubectl.command(args);
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket.to_string())
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// With its input closed at the end; one that hangs is killed and so fails.
    fn output(&self, websocket: bool, args: &[&str], input: &[u8]) -> Result<Output> {
        finish(self.command(websocket, args).spawn()?, input)
    }

    /// What it wrote, standard output first, and its exit code unless that is 0.
    fn text(&self, websocket: bool, args: &[&str], input: &str) -> Result<String> {
        let output = self.output(websocket, args, input.as_bytes())?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            text.push_str(&format!("[{}]", output.status.code().unwrap_or(-1)));
        }
        Ok(text)
    }

    fn logs(&self) -> Result<()> {
        let lines = "line 1\nline 2\nline 3\n";
        wait_for(
            SOON,
            "the log",
            || Ok((self.text(true, &["logs", "streams"], "")? == lines).then_some(())),
        )?;
        let stamped = self.text(true, &["logs", "streams", "--tail=1", "--timestamps"], "")?;
        ensure!(stamped.ends_with("Z line 3\n") && stamped.lines().count() == 1, "{stamped}");
        let since = self.text(true, &["logs", "streams", "--since-time=2100-01-01T00:00:00Z"], "")?;
        ensure!(since.is_empty(), "{since}");
        same(&self.text(true, &["logs", "streams", "--limit-bytes=9"], "")?, "line 1\nli")?;
        same(&self.text(true, &["logs", "pair"], "")?, "of the second\n")?;
        let all = self.text(true, &["logs", "pair", "--all-containers", "--prefix"], "")?;
        // kubectl asks for them in no order.
        for line in ["[pod/pair/first] of the first\n", "[pod/pair/second] of the second\n"] {
            ensure!(all.contains(line) && all.lines().count() == 2, "{all}");
        }
        let previous = self.text(true, &["logs", "streams", "--previous"], "")?;
        ensure!(
            previous.contains("previous terminated container \"main\" in pod \"streams\" not found"),
            "{previous}"
        );
        Ok(())
    }

    fn follow(&self) -> Result<()> {
        let mut child = self.command(true, &["logs", "-f", "streams", "--tail=1"]).spawn()?;
        let lines = lines(child.stdout.take().context("piped")?);
        let seen = (|| {
            same(&lines.recv_timeout(SOON)?, "line 3")?;
            self.text(true, &["exec", "streams", "--", "sh", "-c", "echo more > /proc/1/fd/1"], "")?;
            same(&lines.recv_timeout(SOON)?, "more")
        })();
        end(child);
        seen
    }

    fn exec(&self, websocket: bool) -> Result<()> {
        let run = |line: &str| self.text(websocket, &["exec", "streams", "--", "sh", "-c", line], "");
        same(&run("echo out; echo err >&2")?, "out\nerr\n")?;
        same(&run("exit 42")?, "command terminated with exit code 42\n[42]")?;
        let none = self.text(websocket, &["exec", "streams", "--", "/no/such"], "")?;
        ensure!(none.contains("no such file or directory"), "{none}");
        let cat = self.text(websocket, &["exec", "-i", "streams", "--", "cat"], "through the link\n")?;
        same(&cat, "through the link\n")?;
        let data: Vec<u8> = (0..2_000_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        let output = self.output(websocket, &["exec", "-i", "streams", "--", "cat"], &data)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.stdout == data, "{} bytes of {}: {said}", output.stdout.len(), data.len());
        Ok(())
    }

    /// `script` gives kubectl a terminal, `stty` its size.
    fn terminal(&self, websocket: bool) -> Result<()> {
        // The size comes a little after the terminal.
        const WAIT: &str = "for i in 1 2 3 4 5 6 7 8 9; do \
            case \"$(stty size)\" in \"41 97\") echo sized; break;; esac; sleep 1; done; tty";
        let exec = self.command(websocket, &["exec", "-it", "streams", "--", "sh", "-c", WAIT]);
        let words: Vec<String> =
            exec.get_args().map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let line =
            format!("stty rows 41 cols 97; '{}' {}", self.kubectl.program().display(), words.join(" "));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (name, value) in exec.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        let output = finish(script.spawn().context("start script (package bsdutils)")?, b"")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("sized\r\n") && said.contains("/dev/pts/"), "{said:?}");
        Ok(())
    }

    fn attach(&self, websocket: bool) -> Result<()> {
        let mut child = self.command(websocket, &["attach", "-i", "pair", "-c", "second"]).spawn()?;
        let lines = lines(child.stdout.take().context("piped")?);
        let mut stdin = child.stdin.take().context("piped")?;
        let heard = (|| {
            stdin.write_all(b"say it again\n")?;
            same(&lines.recv_timeout(SOON)?, "say it again")
        })();
        end(child);
        heard
    }

    fn copy(&self, websocket: bool) -> Result<()> {
        let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at * 17 % 253) as u8).collect();
        let (here, back) = (self.dir.join("here"), self.dir.join(format!("back-{websocket}")));
        std::fs::write(&here, &data)?;
        let far = format!("streams:/www/file-{websocket}");
        let up = self.text(websocket, &["cp", &here.display().to_string(), &far], "")?;
        ensure!(up.is_empty(), "{up}");
        let down = self.text(websocket, &["cp", &far, &back.display().to_string()], "")?;
        ensure!(std::fs::read(&back).ok() == Some(data), "{down}");
        Ok(())
    }

    fn ports(&self, websocket: bool) -> Result<()> {
        let mut child = self.command(websocket, &["port-forward", "pod/streams", ":8080"]).spawn()?;
        let lines = lines(child.stdout.take().context("piped")?);
        let outcome = (|| {
            let line = lines.recv_timeout(SOON).context("kubectl port-forward says nothing")?;
            let address = line.split(' ').nth(2).with_context(|| line.clone())?.to_owned();
            let page = |path: String| -> Result<Vec<u8>> {
                let mut socket = TcpStream::connect(&address)?;
                socket.set_read_timeout(Some(SOON))?;
                write!(socket, "GET {path} HTTP/1.0\r\nHost: pod\r\n\r\n")?;
                let mut answer = Vec::new();
                socket.read_to_end(&mut answer)?;
                let body = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no body")?;
                Ok(answer.split_off(body + 4))
            };
            let file = std::fs::read(self.dir.join("here"))?;
            std::thread::scope(|scope| {
                let many: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| page(format!("/file-{websocket}")))).collect();
                many.into_iter().try_for_each(|one| {
                    let got = one.join().map_err(|_| anyhow::anyhow!("a panic"))??;
                    ensure!(got == file, "{} bytes of {}", got.len(), file.len());
                    Ok(())
                })
            })?;
            same(&String::from_utf8_lossy(&page("/".into())?), "page\n")
        })();
        end(child);
        outcome
    }

    /// A command that never stops speaking to a client that does not listen.
    fn slow_reader(&self, websocket: bool, cloud: &Cloud, node: &Node) -> Result<()> {
        let edge = node.edgecore.as_ref().context("edgecore runs")?.pid();
        let memory = || Ok::<_, anyhow::Error>((cloud.rss_kb()?, proc_status_kb(edge, "VmRSS")?));
        let before = memory()?;
        let child = self.command(websocket, &["exec", "streams", "--", "yes", "0123456789"]).spawn()?;
        let begun = Instant::now();
        let looked = wait_until(SOON, "three seconds of memory", || {
            let now = memory()?;
            let grown = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
            ensure!(grown.0.max(grown.1) < SLOW_READER_KB_MAX, "cloudcore and edgecore grew by {grown:?} kB");
            Ok((begun.elapsed() > Duration::from_secs(3)).then_some(()))
        });
        // Others are not held up by it.
        let meanwhile = self.text(websocket, &["exec", "streams", "--", "echo", "I am quick"], "");
        end(child);
        looked?;
        same(&meanwhile?, "I am quick\n")
    }

    fn top(&self) -> Result<()> {
        wait_for(READY, "top node", || {
            let node = self.text(true, &["top", "node", "--no-headers"], "")?;
            let cells: Vec<&str> = node.split_whitespace().collect();
            ensure!(cells.len() == 5 && cells[0] == NODE, "{node}");
            ensure!(cells[1].ends_with('m') && cells[3].ends_with("Mi"), "{node}");
            Ok(Some(()))
        })?;
        wait_for(READY, "top pod", || {
            let pods = self.text(true, &["top", "pod", "--containers", "--no-headers"], "")?;
            for start in ["streams main", "pair first", "pair second"] {
                let found = pods.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
                ensure!(found.into_iter().any(|line| line.starts_with(start)), "no {start} in {pods}");
            }
            Ok(Some(()))
        })
    }

    fn proxy(&self) -> Result<()> {
        let get = |place: &str| {
            let path = format!("/api/v1/namespaces/default/pods/{place}");
            self.kubectl.command(&["get", "--raw", &path]).output()
        };
        let page = get("streams:8080/proxy/index.html")?;
        ensure!(page.stdout == b"page\n", "{page:?}");
        let missing = get("streams:8080/proxy/none")?;
        ensure!(String::from_utf8_lossy(&missing.stderr).contains("could not find"), "{missing:?}");
        let refused = get("streams:8081/proxy/")?;
        ensure!(
            String::from_utf8_lossy(&refused.stderr).contains("error trying to reach service"),
            "{refused:?}"
        );
        Ok(())
    }

    fn debug(&self) -> Result<()> {
        let image = "--image=docker.io/kinglet/busybox:1";
        let args = [
            "debug",
            "streams",
            image,
            "--container=look",
            "--target=main",
            "--profile=general",
            "--",
            "echo",
            "I look",
        ];
        let said = self.text(true, &args, "")?;
        ensure!(!said.contains('['), "{said}");
        wait_for(SOON, "what the new container says", || {
            let log = self.text(true, &["logs", "streams", "-c", "look"], "")?;
            if log == "I look\n" { Ok(Some(())) } else { bail!("{log}") }
        })
    }
}

fn same(got: &str, wanted: &str) -> Result<()> {
    ensure!(got == wanted, "expected {wanted:?}, got {got:?}");
    Ok(())
}

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    lines
}

fn finish(mut child: Child, input: &[u8]) -> Result<Output> {
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let input = input.to_vec();
    let write = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (done, ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(COMMAND) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output()?;
    drop(done);
    let _ = (watchdog.join(), write.join());
    Ok(output)
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}
