//! Passwords for registries out of pull secrets: `kubernetes.io/dockerconfigjson` and the older `kubernetes.io/dockercfg`.
//!
//! Matching is kubelet's (documentation: "Images", interpretation of config.json): the longest match of registry and path first,
//! `*` stands for one part of the host's name, Docker Hub goes by several names.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose};
use serde::Deserialize;

use super::name::Reference;
use crate::edged::{cri::images::AuthConfig, limits};

const DOCKER_HUB: &str = "index.docker.io";

#[derive(Deserialize)]
struct Secret {
    #[serde(default, rename = "type")]
    secret_type: String,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What the secrets of one pod hold.
#[derive(Debug, Default)]
pub struct Keyring {
    /// Registry and path -> passwords, in the order of the secrets.
    entries: Vec<(String, AuthConfig)>,
}

impl Keyring {
    /// Takes in a Secret object. An unusable one is told by a text that never holds what is in it.
    pub fn add(&mut self, secret: &[u8]) -> Result<(), &'static str> {
        let secret: Secret = serde_json::from_slice(secret).map_err(|_| "it is not a Secret")?;
        let data = |key: &str| {
            let text = secret.data.as_ref()?.get(key)?;
            general_purpose::STANDARD.decode(text).ok().filter(|bytes| !bytes.is_empty())
        };
        let entries = match secret.secret_type.as_str() {
            "kubernetes.io/dockerconfigjson" => {
                let bytes = data(".dockerconfigjson").ok_or("it has no .dockerconfigjson")?;
                let parsed: Result<ConfigJson, _> = serde_json::from_slice(&bytes);
                parsed.map_err(|_| "its .dockerconfigjson cannot be read")?.auths
            }
            "kubernetes.io/dockercfg" => {
                let bytes = data(".dockercfg").ok_or("it has no .dockercfg")?;
                serde_json::from_slice(&bytes).map_err(|_| "its .dockercfg cannot be read")?
            }
            _ => {
                return Err("its type is neither kubernetes.io/dockerconfigjson nor kubernetes.io/dockercfg");
            }
        };
        for (place, entry) in entries.into_iter().take(limits::REGISTRY_PASSWORDS_MAX) {
            if let Some(auth) = entry.auth() {
                self.entries.push((place_of(&place), auth));
            }
        }
        // Longest first among those of one host: the reverse order of the names. Stable, so that earlier secrets win.
        self.entries.sort_by(|a, b| b.0.cmp(&a.0));
        self.entries.truncate(limits::REGISTRY_PASSWORDS_MAX);
        Ok(())
    }

    /// Passwords to try for an image, the best match first.
    pub fn lookup(&self, image: &Reference) -> Vec<AuthConfig> {
        let hub = image.registry == "docker.io";
        let host = if hub { DOCKER_HUB } else { &image.registry };
        let mut found: Vec<AuthConfig> = Vec::new();
        for (place, auth) in &self.entries {
            let fits = matches(place, host, &image.repository)
                || hub
                    && (matches(place, "docker.io", &image.repository)
                        || matches(place, "registry-1.docker.io", &image.repository));
            if fits && !found.contains(auth) {
                found.push(auth.clone());
            }
        }
        found
    }
}

impl Entry {
    fn auth(self) -> Option<AuthConfig> {
        let decoded = self.auth.as_deref().and_then(|text| {
            let text = text.trim();
            let bytes = general_purpose::STANDARD
                .decode(text)
                .or_else(|_| general_purpose::STANDARD_NO_PAD.decode(text))
                .ok()?;
            let text = String::from_utf8(bytes).ok()?;
            let (user, password) = text.split_once(':')?;
            Some((user.to_string(), password.trim_end_matches('\0').to_string()))
        });
        // `auth` holds both and wins, as it does for Docker.
        let (username, password) =
            decoded.unwrap_or((self.username.unwrap_or_default(), self.password.unwrap_or_default()));
        let auth = AuthConfig {
            username,
            password,
            identity_token: self.identitytoken.unwrap_or_default(),
            registry_token: self.registrytoken.unwrap_or_default(),
        };
        (auth != AuthConfig::default()).then_some(auth)
    }
}

/// `https://index.docker.io/v1/` -> `index.docker.io`; `ghcr.io/team/` -> `ghcr.io/team`.
fn place_of(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = format!("/{path}");
    let path = ["/v1/", "/v2/"].iter().find_map(|version| path.strip_prefix(version)).unwrap_or(&path[1..]);
    let path = path.trim_end_matches('/');
    match path {
        "" | "v1" | "v2" => host.to_string(),
        path => format!("{host}/{path}"),
    }
}

fn matches(place: &str, host: &str, repository: &str) -> bool {
    let (glob, path) = place.split_once('/').unwrap_or((place, ""));
    let (glob, glob_port) = glob.split_once(':').map_or((glob, ""), |(host, port)| (host, port));
    let (host, port) = host.split_once(':').map_or((host, ""), |(host, port)| (host, port));
    // Each star may cost a walk over the rest.
    let parts_fit = glob.matches('*').count() <= limits::REGISTRY_STARS_MAX
        && glob.split('.').count() == host.split('.').count()
        && glob.split('.').zip(host.split('.')).all(|(glob, part)| glob_fits(glob, part));
    parts_fit && glob_port == port && repository.starts_with(path)
}

/// `*` stands for any letters of one part.
fn glob_fits(glob: &str, part: &str) -> bool {
    let Some((before, after)) = glob.split_once('*') else { return glob == part };
    let Some(rest) = part.strip_prefix(before) else { return false };
    // Each further star may begin anywhere in what is left; parts of hosts are at most 63 letters.
    rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| glob_fits(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(secret_type: &str, key: &str, text: &str) -> Vec<u8> {
        let data = serde_json::json!({ key: general_purpose::STANDARD.encode(text) });
        serde_json::json!({ "type": secret_type, "data": data }).to_string().into_bytes()
    }

    fn users(ring: &Keyring, image: &str) -> Vec<String> {
        ring.lookup(&Reference::parse(image).unwrap()).into_iter().map(|auth| auth.username).collect()
    }

    #[test]
    fn the_longest_match_comes_first() {
        let mut ring = Keyring::default();
        let json = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOnB3"},
            "ghcr.io":{"username":"all","password":"p"},
            "ghcr.io/team/":{"username":"team","password":"p"},
            "ghcr.io/team/app":{"username":"app","password":"p"},
            "*.example.com:5000":{"username":"star","password":"p"},
            "empty.example":{}}}"#;
        ring.add(&secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", json)).unwrap();
        assert_eq!(users(&ring, "ghcr.io/team/app:1"), ["app", "team", "all"]);
        assert_eq!(users(&ring, "ghcr.io/other/app:1"), ["all"]);
        assert_eq!(users(&ring, "busybox"), ["hub"]);
        assert_eq!(users(&ring, "eu.example.com:5000/a"), ["star"]);
        for none in ["eu.example.com/a", "a.b.example.com:5000/a", "empty.example/a", "quay.io/a"] {
            assert!(users(&ring, none).is_empty(), "{none}");
        }
    }

    #[test]
    fn the_older_form_and_what_is_not_a_pull_secret() {
        let mut ring = Keyring::default();
        ring.add(&secret(
            "kubernetes.io/dockercfg",
            ".dockercfg",
            r#"{"127.0.0.1:5000":{"auth":"dXNlcjpwYTpzcw=="}}"#,
        ))
        .unwrap();
        let found = ring.lookup(&Reference::parse("127.0.0.1:5000/a").unwrap());
        assert_eq!((&*found[0].username, &*found[0].password), ("user", "pa:ss"));
        for (bad, why) in [
            (secret("Opaque", "a", "b"), "type"),
            (secret("kubernetes.io/dockerconfigjson", "a", "b"), "has no"),
            (secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", "{"), "cannot be read"),
            (b"[".to_vec(), "not a Secret"),
        ] {
            assert!(ring.add(&bad).unwrap_err().contains(why));
        }
    }

    #[test]
    fn whatever_the_bytes_a_pull_secret_is_read_or_refused() {
        let good = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOnB3"},"*.b.example:5000":{"username":"u","password":"p"}}}"#;
        let mut seed: u64 = 5;
        for _ in 0..3000 {
            let mut bytes = good.to_vec();
            for _ in 0..4 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 24) as u8;
            }
            crate::edged::fuzz::fuzz_pull_secret(&bytes);
        }
    }

    #[test]
    fn stars_end() {
        assert!(glob_fits("*a*b*", "xxaxxbxx") && !glob_fits("*a*b*", "xxbxxaxx") && glob_fits("*", ""));
    }
}
