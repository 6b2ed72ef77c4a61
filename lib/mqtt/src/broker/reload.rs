//! Users and rules that change while clients are connected.

use super::{Acl, Broker, ConnectionId, access::Origin, connection::Phase};
use crate::packet::reason;

impl Broker {
    /// New rules, and whether there are users whose passwords the shell checks. Every connection has its rights anew: subscriptions
    /// that they do not allow end. Clients whose user `is_known` does not know any more are disconnected; one whose password was
    /// changed stays until it connects again.
    pub fn set_rules(&mut self, now_ms: u64, acl: Acl, has_hashed: bool, is_known: impl Fn(&str) -> bool) {
        self.auth.acl = acl;
        self.auth.has_hashed = has_hashed;
        let open: Vec<ConnectionId> = self.connections.iter().flatten().map(|found| found.id).collect();
        for id in open {
            let Some(connection) = self.connection(id).filter(|found| found.phase == Phase::Up) else {
                continue;
            };
            let (origin, session) = (connection.origin.clone(), connection.session);
            let Some(at) = session else { continue };
            let Some((user, client)) =
                self.session(at).map(|found| (found.user.clone(), found.client_id.clone()))
            else {
                continue;
            };
            let is_certificate = matches!(origin, Origin::Certificate(_));
            let known = |user: &str| self.auth.users.contains_key(user) || is_known(user);
            // A name that nobody checked, on this machine, is none: the session has no user then.
            if user.as_deref().is_some_and(|user| !is_certificate && !known(user)) {
                self.fail(now_ms, id, reason::NOT_AUTHORIZED);
                continue;
            }
            let rights = self.auth.rights(&origin, user.as_deref(), &client);
            if let Some(connection) = self.connection(id) {
                connection.rights = rights;
            }
            self.revoke(id, at);
            self.write_session(at);
        }
        self.is_freed = true;
        self.resume(now_ms);
    }

    /// True when a rule of today forbids this client the topic.
    pub(super) fn denies(&self, id: ConnectionId, topic: &str) -> bool {
        let found = self.connections.get(super::slot(id)).and_then(Option::as_ref);
        found.is_some_and(|connection| connection.rights.denies(topic))
    }
}
