use std::fs;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    contract::{PodStatus, testing::Bench},
    edged::logs::Rotation,
};

fn settings(dir: &std::path::Path) -> Settings {
    Settings {
        endpoint: format!("unix://{}/no.sock", dir.display()),
        policy: Default::default(),
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".into(),
        resolv_conf: "/dev/null".into(),
        log_dir: dir.join("log"),
        log_rotation: Rotation { bytes_max: 1024, files_max: 3 },
        kubelet_dir: dir.join("kubelet"),
        run_dir: dir.join("run"),
        preload_dir: dir.join("images"),
        node_ip: String::new(),
        report_events: false,
        cloud_id: String::new(),
        images: Default::default(),
        pressure: Default::default(),
    }
}

async fn ask(server: &Server, access: Access, request: &str) -> (u16, String) {
    let (mut ours, theirs) = tokio::io::duplex(16 * 1024);
    let client = async {
        let head = format!("GET {request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        ours.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        ours.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let (answer, ()) = tokio::join!(client, server.serve_as(Box::new(theirs), access));
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

#[tokio::test]
async fn what_has_no_log_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    let server = new(bench.handles.clone(), settings(dir.path()));
    let full = Access::Everything;
    assert_eq!(ask(&server, full, "/healthz").await, (200, "ok".into()));
    assert_eq!(ask(&server, full, "/nothing").await.0, 404);
    assert_eq!(
        ask(&server, full, "/containerLogs/default/web/c").await,
        (404, "pod \"web\" does not exist".into())
    );
    bench.meta.put_object(
        "default/pod/web",
        json!({ "metadata": { "name": "web", "namespace": "default", "uid": "u", "resourceVersion": "1" },
                "spec": { "containers": [{ "name": "c", "tty": null }], "ephemeralContainers": null, "initContainers": [{ "name": "first" }] } }),
    );
    assert_eq!(
        ask(&server, full, "/containerLogs/default/web/x").await,
        (404, "container \"x\" not found in pod \"web\"".into())
    );
    let status = json!({ "containerStatuses": [
        { "name": "c", "state": { "waiting": { "reason": "ContainerCreating" } }, "lastState": {} },
    ] });
    let patch = serde_json::to_vec(&status).unwrap().into();
    bench.handles.statuses.put("default", "web", PodStatus { uid: "u".into(), patch });
    let waits = "container \"c\" in pod \"web\" is waiting to start: ContainerCreating";
    assert_eq!(ask(&server, full, "/containerLogs/default/web/c").await, (400, waits.into()));
    assert_eq!(
        ask(&server, full, "/containerLogs/default/web/c?previous=true").await,
        (400, "previous terminated container \"c\" in pod \"web\" not found".into())
    );
    assert_eq!(
        ask(&server, full, "/containerLogs/default/web/first").await,
        (400, "container \"first\" in pod \"web\" is not available".into())
    );
    assert_eq!(ask(&server, full, "/containerLogs/default/web/c?tailLines=-1").await.0, 422);
    assert_eq!(ask(&server, full, "/containerLogs/default/web/c?tailLines=x").await.0, 400);
    assert_eq!(ask(&server, Access::ReadOnly, "/containerLogs/default/web/c").await.0, 404);
    bench.handles.statuses.remove("default", "web", "another uid");
    assert!(bench.handles.statuses.get("default", "web").is_some());
}

#[tokio::test]
async fn logs_are_read_while_the_runtime_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    let server = new(bench.handles.clone(), settings(dir.path()));
    let record = json!({ "incarnation": "inc-1", "namespace": "default", "name": "web", "uid": "u" });
    let body = serde_json::to_vec(&record).unwrap().into();
    bench.handles.meta.put_local("podstate", "inc-1", body, true).await.unwrap();
    let status = json!({ "containerStatuses": [{
        "name": "c", "containerID": "containerd://abc", "state": { "running": { "startedAt": "2026-11-21T10:00:00Z" } },
        "lastState": { "terminated": { "containerID": "containerd://before" } },
    }] });
    let patch = serde_json::to_vec(&status).unwrap().into();
    bench.handles.statuses.put("default", "web", PodStatus { uid: "u".into(), patch });
    let logs = dir.path().join("log/default_web_inc-1/c");
    fs::create_dir_all(&logs).unwrap();
    for (attempt, text) in [(3, "now"), (2, "before")] {
        let line = format!("2026-11-21T10:00:00.1Z stdout F {text}\n");
        fs::write(logs.join(format!("{attempt}.log")), line).unwrap();
    }
    let chunk = |text: &str| format!("{:X}\r\n{text}\n\r\n0\r\n\r\n", text.len() + 1);
    let get = async |query: &str| {
        ask(&server, Access::Everything, &format!("/containerLogs/default/web/c{query}")).await
    };
    assert_eq!(get("?follow=1").await, (200, chunk("now")), "nothing to follow without a runtime");
    assert_eq!(get("?previous=1").await, (200, chunk("before")));
}

/// A log of 8 MB is asked for and not read: what was taken from it stays within the buffers on the way.
#[tokio::test]
async fn a_slow_reader_holds_the_log_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("0.log");
    let line = format!("2026-11-21T10:00:00.1Z stdout F {}\n", "x".repeat(1000));
    fs::write(&log, line.repeat(8 << 10)).unwrap();
    let bench = Bench::new();
    let node = new(bench.handles.clone(), settings(dir.path())).node;
    let follow = logs::whole(node, log).await;
    let pulled = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = pulled.clone();
    let stream = futures_util::StreamExt::inspect(follow, move |piece| {
        let bytes = piece.as_ref().map_or(0, |bytes| bytes.len());
        counter.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    });
    let (mut ours, theirs) = tokio::io::duplex(4096);
    ours.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
    let stream = std::sync::Mutex::new(Some(stream));
    let service = hyper::service::service_fn(|_| {
        let body = body::Body::Stream(Box::pin(stream.lock().unwrap().take().unwrap()));
        async move { Ok::<_, std::convert::Infallible>(::http::Response::new(body)) }
    });
    let connection = http::builder().serve_connection(hyper_util::rt::TokioIo::new(theirs), service);
    // Far longer than the pieces that fit take; the reader takes nothing at all.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(300), connection).await;
    let pulled = pulled.load(std::sync::atomic::Ordering::Relaxed);
    assert!(
        pulled > 0 && pulled <= 2 * limits::HTTP_BUFFER_BYTES_MAX + 4096,
        "{pulled} bytes were read ahead"
    );
}

#[tokio::test]
async fn the_read_only_port_serves_what_is_public() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    let server = new(bench.handles.clone(), settings(dir.path()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let group = rt::TaskGroup::new("test", 1, rt::Drain::new());
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer.lines().next().unwrap_or_default().to_string()
    };
    let running = async |number: usize| {
        while group.running() != number {
            tokio::task::yield_now().await;
        }
    };
    let client = async {
        for (path, line) in [
            ("/healthz", "HTTP/1.1 200 OK"),
            ("/containerLogs/default/web/c", "HTTP/1.1 404 Not Found"),
            ("/exec/default/web/c?command=id&output=1", "HTTP/1.1 404 Not Found"),
        ] {
            assert_eq!(get(path).await, line, "{path}");
            running(0).await;
        }
        let held = tokio::net::TcpStream::connect(address).await.unwrap();
        running(1).await;
        assert_eq!(get("/healthz").await, "", "one too many is closed");
        drop(held);
    };
    tokio::select! {
        () = client => {}
        ended = listener::serve(&server, listener, &group) => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn figures_of_the_node_need_no_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    let server = new(bench.handles.clone(), settings(dir.path()));
    let (status, page) = ask(&server, Access::ReadOnly, "/metrics/resource").await;
    assert_eq!(status, 200);
    assert!(
        page.contains("# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total "),
        "{page}"
    );
    assert!(page.contains("\nresource_scrape_error 1\n"), "{page}");
    let (_, page) = ask(&server, Access::ReadOnly, "/metrics").await;
    for line in
        ["process_resident_memory_bytes ", "kinglet_link_up ", "kubelet_node_name{node=\"edge-1\"} 1\n"]
    {
        assert!(page.contains(&format!("\n{line}")), "{line} is not in {page}");
    }
    assert!(!page.contains("kubelet_running_pods "), "unknown is not zero");
    assert_eq!(ask(&server, Access::ReadOnly, "/stats/summary").await.0, 500);
    let (_, page) = ask(&server, Access::ReadOnly, "/configz").await;
    assert!(page.contains("\"clusterDomain\":\"cluster.local\""), "{page}");
}

#[tokio::test]
async fn pods_carry_the_status_of_this_node() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    let server = new(bench.handles.clone(), settings(dir.path()));
    for (name, uid) in [("a", "1"), ("b", "2")] {
        let metadata = json!({ "name": name, "namespace": "default", "uid": uid, "resourceVersion": "1" });
        let pod =
            json!({ "metadata": metadata, "spec": { "containers": [] }, "status": { "phase": "Pending" } });
        bench.meta.put_object(&format!("default/pod/{name}"), pod);
        // That of another pod of the name is not this one's.
        let patch = br#"{"phase":"Running","$setElementOrder/conditions":[]}"#.as_slice().into();
        bench.handles.statuses.put("default", name, PodStatus { uid: "1".into(), patch });
    }
    let (_, body) = ask(&server, Access::ReadOnly, "/pods").await;
    let json: String = body.split("\r\n").skip(1).step_by(2).collect();
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(list["kind"], "PodList");
    let phase = |at: usize| &list["items"][at]["status"];
    assert_eq!((phase(0), phase(1)), (&json!({ "phase": "Running" }), &json!({ "phase": "Pending" })));
}
