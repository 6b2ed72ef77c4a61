//! What was reached, and the copies of what is changed: one folder beside the database.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{AdoptError, Places, back, file, service::Stock};
use crate::{config::Config, credentials::Credentials, meta::MetaStore};

/// Steps in their order. Each is written down when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// The copies are made; nothing else was touched.
    BackedUp,
    /// KubeEdge's edgecore has ended, and does not come back by itself.
    Stopped,
    /// Our store holds what its database held.
    Stored,
    /// Certificate bundle and configuration are ours.
    Switched,
    Done,
    /// On the way back.
    Undoing,
}

/// `journal.json` in the folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Journal {
    pub step: Step,
    /// How KubeEdge's edgecore was run.
    pub stock: Stock,
    #[serde(skip)]
    folder: PathBuf,
}

const FILE: &str = "journal.json";

impl Journal {
    pub fn load(folder: &Path) -> Result<Option<Journal>, AdoptError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).map_err(file("read", &path))?;
        let journal: Journal = serde_json::from_slice(&text)
            .map_err(|error| AdoptError::Store(format!("{} is damaged ({error})", path.display())))?;
        Ok(Some(Journal { folder: folder.into(), ..journal }))
    }

    /// Copies everything that will change. The folder appears whole or not at all.
    pub fn begin(places: &Places, cfg: &Config, stock: Stock) -> Result<Journal, AdoptError> {
        let folder = places.backup.with_extension("making");
        let _ = fs::remove_dir_all(&folder);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(file("make", &folder))?;
        let hub = &cfg.modules.edge_hub;
        for (from, name) in [
            (&places.config, "edgecore.yaml"),
            (&hub.tls_ca_file, "rootCA.crt"),
            (&hub.tls_cert_file, "server.crt"),
            (&hub.tls_private_key_file, "server.key"),
        ] {
            copy(from, &folder.join(name))?;
        }
        let mut journal = Journal { step: Step::BackedUp, stock, folder: folder.clone() };
        journal.reach(Step::BackedUp)?;
        // What an older adoption left was given back then.
        let _ = fs::remove_dir_all(&places.backup);
        fs::rename(&folder, &places.backup).map_err(file("make", &places.backup))?;
        sync_parent(&places.backup);
        journal.folder = places.backup.clone();
        Ok(journal)
    }

    pub fn reach(&mut self, step: Step) -> Result<(), AdoptError> {
        self.step = step;
        let path = self.folder.join(FILE);
        let text = serde_json::to_vec_pretty(self).expect("a journal serialises");
        rt::atomic_write(&path, &text).map_err(|error| AdoptError::Store(rt::error_chain(&error)))
    }

    /// The database as its program left it, with what belongs to it.
    pub fn keep_database(&self, places: &Places) -> Result<(), AdoptError> {
        for end in ["", "-wal", "-journal"] {
            let from = with_end(&places.database, end);
            let to = self.folder.join(format!("edgecore.db{end}"));
            if from.exists() {
                copy(&from, &to)?;
            } else {
                let _ = fs::remove_file(&to);
            }
        }
        Ok(())
    }

    /// The configuration as it was, a certificate that was renewed meanwhile, and none of our own files.
    pub fn give_back(&self, places: &Places, cfg: &Config) -> Result<(), AdoptError> {
        let text = fs::read(self.folder.join("edgecore.yaml")).map_err(file("read", &self.folder))?;
        rt::atomic_write(&places.config, &text)
            .map_err(|error| AdoptError::Store(rt::error_chain(&error)))?;
        let hub = &cfg.modules.edge_hub;
        let bundle = Credentials {
            ca: places.bundle.clone(),
            cert: places.bundle.clone(),
            key: places.bundle.clone(),
        };
        let theirs = Credentials::new(hub);
        if let Ok(bundle) = bundle.load()
            && theirs.load().ok().is_none_or(|theirs| theirs.cert_der != bundle.cert_der)
        {
            let pem = |label, der: &[u8]| pki::pem_encode(label, der);
            for (path, text) in [
                (&hub.tls_private_key_file, bundle.key.to_pem()),
                (&hub.tls_cert_file, pem("CERTIFICATE", &bundle.cert_der)),
                (&hub.tls_ca_file, pem("CERTIFICATE", &bundle.ca_der)),
            ] {
                rt::atomic_write_private(path, text.as_bytes())
                    .map_err(|error| AdoptError::Store(rt::error_chain(&error)))?;
            }
        }
        self.give_database_back(places, &cfg.kinglet.cloud_id)?;
        let _ = fs::remove_file(&places.bundle);
        let _ = fs::remove_file(with_end(&places.bundle, ".previous"));
        for store in [&places.store, &places.store_in_work] {
            match fs::remove_dir_all(store) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(file("remove", store)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What changed since goes into KubeEdge's database, made anew from the copy.
    fn give_database_back(&self, places: &Places, cloud_id: &str) -> Result<(), AdoptError> {
        let copy = self.folder.join("edgecore.db");
        // Before the store was made, or after it was removed, there is nothing to tell.
        if !places.store.exists() || !copy.exists() {
            return Ok(());
        }
        let failed = |source| AdoptError::Database { path: copy.clone(), source };
        let database = sqlite::Database::open(&copy).map_err(failed)?;
        let store = MetaStore::open(&places.store, cloud_id).map_err(|error| {
            AdoptError::Store(format!("{}; end our edgecore first", rt::error_chain(&error)))
        })?;
        let changed = back::changes(&database, &store).map_err(failed)?;
        store.close();
        if changed.is_empty() {
            return Ok(());
        }
        let bytes = database.rewrite(&changed).map_err(failed)?;
        // A log of the old file would be played over the new one.
        for end in ["-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(with_end(&places.database, end));
        }
        rt::atomic_write_private(&places.database, &bytes)
            .map_err(|error| AdoptError::Store(rt::error_chain(&error)))
    }

    /// The adoption is history: its copies stay under another name.
    pub fn close(self) -> Result<(), AdoptError> {
        let old = self.folder.with_extension("undone");
        let _ = fs::remove_dir_all(&old);
        fs::rename(&self.folder, &old).map_err(file("rename", &self.folder))?;
        sync_parent(&old);
        Ok(())
    }
}

pub fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn copy(from: &Path, to: &Path) -> Result<(), AdoptError> {
    fs::copy(from, to).map_err(file("copy", from))?;
    // Keys and secrets of pods are among them.
    fs::set_permissions(to, fs::Permissions::from_mode(0o600)).map_err(file("protect", to))?;
    fs::File::open(to).and_then(|copy| copy.sync_all()).map_err(file("sync", to))
}

fn sync_parent(path: &Path) {
    if let Some(parent) = path.parent() {
        let _ = fs::File::open(parent).and_then(|folder| folder.sync_all());
    }
}
