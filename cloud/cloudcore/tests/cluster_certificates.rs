//! Keys and revocations in a cluster: KubeEdge's Secrets, and replicas that agree. The cluster's API is the embedded one of another
//! cloudcore here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{Cloud, Device, command, token};
use pki::{Ca, CertInfo, Csr, Identity, JoinToken, Key, Names};
use serde_json::{Value, json};

const SECRETS: &str = "/api/v1/namespaces/kubeedge/secrets";

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

async fn secret(cluster: &Cloud, name: &str, key: &str) -> Vec<u8> {
    let secret = cluster.get(&format!("{SECRETS}/{name}")).await.unwrap_or_else(|| panic!("Secret {name}"));
    STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap()
}

/// As KubeEdge writes it: `client.SaveSecret` of an Opaque one.
async fn write_secret(cluster: &Cloud, name: &str, data: &[(&str, &[u8])]) {
    let data: serde_json::Map<String, Value> =
        data.iter().map(|(key, value)| ((*key).to_owned(), json!(STANDARD.encode(value)))).collect();
    let metadata = json!({"name": name, "namespace": "kubeedge"});
    cluster.create(SECRETS, json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data})).await;
}

fn run(dir: &Path, kubeconfig: &Path, arguments: &[&str]) -> String {
    let output = command(dir, &[arguments, &["--kubeconfig", kubeconfig.to_str().unwrap()]].concat());
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

/// The certificate that the hub shows.
async fn shown(cloud: &Cloud, device: &Device) -> CertInfo {
    let config = pki::tls::client_config(&device.ca, Some((&device.certificate, &device.key))).unwrap();
    let tls = cloud.tls("hub", config).await.unwrap();
    CertInfo::parse(&tls.get_ref().1.peer_certificates().unwrap()[0]).unwrap()
}

struct Site {
    cluster: Cloud,
    kubeconfig: PathBuf,
    dir: tempfile::TempDir,
}

impl Site {
    async fn start() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cloud::start(&dir.path().join("cluster")).await;
        Site { kubeconfig: dir.path().join("cluster/kubeconfig"), cluster, dir }
    }

    fn data(&self, replica: &str) -> PathBuf {
        self.dir.path().join(replica)
    }

    async fn replica(&self, name: &str) -> Cloud {
        Cloud::start_on(&self.data(name), &self.kubeconfig).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_kubeedge_cloudcore_is_replaced_without_joining_anew() {
    let site = Site::start().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeedge"}});
    site.cluster.create("/api/v1/namespaces", namespace).await;
    let ca = Ca::create("KubeEdge", now()).unwrap();
    let server_key = Key::generate().unwrap();
    // Its addresses are those that KubeEdge was told; nodes dial one of them.
    let server = ca.issue_server(&server_key, &Names::new(["127.0.0.1", "cloud.example"]), now()).unwrap();
    write_secret(&site.cluster, "casecret", &[("cadata", ca.cert_der()), ("cakeydata", &ca.key().to_sec1())])
        .await;
    write_secret(
        &site.cluster,
        "cloudcoresecret",
        &[("cloudcoredata", &server), ("cloudcorekeydata", &server_key.to_sec1())],
    )
    .await;
    let key = Key::generate().unwrap();
    let csr = Csr::parse(&pki::new_csr(&key, &Identity::node("old-1")).unwrap()).unwrap();
    let certificate = ca.issue_node(&csr, "old-1", now()).unwrap();
    let device = Device {
        node: "old-1".into(),
        ca: ca.cert_der().to_vec(),
        certificate,
        key,
        store_id: String::new(),
    };

    let config = "modules: {cloudHub: {advertiseAddress: [127.0.0.1], dnsNames: [cloud.example]}}";
    let cloud = Cloud::start_as(&site.data("a"), config, Some(site.kubeconfig.clone())).await;
    drop(cloud.connect(&device).await.expect("its certificate of KubeEdge's days"));
    assert!(shown(&cloud, &device).await.has_key(&server_key), "the certificate that nodes know");
    assert_eq!(secret(&site.cluster, "casecret", "cadata").await, ca.cert_der(), "nothing was replaced");
    // keadm gettoken
    let text = String::from_utf8(secret(&site.cluster, "tokensecret", "tokendata").await).unwrap();
    let told: JoinToken = text.parse().unwrap();
    told.check_ca(ca.cert_der()).unwrap();
    let joined = cloud.join("new-1", &text).await.unwrap();
    drop(cloud.connect(&joined).await.unwrap());
    let claims = pki::verify_bearer(&ca, told.bearer(), "new-1", now()).unwrap();
    assert!(
        claims.exp > now() + 23 * 3600 && claims.jti.is_none(),
        "as KubeEdge's: a day, and nothing but exp"
    );
    cloud.stop().await;

    // Another address: a certificate of this replica's own, and the Secret stays.
    let config = "modules: {cloudHub: {advertiseAddress: [127.0.0.1, 192.0.2.77]}}";
    let cloud = Cloud::start_as(&site.data("b"), config, Some(site.kubeconfig.clone())).await;
    let other = shown(&cloud, &device).await;
    assert!(!other.has_key(&server_key) && other.ips.contains(&"192.0.2.77".parse().unwrap()));
    assert_eq!(secret(&site.cluster, "cloudcoresecret", "cloudcoredata").await, server);
    drop(cloud.connect(&device).await.unwrap());
    cloud.stop().await;
    site.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_make_one_ca_and_a_revocation_ends_the_session_at_whichever_it_is() {
    let site = Site::start().await;
    let (a, b) = tokio::join!(site.replica("a"), site.replica("b"));
    let made = secret(&site.cluster, "casecret", "cadata").await;
    let more = ["--kubeconfig", site.kubeconfig.to_str().unwrap()];
    let mut device = a.join("edge-1", &token(&site.data("a"), &more)).await.unwrap();
    device.store_id = "a".into();
    assert_eq!(device.ca, made, "both have the CA that was first");
    let link = b.connect(&device).await.expect("who joined at the one may come to the other");
    let told = run(&site.data("a"), &site.kubeconfig, &["revoke", "edge-1", "--reason", "stolen"]);
    assert!(told.contains("node edge-1 is revoked"), "{told}");
    tokio::time::timeout(std::time::Duration::from_secs(5), link.ended())
        .await
        .expect("it ends at the other replica");
    for cloud in [&a, &b] {
        cloud.until_refused(&device).await;
    }
    a.stop().await;
    let a = site.replica("a").await;
    assert_eq!(a.connect(&device).await.err().map(|(status, _)| status), Some(403), "after a restart");
    run(&site.data("b"), &site.kubeconfig, &["unrevoke", "edge-1"]);
    a.until_accepted(&device).await;

    // The CA changes for both of them.
    run(&site.data("b"), &site.kubeconfig, &["ca", "rotate"]);
    let new = secret(&site.cluster, "casecret", "cadata").await;
    assert_ne!(new, made);
    let new = Ca::from_secret(&new, &secret(&site.cluster, "casecret", "cakeydata").await).unwrap();
    let renewed = a.until_signed_by(&device, &new).await;
    drop(
        b.connect(&renewed)
            .await
            .expect("the other replica knows the new CA before anybody has a certificate of it"),
    );
    drop(b.connect(&device).await.expect("and the old one still"));
    let other = b.until_signed_by(&renewed, &new).await;
    run(&site.data("a"), &site.kubeconfig, &["ca", "finish"]);
    for cloud in [&a, &b] {
        cloud.until_refused(&device).await;
        let learned = Device { ca: new.cert_der().to_vec(), ..other.clone() };
        cloud.until_accepted(&learned).await;
    }
    let server = secret(&site.cluster, "cloudcoresecret", "cloudcoredata").await;
    assert!(
        CertInfo::parse(&server).unwrap().names_issuer(new.info()),
        "whoever takes over shows one of the new CA"
    );
    a.stop().await;
    b.stop().await;
    site.cluster.stop().await;
}
