//! Join tokens and how often each was used. Shared by `cloudcore token` and every running cloudcore: in small files with the
//! embedded API, in config maps in a cluster.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pki::{Ca, Claims};
use serde::{Deserialize, Serialize};

use crate::api::Api;
use crate::authority::Material;
use crate::shared::{Shared, SharedError};

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("no join token; get one with `cloudcore token` on the cloud")]
    Missing,
    #[error(transparent)]
    Refused(pki::TokenError),
    #[error(
        "the join token was already used by {used} node(s), as many as it was made for; make a new one with `cloudcore token --uses N`"
    )]
    UsedUp { used: usize },
    #[error("the join token was withdrawn or is not from this cloud; make a new one with `cloudcore token`")]
    Unknown,
    #[error("join tokens cannot be kept in {path}")]
    Store { path: PathBuf, source: std::io::Error },
    #[error("join tokens cannot be kept")]
    Write(#[source] rt::FileError),
    #[error("join tokens cannot be kept in the cluster")]
    Shared(#[source] SharedError),
    #[error("a join token cannot be made")]
    Make(#[source] pki::PkiError),
}

impl TokenError {
    /// The token is fine or not; this cloudcore cannot tell.
    pub fn is_internal(&self) -> bool {
        matches!(
            self,
            TokenError::Store { .. } | TokenError::Write(_) | TokenError::Shared(_) | TokenError::Make(_)
        )
    }
}

/// What is kept of a token: never the token itself.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Kept {
    expires: u64,
    /// Nodes that it may admit; `None`: any number.
    uses: Option<usize>,
    used_by: BTreeSet<String>,
}

impl Kept {
    /// Counts the node as admitted; the same node again is no further use. `true`: it is one more.
    fn count(&mut self, node: &str) -> Result<bool, TokenError> {
        if self.used_by.contains(node) {
            return Ok(false);
        }
        if self.uses.is_some_and(|uses| self.used_by.len() >= uses) {
            return Err(TokenError::UsedUp { used: self.used_by.len() });
        }
        Ok(self.used_by.insert(node.to_owned()))
    }
}

#[derive(Clone)]
pub struct Tokens(Place);

#[derive(Clone)]
enum Place {
    Dir(Files),
    Cluster(Shared),
}

impl Tokens {
    pub fn open(data_dir: &Path) -> Result<Tokens, TokenError> {
        let dir = data_dir.join("tokens");
        std::fs::create_dir_all(&dir).map_err(|source| TokenError::Store { path: dir.clone(), source })?;
        Ok(Tokens(Place::Dir(Files { dir })))
    }

    pub fn in_cluster(api: Api) -> Tokens {
        Tokens(Place::Cluster(Shared::new(api, "token")))
    }

    pub async fn make(
        &self,
        ca: &Ca,
        ttl_s: u64,
        node: Option<&str>,
        uses: Option<usize>,
        now_s: u64,
    ) -> Result<String, TokenError> {
        let token = pki::issue_token(ca, ttl_s, node, now_s).map_err(TokenError::Make)?;
        let id = token.claims.jti.as_deref().unwrap_or_default();
        let kept = Kept { expires: token.claims.exp, uses, used_by: BTreeSet::new() };
        match &self.0 {
            Place::Dir(files) => {
                files.sweep(now_s);
                files.write(id, &kept)?;
            }
            Place::Cluster(shared) => {
                sweep(shared, now_s).await.map_err(TokenError::Shared)?;
                let mut kept = Some(kept);
                let write = shared.update(id, |_: Option<Kept>| (kept.take(), ()));
                write.await.map_err(TokenError::Shared)?;
            }
        }
        Ok(token.text)
    }

    /// Who the token admits, if it may admit this node now.
    pub fn check(
        &self,
        material: &Material,
        bearer: &str,
        node: &str,
        now_s: u64,
    ) -> Result<Claims, TokenError> {
        if bearer.is_empty() {
            return Err(TokenError::Missing);
        }
        // While the CA changes, tokens of both are good.
        let mut answer = Err(pki::TokenError::BadSignature);
        for ca in material.trusted() {
            answer = pki::verify_bearer(ca, bearer, node, now_s);
            if answer != Err(pki::TokenError::BadSignature) {
                break;
            }
        }
        answer.map_err(TokenError::Refused)
    }

    /// Counts the node as admitted; the same node again is no further use.
    pub async fn count_use(&self, claims: &Claims, node: &str) -> Result<(), TokenError> {
        // A token of a stock cloudcore with the same CA has no id and no count.
        let Some(id) = claims.jti.as_deref() else { return Ok(()) };
        let shared = match &self.0 {
            Place::Dir(files) => return files.count_use(id, node),
            Place::Cluster(shared) => shared,
        };
        let count = |kept: Option<Kept>| {
            let Some(mut kept) = kept else { return (None, Err(TokenError::Unknown)) };
            match kept.count(node) {
                Ok(true) => (Some(kept), Ok(())),
                Ok(false) => (None, Ok(())),
                Err(error) => (None, Err(error)),
            }
        };
        shared.update(id, count).await.map_err(TokenError::Shared)?
    }
}

/// Removes what is kept of expired tokens.
async fn sweep(shared: &Shared, now_s: u64) -> Result<(), SharedError> {
    for map in shared.list().await?.0 {
        if map.value::<Kept>().is_ok_and(|kept| kept.expires < now_s) {
            shared.remove(&map.metadata.name).await?;
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct Files {
    dir: PathBuf,
}

impl Files {
    fn count_use(&self, id: &str, node: &str) -> Result<(), TokenError> {
        let lock_path = self.dir.join(".lock");
        let lock = std::fs::File::create(&lock_path).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.map_err(|source| TokenError::Store { path: lock_path, source })?;
        let mut kept = self.read(id)?.ok_or(TokenError::Unknown)?;
        if kept.count(node)? { self.write(id, &kept) } else { Ok(()) }
    }

    fn path(&self, id: &str) -> Result<PathBuf, TokenError> {
        let plain = !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        plain.then(|| self.dir.join(format!("{id}.json"))).ok_or(TokenError::Unknown)
    }

    fn read(&self, id: &str) -> Result<Option<Kept>, TokenError> {
        let path = self.path(id)?;
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| TokenError::Store { path, source: std::io::Error::other(error) }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TokenError::Store { path, source }),
        }
    }

    fn write(&self, id: &str, kept: &Kept) -> Result<(), TokenError> {
        let text = serde_json::to_vec(kept).expect("a token's record serialises without error");
        rt::atomic_write_private(&self.path(id)?, &text).map_err(TokenError::Write)
    }

    /// Removes what is kept of expired tokens. Failures do no harm: an expired token is refused by its own date.
    fn sweep(&self, now_s: u64) {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(id) =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"))
            else {
                continue;
            };
            if matches!(self.read(id), Ok(Some(kept)) if kept.expires < now_s) {
                drop(std::fs::remove_file(&path));
            }
        }
    }
}
