//! Join tokens and how often each was used. Shared by `cloudcore token` and a running cloudcore through small files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pki::Claims;
use serde::{Deserialize, Serialize};

use crate::authority::Authority;

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
    #[error("a join token cannot be made")]
    Make(#[source] pki::PkiError),
}

impl TokenError {
    /// The token is fine or not; this cloudcore cannot tell.
    pub fn is_internal(&self) -> bool {
        matches!(self, TokenError::Store { .. } | TokenError::Write(_) | TokenError::Make(_))
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

#[derive(Clone, Debug)]
pub struct Tokens {
    dir: PathBuf,
}

impl Tokens {
    pub fn open(data_dir: &Path) -> Result<Tokens, TokenError> {
        let dir = data_dir.join("tokens");
        std::fs::create_dir_all(&dir).map_err(|source| TokenError::Store { path: dir.clone(), source })?;
        Ok(Tokens { dir })
    }

    pub fn make(
        &self,
        authority: &Authority,
        ttl_s: u64,
        node: Option<&str>,
        uses: Option<usize>,
        now_s: u64,
    ) -> Result<String, TokenError> {
        let token = pki::issue_token(authority.ca(), ttl_s, node, now_s).map_err(TokenError::Make)?;
        let id = token.claims.jti.as_deref().unwrap_or_default();
        self.sweep(now_s);
        self.write(id, &Kept { expires: token.claims.exp, uses, used_by: BTreeSet::new() })?;
        Ok(token.text)
    }

    /// Who the token admits, if it may admit this node now.
    pub fn check(
        &self,
        authority: &Authority,
        bearer: &str,
        node: &str,
        now_s: u64,
    ) -> Result<Claims, TokenError> {
        if bearer.is_empty() {
            return Err(TokenError::Missing);
        }
        pki::verify_bearer(authority.ca(), bearer, node, now_s).map_err(TokenError::Refused)
    }

    /// Counts the node as admitted; the same node again is no further use.
    pub fn count_use(&self, claims: &Claims, node: &str) -> Result<(), TokenError> {
        // A token of a stock cloudcore with the same CA has no id and no count.
        let Some(id) = claims.jti.as_deref() else { return Ok(()) };
        let lock_path = self.dir.join(".lock");
        let lock = std::fs::File::create(&lock_path).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.map_err(|source| TokenError::Store { path: lock_path, source })?;
        let mut kept = self.read(id)?.ok_or(TokenError::Unknown)?;
        if kept.used_by.contains(node) {
            return Ok(());
        }
        if kept.uses.is_some_and(|uses| kept.used_by.len() >= uses) {
            return Err(TokenError::UsedUp { used: kept.used_by.len() });
        }
        kept.used_by.insert(node.to_owned());
        self.write(id, &kept)
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
