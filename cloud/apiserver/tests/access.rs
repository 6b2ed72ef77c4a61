//! Who may what, over TLS: administrators, strangers, nodes, and certificates of other CAs.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use apiserver::{Api, Options};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use pki::{Ca, Key};
use tokio::net::{TcpListener, TcpStream};

const NOW: fn() -> u64 =
    || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();

struct Fixture {
    address: std::net::SocketAddr,
    ca: Ca,
    drain: rt::Drain,
    serving: Option<tokio::task::JoinHandle<Result<(), apiserver::ServeError>>>,
    api: Api,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let api = Api::open(dir.path(), Options::default()).await.unwrap();
        api.write_kubeconfig(&dir.path().join("kubeconfig"), "https://127.0.0.1:1").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = rt::Drain::new();
        let stop = drain.clone();
        let served = api.clone();
        let serving = Some(tokio::spawn(async move { served.serve(listener, stop).await }));
        let ca = Ca::from_pem(&std::fs::read_to_string(dir.path().join("api-ca.pem")).unwrap()).unwrap();
        Fixture { address, ca, drain, serving, api, dir }
    }

    /// A response whose body is still open, or the TLS failure.
    async fn open(
        &self,
        identity: Option<(&[u8], &Key)>,
        path: &str,
    ) -> Result<http::Response<hyper::body::Incoming>, String> {
        self.request(identity, path, "").await
    }

    async fn request(
        &self,
        identity: Option<(&[u8], &Key)>,
        path: &str,
        authorization: &str,
    ) -> Result<http::Response<hyper::body::Incoming>, String> {
        let mut config = pki::tls::client_config(self.ca.cert_der(), identity).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let mut request = http::Request::get(path).header("host", "api");
        if !authorization.is_empty() {
            request = request.header("authorization", authorization);
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
        sender.send_request(request).await.map_err(|error| error.to_string())
    }

    /// With a token instead of a certificate.
    async fn get_as(&self, token: &str, path: &str) -> u16 {
        let response = self.request(None, path, &format!("Bearer {token}")).await.unwrap();
        response.status().as_u16()
    }

    async fn get(&self, identity: Option<(&[u8], &Key)>, path: &str) -> Result<(u16, String), String> {
        let response = self.open(identity, path).await?;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Ok((code, String::from_utf8(body.to_vec()).unwrap()))
    }

    fn client(&self, user: &str, groups: &[&str]) -> (Vec<u8>, Key) {
        let key = Key::generate().unwrap();
        (self.ca.issue_client(&key, user, groups, 1, NOW()).unwrap(), key)
    }
}

#[tokio::test]
async fn only_administrators_see_objects() {
    let f = Fixture::new().await;
    let (cert, key) = f.client("admin", &["system:masters"]);
    let admin = Some((cert.as_slice(), &key));
    assert_eq!(f.get(admin, "/api/v1/secrets").await.unwrap().0, 200);

    // Nobody: health and version, nothing else.
    for (path, code) in
        [("/readyz", 200), ("/version", 200), ("/api", 401), ("/api/v1/secrets", 401), ("/metrics", 401)]
    {
        assert_eq!(f.get(None, path).await.unwrap().0, code, "{path}");
    }

    // Somebody known: what is served, and why not more.
    let (cert, key) = f.client("system:node:pi", &["system:nodes"]);
    let node = Some((cert.as_slice(), &key));
    assert_eq!(f.get(node, "/api/v1").await.unwrap().0, 200);
    let (code, body) = f.get(node, "/api/v1/namespaces/default/secrets").await.unwrap();
    assert_eq!(code, 403);
    let words = "secrets is forbidden: User \\\"system:node:pi\\\" cannot list resource \\\"secrets\\\" in API group \\\"\\\" in the namespace \\\"default\\\"";
    assert!(body.contains(words), "{body}");
}

#[tokio::test]
async fn certificates_of_another_ca_are_refused_at_the_door() {
    let f = Fixture::new().await;
    // What the hub's CA signs is worth nothing here, whatever it says.
    let other = Ca::create("KubeEdge", NOW()).unwrap();
    let key = Key::generate().unwrap();
    let cert = other.issue_client(&key, "admin", &["system:masters"], 1, NOW()).unwrap();
    let refused = f.get(Some((cert.as_slice(), &key)), "/version").await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn the_kubeconfig_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let f = Fixture::new().await;
    for name in ["kubeconfig", "api-ca.pem", "api-server.pem", "api-admin.pem", "api-sa-key.pem"] {
        let mode = std::fs::metadata(f.dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn an_open_watch_does_not_hold_up_the_end() {
    let mut f = Fixture::new().await;
    let (cert, key) = f.client("admin", &["system:masters"]);
    let watch = f.open(Some((cert.as_slice(), &key)), "/api/v1/pods?watch=true").await.unwrap();
    assert_eq!(watch.status().as_u16(), 200);
    f.drain.start();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), f.serving.take().unwrap()).await;
    assert!(matches!(ended, Ok(Ok(Ok(())))));
    assert!(TcpStream::connect(f.address).await.is_err());
}

#[tokio::test]
async fn a_token_lives_as_long_as_its_account() {
    let f = Fixture::new().await;
    let client = kube::Client::new(f.api.client(), "default");
    let accounts: kube::Api<ServiceAccount> = kube::Api::default_namespaced(client);
    let account = serde_json::from_value(serde_json::json!({"metadata": {"name": "robot"}})).unwrap();
    accounts.create(&Default::default(), &account).await.unwrap();
    let request = |seconds: i64, audiences: &[&str]| -> TokenRequest {
        let spec = serde_json::json!({"expirationSeconds": seconds, "audiences": audiences});
        serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap()
    };
    let made = accounts.create_token_request("robot", &Default::default(), &request(600, &[])).await.unwrap();
    let token = made.status.unwrap().token.unwrap();
    assert_eq!(f.get_as(&token, "/api/v1").await, 200);
    assert_eq!(f.get_as(&token, "/api/v1/pods").await, 403, "known, but without rights");
    let mut forged = token.clone();
    forged.insert(token.find('.').unwrap() + 3, 'A');
    for bad in [forged.as_str(), "x", "", "a.b.c"] {
        assert_eq!(f.get_as(bad, "/version").await, 401, "{bad}");
    }
    let other =
        accounts.create_token_request("robot", &Default::default(), &request(600, &["vault"])).await.unwrap();
    assert_eq!(
        f.get_as(&other.status.unwrap().token.unwrap(), "/api/v1").await,
        401,
        "it is for another audience"
    );
    assert!(accounts.create_token_request("robot", &Default::default(), &request(60, &[])).await.is_err());
    accounts.delete("robot", &Default::default()).await.unwrap();
    accounts.create(&Default::default(), &account).await.unwrap();
    assert_eq!(f.get_as(&token, "/api/v1").await, 401, "the account of this name is another one");
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.drain.start();
    }
}
