//! A tiny OCI registry for pulls against a real containerd: loopback of any network namespace, with faults on demand.
//!
//! Plain HTTP/1.1, one thread per connection, read only. It serves images out of archives that tests made; nothing is pushed.
//! Source of the paths: the OCI distribution specification, "Pull"; of the token: Docker's registry token authentication.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tempfile::TempDir;

/// A request that does not end its head by then is dropped.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// A held blob is answered after this at the latest: a test that forgets to let go still ends.
const HOLD_MAX: Duration = Duration::from_secs(120);

/// Who may pull.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    #[default]
    Nobody,
    Basic {
        user: String,
        password: String,
    },
    /// As the public registries do: a token from `/token`, given for user and password.
    Bearer {
        user: String,
        password: String,
    },
}

#[derive(Default)]
struct State {
    auth: Auth,
    /// `team/app` and tag or digest -> digest.
    tags: HashMap<(String, String), String>,
    /// Paths asked for, in order.
    asked: Vec<String>,
    refused: usize,
    held: bool,
    /// Every answer is this status, as from a registry that is ill.
    failing: Option<u16>,
}

struct Shared {
    state: Mutex<State>,
    released: Condvar,
    blobs: TempDir,
    address: SocketAddr,
    ended: AtomicBool,
}

pub struct Registry {
    shared: Arc<Shared>,
    /// Where the registry listens: host or the namespaces of this process.
    inside: Option<u32>,
}

impl Registry {
    /// Listens on 127.0.0.1 in the network namespace of process `inside`, else in our own.
    pub fn start(inside: Option<u32>, auth: Auth) -> Result<Registry> {
        let listener = in_namespace(inside, || TcpListener::bind("127.0.0.1:0"))??;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { auth, ..State::default() }),
            released: Condvar::new(),
            blobs: tempfile::tempdir()?,
            address,
            ended: AtomicBool::new(false),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = serving.clone();
                thread::spawn(move || shared.connection(stream));
            }
        });
        Ok(Registry { shared, inside })
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// `127.0.0.1:port/<repository>:<tag>`.
    pub fn name(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.shared.address)
    }

    /// Offers the first image of an OCI archive as `repository:tag`; returns its manifest's digest.
    pub fn publish(&self, archive: &Path, repository: &str, tag: &str) -> Result<String> {
        let blobs = self.shared.blobs.path();
        let unpacked = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(blobs).status()?;
        ensure!(unpacked.success(), "cannot unpack {}", archive.display());
        let index: Value = serde_json::from_slice(&fs::read(blobs.join("index.json"))?)?;
        let digest =
            index["manifests"][0]["digest"].as_str().context("an archive has a manifest")?.to_string();
        let mut state = self.shared.state();
        for reference in [tag, digest.as_str()] {
            state.tags.insert((repository.to_string(), reference.to_string()), digest.clone());
        }
        Ok(digest)
    }

    pub fn set_auth(&self, auth: Auth) {
        self.shared.state().auth = auth;
    }

    /// Blobs wait until [`Registry::release`].
    pub fn hold(&self) {
        self.shared.state().held = true;
    }

    pub fn release(&self) {
        self.shared.state().held = false;
        self.shared.released.notify_all();
    }

    pub fn fail_with(&self, status: Option<u16>) {
        self.shared.state().failing = status;
    }

    /// Paths that were asked for since the last call.
    pub fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.state().asked)
    }

    /// Requests refused for want of the right password.
    pub fn refused(&self) -> usize {
        self.shared.state().refused
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.release();
        let address = self.shared.address;
        // Wakes the listening thread, so that it sees that it is over.
        let _ =
            in_namespace(self.inside, move || TcpStream::connect_timeout(&address, Duration::from_secs(1)));
    }
}

/// Runs `act` on a thread in the network namespace of a process; a thread has its own until it ends.
fn in_namespace<T: Send + 'static>(
    inside: Option<u32>,
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let namespace = inside.map(|pid| fs::File::open(format!("/proc/{pid}/ns/net"))).transpose()?;
    let work = move || -> Result<T> {
        if let Some(namespace) = namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
        }
        Ok(act())
    };
    thread::spawn(work).join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

struct Request {
    method: String,
    path: String,
    authorization: String,
    body_length: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self, stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(HEAD_WAIT));
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_request(&mut reader) {
            let mut body = vec![0; request.body_length.min(64 * 1024)];
            if reader.read_exact(&mut body).is_err() || self.answer(&request, reader.get_mut()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request, stream: &mut TcpStream) -> std::io::Result<()> {
        let (auth, failing) = {
            let mut state = self.state();
            state.asked.push(request.path.clone());
            (state.auth.clone(), state.failing)
        };
        let json = |text: &str| ("Content-Type: application/json\r\n".to_string(), text.as_bytes().to_vec());
        if let Some(status) = failing {
            let (head, body) = json(r#"{"errors":[{"code":"UNKNOWN","message":"the registry is ill"}]}"#);
            return respond(stream, request, status, &head, &body);
        }
        if request.path == "/token" {
            return self.token(request, stream, &auth);
        }
        if let Some(challenge) = self.challenge(request, &auth) {
            self.state().refused += 1;
            let (_, body) =
                json(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#);
            return respond(stream, request, 401, &format!("WWW-Authenticate: {challenge}\r\n"), &body);
        }
        if request.path == "/v2/" {
            return respond(stream, request, 200, "", b"{}");
        }
        match self.find(&request.path) {
            Some((head, body)) => respond(stream, request, 200, &head, &body),
            None => {
                let (head, body) =
                    json(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#);
                respond(stream, request, 404, &head, &body)
            }
        }
    }

    fn challenge(&self, request: &Request, auth: &Auth) -> Option<String> {
        match auth {
            Auth::Nobody => None,
            Auth::Basic { user, password } => (request.authorization != basic(user, password))
                .then(|| "Basic realm=\"registry\"".to_string()),
            Auth::Bearer { user, password } => (request.authorization
                != format!("Bearer {}", token(user, password)))
            .then(|| format!("Bearer realm=\"http://{}/token\",service=\"registry\"", self.address)),
        }
    }

    fn token(&self, request: &Request, stream: &mut TcpStream, auth: &Auth) -> std::io::Result<()> {
        // As registries without OAuth2: the client then asks with GET and basic authentication.
        if request.method != "GET" {
            return respond(stream, request, 405, "", b"");
        }
        match auth {
            Auth::Bearer { user, password } if request.authorization == basic(user, password) => {
                let body = format!(r#"{{"token":"{}","expires_in":300}}"#, token(user, password));
                respond(stream, request, 200, "Content-Type: application/json\r\n", body.as_bytes())
            }
            _ => {
                self.state().refused += 1;
                respond(stream, request, 401, "", b"{}")
            }
        }
    }

    /// `/v2/<repository>/manifests/<reference>` and `/v2/<repository>/blobs/<digest>`.
    fn find(&self, path: &str) -> Option<(String, Vec<u8>)> {
        let rest = path.strip_prefix("/v2/")?;
        let blob = |digest: &str| {
            let hex = digest.strip_prefix("sha256:")?;
            let plain = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| fs::read(self.blobs.path().join("blobs/sha256").join(hex)).ok())?
        };
        if let Some((repository, reference)) = rest.split_once("/manifests/") {
            let digest = self.state().tags.get(&(repository.into(), reference.into())).cloned()?;
            let body = blob(&digest)?;
            let parsed: Value = serde_json::from_slice(&body).ok()?;
            let media_type =
                parsed["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
            return Some((
                format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n"),
                body,
            ));
        }
        let (_, digest) = rest.split_once("/blobs/")?;
        self.wait_released();
        Some(("Content-Type: application/octet-stream\r\n".into(), blob(digest)?))
    }

    fn wait_released(&self) {
        let held = self.released.wait_timeout_while(self.state(), HOLD_MAX, |state| state.held);
        drop(held);
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = || {
        let mut text = String::new();
        reader.by_ref().take(16 * 1024).read_line(&mut text).ok()?;
        (!text.is_empty()).then(|| text.trim_end().to_string())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_string(), words.next()?);
    let (path, _) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request { method, path: path.into(), authorization: String::new(), body_length: 0 };
    loop {
        let header = line()?;
        if header.is_empty() {
            return Some(request);
        }
        let (name, value) = header.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = value.trim().into(),
            "content-length" => request.body_length = value.trim().parse().ok()?,
            _ => {}
        }
    }
}

fn respond(
    stream: &mut TcpStream,
    request: &Request,
    status: u16,
    head: &str,
    body: &[u8],
) -> std::io::Result<()> {
    let length = body.len();
    let phrase = match status {
        200 => "OK",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Internal Server Error",
    };
    write!(stream, "HTTP/1.1 {status} {phrase}\r\n{head}Content-Length: {length}\r\n\r\n")?;
    if request.method != "HEAD" {
        stream.write_all(body)?;
    }
    stream.flush()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

fn token(user: &str, password: &str) -> String {
    base64(format!("token of {user} {password}").as_bytes()).trim_end_matches('=').to_string()
}

/// RFC 4648, section 4: a registry needs it once, and this crate no dependency for it.
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits = part.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
        for n in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * n) & 63) as usize];
            text.push(if n <= part.len() { letter as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, text) in [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }
}
