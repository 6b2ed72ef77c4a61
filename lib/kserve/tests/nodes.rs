//! What the authorizer is asked, and what a node is asked, for subresources that nodes answer.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use kapi::ApiError;
use kserve::{
    Attributes, Authorize, Body, Decision, Identity, NodeAsk, NodeCalls, NodeUsage, Options, Server, Used,
};
use rt::BoxFuture;
use store::Store;

#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Authorize for Asked {
    fn authorize(&self, of: &Attributes<'_>) -> Decision {
        let who = format!(
            "{} {}/{}/{} {}/{}",
            of.verb, of.group, of.resource, of.subresource, of.namespace, of.name
        );
        self.0.lock().unwrap().push(who);
        if of.identity.user == "reader" && of.verb != "get" && of.verb != "list" {
            return Decision::Deny("only get and list".into());
        }
        Decision::Allow
    }
}

/// Says what it was asked.
struct Echo;

impl NodeCalls for Echo {
    fn call<'a>(
        &'a self,
        ask: NodeAsk,
        _: &'a Parts,
        _: &'a Bytes,
    ) -> BoxFuture<'a, Result<Response<Body>, ApiError>> {
        let body = Full::new(Bytes::from(format!("{} {}", ask.node, ask.path)));
        Box::pin(async move { Ok(Response::new(body.map_err(|never| match never {}).boxed_unsync())) })
    }

    fn usage<'a>(&'a self, nodes: Vec<String>) -> BoxFuture<'a, Vec<(String, Arc<NodeUsage>)>> {
        let used = Used { cpu_nanocores: 1, memory_bytes: 2048 };
        let usage = Arc::new(NodeUsage { time_s: 0, window_s: 15, used, pods: Vec::new() });
        Box::pin(async move { nodes.into_iter().map(|node| (node, usage.clone())).collect() })
    }
}

struct Fixture {
    server: Server<Store>,
    asked: Asked,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), store::Options::default()).unwrap();
        let asked = Asked::default();
        let options = Options {
            authorizer: Box::new(asked.clone()),
            nodes: Some(Arc::new(Echo)),
            now: || 1_700_000_000,
            ..Options::default()
        };
        let f = Fixture { server: Server::new(store, options), asked, _dir: dir };
        for (path, body) in [
            ("/api/v1/namespaces", r#"{"metadata":{"name":"a"}}"#),
            ("/api/v1/nodes", r#"{"metadata":{"name":"pi","labels":{"site":"roof"}}}"#),
            (
                "/api/v1/namespaces/a/pods",
                r#"{"metadata":{"name":"web"},"spec":{"nodeName":"pi","containers":[{"name":"c","image":"i"}]}}"#,
            ),
        ] {
            assert_eq!(f.send("admin", "POST", path, body, false).await.0, 201, "{path}");
        }
        f
    }

    async fn send(&self, user: &str, method: &str, path: &str, body: &str, upgrade: bool) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path);
        if upgrade {
            request = request.header("upgrade", "websocket");
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        let response = self.server.serve(request, &Identity::new(user, &["system:authenticated"])).await;
        let code = response.status().as_u16();
        (code, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }
}

#[tokio::test]
async fn each_is_authorised_as_what_it_is() {
    let f = Fixture::new().await;
    let pod = "/api/v1/namespaces/a/pods/web";
    for (method, path, upgrade, asked, answer) in [
        (
            "GET",
            format!("{pod}/log?tailLines=1"),
            false,
            "get /pods/log a/web",
            "pi /containerLogs/a/web/c?tailLines=1",
        ),
        (
            "GET",
            format!("{pod}/exec?command=ls&stdout=1"),
            true,
            "create /pods/exec a/web",
            "pi /exec/a/web/c?command=ls&output=1",
        ),
        (
            "POST",
            format!("{pod}/attach?stdout=1"),
            true,
            "create /pods/attach a/web",
            "pi /attach/a/web/c?output=1",
        ),
        (
            "GET",
            format!("{pod}/portforward?ports=80"),
            true,
            "create /pods/portforward a/web",
            "pi /portForward/a/web?port=80",
        ),
        ("GET", "/api/v1/nodes/pi/proxy/metrics".into(), false, "get /nodes/proxy /pi", "pi /metrics"),
        (
            "GET",
            "/api/v1/nodes/pi/proxy/exec/a/web/c?command=ls".into(),
            true,
            "create /nodes/proxy /pi",
            "pi /exec/a/web/c?command=ls",
        ),
        ("DELETE", "/api/v1/nodes/pi/proxy".into(), false, "delete /nodes/proxy /pi", "pi /"),
    ] {
        f.asked.0.lock().unwrap().clear();
        let (code, body) = f.send("admin", method, &path, "", upgrade).await;
        assert_eq!((code, body.as_str()), (200, answer), "{path}");
        assert_eq!(*f.asked.0.lock().unwrap(), [asked], "{path}");
        let reads = asked.starts_with("get");
        let (code, _) = f.send("reader", method, &path, "", upgrade).await;
        assert_eq!(code, if reads { 200 } else { 403 }, "who may only read: {method} {path}");
    }
    for (method, path) in
        [("PUT", format!("{pod}/exec")), ("POST", format!("{pod}/log")), ("PATCH", format!("{pod}/log"))]
    {
        assert_eq!(f.send("admin", method, &path, "", false).await.0, 405, "{method} {path}");
    }
}

#[tokio::test]
async fn usage_is_read_like_an_object_and_never_written() {
    let f = Fixture::new().await;
    let base = "/apis/metrics.k8s.io/v1beta1";
    f.asked.0.lock().unwrap().clear();
    let (code, body) =
        f.send("reader", "GET", &format!("{base}/nodes?labelSelector=site%3Droof"), "", false).await;
    assert_eq!(code, 200);
    let usage = r#"{"labels":{"site":"roof"},"name":"pi"},"timestamp":"1970-01-01T00:00:00Z","usage":{"cpu":"1n","memory":"2Ki"},"window":"15s"}"#;
    assert!(body.contains(usage.split_once(',').unwrap().1), "{body}");
    assert_eq!(*f.asked.0.lock().unwrap(), ["list metrics.k8s.io/nodes/ /"]);
    let (_, none) =
        f.send("reader", "GET", &format!("{base}/nodes?labelSelector=site%3Dcellar"), "", false).await;
    assert!(none.contains("\"items\":[]"), "{none}");
    for (method, path, code) in [
        ("GET", "/namespaces/a/pods/web", 404),
        ("GET", "/namespaces/a/pods/none", 404),
        ("GET", "/nodes/pi", 200),
        ("GET", "/nodes?watch=true", 405),
        ("POST", "/nodes", 405),
        ("DELETE", "/nodes/pi", 405),
        ("GET", "/services", 404),
    ] {
        let (got, body) = f.send("admin", method, &format!("{base}{path}"), "", false).await;
        assert_eq!(got, code, "{method} {path}: {body}");
    }
    let (_, groups) = f.send("admin", "GET", "/apis", "", false).await;
    assert!(groups.contains("metrics.k8s.io/v1beta1"), "{groups}");
}
