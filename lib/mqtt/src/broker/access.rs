//! Who may connect, and what each may read and write.
//!
//! On loopback and the unix socket everybody may do everything, unless users are configured or the ACL is told to hold there
//! too. Beyond, everything needs a user and a rule.

use std::collections::BTreeMap;

use crate::{
    packet::{Connect, Version, reason},
    topic::{filter_is_valid, matches},
};

/// Where a connection comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Loopback or the unix socket.
    #[default]
    Local,
    Remote,
    /// TLS with a client certificate that was verified: its name is the user.
    Certificate(String),
}

/// Who may connect. Without users, everybody on this machine and nobody else.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// Names and passwords of users that may do everything (edgecore's own).
    pub users: BTreeMap<String, String>,
    /// There are further users, whose passwords only the shell can check: see [`super::Broker::take_checks`].
    pub has_hashed: bool,
    pub acl: Acl,
    /// The ACL holds on this machine too.
    pub acl_local: bool,
    /// Client ids of the node's own publishers. They are refused (MQTT 5) where others wait for a session whose client is away.
    pub node_clients: Vec<String>,
}

/// What a CONNECT comes to.
pub(super) enum Verdict {
    Allow {
        rights: Rights,
        user: Option<String>,
    },
    /// The shell must check the password.
    Ask,
    /// A reason code of MQTT 5.
    Deny(u8),
}

impl Auth {
    /// `checked` is what the shell said of the password.
    pub(super) fn admit(&self, origin: &Origin, connect: &Connect<'_>, checked: Option<bool>) -> Verdict {
        let local = *origin == Origin::Local;
        let allow = |user: Option<&str>| Verdict::Allow {
            rights: self.rights(origin, user, connect.client_id),
            user: user.map(str::to_owned),
        };
        if let Origin::Certificate(name) = origin {
            return allow(Some(name));
        }
        if let Some(user) = connect.username {
            let given = connect.password.unwrap_or_default();
            return match (self.users.get(user), checked) {
                (Some(have), _) if equal(have.as_bytes(), given) => allow(Some(user)),
                (Some(_), _) | (None, Some(false)) => Verdict::Deny(reason::BAD_PASSWORD),
                (None, Some(true)) => allow(Some(user)),
                (None, None) if self.has_hashed => Verdict::Ask,
                // Nobody knows users here: the name says nothing.
                (None, None) if self.users.is_empty() && local => allow(None),
                (None, None) => Verdict::Deny(reason::BAD_PASSWORD),
            };
        }
        let anonymous = if local { self.users.is_empty() } else { self.acl.has_anonymous() };
        if anonymous { allow(None) } else { Verdict::Deny(reason::NOT_AUTHORIZED) }
    }
}

impl Auth {
    /// What a client that was admitted may do.
    pub(super) fn rights(&self, origin: &Origin, user: Option<&str>, client_id: &str) -> Rights {
        let is_free = *origin == Origin::Local && !self.acl_local;
        let is_certificate = matches!(origin, Origin::Certificate(_));
        let is_master = !is_certificate && user.is_some_and(|user| self.users.contains_key(user));
        if is_free || is_master { Rights::all() } else { self.acl.rights(user, client_id) }
    }
}

/// The return code of MQTT 3.1.1's CONNACK for a reason of MQTT 5.
pub(super) fn connack_code(version: Version, code: u8) -> u8 {
    match (version, code) {
        (Version::V5, _) | (_, 0) => code,
        (_, reason::UNSUPPORTED_VERSION) => 1,
        (_, reason::CLIENT_ID) => 2,
        (_, reason::BAD_PASSWORD) => 4,
        (_, reason::NOT_AUTHORIZED) => 5,
        _ => 3,
    }
}

/// Compares in a time that does not depend on where the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

/// Rules as mosquitto's `acl_file` has them (`user`, `topic`, `pattern`), and `client` beside `user`.
#[derive(Clone, Debug, Default)]
pub struct Acl {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    who: Who,
    read: bool,
    write: bool,
    /// Forbids, whatever else allows.
    deny: bool,
    filter: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Who {
    Anonymous,
    User(String),
    Client(String),
    /// With %u and %c in the filter.
    Everybody,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    #[error("line {line}: {word:?} is unknown; begin with user, client, topic or pattern")]
    Unknown { line: usize, word: String },
    #[error("line {line}: {filter:?} is no topic filter")]
    Filter { line: usize, filter: String },
    #[error("line {0}: a name is missing")]
    Name(usize),
    #[error("more than {RULES_MAX} rules")]
    TooMany,
}

/// Rules of a file; more are refused.
const RULES_MAX: usize = 4096;

impl Acl {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Acl, AclError> {
        let mut rules = Vec::new();
        let mut who = Who::Anonymous;
        for (at, line) in text.lines().enumerate() {
            let (line, number) = (line.trim(), at + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rest = rest.trim();
            match word {
                "user" | "client" if rest.is_empty() => return Err(AclError::Name(number)),
                "user" => who = Who::User(rest.to_owned()),
                "client" => who = Who::Client(rest.to_owned()),
                "topic" | "pattern" => {
                    let (access, filter) = match rest.split_once(char::is_whitespace) {
                        Some((access @ ("read" | "write" | "readwrite" | "deny"), filter)) => {
                            (access, filter.trim())
                        }
                        _ => ("readwrite", rest),
                    };
                    if !filter_is_valid(filter) {
                        return Err(AclError::Filter { line: number, filter: filter.to_owned() });
                    }
                    let who = if word == "pattern" { Who::Everybody } else { who.clone() };
                    let deny = access == "deny";
                    let (read, write) = (!deny && access != "write", !deny && access != "read");
                    rules.push(Rule { who, read, write, deny, filter: filter.to_owned() });
                }
                _ => return Err(AclError::Unknown { line: number, word: word.to_owned() }),
            }
            if rules.len() > RULES_MAX {
                return Err(AclError::TooMany);
            }
        }
        Ok(Acl { rules })
    }

    fn has_anonymous(&self) -> bool {
        self.rules.iter().any(|rule| rule.who == Who::Anonymous)
    }

    fn rights(&self, user: Option<&str>, client_id: &str) -> Rights {
        let mut rights = Rights::default();
        for rule in &self.rules {
            let filter = match &rule.who {
                Who::Anonymous if user.is_none() => Some(rule.filter.clone()),
                Who::User(name) if user == Some(name.as_str()) => Some(rule.filter.clone()),
                Who::Client(name) if client_id == name => Some(rule.filter.clone()),
                Who::Everybody => fill(&rule.filter, user, client_id),
                _ => None,
            };
            let Some(filter) = filter else { continue };
            if rule.deny {
                rights.denied.push(filter);
                continue;
            }
            if rule.read {
                rights.read.push(filter.clone());
            }
            if rule.write {
                rights.write.push(filter);
            }
        }
        rights
    }
}

/// A pattern with its names put in. A name with characters that mean something in a filter gets nothing: it could be chosen to
/// mean everything.
fn fill(pattern: &str, user: Option<&str>, client_id: &str) -> Option<String> {
    let mut filter = pattern.to_owned();
    for (mark, name) in [("%u", user), ("%c", Some(client_id))] {
        if filter.contains(mark) {
            let name = name.filter(|name| !name.is_empty() && !name.contains(['+', '#', '/', '%']))?;
            filter = filter.replace(mark, name);
        }
    }
    Some(filter)
}

/// What one connection may do.
#[derive(Clone, Debug, Default)]
pub(super) struct Rights {
    all: bool,
    read: Vec<String>,
    write: Vec<String>,
    denied: Vec<String>,
}

impl Rights {
    pub fn all() -> Rights {
        Rights { all: true, ..Rights::default() }
    }

    pub fn may_write(&self, topic: &str) -> bool {
        // The figures are the broker's own.
        !topic.starts_with("$SYS/")
            && (self.all || (self.write.iter().any(|filter| matches(filter, topic)) && !self.denies(topic)))
    }

    /// True for what a `deny` rule names, which an allowed filter may select too: it is left out of what the client gets.
    pub fn denies(&self, topic: &str) -> bool {
        self.denied.iter().any(|filter| matches(filter, topic))
    }

    /// True when everything that the filter selects may be read, but for what a `deny` rule names ([`Rights::denies`]).
    pub fn may_read(&self, filter: &str) -> bool {
        let is_denied = self.denied.iter().any(|rule| covers(rule, filter));
        self.all || (!is_denied && self.read.iter().any(|rule| covers(rule, filter)))
    }
}

/// True when `rule` selects every topic that `filter` selects.
fn covers(rule: &str, filter: &str) -> bool {
    if filter.starts_with('$') && rule.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = filter.split('/');
    for rule_level in rule.split('/') {
        match (rule_level, levels.next()) {
            ("#", _) => return true,
            ("+", Some(level)) if level != "#" => {}
            (rule_level, Some(level)) if rule_level == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_cover_filters() {
        for (rule, filter, expected) in [
            ("#", "#", true),
            ("#", "a/+/b", true),
            ("#", "$hw/x", false),
            ("$hw/#", "$hw/+/x", true),
            ("a/#", "a", true),
            ("a/#", "a/#", true),
            ("a/+", "a/+", true),
            ("a/+", "a/b", true),
            ("a/+", "a/#", false),
            ("a/b", "a/+", false),
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+/c", "a/b", false),
            ("+/b", "#", false),
        ] {
            assert_eq!(covers(rule, filter), expected, "{rule} covers {filter}");
        }
    }

    #[test]
    fn a_file_grants_what_it_lists_and_nothing_else() {
        let acl = Acl::parse(
            "# hello\ntopic read public/#\n\nuser ann\ntopic write sensors/ann\ntopic read sensors/+\nclient m\ntopic m/x\npattern readwrite home/%u/#\npattern read c/%c",
        )
        .unwrap();
        let can = |user: Option<&str>, client: &str| {
            let rights = acl.rights(user, client);
            let all = ["public/#", "sensors/+", "sensors/ann", "m/x", "home/ann/#", "c/k", "#", "$SYS/#"];
            let read: Vec<&str> = all.into_iter().filter(|filter| rights.may_read(filter)).collect();
            let write: Vec<&str> = ["public/x", "sensors/ann", "m/x", "home/ann/x", "c/k", "$SYS/x"]
                .into_iter()
                .filter(|topic| rights.may_write(topic))
                .collect();
            (read.join(" "), write.join(" "))
        };
        assert_eq!(can(None, "k"), ("public/# c/k".into(), String::new()));
        assert_eq!(
            can(Some("ann"), "x"),
            ("sensors/+ sensors/ann home/ann/#".into(), "sensors/ann home/ann/x".into())
        );
        assert_eq!(can(Some("bob"), "m"), ("m/x".into(), "m/x".into()));
        assert_eq!(can(Some("+"), "#"), (String::new(), String::new()), "names are no wildcards");
        // A rule that forbids wins over those that allow, wherever it stands.
        let acl =
            Acl::parse("user ann\ntopic deny home/safe/#\ntopic home/#\npattern deny home/+/%c").unwrap();
        let rights = acl.rights(Some("ann"), "k");
        assert!(rights.may_read("home/#") && rights.denies("home/safe/x") && rights.denies("home/a/k"));
        assert!(!rights.may_read("home/safe/x") && !rights.may_read("home/safe/#"));
        assert!(
            rights.may_write("home/x") && !rights.may_write("home/safe/x") && !rights.may_write("home/a/k")
        );
        for (text, error) in [
            ("\ngrant all", "line 2: \"grant\" is unknown; begin with user, client, topic or pattern"),
            ("topic read a#", "line 1: \"a#\" is no topic filter"),
            ("user", "line 1: a name is missing"),
        ] {
            assert_eq!(Acl::parse(text).unwrap_err().to_string(), error);
        }
    }
}
