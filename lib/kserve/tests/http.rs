//! What is on the wire: codes, reasons, headers and bodies, request by request, over a real store.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use kserve::{Identity, Options, Server};
use serde_json::{Value, json};
use store::Store;

struct Fixture {
    server: Server<Store>,
    _dir: tempfile::TempDir,
}

const MERGE: &str = "application/merge-patch+json";
const NAMESPACE: &str = "/api/v1/namespaces";
const MAPS: &str = "/api/v1/namespaces/a/configmaps";
const PODS: &str = "/api/v1/namespaces/a/pods";

impl Fixture {
    async fn new() -> Fixture {
        Fixture::with(store::Options::default()).await
    }

    async fn with(options: store::Options) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), options).unwrap();
        let options = Options { now: || 1_700_000_000, ..Options::default() };
        let f = Fixture { server: Server::new(store, options), _dir: dir };
        assert_eq!(f.send("POST", NAMESPACE, r#"{"metadata":{"name":"a"}}"#).await.0, 201);
        f
    }

    async fn full(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> (u16, HeaderMap, Bytes) {
        let mut request = Request::builder().method(method).uri(path.replace(' ', "%20"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(http_body_util::Full::new(body)).unwrap();
        let response = self.server.serve(request, &Identity::internal("test")).await;
        let (parts, body) = response.into_parts();
        (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let media = if method == "PATCH" { MERGE } else { "application/json" };
        let (code, _, body) = self
            .full(method, path, &[("content-type", media)], Bytes::copy_from_slice(body.as_bytes()))
            .await;
        (code, serde_json::from_slice(&body).unwrap_or_default())
    }
}

#[tokio::test]
async fn refusals_say_which_rule_was_broken() {
    let f = Fixture::new().await;
    let map = r#"{"metadata":{"name":"m"}}"#;
    assert_eq!(f.send("POST", MAPS, map).await.0, 201);
    for (method, path, body, code, reason, words) in [
        ("GET", "/api/v1/namespaces/a/configmaps/x", "", 404, "NotFound", "configmaps \"x\" not found"),
        (
            "GET",
            "/apis/devices.kubeedge.io/v1beta1/namespaces/a/devices/x",
            "",
            404,
            "NotFound",
            "devices.devices.kubeedge.io \"x\" not found",
        ),
        ("GET", "/api/v1/unicorns", "", 404, "NotFound", "could not find the requested resource"),
        ("GET", "/api/v1/configmaps/m", "", 404, "NotFound", "could not find the requested resource"),
        ("POST", "/api/v1/configmaps", map, 405, "MethodNotAllowed", "does not allow this method"),
        (
            "POST",
            "/api/v1/namespaces/a/configmaps/m",
            map,
            405,
            "MethodNotAllowed",
            "does not allow this method",
        ),
        ("POST", MAPS, map, 409, "AlreadyExists", "configmaps \"m\" already exists"),
        ("POST", MAPS, "{", 400, "BadRequest", "the body is not JSON"),
        ("POST", MAPS, r#"{"kind":"Pod","apiVersion":"v1"}"#, 400, "BadRequest", "another kind"),
        (
            "POST",
            MAPS,
            r#"{"kind":"ConfigMap","apiVersion":"v2"}"#,
            400,
            "BadRequest",
            "does not match the expected API version",
        ),
        (
            "POST",
            MAPS,
            r#"{"metadata":{"name":"x","namespace":"b"}}"#,
            400,
            "BadRequest",
            "does not match the namespace",
        ),
        (
            "POST",
            MAPS,
            r#"{"metadata":{"name":"x","resourceVersion":"1"}}"#,
            400,
            "BadRequest",
            "should not be set",
        ),
        ("POST", MAPS, "{}", 422, "Invalid", "metadata.name: Required value"),
        ("POST", "/api/v1/namespaces/gone/configmaps", map, 404, "NotFound", "namespaces \"gone\" not found"),
        (
            "PUT",
            "/api/v1/namespaces/a/configmaps/m",
            r#"{"metadata":{"name":"n"}}"#,
            400,
            "BadRequest",
            "does not match the name on the URL",
        ),
        (
            "PUT",
            "/api/v1/namespaces/a/configmaps/m",
            r#"{"metadata":{"resourceVersion":"1"}}"#,
            409,
            "Conflict",
            "please apply your changes to the latest version",
        ),
        (
            "PUT",
            "/api/v1/namespaces/a/configmaps/m",
            r#"{"metadata":{"uid":"other"}}"#,
            409,
            "Conflict",
            "Precondition failed: UID",
        ),
        ("PATCH", "/api/v1/namespaces/a/configmaps/x", "{}", 404, "NotFound", "not found"),
        (
            "PATCH",
            "/api/v1/namespaces/a/configmaps/m",
            r#"{"data":{"a":1}}"#,
            400,
            "BadRequest",
            "data.a of type string",
        ),
        (
            "PATCH",
            "/api/v1/namespaces/a/configmaps/m?fieldValidation=Strict",
            r#"{"dat":{"a":1}}"#,
            400,
            "BadRequest",
            "unknown field \"dat\"",
        ),
        (
            "PATCH",
            "/api/v1/namespaces/a/configmaps/m?fieldValidation=Loose",
            "{}",
            422,
            "Invalid",
            "fieldValidation",
        ),
        ("DELETE", "/api/v1/namespaces/a/configmaps/m?dryRun=Some", "", 422, "Invalid", "dryRun"),
        (
            "DELETE",
            "/api/v1/namespaces/a/configmaps/m",
            r#"{"preconditions":{"uid":"x"}}"#,
            409,
            "Conflict",
            "Precondition failed",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/a/configmaps/m",
            r#"{"propagationPolicy":"Upwards"}"#,
            422,
            "Invalid",
            "propagationPolicy",
        ),
        ("GET", "/api/v1/configmaps?labelSelector=a in", "", 400, "BadRequest", "label selector"),
        (
            "GET",
            "/api/v1/pods?fieldSelector=spec.x=y",
            "",
            400,
            "BadRequest",
            "field label not supported: spec.x",
        ),
        ("GET", "/api/v1/pods?resourceVersion=x", "", 400, "BadRequest", "is not a number"),
        ("GET", "/api/v1/pods?resourceVersion=99999999", "", 504, "Timeout", "Too large resource version"),
        (
            "GET",
            "/api/v1/pods?resourceVersionMatch=Exact",
            "",
            422,
            "Invalid",
            "forbidden unless resourceVersion",
        ),
        (
            "GET",
            "/api/v1/pods?resourceVersionMatch=Exact&resourceVersion=0",
            "",
            422,
            "Invalid",
            "forbidden for resourceVersion",
        ),
        ("GET", "/api/v1/pods?sendInitialEvents=true", "", 422, "Invalid", "forbidden for list"),
        (
            "GET",
            "/api/v1/pods?watch=true&sendInitialEvents=true",
            "",
            422,
            "Invalid",
            "requires setting resourceVersionMatch",
        ),
        (
            "GET",
            "/api/v1/pods?watch=true&resourceVersionMatch=NotOlderThan",
            "",
            422,
            "Invalid",
            "unless sendInitialEvents",
        ),
        (
            "GET",
            "/api/v1/pods?watch=true&resourceVersion=99999999",
            "",
            410,
            "Expired",
            "too old resource version",
        ),
        ("GET", "/api/v1/pods?continue=zz", "", 400, "BadRequest", "continue key is not valid"),
        ("GET", "/api/v1/namespaces/a/pods/p/log", "", 404, "NotFound", "could not find"),
    ] {
        let (got, status) = f.send(method, path, body).await;
        let message = status["message"].as_str().unwrap_or_default();
        assert_eq!(
            (got, status["reason"].as_str().unwrap_or_default()),
            (code, reason),
            "{method} {path} {body}: {status}"
        );
        assert!(message.contains(words), "{method} {path}: {message}");
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["code"], code);
    }
}

#[tokio::test]
async fn media_types() {
    let f = Fixture::new().await;
    let map = Bytes::from_static(br#"{"metadata":{"name":"m"}}"#);
    for (method, path, header, value, code) in [
        ("POST", MAPS, "content-type", "application/yaml", 415),
        ("POST", MAPS, "content-type", "application/cbor", 415),
        ("POST", MAPS, "content-type", "application/json; charset=utf-8", 201),
        ("PATCH", "/api/v1/namespaces/a/configmaps/m", "content-type", "application/json", 415),
        ("PATCH", "/api/v1/namespaces/a/configmaps/m", "content-type", "application/apply-patch+yaml", 415),
        (
            "PATCH",
            "/api/v1/namespaces/a/configmaps/m",
            "content-type",
            "application/strategic-merge-patch+json",
            200,
        ),
        ("GET", MAPS, "accept", "application/vnd.kubernetes.protobuf", 406),
        ("GET", MAPS, "accept", "application/vnd.kubernetes.protobuf, */*", 200),
        ("GET", MAPS, "accept", "application/json;as=Unknown;v=v1;g=meta.k8s.io", 406),
    ] {
        let (got, _, body) = f.full(method, path, &[(header, value)], map.clone()).await;
        assert_eq!(got, code, "{method} {value}: {body:?}");
    }
    let large = Bytes::from(vec![b' '; kserve::limits::REQUEST_BYTES_MAX + 1]);
    assert_eq!(f.full("POST", MAPS, &[], large).await.0, 413);
}

#[tokio::test]
async fn tables_and_metadata_only() {
    let f = Fixture::new().await;
    f.send("POST", MAPS, r#"{"metadata":{"name":"m"},"data":{"k":"v"}}"#).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let (_, _, body) = f.full("GET", MAPS, &[("accept", table)], Bytes::new()).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["kind"], "Table");
    assert_eq!(body["columnDefinitions"][1]["name"], "Data");
    assert_eq!(body["rows"][0]["cells"], json!(["m", 1, "0s"]));
    assert_eq!(body["rows"][0]["object"]["metadata"]["name"], "m");
    assert!(body["rows"][0]["object"].get("data").is_none());
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, _, body) = f.full("GET", MAPS, &[("accept", partial)], Bytes::new()).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["items"][0]["kind"], "PartialObjectMetadata");
    let (_, _, body) =
        f.full("GET", &format!("{MAPS}?watch=1&timeoutSeconds=1"), &[("accept", table)], Bytes::new()).await;
    let first: Value = serde_json::from_slice(body.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!((&first["type"], &first["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
}

#[tokio::test]
async fn discovery_in_three_forms_and_documents_with_tags() {
    let f = Fixture::new().await;
    let aggregated = |version: &str| {
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
    };
    for version in ["v2", "v2beta1"] {
        let accept = format!("{},application/json", aggregated(version));
        let (_, headers, body) = f.full("GET", "/apis", &[("accept", &accept)], Bytes::new()).await;
        assert_eq!(headers["content-type"], aggregated(version));
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["apiVersion"], format!("apidiscovery.k8s.io/{version}"));
        let tag = headers["etag"].to_str().unwrap().to_string();
        let known = [("accept", accept.as_str()), ("if-none-match", tag.as_str())];
        assert_eq!(f.full("GET", "/apis", &known, Bytes::new()).await.0, 304);
    }
    let (_, plain) = f.send("GET", "/apis", "").await;
    assert_eq!(plain["kind"], "APIGroupList");
    for path in
        ["/api", "/api/v1", "/apis/devices.kubeedge.io", "/apis/devices.kubeedge.io/v1beta1", "/version", "/"]
    {
        assert_eq!(f.send("GET", path, "").await.0, 200, "{path}");
    }
    let (_, index) = f.send("GET", "/openapi/v3", "").await;
    for (_, entry) in index["paths"].as_object().unwrap() {
        let (code, document) = f.send("GET", entry["serverRelativeURL"].as_str().unwrap(), "").await;
        assert_eq!(code, 200);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        // Every reference leads somewhere.
        for reference in document.to_string().split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
    }
    assert_eq!(f.send("GET", "/openapi/v3/apis/none/v1", "").await.0, 404);
    for path in ["/healthz", "/livez?verbose", "/readyz/ping"] {
        assert_eq!(f.full("GET", path, &[], Bytes::new()).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn warnings_dry_runs_and_generations() {
    let f = Fixture::new().await;
    let body = Bytes::from_static(br#"{"metadata":{"generateName":"m-"},"dta":{},"data":{"a":"1","a":"2"}}"#);
    let (code, headers, made) = f.full("POST", MAPS, &[], body.clone()).await;
    let warnings: Vec<&str> =
        headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(code, 201);
    assert_eq!(warnings, [r#"299 - "duplicate field \"data.a\"""#, r#"299 - "unknown field \"dta\"""#]);
    let made: Value = serde_json::from_slice(&made).unwrap();
    assert_eq!(made["data"], json!({"a": "2"}));
    assert_eq!(made["metadata"]["name"].as_str().unwrap().len(), 7);
    assert_eq!(made["metadata"]["creationTimestamp"], "2023-11-14T22:13:20Z");
    let (code, _, _) = f.full("POST", &format!("{MAPS}?fieldValidation=Ignore&dryRun=All"), &[], body).await;
    assert_eq!(code, 201);
    assert_eq!(f.send("GET", MAPS, "").await.1["items"].as_array().unwrap().len(), 1);

    // A device's status can be written both ways, a node's only by its subresource.
    let device = r#"{"metadata":{"name":"d"},"spec":{"nodeName":"n"},"status":{"state":"x"}}"#;
    let devices = "/apis/devices.kubeedge.io/v1beta1/namespaces/a/devices";
    let (_, made) = f.send("POST", devices, device).await;
    assert_eq!(made["status"]["state"], "x");
    let one = format!("{devices}/d");
    let change = r#"{"metadata":{"labels":{"a":"b"}},"status":{"state":"y"},"spec":{"nodeName":"z"}}"#;
    let (_, status) = f.send("PATCH", &format!("{one}/status"), change).await;
    assert_eq!((&status["status"]["state"], &status["metadata"]["labels"]), (&json!("y"), &Value::Null));
    assert_eq!((&status["metadata"]["generation"], &status["spec"]["nodeName"]), (&json!(1), &json!("n")));
    let (_, changed) = f.send("PATCH", &one, r#"{"spec":{"nodeName":"m"}}"#).await;
    assert_eq!((&changed["metadata"]["generation"], &changed["status"]["state"]), (&json!(2), &json!("y")));
    f.send("POST", "/api/v1/nodes", r#"{"metadata":{"name":"n"},"status":{"phase":"Running"}}"#).await;
    let (_, node) = f.send("PATCH", "/api/v1/nodes/n", r#"{"status":{"phase":"Terminated"}}"#).await;
    assert_eq!(node["status"]["phase"], "Running");
    let (_, node) = f.send("PATCH", "/api/v1/nodes/n/status", r#"{"status":{"phase":"Terminated"}}"#).await;
    assert_eq!(node["status"]["phase"], "Terminated");
}

#[tokio::test]
async fn binding_and_eviction() {
    let f = Fixture::new().await;
    let pod = r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#;
    assert_eq!(f.send("POST", PODS, pod).await.0, 201);
    let bind = r#"{"apiVersion":"v1","kind":"Binding","metadata":{"name":"p"},"target":{"kind":"Node","name":"pi"}}"#;
    assert_eq!(f.send("POST", &format!("{PODS}/p/binding"), bind).await.0, 201);
    let (code, again) = f.send("POST", &format!("{PODS}/p/binding"), bind).await;
    assert_eq!(code, 409, "{again}");
    let (_, bound) = f.send("GET", &format!("{PODS}/p"), "").await;
    assert_eq!(bound["spec"]["nodeName"], "pi");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let evict = r#"{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"p"},"deleteOptions":{"gracePeriodSeconds":7}}"#;
    assert_eq!(f.send("POST", &format!("{PODS}/p/eviction"), evict).await.0, 201);
    let (_, marked) = f.send("GET", &format!("{PODS}/p"), "").await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 7);
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2023-11-14T22:13:27Z");
    // A longer period later changes nothing, none ends it.
    let (_, same) = f.send("DELETE", &format!("{PODS}/p?gracePeriodSeconds=60"), "").await;
    assert_eq!(same["metadata"]["resourceVersion"], marked["metadata"]["resourceVersion"]);
    let (code, last) = f.send("DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), "").await;
    assert_eq!((code, &last["status"]), (200, &json!("Success")));
}

#[tokio::test]
async fn an_expired_page_offers_the_rest() {
    let f = Fixture::new().await;
    for name in ["m1", "m2", "m3"] {
        f.send("POST", MAPS, &format!(r#"{{"metadata":{{"name":"{name}"}}}}"#)).await;
    }
    let (_, first) = f.send("GET", &format!("{MAPS}?limit=1"), "").await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    for _ in 0..kserve::limits::PAGED_LISTS_MAX {
        f.send("GET", &format!("{MAPS}?limit=1"), "").await;
    }
    let (code, status) = f.send("GET", &format!("{MAPS}?limit=1&continue={token}"), "").await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
    let token = status["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = f.send("GET", &format!("{MAPS}?limit=5&continue={token}"), "").await;
    let names: Vec<&Value> =
        rest["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["m2", "m3"]);
}

#[tokio::test]
async fn a_watch_that_is_too_slow_ends_with_410_and_skips_nothing_in_silence() {
    let f = Fixture::with(store::Options { history_len_max: 4096, ..store::Options::default() }).await;
    let (_, list) = f.send("GET", MAPS, "").await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let request = Request::get(format!("{MAPS}?watch=true&resourceVersion={from}"));
    let request = request.body(http_body_util::Full::new(Bytes::new())).unwrap();
    let watch = f.server.serve(request, &Identity::internal("test")).await;
    for index in 0..100 {
        f.send(
            "POST",
            MAPS,
            &format!(r#"{{"metadata":{{"name":"m{index}"}},"data":{{"x":"{}"}}}}"#, "y".repeat(200)),
        )
        .await;
    }
    let body = watch.into_body().collect().await.unwrap().to_bytes();
    let lines: Vec<Value> = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["type"], &last["object"]["code"], &last["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    // The same when the history is asked for later.
    let (code, status) = f.send("GET", &format!("{MAPS}?watch=true&resourceVersion={from}"), "").await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
}

#[tokio::test]
async fn bookmarks_say_how_far_a_quiet_watch_is() {
    let f = Fixture::new().await;
    f.send("POST", MAPS, r#"{"metadata":{"name":"m"}}"#).await;
    let (_, list) = f.send("GET", PODS, "").await;
    let now = &list["metadata"]["resourceVersion"];
    let watch = format!("{PODS}?watch=true&resourceVersion=1&allowWatchBookmarks=true&timeoutSeconds=1");
    let (_, bookmark) = f.send("GET", &watch, "").await;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "Pod");
    assert_eq!(&bookmark["object"]["metadata"]["resourceVersion"], now, "changes of other kinds count too");
}

#[tokio::test]
async fn acting_as_somebody_else_takes_rights_away() {
    let f = Fixture::new().await;
    for (headers, code) in [
        (vec![("impersonate-user", "bob")], 403),
        (vec![("impersonate-user", "bob"), ("impersonate-group", "system:masters")], 200),
        (vec![("impersonate-group", "system:masters")], 400),
    ] {
        assert_eq!(f.full("GET", PODS, &headers, Bytes::new()).await.0, code, "{headers:?}");
    }
    let request =
        Request::get(PODS).header("impersonate-user", "admin").body(http_body_util::Full::new(Bytes::new()));
    let response = f.server.serve(request.unwrap(), &Identity::new("node", &["system:nodes"])).await;
    assert_eq!(response.status().as_u16(), 403);
}
