//! Users whose passwords are kept as hashes: lines as mosquitto_passwd writes them, `name:$7$ITERATIONS$SALT$HASH`, which is
//! PBKDF2 with HMAC-SHA512.

use std::{collections::BTreeMap, io, num::NonZeroU32, path::PathBuf, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{digest, pbkdf2};
use rt::Drain;

use super::Shared;
use crate::limits::{MQTT_ITERATIONS_MAX, MQTT_USERS_MAX};

#[derive(Clone, Debug, Default)]
pub struct Users(Arc<BTreeMap<String, Hash>>);

#[derive(Clone, Debug)]
struct Hash {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}, line {line}: not NAME:$7$ITERATIONS$SALT$HASH; write it with mosquitto_passwd")]
    Line { path: PathBuf, line: usize },
    #[error("{path} has more than {MQTT_USERS_MAX} users")]
    TooMany { path: PathBuf },
}

impl Users {
    pub fn load(path: PathBuf) -> Result<Users, UsersError> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(UsersError::Read { path, source }),
        };
        let mut users = BTreeMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse(line) {
                Some((name, hash)) => _ = users.insert(name.to_owned(), hash),
                None => return Err(UsersError::Line { path, line: at + 1 }),
            }
            if users.len() > MQTT_USERS_MAX {
                return Err(UsersError::TooMany { path });
            }
        }
        Ok(Users(Arc::new(users)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, user: &str) -> bool {
        self.0.contains_key(user)
    }

    /// Takes milliseconds to a second, as the iterations say.
    fn is_right(&self, user: &str, password: &[u8]) -> bool {
        self.0.get(user).is_some_and(|known| {
            let algorithm = pbkdf2::PBKDF2_HMAC_SHA512;
            pbkdf2::verify(algorithm, known.iterations, &known.salt, password, &known.hash).is_ok()
        })
    }
}

fn parse(line: &str) -> Option<(&str, Hash)> {
    let (name, rest) = line.split_once(':')?;
    let mut fields = rest.strip_prefix("$7$")?.split('$');
    let iterations: NonZeroU32 = fields.next()?.parse().ok()?;
    let salt = STANDARD.decode(fields.next()?).ok()?;
    let hash = STANDARD.decode(fields.next()?).ok()?;
    let is_usable = !name.is_empty()
        && fields.next().is_none()
        && hash.len() == digest::SHA512_OUTPUT_LEN
        && iterations.get() <= MQTT_ITERATIONS_MAX;
    is_usable.then_some((name, Hash { iterations, salt, hash }))
}

/// A line for the file, as mosquitto_passwd makes it.
#[cfg(test)]
fn password_line(user: &str, password: &str, salt: &[u8; 12], iterations: NonZeroU32) -> String {
    let mut hash = [0; digest::SHA512_OUTPUT_LEN];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, iterations, salt, password.as_bytes(), &mut hash);
    format!("{user}:$7${iterations}${}${}", STANDARD.encode(salt), STANDARD.encode(hash))
}

/// Checks one password after the other, off the loop: a flood of wrong ones costs one processor at most, and those behind wait.
/// One that was right is known again by a keyed digest, so that many reconnections at once cost nothing.
pub(super) async fn run(shared: Arc<Shared>, drain: Drain) -> io::Result<()> {
    let key = rt::random_u64().to_be_bytes();
    let mut known: BTreeMap<String, digest::Digest> = BTreeMap::new();
    let mut users = shared.users();
    while drain.or(shared.checks.notified()).await.is_some() {
        let checks = shared.lock().broker.take_checks();
        // The file was read anew: what was right may be so no more.
        let current = shared.users();
        if !Arc::ptr_eq(&current.0, &users.0) {
            users = current;
            known.clear();
        }
        for check in checks {
            let mut context = digest::Context::new(&digest::SHA256);
            [&key[..], check.user.as_bytes(), &[0], &check.password]
                .iter()
                .for_each(|part| context.update(part));
            let seen = context.finish();
            let is_known = known.get(&check.user).is_some_and(|have| have.as_ref() == seen.as_ref());
            let (users, user) = (users.clone(), check.user.clone());
            let is_right = is_known || rt::blocking(move || users.is_right(&user, &check.password)).await;
            if is_right && !is_known {
                known.insert(check.user, seen);
            }
            let mut state = shared.lock();
            state.broker.checked(shared.now_ms(), check.connection, is_right);
            shared.wake(&mut state, None);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mosquitto_passwd_and_our_own_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let own = password_line("ann", "pässword", b"0123456789ab", NonZeroU32::new(5).unwrap());
        std::fs::write(&path, format!("# users\n{own}\n\n")).unwrap();
        let users = Users::load(path.clone()).unwrap();
        assert!(users.is_right("ann", "pässword".as_bytes()) && !users.is_empty());
        assert!(!users.is_right("ann", b"wrong") && !users.is_right("bob", b"wrong"));
        std::fs::write(&path, "\nann:secret\n").unwrap();
        let error = Users::load(path).unwrap_err().to_string();
        assert!(
            error.contains("line 2: not NAME:$7$ITERATIONS$SALT$HASH; write it with mosquitto_passwd"),
            "{error}"
        );
    }
}
