use std::time::Duration;

use serde_json::{Value, json};
use wire::{Message, Resource};

use super::*;
use crate::contract::{BoxFuture, testing::Bench};

/// Has every image but those that are called missing.
#[derive(Default)]
struct Registry(Mutex<Vec<(String, Option<Resource>)>>);

impl ImagePuller for Registry {
    fn pull<'a>(&'a self, image: &'a str, secret: Option<&'a Resource>) -> BoxFuture<'a, Result<(), String>> {
        self.0.lock().unwrap().push((image.into(), secret.cloned()));
        let found = !image.contains("missing");
        Box::pin(async move { if found { Ok(()) } else { Err("not found".into()) } })
    }
}

fn message(resource: &str, operation: &str, content: Value) -> Message {
    Message::new(1, "taskmanager", "taskmanager", operation, resource).with_content(&content)
}

async fn told(message: &Message, answers: usize) -> (Vec<Message>, Vec<(String, Option<Resource>)>) {
    let bench = Bench::new();
    let registry = Arc::new(Registry::default());
    let runner = Runner::new(bench.handles.clone(), registry.clone(), Drain::new());
    runner.run(message);
    // A cloud sends each task twice; while the first one runs, that is one task.
    runner.run(message);
    let sent = || bench.uplink.sent.lock().unwrap().clone();
    for _ in 0..500 {
        if sent().len() >= answers && runner.group.running() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pulled = registry.0.lock().unwrap().clone();
    (sent(), pulled)
}

const JOB: &str = "operations.kubeedge.io/v1alpha2/imageprepulljob/fetch/node/edge-1";

#[tokio::test]
async fn a_prepull_job_is_told_of_its_check_and_of_each_image() {
    let spec = json!({"imagePrePullTemplate": {
        "images": ["reg.example/a:1", "reg.example/missing:2"], "nodeNames": ["edge-1"], "retryTimes": 1,
        "imageSecret": "line/registry", "checkItems": null,
    }});
    let (sent, pulled) = told(&message(JOB, "Check", spec), 2).await;
    let contents: Vec<Value> = sent.iter().map(|message| message.content_as().unwrap()).collect();
    assert_eq!(sent.len(), 2, "{contents:?}");
    for message in &sent {
        let route = &message.route;
        assert_eq!((route.source.as_str(), route.group.as_str()), ("websocket", "hub"));
        assert_eq!((route.operation.as_str(), route.resource.as_str()), ("UpdateNodeActionStatus", JOB));
    }
    assert_eq!((&contents[0]["action"], &contents[0]["succ"]), (&json!("Check"), &json!(true)));
    assert_eq!((&contents[1]["action"], &contents[1]["succ"]), (&json!("Pull"), &json!(false)));
    let images: Value = serde_json::from_str(contents[1]["extend"].as_str().unwrap()).unwrap();
    assert_eq!(
        images,
        json!([{"image": "reg.example/a:1", "status": "True"}, {"image": "reg.example/missing:2", "status": "False", "reason": "not found"}])
    );
    let secret = Some(Resource::new("line", "secret", "registry"));
    let names: Vec<&str> = pulled.iter().map(|(image, _)| image.as_str()).collect();
    assert_eq!(names, ["reg.example/a:1", "reg.example/missing:2", "reg.example/missing:2"], "one retry");
    assert!(pulled.iter().all(|(_, with)| *with == secret));
}

#[tokio::test]
async fn the_older_generation_asks_for_one_state_at_a_time() {
    let ask = |state: &str, kind: &str| {
        let item = json!({"Images": ["reg.example/a:1"], "NodeName": "edge-1", "Secret": "", "RetryTimes": 0, "CheckItems": null});
        message(
            "task/t1/node/edge-1",
            kind,
            json!({"TaskID": "t1", "Type": kind, "State": state, "Item": item}),
        )
    };
    for (state, kind, event, action) in [
        ("", "prepull", "Init", "Success"),
        ("Checking", "prepull", "Check", "Success"),
        ("Pulling", "prepull", "Pull", "Success"),
        ("Checking", "upgrade", "Check", "Failure"),
    ] {
        let (sent, _) = told(&ask(state, kind), 1).await;
        let content: Value = sent[0].content_as().unwrap();
        assert_eq!(
            (&content["Event"], &content["Action"]),
            (&json!(event), &json!(action)),
            "{state} {kind}"
        );
        assert_eq!(sent[0].route.resource, "task/t1/node/edge-1");
        assert_eq!(sent[0].route.operation, kind);
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_answered_with_what_to_do() {
    for (resource, content, remedy) in [
        (
            "operations.kubeedge.io/v1alpha2/nodeupgradejob/up/node/edge-1",
            json!({}),
            "install the new edgecore",
        ),
        ("operations.kubeedge.io/v1alpha2/configupdatejob/c/node/edge-1", json!({}), "change edgecore.yaml"),
        ("operations.kubeedge.io/v1alpha9/somejob/c/node/edge-1", json!({}), "does not know"),
        (JOB, json!("no object"), "cannot be read"),
        (JOB, json!({"imagePrePullTemplate": {"imageSecret": "a/b/c"}}), "NAMESPACE/NAME"),
    ] {
        let (sent, pulled) = told(&message(resource, "Check", content), 1).await;
        let content: Value = sent[0].content_as().unwrap();
        assert_eq!(content["succ"], false);
        assert!(content["reason"].as_str().unwrap().contains(remedy), "{content}");
        assert!(pulled.is_empty());
    }
}

#[test]
fn any_bytes() {
    let seed = message(JOB, "Pull", json!({"imagePrePullTemplate": {"images": ["a"]}})).encode().into_bytes();
    let mut state = 7u64;
    for round in 0..4000 {
        let mut bytes = seed.clone();
        for _ in 0..1 + round % 4 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 20) as u8;
        }
        fuzz_task(&bytes);
    }
}
