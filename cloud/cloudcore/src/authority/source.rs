//! Where the keys are kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pki::{Ca, Key, PkiError};

use super::material::{Material, Rotation};
use super::secrets::Secrets;
use super::{Policy, ServerPair};
use crate::api::{Api, ApiError};

/// KubeEdge's name for it.
const CA_NAME: &str = "KubeEdge";

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{0} is damaged; restore it from a backup, or remove it: then every node must join again")]
    Damaged(PathBuf, #[source] PkiError),
    #[error("cannot lock {0}")]
    Lock(PathBuf, #[source] std::io::Error),
    #[error("cannot remove {0}")]
    Remove(PathBuf, #[source] std::io::Error),
    #[error("cannot keep keys")]
    Write(#[source] rt::FileError),
    #[error("cannot make keys")]
    Make(#[source] PkiError),
    #[error("Secret kubeedge/{0} cannot be used; restore it, or remove it: then every node must join again")]
    Secret(&'static str, #[source] PkiError),
    #[error("cannot {0} Secret kubeedge/{1}")]
    Api(&'static str, &'static str, #[source] ApiError),
    #[error("no change of the CA is under way; `cloudcore ca rotate` begins one")]
    NoChange,
    #[error(
        "a change of the CA is under way already; `cloudcore ca status` tells how far it is, `cloudcore ca finish` ends it"
    )]
    UnderWay,
}

#[derive(Clone)]
pub enum Source {
    /// Files in a folder of the data directory, beside an embedded API.
    Dir(PathBuf),
    /// KubeEdge's Secrets of a cluster. The folder holds what is this replica's alone.
    Secrets { api: Api, local: PathBuf },
}

impl Source {
    pub fn dir(data_dir: &Path) -> Source {
        Source::Dir(data_dir.join("pki"))
    }

    pub fn secrets(api: Api, data_dir: &Path) -> Source {
        Source::Secrets { api, local: data_dir.join("pki") }
    }

    /// How often a running cloudcore looks for changes.
    pub fn look_every(&self) -> Duration {
        match self {
            Source::Dir(_) => Duration::from_secs(2),
            Source::Secrets { .. } => Duration::from_secs(5),
        }
    }

    fn folder(&self) -> &Path {
        let (Source::Dir(dir) | Source::Secrets { local: dir, .. }) = self;
        dir
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// A cloudcore and its commands may come here at one moment.
    pub fn lock(&self) -> Result<std::fs::File, AuthorityError> {
        let dir = self.folder();
        std::fs::create_dir_all(dir).map_err(|error| AuthorityError::Lock(dir.to_owned(), error))?;
        let path = dir.join(".lock");
        let lock = std::fs::File::create(&path).and_then(|file| file.lock().map(|()| file));
        lock.map_err(|error| AuthorityError::Lock(path, error))
    }

    /// The CAs; the first one is made when there is none.
    pub async fn load_or_make(&self, now_s: u64) -> Result<Material, AuthorityError> {
        if let Source::Secrets { api, .. } = self {
            return Secrets(api).load_or_make(|| Ca::create(CA_NAME, now_s)).await;
        }
        let _lock = self.lock()?;
        let path = self.file("nodes-ca.pem");
        let active = match read_pair(&path)? {
            Some(pair) => {
                Ca::new(pair.certificate, pair.key).map_err(|error| AuthorityError::Damaged(path, error))?
            }
            None => {
                let ca = Ca::create(CA_NAME, now_s).map_err(AuthorityError::Make)?;
                write(&path, &ca.to_pem())?;
                ca
            }
        };
        let path = self.file("nodes-ca-change.pem");
        let rotation = read(&path)?
            .map(|text| Rotation::from_pem(&text).map_err(|error| AuthorityError::Damaged(path, error)));
        Ok(Material { active, rotation: rotation.transpose()? })
    }

    pub(super) async fn store_rotation(&self, rotation: &Rotation) -> Result<(), AuthorityError> {
        match self {
            Source::Dir(_) => write(&self.file("nodes-ca-change.pem"), &rotation.to_pem()),
            Source::Secrets { api, .. } => Secrets(api).store_rotation(rotation).await,
        }
    }

    pub(super) async fn store_active(&self, ca: &Ca) -> Result<(), AuthorityError> {
        match self {
            Source::Dir(_) => write(&self.file("nodes-ca.pem"), &ca.to_pem()),
            Source::Secrets { api, .. } => Secrets(api).store_active(ca).await,
        }
    }

    /// The old CA is trusted no longer.
    pub(super) async fn remove_rotation(
        &self,
        material: &Material,
        now_s: u64,
    ) -> Result<(), AuthorityError> {
        match self {
            Source::Dir(_) => {
                let path = self.file("nodes-ca-change.pem");
                std::fs::remove_file(&path).map_err(|error| AuthorityError::Remove(path, error))
            }
            Source::Secrets { api, .. } => {
                Secrets(api).renew_server(&material.active, now_s).await?;
                Secrets(api).remove_rotation().await
            }
        }
    }

    /// What this cloudcore shows. In a cluster KubeEdge's `cloudcoresecret` is used if it has the names that nodes dial; where it does
    /// not, this replica has a certificate of its own, and the Secret stays as it is for whom it fits.
    pub(super) async fn server(
        &self,
        material: &Material,
        policy: &Policy,
        now_s: u64,
    ) -> Result<ServerPair, AuthorityError> {
        let ca = &material.active;
        let fits =
            |pair: &ServerPair| ca.server_fits(&pair.certificate, &pair.key, &policy.names_needed, now_s);
        let make = || ServerPair::make(ca, &policy.names, now_s).map_err(AuthorityError::Make);
        if let Source::Secrets { api, .. } = self {
            let shared = Secrets(api).server_or_make(make).await?;
            if let Some(shared) = shared.filter(fits) {
                return Ok(shared);
            }
        }
        let _lock = self.lock()?;
        let path = self.file("hub-server.pem");
        let kept = read_pair(&path)?.filter(fits);
        let fits_all = |pair: &ServerPair| ca.server_fits(&pair.certificate, &pair.key, &policy.names, now_s);
        match kept.filter(fits_all) {
            Some(pair) => Ok(pair),
            None => {
                let pair = make()?;
                let certificate = pki::pem_encode("CERTIFICATE", &pair.certificate);
                write(&path, &format!("{certificate}{}", pair.key.to_pem()))?;
                Ok(pair)
            }
        }
    }
}

fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuthorityError::Read(path.into(), error)),
    }
}

/// Certificate and key in one PEM file, so that one never is without the other.
fn read_pair(path: &Path) -> Result<Option<ServerPair>, AuthorityError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let damaged = |error| AuthorityError::Damaged(path.into(), error);
    let certificate = pki::certificate_from_secret(text.as_bytes()).map_err(damaged)?;
    Ok(Some(ServerPair { certificate, key: Key::from_pem(&text).map_err(damaged)? }))
}

fn write(path: &Path, text: &str) -> Result<(), AuthorityError> {
    rt::atomic_write_private(path, text.as_bytes()).map_err(AuthorityError::Write)
}
