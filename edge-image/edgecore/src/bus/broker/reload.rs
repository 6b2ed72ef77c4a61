//! Users and rules are read again when their files change: no restart, and so no broken connection of the others.

use std::{fs::Metadata, io, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use mqtt::broker::Acl;
use rt::Drain;

use super::{Shared, Users};

/// How often the files are looked at. A change counts when it is the same twice: it may be half written the first time.
const LOOK: Duration = Duration::from_secs(2);

/// Where users and rules come from.
#[derive(Clone, Debug, Default)]
pub struct Files {
    pub password: Option<PathBuf>,
    pub acl: Option<PathBuf>,
}

/// What changes when a file does.
#[derive(Clone, PartialEq, Eq)]
struct Stamp(Vec<Option<(i64, i64, u64, u64)>>);

impl Files {
    pub fn is_empty(&self) -> bool {
        self.password.is_none() && self.acl.is_none()
    }

    pub fn load(&self) -> anyhow::Result<(Users, Acl)> {
        let users = match &self.password {
            Some(path) => Users::load(path.clone()).context("kinglet.mqtt.passwordFile")?,
            None => Users::default(),
        };
        let acl = match &self.acl {
            Some(path) => std::fs::read_to_string(path)
                .map_err(anyhow::Error::from)
                .and_then(|text| Ok(Acl::parse(&text)?))
                .with_context(|| format!("kinglet.mqtt.aclFile: {}", path.display()))?,
            None => Acl::default(),
        };
        Ok((users, acl))
    }

    fn stamp(&self) -> Stamp {
        let of = |found: Metadata| (found.mtime(), found.mtime_nsec(), found.size(), found.ino());
        let paths = [&self.password, &self.acl].into_iter().flatten();
        Stamp(paths.map(|path| std::fs::metadata(path).ok().map(of)).collect())
    }
}

/// Until the drain. A file that cannot be read leaves everything as it is, and the log says so once.
pub(super) async fn run(files: Files, shared: Arc<Shared>, drain: Drain) -> io::Result<()> {
    let mut used = files.stamp();
    let mut seen = used.clone();
    while drain.sleep(LOOK).await {
        let now = files.stamp();
        let is_settled = now == seen;
        seen = now.clone();
        if !is_settled || now == used {
            continue;
        }
        used = now;
        match files.load() {
            Ok((users, acl)) => {
                let mut state = shared.lock();
                let has_hashed = !users.is_empty();
                state.broker.set_rules(shared.now_ms(), acl, has_hashed, |user| users.contains(user));
                shared.set_users(users);
                shared.wake(&mut state, None);
                tracing::info!("the MQTT broker has read its users and rules anew");
            }
            Err(error) => {
                tracing::error!(
                    "the MQTT broker keeps the users and rules that it has: {error:#}; correct the file"
                );
            }
        }
    }
    Ok(())
}
