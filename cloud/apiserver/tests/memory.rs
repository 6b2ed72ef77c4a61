//! Resident memory of the API with ten thousand small objects, and while all of them are listed. Alone in its process.
#![allow(clippy::unwrap_used)]

use apiserver::{Api, Options};
use http_body_util::BodyExt;
use tower::Service;

const OBJECTS: usize = 10_000;
/// What ten thousand small pods may add. Measured: 17.4 MB for 7.9 MB of JSON, the watch history included.
const GROWTH_KB_MAX: usize = 24_000;

fn rss_kb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn call(api: &Api, method: &str, path: &str, body: String) -> (u16, usize) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(bytes::Bytes::from(body)))
        .unwrap();
    let response = api.client().call(request).await.unwrap();
    let code = response.status().as_u16();
    let mut body = response.into_body();
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        len += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    (code, len)
}

#[tokio::test]
async fn ten_thousand_objects() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::open(dir.path(), Options::default()).await.unwrap();
    let before = rss_kb();
    let mut waiting = Vec::new();
    for index in 0..OBJECTS {
        // Without the token's volume: what is measured is the store's cost of an object of a known size.
        let pod = format!(
            r#"{{"metadata":{{"name":"pod-{index}","labels":{{"app":"web"}}}},"spec":{{"automountServiceAccountToken":false,"nodeName":"pi-{}","containers":[{{"name":"c","image":"docker.io/kinglet/hello:1","ports":[{{"containerPort":8080}}]}}]}}}}"#,
            index % 100
        );
        let api = api.clone();
        waiting.push(tokio::spawn(async move {
            call(&api, "POST", "/api/v1/namespaces/default/pods", pod).await
        }));
        if waiting.len() == 100 {
            for task in waiting.drain(..) {
                assert_eq!(task.await.unwrap().0, 201);
            }
        }
    }
    let stored = rss_kb();
    let (code, len) = call(&api, "GET", "/api/v1/pods", String::new()).await;
    assert_eq!(code, 200);
    let listed = rss_kb();
    println!(
        "before {before} kB, with {OBJECTS} objects {stored} kB, after a list of {len} bytes {listed} kB"
    );
    assert!(stored - before < GROWTH_KB_MAX, "{} kB more", stored - before);
    assert!(listed - stored < 10_000, "a list is streamed, not built: {} kB more", listed - stored);
}
