//! The kubelet API against a real containerd: the agent runs the pods, and a WebSocket client speaks to its streaming server
//! through the API, as `kubectl` does at the other end of the link.

use std::{collections::BTreeMap, future::Future, process::Command};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message as Frame, client::IntoClientRequest},
};

use super::*;
use crate::{
    contract::KubeletApi,
    edged::kubelet_api::{self, Server},
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// Runs a test inside the node's network, where the streaming server listens.
fn inside<F: Future<Output = ()>>(node: &Node, test: impl FnOnce(Server) -> F + Send) {
    let run = || {
        node.containerd.enter_network().unwrap();
        let bounded = async {
            let server = kubelet_api::new(node.bench.handles.clone(), node.settings.clone());
            tokio::time::timeout(WAIT, test(server)).await
        };
        rt::runtime().unwrap().block_on(bounded).expect("the test ends in time");
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap());
}

/// A WebSocket over the API for as long as `talk` lasts; both sides then end.
async fn stream<T, F: Future<Output = T>>(
    server: &Server,
    path: &str,
    talk: impl FnOnce(WebSocketStream<DuplexStream>) -> F,
) -> T {
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    let client = async {
        let mut request = format!("ws://node{path}").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse().unwrap());
        let (socket, answer) = client_async(request, ours).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
        talk(socket).await
    };
    tokio::join!(client, server.serve(Box::new(theirs))).0
}

fn say(channel: u8, text: &str) -> Frame {
    let mut bytes = vec![channel];
    bytes.extend(text.as_bytes());
    Frame::binary(bytes)
}

/// Reads until a channel has said what is looked for; `None` when the stream ends before.
async fn hear(socket: &mut WebSocketStream<DuplexStream>, channel: u8, what: &str) -> Option<String> {
    let mut heard = String::new();
    while let Some(Ok(frame)) = socket.next().await {
        let bytes = frame.into_data();
        if bytes.first() == Some(&channel) {
            heard.push_str(&String::from_utf8_lossy(&bytes[1..]));
            if heard.contains(what) {
                return Some(heard);
            }
        }
    }
    None
}

/// All that is said until the end, by channel.
async fn all(mut socket: WebSocketStream<DuplexStream>) -> BTreeMap<u8, String> {
    let mut heard = BTreeMap::<u8, String>::new();
    while let Some(Ok(frame)) = socket.next().await {
        let bytes = frame.into_data();
        if let Some((channel, text)) = bytes.split_first().filter(|(channel, _)| **channel <= RESIZE) {
            heard.entry(*channel).or_default().push_str(&String::from_utf8_lossy(text));
        }
    }
    heard
}

/// A request without an upgrade: status and body.
async fn get(server: &Server, path: &str) -> (u16, String) {
    let (mut ours, theirs) = tokio::io::duplex(16 * 1024);
    let client = async {
        let head = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        ours.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = tokio::join!(client, server.serve(Box::new(theirs))).0;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

#[test]
fn exec_attach_and_port_forward() {
    if let Some(why) = missing() {
        return not_run("exec_attach_and_port_forward", &why);
    }
    let node = Node::start();
    node.apply(&web("web", 8080));
    node.apply(&pod("cat", json!({ "args": ["cat"], "stdin": true }), json!({})));
    node.wait_running("web");
    node.wait_running("cat");
    inside(&node, async |server| {
        let exec = |query: &str| format!("/exec/default/web/c?command=/hello&{query}");
        let env = stream(&server, &exec("command=env&output=1&error=1"), all).await;
        assert!(env[&STDOUT].contains("HOSTNAME=web\n"), "{env:?}");
        let status: Value = serde_json::from_str(&env[&STATUS]).unwrap();
        assert_eq!(status["status"], "Success", "{env:?}");

        let exit = stream(&server, &exec("command=exit&command=3&output=1&error=1"), all).await;
        let status: Value = serde_json::from_str(&exit[&STATUS]).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode", "{exit:?}");
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));

        let wrong = stream(&server, &exec("command=print&command=/absent&output=1&error=1"), all).await;
        assert!(wrong[&STDERR].contains("cannot read /absent"), "{wrong:?}");

        let talk = async |mut socket: WebSocketStream<DuplexStream>| {
            socket.send(say(RESIZE, r#"{"Width":97,"Height":31}"#)).await.unwrap();
            socket.send(say(STDIN, "over there\n")).await.unwrap();
            // A terminal echoes, and `cat` repeats.
            let heard = hear(&mut socket, STDOUT, "over there\r\nover there\r\n").await;
            assert!(heard.is_some(), "stdin comes back");
            let pids = node.containerd.processes("hello").unwrap();
            let terminal = format!("/proc/{}/root/dev/pts/0", pids.last().unwrap());
            let size = Command::new("stty").args(["-F", &terminal, "size"]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&size.stdout), "31 97\n", "{size:?}");
            // Control-D ends the input.
            socket.send(say(STDIN, "\u{4}")).await.unwrap();
            assert!(hear(&mut socket, STATUS, "Success").await.is_some());
        };
        stream(&server, &exec("command=cat&input=1&output=1&tty=1"), talk).await;

        let attached = async |mut socket: WebSocketStream<DuplexStream>| {
            socket.send(say(STDIN, "to the first process\n")).await.unwrap();
            assert!(hear(&mut socket, STDOUT, "to the first process\n").await.is_some());
        };
        stream(&server, "/attach/default/cat/c?input=1&output=1&error=1", attached).await;

        let forwarded = async |mut socket: WebSocketStream<DuplexStream>| {
            // Two channels per port, data and errors; each begins with the port.
            let port = 8080_u16.to_le_bytes();
            for channel in [0, 1] {
                let first = socket.next().await.unwrap().unwrap().into_data();
                assert_eq!(&first[..], [channel, port[0], port[1]]);
            }
            socket.send(say(0, "GET / HTTP/1.0\r\n\r\n")).await.unwrap();
            assert!(hear(&mut socket, 0, "hello from web").await.is_some());
        };
        stream(&server, "/portForward/default/web?port=8080", forwarded).await;

        // SPDY is passed on too; the runtime picks the version of the stream protocol.
        let (mut ours, theirs) = tokio::io::duplex(16 * 1024);
        let spdy = async {
            let head = format!(
                "POST {} HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                 X-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n\r\n",
                exec("command=env&output=1")
            );
            ours.write_all(head.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(ours.read_u8().await.unwrap());
            }
            drop(ours);
            String::from_utf8(answer).unwrap().to_ascii_lowercase()
        };
        let (answer, ()) = tokio::join!(spdy, server.serve(Box::new(theirs)));
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        for line in
            ["upgrade: spdy/3.1", "connection: upgrade", "x-stream-protocol-version: v4.channel.k8s.io"]
        {
            assert!(answer.contains(&format!("\r\n{line}\r\n")), "{line}: {answer}");
        }

        for (path, status, words) in [
            ("/exec/default/web/c?command=x", 400, "you must specify at least 1 of stdin, stdout, stderr"),
            ("/exec/default/web/x?command=x&output=1", 404, "container not found (\"x\")"),
            ("/exec/default/none/c?command=x&output=1", 404, "pod does not exist"),
            ("/attach/default/none/c?output=1", 404, "pod does not exist"),
            ("/portForward/default/none?port=80", 404, "pod does not exist"),
            ("/portForward/default/web?port=0", 400, "invalid port \"0\": it must be between 1 and 65535"),
        ] {
            assert_eq!(get(&server, path).await, (status, words.to_string()), "{path}");
        }
        let (status, _) = get(&server, "/exec/default/web/c?command=x&output=1").await;
        assert!((400..600).contains(&status), "no upgrade was asked for: {status}");
    });
}

#[test]
fn logs_are_followed_until_the_container_is_over() {
    if let Some(why) = missing() {
        return not_run("logs_are_followed_until_the_container_is_over", &why);
    }
    let node = Node::start();
    node.apply(&pod("cat", json!({ "args": ["cat"], "stdin": true }), json!({ "restartPolicy": "Never" })));
    let mut once = pod("once", json!({ "args": ["exit", "3"] }), json!({ "restartPolicy": "Never" }));
    once["spec"]["initContainers"] = json!([{ "name": "first", "image": HELLO, "args": ["env"] }]);
    node.apply(&once);
    node.wait_running("cat");
    node.wait_status("once", "Failed", |status| status["phase"] == "Failed");
    inside(&node, async |server| {
        let (_, ended) = get(&server, "/containerLogs/default/once/c?follow=1").await;
        assert!(ended.contains("exit 3\n"), "{ended:?}");
        let (_, init) = get(&server, "/containerLogs/default/once/first").await;
        assert!(init.contains("HOSTNAME=once\n"), "{init:?}");
        let (status, none) = get(&server, "/containerLogs/default/once/c?previous=1").await;
        assert_eq!((status, &*none), (400, "previous terminated container \"c\" in pod \"once\" not found"));

        let cri = Cri::new(crate::edged::cri::channel(&node.settings.endpoint));
        let followed = get(&server, "/containerLogs/default/cat/c?follow=1");
        let attached = async |mut socket: WebSocketStream<DuplexStream>| {
            socket.send(say(STDIN, "before\n")).await.unwrap();
            assert!(hear(&mut socket, STDOUT, "before\n").await.is_some());
            let log = node.settings.log_dir.join("default_cat_uid-cat/c/0.log");
            fs::rename(&log, log.with_extension("log.1")).unwrap();
            let running = cri.list_containers(Default::default()).await.unwrap();
            let running =
                running.iter().find(|c| c.metadata.as_ref().is_some_and(|m| m.name == "c") && c.state == 1);
            cri.reopen_container_log(&running.unwrap().id).await.unwrap();
            socket.send(say(STDIN, "after\n")).await.unwrap();
            assert!(hear(&mut socket, STDOUT, "after\n").await.is_some());
            cri.stop_container(&running.unwrap().id, Duration::ZERO).await.unwrap();
        };
        let attach = stream(&server, "/attach/default/cat/c?input=1&output=1", attached);
        let ((status, log), ()) = tokio::join!(followed, attach);
        assert_eq!(status, 200);
        let lines: Vec<&str> = log.split("\r\n").filter(|chunk| chunk.contains('\n')).collect();
        assert_eq!(lines.concat(), "before\nafter\n", "{log:?}");
    });
}

/// The body of an answer whose pieces have lengths.
fn unchunked(body: &str) -> String {
    let mut whole = String::new();
    let mut rest = body;
    while let Some((length, tail)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&tail[..length]);
        rest = tail[length..].strip_prefix("\r\n").unwrap_or_default();
    }
    whole
}

#[test]
fn figures_of_pods_that_run() {
    if let Some(why) = missing() {
        return not_run("figures_of_pods_that_run", &why);
    }
    let node = Node::start();
    let mut pod = web("web", 8080);
    pod["spec"]["volumes"] = json!([{ "name": "scratch", "emptyDir": {} }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "scratch", "mountPath": "/scratch" }]);
    pod["spec"]["containers"][0]["resources"] =
        json!({ "limits": { "memory": "64Mi" }, "requests": { "cpu": "10m" } });
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({ "exec": { "command": ["/hello", "exit", "0"] } });
    node.apply(&pod);
    node.wait_running("web");
    node.wait_page(8080);
    fs::write(
        node.settings.kubelet_dir.join("pods/uid-web/volumes/kubernetes.io~empty-dir/scratch/file"),
        "x".repeat(20_000),
    )
    .unwrap();
    inside(&node, async |server| {
        let (status, body) = get(&server, "/stats/summary").await;
        assert_eq!(status, 200, "{body}");
        let summary: Value = serde_json::from_str(&unchunked(&body)).unwrap();
        let positive = |at: &str| {
            let value = summary.pointer(at).and_then(Value::as_u64);
            assert!(value.is_some_and(|value| value > 0), "{at} in {summary:#}");
        };
        assert_eq!(summary["node"]["nodeName"], "edge-1");
        for at in [
            "cpu/usageNanoCores",
            "cpu/usageCoreNanoSeconds",
            "memory/availableBytes",
            "memory/workingSetBytes",
            "fs/capacityBytes",
            "runtime/imageFs/capacityBytes",
            "rlimit/maxpid",
        ] {
            positive(&format!("/node/{at}"));
        }
        let systems: Vec<&str> = summary["node"]["systemContainers"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|c| c["name"].as_str())
            .collect();
        assert_eq!(systems, ["kubelet", "runtime", "pods"]);
        assert_eq!(summary["pods"].as_array().unwrap().len(), 1);
        assert_eq!(
            summary["pods"][0]["podRef"],
            json!({ "name": "web", "namespace": "default", "uid": "uid-web" })
        );
        for at in [
            "cpu/usageCoreNanoSeconds",
            "memory/workingSetBytes",
            "memory/availableBytes",
            "network/rxBytes",
            "process_stats/process_count",
        ] {
            positive(&format!("/pods/0/{at}"));
        }
        for at in [
            "cpu/usageCoreNanoSeconds",
            "memory/rssBytes",
            "memory/availableBytes",
            "rootfs/capacityBytes",
            "logs/usedBytes",
        ] {
            positive(&format!("/pods/0/containers/0/{at}"));
        }
        assert!(summary["pods"][0]["containers"][0]["cpu"]["usageNanoCores"].is_u64(), "{summary:#}");
        let volume = &summary["pods"][0]["volume"][0];
        assert!(volume["name"] == "scratch" && volume["usedBytes"].as_u64().unwrap() >= 20_000, "{volume:#}");
        assert!(summary["pods"][0]["ephemeral-storage"]["usedBytes"].as_u64().unwrap() >= 20_000);

        let (_, page) = get(&server, "/metrics/resource").await;
        let samples: std::collections::BTreeSet<&str> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split([' ', '{']).next().unwrap())
            .collect();
        let expected = [
            "container_cpu_usage_seconds_total",
            "container_memory_working_set_bytes",
            "container_start_time_seconds",
            "container_swap_usage_bytes",
            "node_cpu_usage_seconds_total",
            "node_memory_working_set_bytes",
            "node_swap_usage_bytes",
            "pod_cpu_usage_seconds_total",
            "pod_memory_working_set_bytes",
            "pod_swap_usage_bytes",
            "resource_scrape_error",
        ];
        // A kernel without swap accounting has no figures of it.
        let without_swap = |name: &&str| !name.contains("swap") || samples.contains(name);
        assert_eq!(
            samples.iter().copied().collect::<Vec<_>>(),
            expected.iter().copied().filter(without_swap).collect::<Vec<_>>()
        );
        let cpu = "container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"web\"} ";
        let line = page.lines().find_map(|line| line.strip_prefix(cpu)).unwrap();
        let (value, time) = line.split_once(' ').unwrap();
        assert!(
            value.parse::<f64>().unwrap() > 0.0 && time.parse::<i64>().unwrap() > 1_700_000_000_000,
            "{line}"
        );
        assert!(page.contains("resource_scrape_error 0\n"));

        let (_, page) = get(&server, "/metrics/cadvisor").await;
        let page = unchunked(&page);
        let find = |name: &str, labels: &[&str]| {
            let found = page
                .lines()
                .find(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
            assert!(found.is_some(), "{name} {labels:?} in {page}");
        };
        find("container_network_receive_bytes_total", &["interface=\"eth0\"", "pod=\"web\""]);
        find(
            "container_memory_working_set_bytes",
            &["container=\"c\"", "image=\"docker.io/kinglet/hello:1\"", "/kubepods/"],
        );
        find("container_spec_memory_limit_bytes", &["container=\"c\"", " 67108864 "]);
        find("container_memory_failures_total", &["failure_type=\"pgmajfault\""]);
        find("container_oom_events_total", &["container=\"c\"", " 0 "]);
        find("machine_memory_bytes", &[]);

        let (_, page) = get(&server, "/metrics/probes").await;
        for line in [
            "prober_probe_total{container=\"c\",namespace=\"default\",pod=\"web\",pod_uid=\"uid-web\",probe_type=\"Readiness\",result=\"successful\"} ",
            "prober_probe_duration_seconds_count{container=\"c\",namespace=\"default\",pod=\"web\",probe_type=\"Readiness\"} ",
        ] {
            assert!(page.lines().any(|found| found.starts_with(line)), "{line} in {page}");
        }

        let (_, page) = get(&server, "/metrics").await;
        assert!(page.contains("\nkubelet_running_pods 1\n"), "{page}");
        assert!(page.contains("\nkubelet_running_containers{container_state=\"running\"} 1\n"), "{page}");
        let (_, pods) = get(&server, "/pods").await;
        let pods: Value = serde_json::from_str(&unchunked(&pods)).unwrap();
        assert_eq!(pods["items"][0]["status"]["phase"], "Running");
        let (_, pods) = get(&server, "/runningpods/").await;
        assert!(pods.contains("\"name\":\"web\""), "{pods}");
    });
}
