use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use super::{
    book::{Book, Claim, News},
    host::Plugins,
    messages as api, *,
};
use crate::{
    contract::testing::Bench,
    edged::{cri::channel, limits, pod::Pod},
};

const GPU: &str = "example.com/gpu";
const START: Duration = Duration::from_secs(1);

fn pod(init: &[(&str, u32, bool)], main: &[(&str, u32)]) -> Pod {
    let container = |name: &str, count: u32, sidecar: bool| {
        let mut c =
            json!({ "name": name, "image": "i", "resources": { "limits": { GPU: count.to_string() } } });
        if sidecar {
            c["restartPolicy"] = json!("Always");
        }
        c
    };
    let init: Vec<Value> =
        init.iter().map(|(name, count, sidecar)| container(name, *count, *sidecar)).collect();
    let main: Vec<Value> = main.iter().map(|(name, count)| container(name, *count, false)).collect();
    let metadata = json!({ "name": "p", "namespace": "d", "uid": "u" });
    let object = json!({ "metadata": metadata, "spec": { "initContainers": init, "containers": main } });
    Pod::parse(object.to_string().as_bytes()).unwrap()
}

fn listed(generation: u64, devices: &[(&str, bool)]) -> News {
    let devices = devices.iter().map(|(id, healthy)| (id.to_string(), *healthy)).collect();
    News::Listed { resource: GPU.into(), generation, devices }
}

fn registered(generation: u64) -> News {
    News::Registered { resource: GPU.into(), generation }
}

fn book(devices: &[(&str, bool)]) -> Book {
    let mut book = Book::default();
    book.handle(START, registered(1));
    book.handle(START, listed(1, devices));
    book
}

fn counted(book: &Book, now: Duration) -> (u64, u64) {
    let count = book.counts(now)[GPU];
    (count.capacity, count.allocatable)
}

#[test]
fn devices_are_counted_given_and_taken_back() {
    let mut book = book(&[("a", true), ("b", true), ("c", false)]);
    assert_eq!(counted(&book, START), (3, 2));
    let claims = book.reserve("p1", &pod(&[], &[("m", 1)])).unwrap();
    assert_eq!(claims, [Claim { container: "m".into(), resource: GPU.into(), ids: vec!["a".into()] }]);
    assert!(book.is_pending("p1"));
    book.answered("p1", true);
    assert!(!book.is_pending("p1") && book.free(GPU) == ["b"]);
    assert_eq!(
        book.reserve("p2", &pod(&[], &[("m", 2)])).unwrap_err(),
        "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1"
    );
    assert_eq!(book.free(GPU), ["b"], "what failed holds nothing");
    book.reserve("p2", &pod(&[], &[("m", 1)])).unwrap();
    book.answered("p2", false);
    assert_eq!(book.free(GPU), ["b"], "the plugin refused");
    assert_eq!(book.release(|incarnation| incarnation != "p1"), ["p1"]);
    assert_eq!(book.free(GPU), ["a", "b"]);
    let unhealthy = listed(1, &[("a", false), ("b", false)]);
    book.handle(START, unhealthy);
    assert_eq!(
        book.reserve("p3", &pod(&[], &[("m", 1)])).unwrap_err(),
        "no healthy devices present; cannot allocate unhealthy devices example.com/gpu"
    );
    assert!(
        Book::default().reserve("p", &pod(&[], &[("m", 1)])).unwrap().is_empty(),
        "not a plugin's resource"
    );
}

#[test]
fn init_containers_leave_their_devices_and_sidecars_keep_them() {
    let mut book = book(&[("a", true), ("b", true), ("c", true)]);
    let claims = book.reserve("p", &pod(&[("i", 2, false), ("s", 1, true)], &[("m", 2)])).unwrap();
    let of = |name: &str| {
        let claim = claims.iter().find(|claim| claim.container == name).unwrap();
        claim.ids.iter().cloned().collect::<BTreeSet<String>>()
    };
    assert!(of("i").is_superset(&of("s")), "a sidecar takes what an init container leaves");
    assert!(of("s").is_disjoint(&of("m")), "both run: {claims:?}");
    assert_eq!(book.free(GPU).len(), 0);
}

#[test]
fn plugins_come_and_go() {
    let mut book = book(&[("a", true), ("b", true)]);
    book.reserve("p", &pod(&[], &[("m", 1)])).unwrap();
    book.answered("p", true);
    let lost = |generation| News::Lost { resource: GPU.into(), generation };
    book.handle(START, lost(1));
    assert_eq!(counted(&book, START), (2, 0), "unhealthy at once");
    let grace = limits::DEVICE_PLUGIN_GRACE;
    assert_eq!(counted(&book, START + grace), (0, 0), "gone after the grace, and said so");
    book.handle(START, registered(2));
    book.handle(START, lost(1));
    book.handle(START, listed(1, &[("x", true)]));
    assert_eq!(counted(&book, START + grace), (2, 0), "an older registration is not heard");
    book.handle(START, listed(2, &[("a", true), ("b", true)]));
    assert_eq!(book.free(GPU), ["b"], "what is held stays held");

    let held: BTreeMap<String, Vec<Claim>> = book.held().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut after = Book::new(held, ["example.com/old".to_string()]);
    assert_eq!(counted(&after, START), (0, 0));
    assert_eq!(after.counts(START)["example.com/old"].capacity, 0, "the cloud is told that it is gone");
    assert!(after.reserve("q", &pod(&[], &[("m", 1)])).is_err(), "not before the plugin is back");
    after.handle(START, registered(1));
    after.handle(START, listed(1, &[("a", true), ("b", true)]));
    assert_eq!(after.free(GPU), ["b"]);
}

#[test]
fn preferences_are_taken_where_they_may_be() {
    let settled = |preferred: &[&str]| {
        let mut book = book(&[("a", true), ("b", true), ("c", true), ("d", false)]);
        book.reserve("other", &pod(&[], &[("m", 1)])).unwrap();
        book.reserve("p", &pod(&[], &[("m", 1)])).unwrap();
        let ids = preferred.iter().map(|id| id.to_string()).collect();
        book.settle("p", &[(0, ids)])[0].ids.join(",")
    };
    assert_eq!(settled(&["c"]), "c");
    for bad in [&["a"][..], &["d"], &["x"], &["b", "c"], &[]] {
        assert_eq!(settled(bad), "b", "{bad:?}: another's, unhealthy, unknown, or not as many");
    }
}

#[test]
fn under_seeds_no_device_has_two_owners() {
    for seed in 0..300_u64 {
        let mut state = seed;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut book = Book::default();
        let mut generation = 0;
        let mut ended: BTreeSet<String> = BTreeSet::new();
        for step in 0..80 {
            let name = format!("p{}", below(6));
            match below(8) {
                0 => {
                    generation += 1;
                    book.handle(START, registered(generation));
                }
                1 => {
                    let of = generation.saturating_sub(below(2));
                    let devices = (0..below(5)).map(|n| (format!("d{n}"), below(3) > 0)).collect();
                    book.handle(START, News::Listed { resource: GPU.into(), generation: of, devices });
                }
                2 => book.handle(START, News::Lost { resource: GPU.into(), generation: below(4) }),
                3 | 4 if book.held().all(|(incarnation, _)| *incarnation != name) => {
                    let init = [("i", below(3) as u32, below(2) == 0)];
                    let _ = book.reserve(&name, &pod(&init, &[("m", below(3) as u32)]));
                }
                5 => book.answered(&name, below(3) > 0),
                6 => {
                    let ids = (0..below(3)).map(|_| format!("d{}", below(5))).collect();
                    book.settle(&name, &[(below(3) as usize, ids)]);
                }
                7 => {
                    ended.insert(name.clone());
                    book.release(|incarnation| !ended.contains(incarnation));
                    ended.clear();
                }
                _ => {}
            }
            let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
            for (incarnation, claims) in book.held() {
                for id in claims.iter().flat_map(|claim| &claim.ids) {
                    let before = owners.insert(id, incarnation);
                    assert!(
                        before.is_none_or(|b| b == incarnation),
                        "seed {seed} step {step}: {id} has two owners"
                    );
                }
                // Containers that run at once share nothing.
                let main: Vec<&String> =
                    claims.iter().filter(|c| c.container == "m").flat_map(|c| &c.ids).collect();
                assert_eq!(main.iter().collect::<BTreeSet<_>>().len(), main.len(), "seed {seed} step {step}");
            }
        }
    }
}

#[test]
fn registrations_are_checked() {
    let refused = |version: &str, endpoint: &str, name: &str| {
        let request = api::RegisterRequest {
            version: version.into(),
            endpoint: endpoint.into(),
            resource_name: name.into(),
            options: None,
        };
        register::check(&request).err().unwrap_or_default()
    };
    assert_eq!(refused("v1beta1", "gpu.sock", GPU), "");
    assert!(refused("v1alpha", "gpu.sock", GPU).contains("is not supported by kubelet"));
    for name in
        ["", "cpu", "kubernetes.io/x", "a.kubernetes.io/x", "/x", "a/", "a/b/c", "requests.a/b", "a/b c"]
    {
        assert!(refused("v1beta1", "gpu.sock", name).contains("is invalid"), "{name}");
    }
    for endpoint in ["", "../x", "a/b", ".hidden"] {
        assert!(refused("v1beta1", endpoint, GPU).contains("beside kubelet.sock"), "{endpoint}");
    }
}

#[test]
fn whatever_bytes_plugins_and_the_store_hold() {
    let answer = api::ContainerAllocateResponse {
        envs: [("A".to_string(), "b".to_string())].into(),
        devices: vec![api::DeviceSpec { container_path: "/dev/x".into(), ..Default::default() }],
        ..Default::default()
    };
    let samples = [
        register::frame(&answer).to_vec(),
        answer.encode_to_vec(),
        br#"{"claims":[{"container":"c","resource":"a/b","ids":["1"],"answer":"CgYKAUESAWI="}]}"#.to_vec(),
    ];
    let mut seed = 7_u64;
    for n in 0..6000 {
        let mut bytes = samples[n % samples.len()].clone();
        for _ in 0..n % 5 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 33) as usize % bytes.len();
            bytes[at] = (seed >> 17) as u8;
        }
        bytes.truncate(bytes.len() - n % 3);
        fuzz_device_plugin(&bytes);
    }
}

/// A device plugin that does as it is told, on a socket in the folder of a kubelet.
pub struct Scripted {
    pub devices: watch::Sender<Vec<(String, bool)>>,
    /// `Allocate` and `PreStartContainer` with their device ids.
    pub calls: Arc<Mutex<Vec<String>>>,
    /// What `Allocate` answers; `None`: an error.
    pub answer: Arc<Mutex<Option<api::ContainerAllocateResponse>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Scripted {
    /// Serves and registers.
    pub async fn start(dir: &Path, endpoint: &str, devices: &[(&str, bool)]) -> Scripted {
        let devices = devices.iter().map(|(id, healthy)| (id.to_string(), *healthy)).collect();
        let devices = watch::Sender::new(devices);
        let (calls, answer) = (Arc::default(), Arc::new(Mutex::new(Some(Default::default()))));
        let listener = UnixListener::bind(dir.join(endpoint)).unwrap();
        let script =
            Script { devices: devices.subscribe(), calls: Arc::clone(&calls), answer: Arc::clone(&answer) };
        let server = tokio::spawn(async move {
            let mut connections = FuturesUnordered::new();
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => connections.push(script.clone().connection(stream)),
                    Some(()) = connections.next(), if !connections.is_empty() => {}
                }
            }
        });
        let plugin = Scripted { devices, calls, answer, server };
        // The socket's file is there a moment before somebody listens.
        let begun = std::time::Instant::now();
        while let Err(error) = plugin.register(dir, endpoint, GPU).await {
            let soon = error.starts_with("Unavailable") && begun.elapsed() < Duration::from_secs(20);
            assert!(soon, "cannot register: {error}");
            tokio::task::yield_now().await;
        }
        plugin
    }

    pub async fn register(&self, dir: &Path, endpoint: &str, resource: &str) -> Result<(), String> {
        let request = api::RegisterRequest {
            version: api::VERSION.into(),
            endpoint: endpoint.into(),
            resource_name: resource.into(),
            options: None,
        };
        let mut grpc = Grpc::new(channel(&dir.join("kubelet.sock").display().to_string()));
        grpc.ready().await.map_err(|error| error.to_string())?;
        let codec: ProstCodec<api::RegisterRequest, api::Empty> = ProstCodec::default();
        let path = http::uri::PathAndQuery::from_static("/v1beta1.Registration/Register");
        let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
        answer.map(drop).map_err(|status| format!("{:?}: {}", status.code(), status.message()))
    }
}

#[derive(Clone)]
struct Script {
    devices: watch::Receiver<Vec<(String, bool)>>,
    calls: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<Option<api::ContainerAllocateResponse>>>,
}

impl Script {
    async fn connection(self, stream: tokio::net::UnixStream) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let mut calls = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => calls.push(self.clone().call(request, respond)),
                    _ => return,
                },
                Some(()) = calls.next(), if !calls.is_empty() => {}
            }
        }
    }

    async fn call(mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let method = request.uri().path().rsplit('/').next().unwrap().to_string();
        let mut body = BytesMut::new();
        let mut stream = request.into_body();
        while let Some(Ok(chunk)) = stream.data().await {
            body.extend_from_slice(&chunk);
        }
        let message = register::unframe(&body).unwrap();
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut out = respond.send_response(head, false).unwrap();
        let note = |ids: &[String]| self.calls.lock().unwrap().push(format!("{method} {}", ids.join(",")));
        match method.as_str() {
            "GetDevicePluginOptions" => {
                let options =
                    api::Options { pre_start_required: true, get_preferred_allocation_available: true };
                finish(out, Some(register::frame(&options)));
            }
            "ListAndWatch" => loop {
                let devices = self.devices.borrow_and_update().clone();
                let device = |(id, healthy): (String, bool)| api::Device {
                    id,
                    health: if healthy { api::HEALTHY.into() } else { "Unhealthy".into() },
                };
                let list = api::ListAndWatchResponse { devices: devices.into_iter().map(device).collect() };
                if out.send_data(register::frame(&list), false).is_err()
                    || self.devices.changed().await.is_err()
                {
                    return;
                }
            },
            "GetPreferredAllocation" => {
                let request = api::PreferredRequest::decode(message).unwrap();
                let container = request.containers.into_iter().next().unwrap();
                let mut ids = container.available;
                // The last ones are the better ones.
                ids.sort();
                ids.reverse();
                ids.truncate(container.size as usize);
                let answer = api::PreferredResponse { containers: vec![api::DeviceIds { ids }] };
                finish(out, Some(register::frame(&answer)));
            }
            "Allocate" => {
                let request = api::AllocateRequest::decode(message).unwrap();
                note(&request.containers[0].ids);
                let answer = self.answer.lock().unwrap().clone();
                let answer =
                    answer.map(|answer| register::frame(&api::AllocateResponse { containers: vec![answer] }));
                finish(out, answer);
            }
            "PreStartContainer" => {
                note(&api::DeviceIds::decode(message).unwrap().ids);
                finish(out, Some(register::frame(&api::Empty {})));
            }
            other => panic!("{other} is not a method of a device plugin"),
        }
    }
}

fn finish(mut out: SendStream<Bytes>, answer: Option<Bytes>) {
    let mut trailers = HeaderMap::new();
    match answer {
        Some(answer) => {
            let _ = out.send_data(answer, false);
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
        }
        None => {
            trailers.insert("grpc-status", HeaderValue::from_static("2"));
            trailers.insert("grpc-message", HeaderValue::from_static("the device is on fire"));
        }
    }
    let _ = out.send_trailers(trailers);
}

async fn next(news: &mut mpsc::Receiver<News>) -> News {
    tokio::time::timeout(Duration::from_secs(20), news.recv())
        .await
        .expect("news in time")
        .expect("a plugin host")
}

#[tokio::test]
async fn a_plugin_registers_lists_is_asked_ends_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let plugins = Arc::new(Plugins::new(dir.path()));
    let (tx, mut news) = mpsc::channel(16);
    let serving = tokio::spawn(plugins.clone().serve(tx));
    let folder = dir.path().join("device-plugins");
    let begun = std::time::Instant::now();
    while !folder.join("kubelet.sock").exists() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::task::yield_now().await;
    }
    let plugin = Scripted::start(&folder, "gpu.sock", &[("a", true), ("b", false)]).await;
    let refused = plugin.register(&folder, "gpu.sock", "cpu").await.unwrap_err();
    assert_eq!(refused, "Unknown: the ResourceName \"cpu\" is invalid");
    assert_eq!(next(&mut news).await, registered(1));
    assert_eq!(next(&mut news).await, listed(1, &[("a", true), ("b", false)]));
    plugin.devices.send_replace(vec![("a".into(), true), ("b".into(), true)]);
    assert_eq!(next(&mut news).await, listed(1, &[("a", true), ("b", true)]));

    let claims = [Claim { container: "m".into(), resource: GPU.into(), ids: vec!["a".into()] }];
    assert_eq!(plugins.prefer(&claims, &[vec!["b".into()]]).await, [(0, vec!["b".to_string()])]);
    *plugin.answer.lock().unwrap() = Some(api::ContainerAllocateResponse {
        envs: [("GPU".to_string(), "a".to_string())].into(),
        mounts: vec![api::Mount { container_path: "/m".into(), host_path: "/tmp".into(), read_only: true }],
        devices: vec![api::DeviceSpec {
            container_path: "/dev/gpu".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }],
        annotations: [("k".to_string(), "v".to_string())].into(),
        cdi_devices: vec![api::CdiDevice { name: "example.com/gpu=a".into() }],
    });
    let answers = plugins.allocate(&claims).await.unwrap();
    plugins.pre_start(GPU, &["a".to_string()]).await.unwrap();
    assert_eq!(*plugin.calls.lock().unwrap(), ["Allocate a", "PreStartContainer a"]);

    let bench = Bench::new();
    let meta = &*bench.handles.meta;
    store(meta, "p1", &claims, &answers).await.unwrap();
    remember(meta, vec!["example.com/old".into()]).await;
    let (held, known) = load(meta);
    assert_eq!((&held["p1"][..], &known[..]), (&claims[..], &["example.com/old".to_string()][..]));
    let (found, devices) = of_container(meta, "p1", "m");
    assert_eq!(found, claims);
    assert_eq!(devices.env, [("GPU".to_string(), "a".to_string())]);
    assert_eq!((devices.devices[0].host_path.as_str(), devices.mounts[0].readonly), ("/dev/null", true));
    assert_eq!((devices.annotations["k"].as_str(), devices.cdi[0].name.as_str()), ("v", "example.com/gpu=a"));
    assert!(of_container(meta, "p1", "other").0.is_empty() && of_container(meta, "p2", "m").0.is_empty());

    *plugin.answer.lock().unwrap() = None;
    assert_eq!(plugins.allocate(&claims).await.unwrap_err(), "rpc error: the device is on fire");
    drop(plugin);
    assert_eq!(next(&mut news).await, News::Lost { resource: GPU.into(), generation: 1 });
    let error = plugins.allocate(&claims).await.unwrap_err();
    assert_eq!(error, "cannot allocate unregistered device example.com/gpu");
    std::fs::remove_file(folder.join("gpu.sock")).unwrap();
    let _again = Scripted::start(&folder, "gpu.sock", &[("a", true)]).await;
    assert_eq!(next(&mut news).await, registered(2));
    assert_eq!(next(&mut news).await, listed(2, &[("a", true)]));
    serving.abort();
}
