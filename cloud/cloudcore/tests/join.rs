//! Joining over real sockets: the good way, and every bad input with its one line.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Cloud, command, token};
use pki::{Identity, JoinToken, Key};

fn csr(node: &str) -> Vec<u8> {
    pki::new_csr(&Key::generate().unwrap(), &Identity::node(node)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_renews_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    let info = pki::CertInfo::parse(&device.certificate).unwrap();
    assert_eq!(
        (info.subject.common_name.as_str(), info.subject.organizations.as_slice()),
        ("system:node:edge-1", &["system:nodes".to_owned()][..])
    );

    // The current certificate is proof enough for the next one; both stay valid.
    let proof = || pki::tls::client_config(&device.ca, Some((&device.certificate, &device.key))).unwrap();
    let key = Key::generate().unwrap();
    let csr_der = pki::new_csr(&key, &Identity::node("edge-1")).unwrap();
    let (status, head, renewed) =
        cloud.join_request(proof(), "GET", "/edge.crt", &[("NodeName", "edge-1")], &csr_der).await;
    assert_eq!(status, 200);
    assert!(head.to_lowercase().contains("kinglet-cloud-id: "), "{head}");
    assert!(cloud.connect(&device).await.is_ok());
    let renewed = common::Device {
        certificate: renewed,
        key,
        ca: device.ca.clone(),
        node: device.node.clone(),
        store_id: String::new(),
    };
    assert!(cloud.connect(&renewed).await.is_ok());

    let (status, _, body) =
        cloud.join_request(proof(), "GET", "/edge.crt", &[("NodeName", "edge-2")], &csr("edge-2")).await;
    assert_eq!(status, 403);
    assert!(String::from_utf8_lossy(&body).contains("edge-1, which cannot ask for one of node edge-2"));

    // Reports on tasks of an earlier cloud are taken from the node that they are about.
    let report = br#"{"UpgradeID":"u","NodeName":"edge-1","Status":"upgrade_success"}"#;
    for (path, status) in [
        ("/nodeupgrade", 200),
        ("/task/prepull/name/j/node/edge-1/status", 200),
        ("/task/prepull/name/j/node/edge-2/status", 403),
    ] {
        let (answered, _, body) = cloud.join_request(proof(), "POST", path, &[], report).await;
        assert_eq!((answered, body == b"ok"), (status, status == 200), "{path}");
    }
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subject_and_usage_are_ours_whatever_the_request_says() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let token: JoinToken = token(dir.path(), &[]).parse().unwrap();
    let bearer = format!("Bearer {}", token.bearer());
    let headers = [("NodeName", "edge-1"), ("Authorization", bearer.as_str())];
    let ask = async |subject: Identity| {
        let request = pki::new_csr(&Key::generate().unwrap(), &subject).unwrap();
        let config = pki::tls::first_contact().unwrap();
        let (status, _, body) = cloud.join_request(config, "GET", "/edge.crt", &headers, &request).await;
        (status, body)
    };
    let (status, refusal) = ask(Identity::new("system:node:somebody-else", &["system:nodes"])).await;
    let refusal = String::from_utf8_lossy(&refusal).into_owned();
    assert!(
        status == 403 && refusal.contains("edge-1 is for \"system:node:somebody-else\""),
        "{status} {refusal}"
    );
    let (status, certificate) = ask(Identity::new("system:node:edge-1", &["system:masters"])).await;
    assert_eq!(status, 200);
    assert_eq!(pki::CertInfo::parse(&certificate).unwrap().subject, Identity::node("edge-1"));
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_input_is_one_line_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let other = Cloud::start(other_dir.path()).await;
    let good = token(dir.path(), &[]);
    let bearer = |token: &str| format!("Bearer {}", token.parse::<JoinToken>().unwrap().bearer());
    let expired = token(dir.path(), &["--ttl", "1s"]);
    let bound = token(dir.path(), &["--node", "edge-9"]);
    let once = token(dir.path(), &["--uses", "1"]);
    cloud.join("edge-once", &once).await.unwrap();
    let taken = cloud.join("edge-taken", &good).await.unwrap();
    let link = cloud.connect(&taken).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;

    let huge = vec![b'x'; 20 * 1024];
    let (good_csr, taken_csr) = (csr("edge-1"), csr("edge-taken"));
    type Row<'a> = (&'a str, u16, &'a [&'a str], &'a str, String, &'a [u8]);
    let rows: &[Row] = &[
        ("no token", 401, &["no join token", "cloudcore token"], "edge-1", String::new(), &good_csr),
        ("garbage", 401, &["malformed", "cloudcore token"], "edge-1", "Bearer abc".into(), &good_csr),
        (
            "another cloud's",
            401,
            &["not signed by this cloud", "cloudcore token"],
            "edge-1",
            bearer(&token(other_dir.path(), &[])),
            &good_csr,
        ),
        ("expired", 401, &["expired at", "cloudcore token"], "edge-1", bearer(&expired), &good_csr),
        ("bound to another", 401, &["for node edge-9, not for edge-1"], "edge-1", bearer(&bound), &good_csr),
        ("used up", 401, &["already used by 1 node", "--uses"], "edge-1", bearer(&once), &good_csr),
        (
            "taken",
            409,
            &["edge-taken is taken", "cloudcore node reset edge-taken"],
            "edge-taken",
            bearer(&good),
            &taken_csr,
        ),
        (
            "another's request",
            403,
            &["of node edge-2 is for \"system:node:edge-1\"; it must be for \"system:node:edge-2\""],
            "edge-2",
            bearer(&good),
            &good_csr,
        ),
        (
            "bad name",
            400,
            &["\"Edge_1\" is not a node name", "--edgenode-name"],
            "Edge_1",
            bearer(&good),
            &good_csr,
        ),
        ("no name", 400, &["is not a node name"], "", bearer(&good), &good_csr),
        ("name outside its folder", 400, &["is not a node name"], "../../etc", bearer(&good), &good_csr),
        (
            "not a request",
            400,
            &["certificate request of node edge-1 cannot be signed"],
            "edge-1",
            bearer(&good),
            b"hello",
        ),
        ("too large", 413, &["larger than"], "edge-1", bearer(&good), &huge),
    ];
    for (what, status, texts, name, authorization, body) in rows {
        let headers = [("NodeName", *name), ("Authorization", authorization.as_str())];
        let answer =
            cloud.join_request(pki::tls::first_contact().unwrap(), "GET", "/edge.crt", &headers, body).await;
        let text = String::from_utf8_lossy(&answer.2);
        assert_eq!((answer.0, text.trim_end().lines().count()), (*status, 1), "{what}: {text}");
        for expected in *texts {
            assert!(text.contains(expected), "{what}: {text}");
        }
        assert!(answer.1.to_lowercase().contains("kinglet-cloud-id"), "{what}");
    }
    let (status, _, _) =
        cloud.join_request(pki::tls::first_contact().unwrap(), "POST", "/edge.crt", &[], b"").await;
    assert_eq!(status, 404);
    // Nothing of this has harmed the ones that are in, or used up a token.
    drop(link);
    assert!(cloud.connect(&taken).await.is_ok());
    cloud.join("edge-9", &bound).await.unwrap();
    cloud.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_may_be_asked_for_again_and_a_name_changes_hands_by_reset() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let once = token(dir.path(), &["--uses", "1"]);
    let lost = cloud.join("edge-1", &once).await.unwrap();
    let device = cloud.join("edge-1", &once).await.expect("the same token, before the node ever connected");
    let (status, text) = cloud.connect(&lost).await.err().expect("the lost certificate is void");
    assert!(status == 403 && text.contains("replaced or revoked"), "{status} {text}");
    drop(cloud.connect(&device).await.unwrap());
    assert_eq!(cloud.join("edge-1", &once).await.err().map(|(status, _)| status), Some(409));

    let reset = command(dir.path(), &["node", "reset", "edge-1"]);
    assert!(reset.status.success());
    assert!(String::from_utf8_lossy(&reset.stdout).contains("certificate is revoked"));
    assert_eq!(cloud.connect(&device).await.err().map(|(status, _)| status), Some(403));
    let second = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    drop(cloud.connect(&second).await.unwrap());
    // A token made for the name replaces the device without a reset.
    let third = cloud.join("edge-1", &token(dir.path(), &["--node", "edge-1"])).await.unwrap();
    assert_eq!(cloud.connect(&second).await.err().map(|(status, _)| status), Some(403));
    assert!(cloud.connect(&third).await.is_ok());
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_object_made_beforehand_is_free_to_join() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let node = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1", "labels": {"hall": "7"}}});
    cloud.create("/api/v1/nodes", node).await;
    let ask = |name: &'static str| {
        let cloud = &cloud;
        async move { cloud.join_request(pki::tls::first_contact().unwrap(), "GET", name, &[], b"").await.0 }
    };
    assert_eq!(ask("/node/edge-1").await, 404, "keadm joins only then");
    let device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    let labels = cloud.until("/api/v1/nodes/edge-1", |node| {
        let labels = &node["metadata"]["labels"];
        labels["node-role.kubernetes.io/edge"].is_string().then(|| labels.clone())
    });
    assert_eq!(labels.await["hall"], "7", "what the administrator set stays");
    assert_eq!(ask("/node/edge-1").await, 200);
    assert_eq!(ask("/node/EDGE").await, 400);
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_cloudcores_do_not_share_a_directory_or_a_port() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let second = command(dir.path(), &["--api-port", "0", "--hub-port", "0", "--join-port", "0"]);
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("another cloudcore (pid "), "{text}");
    let other = tempfile::tempdir().unwrap();
    let port = cloud.endpoints.hub.rsplit(':').next().unwrap();
    let taken = command(
        other.path(),
        &["--bind-address", "127.0.0.1", "--api-port", "0", "--hub-port", port, "--join-port", "0"],
    );
    let text = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(!taken.status.success() && text.contains("--hub-port") && text.contains(port), "{text}");
    cloud.stop().await;
}
